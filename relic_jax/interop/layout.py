"""Convert between PyTorch's arrays and our parameters with permutations and reshapes only, which are exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from relic_jax.config import ConfigError
from relic_jax.types import Params

EXACT = ("float32", "float16", "bfloat16")
"""Dtypes that float32 holds exactly."""


class Entry(NamedTuple):
    """One array in both layouts.

    Attributes:
        theirs: Name in PyTorch.
        ours: Path in our parameters, joined by slashes.
        kind: Layout. "same" in both; "linear" is ``[out, in]`` in PyTorch and ``[in, out]`` here; "convolution" is
            ``[O, I, H, W]`` in PyTorch and ``[H, W, I, O]`` here, or the same with the first three axes merged.
        shape: Shape in PyTorch, if our shape and the kind do not determine it.
    """

    theirs: str
    ours: str
    kind: Literal["same", "linear", "convolution"] = "same"
    shape: tuple[int, ...] | None = None


def their_shape(entry: Entry, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array in PyTorch from its shape in our parameters."""
    if entry.shape is not None:
        return entry.shape
    return {"same": ours, "linear": ours[::-1], "convolution": (ours[-1], *ours[-2:-1], *ours[:-2])}[entry.kind]


def to_ours(array: np.ndarray, entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    """Convert an array to our layout: float32 of the given shape."""
    axes = {"same": None, "linear": (1, 0), "convolution": (2, 3, 1, 0)}[entry.kind]
    array = array.astype(np.float32)
    return (array if axes is None else array.transpose(axes)).reshape(shape)


def to_theirs(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Convert a float32 array to PyTorch's layout, the inverse of `to_ours`."""
    shape = their_shape(entry, array.shape)
    if entry.kind == "same":
        return array.reshape(shape)
    if entry.kind == "linear":
        return array.T
    out, into, height, width = shape
    return array.reshape(height, width, into, out).transpose(3, 2, 0, 1)


def get(params: Params, path: str) -> Any:
    """Return the array at a path joined by slashes."""
    for name in path.split("/"):
        params = params[name]
    return params


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Build a tree of parameters from paths joined by slashes."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def paths(params: Params) -> list[str]:
    """Return the paths of all arrays, joined by slashes."""
    found, _ = jax.tree_util.tree_flatten_with_path(params)
    return ["/".join(str(part.key) for part in path) for path, _ in found]


def read(entries: Sequence[Entry], arrays: Mapping[str, np.ndarray], like: Params, field: str) -> Params:
    """Convert PyTorch's arrays to our parameters.

    Args:
        entries: The arrays to convert.
        arrays: PyTorch's arrays by name.
        like: Our parameters, or their shapes.
        field: Where the arrays come from, for the message.

    Returns:
        The parameters that `entries` name.

    Raises:
        ConfigError: If an array is missing, or has another shape or a dtype that float32 cannot represent exactly.
    """
    found = {}
    for entry in entries:
        shape = tuple(get(like, entry.ours).shape)
        array = arrays.get(entry.theirs)
        if array is None:
            raise ConfigError(f"{field} lacks {entry.theirs!r}; it has: {', '.join(sorted(arrays)[:4]) or 'nothing'} …")
        expected = their_shape(entry, shape)
        if array.shape != expected:
            raise ConfigError(f"{field} has {entry.theirs!r} of shape {list(array.shape)}; allowed: {list(expected)}")
        if array.dtype.name not in EXACT:
            raise ConfigError(f"{field} has {entry.theirs!r} of {array.dtype.name}; allowed: {', '.join(EXACT)}")
        found[entry.ours] = to_ours(array, entry, shape)
    return nested(found)


def write(entries: Sequence[Entry], params: Params) -> dict[str, np.ndarray]:
    """Convert our parameters to PyTorch's arrays, float32."""
    return {entry.theirs: to_theirs(np.asarray(get(params, entry.ours), np.float32), entry) for entry in entries}
