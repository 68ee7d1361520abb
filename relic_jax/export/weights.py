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


def rounded(params: Params, dtype: Dtype) -> Params:
    """Round parameters to the values that a file in `dtype` restores.

    Args:
        params: The parameters.
        dtype: Dtype of the file.

    Returns:
        float32 parameters.

    Raises:
        ConfigError: If a parameter is not finite in `dtype`.
    """
    found = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32).astype(dtype).astype(jnp.float32), params)
    for name, x in named_parameters(found).items():
        if not np.isfinite(x).all():
            raise ConfigError(f"dtype is {dtype!r}; allowed: one that holds all weights ({name} is not finite in it)")
    return found


def write(path: Path, params: Params, dtype: Dtype, metadata: dict[str, str]) -> None:
    """Write the file. ``metadata`` is stored in its header."""
    arrays = {name: np.ascontiguousarray(jnp.asarray(x).astype(dtype)) for name, x in named_parameters(params).items()}
    path.write_bytes(save(arrays, metadata))
