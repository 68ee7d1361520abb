"""Write parameters to a safetensors file in a selected dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from relic_jax.parameters import named_parameters
from relic_jax.runtime import ConfigError
from relic_jax.types import Params

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES = ("float32", "float16", "bfloat16")


EXACT = "encoder/statistics/"
"""Start of the names of arrays that are always in float32, because float16 cannot hold the number of observations."""


def rounded(params: Params, dtype: Dtype) -> Params:
    """Round parameters to the values that a file in `dtype` restores. Running statistics of observations are kept.

    Args:
        params: The parameters.
        dtype: Dtype of the file.

    Returns:
        float32 parameters.

    Raises:
        ConfigError: If a parameter is not finite in `dtype`.
    """
    found = {name: x.astype(jnp.float32) for name, x in _stored(params, dtype).items()}
    for name, x in found.items():
        if not np.isfinite(x).all():
            raise ConfigError(f"dtype is {dtype!r}; allowed: one that holds all weights ({name} is not finite in it)")
    return jax.tree.unflatten(jax.tree.structure(params), found.values())


def _stored(params: Params, dtype: Dtype) -> dict[str, jax.Array]:
    """Return the arrays of a file in `dtype`, by name."""
    return {
        name: jnp.asarray(x, jnp.float32).astype("float32" if name.startswith(EXACT) else dtype)
        for name, x in named_parameters(params).items()
    }


def write(path: Path, params: Params, dtype: Dtype, metadata: dict[str, str]) -> None:
    """Write the file. ``metadata`` is stored in its header."""
    arrays = {name: np.array(x, order="C") for name, x in _stored(params, dtype).items()}
    path.write_bytes(save(arrays, metadata))
