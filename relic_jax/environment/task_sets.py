"""Facts about task sets: pytrees of arrays with a common leading axis over tasks."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np


def num_tasks(tasks: Any) -> int:
    """Return the number of tasks in a task set, the length of its leading axis."""
    return int(jax.tree.leaves(tasks)[0].shape[0])


def split_hash(tasks: Any) -> str:
    """Return the first 12 hex digits of SHA-256 over dtypes, shapes and bytes of the task arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tasks):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]
