"""Arrays of a context: their shapes, and the two ways in which their slots move."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import ConfigError

Arrays = dict[str, Any]
"""Arrays by name: keys and values [B, H, S, D] of each layer, `episodes` [B, S]; or a recurrent state."""
_ROPE_BASE = 10_000.0  # as relic_jax.models.attention


def slots_axis(name: str) -> int:
    """Return the axis of the slots in an array of a context."""
    return 1 if name == "episodes" else 2


def shift_slots(xp: Any, arrays: Arrays, shift: Any, turn: Any) -> Arrays:
    """Remove the oldest slots, and renumber episodes.

    Keys that are rotated by the index of their episode are rotated back accordingly.

    Args:
        xp: numpy or jax.numpy.
        arrays: The context.
        shift: Slots to remove.
        turn: int32 [B], the amount by which each row's episodes are numbered lower; None: they keep their numbers.
    """

    def rotate_back(keys: Any) -> Any:
        half = keys.shape[-1] // 2
        angle = xp.asarray(turn, xp.float32)[:, None, None, None] * xp.asarray(_ROPE_BASE ** (-np.arange(half) / half))
        cos, sin = xp.cos(angle).astype(xp.float32), xp.sin(angle).astype(xp.float32)
        a, b = keys[..., :half], keys[..., half:]
        return xp.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)

    moved = {name: xp.roll(x, -shift, axis=slots_axis(name)) for name, x in arrays.items()}
    if turn is None:
        return moved
    moved["episodes"] = moved["episodes"] - turn[:, None]
    return {name: rotate_back(x) if name.startswith("rotated_keys") else x for name, x in moved.items()}


def hold_rows(xp: Any, arrays: Arrays, rows: Any) -> Arrays:
    """Undo the last step in some rows: move their slots up by one, so that all rows end in the same slot.

    Args:
        xp: numpy or jax.numpy.
        arrays: The context after the step.
        rows: bool [B], rows that do not act.
    """

    def hold(name: str, x: Any) -> Any:
        chosen = rows.reshape(-1, *(1,) * (x.ndim - 1))
        return xp.where(chosen, xp.roll(x, 1, axis=slots_axis(name)), x)

    return {name: hold(name, x) for name, x in arrays.items()}


def empty_arrays(about: Mapping[str, Any], batch: int, slots: int) -> dict[str, np.ndarray]:
    """Return a context of zeros, with the shapes in the `step.memory` section of a config.json.

    Raises:
        ConfigError: If the arrays need more memory than the machine has.
    """
    sizes = {"batch": batch, "context": slots}
    shapes = [[sizes.get(size, size) for size in array["shape"]] for array in about["step"]["memory"]]
    dtypes = [_dtype(array["dtype"]) for array in about["step"]["memory"]]
    check_memory(
        sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)), batch, slots
    )
    names = [array["name"] for array in about["step"]["memory"]]
    return {name: np.zeros(shape, dtype) for name, shape, dtype in zip(names, shapes, dtypes, strict=True)}


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":  # numpy gets it from ml_dtypes, a dependency of jax
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def check_memory(size: int, batch: int, slots: int) -> None:
    """Raise ConfigError if contexts need more bytes than the machine has memory, if the system reports it."""
    try:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    if size > available:
        allowed = f"a size that fits into {available / 2**20:,.0f} MiB of memory; this takes {size / 2**20:,.0f} MiB"
        raise ConfigError(f"capacity is {slots}, of {batch} contexts; allowed: {allowed}")
