"""Names and a fingerprint of parameters."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

from relic_jax.types import Params


def named_parameters(params: Params) -> dict[str, Any]:
    """Return the parameters by their path in the tree, such as `encoder/action/embedding`, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def fingerprint(params: Params) -> str:
    """Return the SHA-256 of all parameters in float32.

    Two policies with the same fingerprint have the same parameters, whichever files they were loaded from.
    """
    digest = hashlib.sha256()
    for name, x in sorted(named_parameters(params).items()):
        digest.update(f"{name}{tuple(x.shape)}".encode())
        digest.update(np.ascontiguousarray(x, np.float32).tobytes())
    return "sha256:" + digest.hexdigest()
