"""Names and a fingerprint of parameters, and their names in files of legacy formats."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from relic_jax.types import Params, PyTree

LEGACY_NAMES = {"spatial_attention": "glance"}
"""Maps the current name of a renamed module to its name in checkpoints of formats 1 and 2 and in exports of format 1.
These files exist, and `fingerprint` hashes the names in them, so the values of this dictionary must not change."""


def named_parameters(params: Params) -> dict[str, Any]:
    """Return the parameters by their path in the tree, such as `encoder/action/embedding`, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def fingerprint(params: Params) -> str:
    """Return the SHA-256 of all parameters in float32.

    Two policies with the same fingerprint have the same parameters, whichever files they were loaded from. It is
    computed with the legacy names, because saved contexts and exports contain fingerprints.
    """
    digest = hashlib.sha256()
    for name, x in sorted(named_parameters(with_legacy_names(params)).items()):
        digest.update(f"{name}{tuple(x.shape)}".encode())
        digest.update(np.ascontiguousarray(x, np.float32).tobytes())
    return "sha256:" + digest.hexdigest()


def with_legacy_names(tree: PyTree) -> PyTree:
    """Replace the current names in `LEGACY_NAMES` by the legacy ones.

    Args:
        tree: Parameters, or a tree that contains trees of parameters, such as the state of an optimizer.
    """
    return _renamed(tree, LEGACY_NAMES)


def with_current_names(tree: PyTree) -> PyTree:
    """Invert `with_legacy_names`. A tree with current names does not change."""
    return _renamed(tree, {legacy: name for name, legacy in LEGACY_NAMES.items()})


def _renamed(tree: PyTree, names: Mapping[str, str]) -> PyTree:
    def has_name(x: Any) -> bool:
        return isinstance(x, dict) and not names.keys().isdisjoint(x)

    def renamed(x: Any) -> Any:
        return {names.get(name, name): value for name, value in x.items()} if has_name(x) else x

    return jax.tree.map(renamed, tree, is_leaf=has_name)
