"""Conversion of gymnasium's action spaces and action masks. Python 3.8 and numpy.

The action of the bridge for each space:

    Discrete (any start)              one discrete action, counted from 0
    MultiDiscrete (any shape, start)  `Spec.nvec`, its components in C order, each counted from 0
    MultiBinary (any shape)           `Spec.nvec` of twos
    Box of finite floats              a vector
"""

from __future__ import annotations

from typing import Any

import numpy as np

from relic_jax.bridge.protocol import ArraySpec
from relic_jax.bridge.worker import SetupError

MASK = "action_mask"
"""The key of `info` with the mask, as in gymnasium and PettingZoo."""


def action_spec(space: Any) -> dict[str, Any]:
    """Return the fields of `Spec` that describe actions.

    A Box whose bounds differ between components becomes a vector in [-1, 1].

    Raises:
        SetupError: The space is not supported.
    """
    unbounded = {"actions": 0, "low": 0.0, "high": 0.0}
    kind = _kind(space)
    if kind == "discrete":
        return {**unbounded, "action": ArraySpec("int32", ()), "actions": int(space.n)}
    if kind in ("multi_discrete", "multi_binary"):
        nvec = (2,) * int(np.prod(space.shape)) if kind == "multi_binary" else tuple(map(int, np.ravel(space.nvec)))
        if nvec:
            return {**unbounded, "action": ArraySpec("int32", (len(nvec),)), "nvec": nvec}
    if kind == "box" and space.dtype.kind == "f" and np.isfinite([space.low, space.high]).all():
        low, high = (float(np.min(space.low)), float(np.max(space.high))) if has_uniform_bounds(space) else (-1.0, 1.0)
        return {"action": ArraySpec("float32", (int(space.low.size),)), "actions": 0, "low": low, "high": high}
    allowed = "Discrete, MultiDiscrete, MultiBinary, a Box of floats with finite bounds"
    raise SetupError(f"action space is {space}; allowed: {allowed}")


def _kind(space: Any) -> str:
    """Return the kind of a space, by its attributes: classes can be those of gymnasium or gym."""
    if hasattr(space, "nvec"):
        return "multi_discrete"
    if hasattr(space, "low"):
        return "box"
    if hasattr(space, "n"):
        return "multi_binary" if getattr(space, "shape", ()) else "discrete"
    return "other"


def has_uniform_bounds(box: Any) -> bool:
    """Return whether all components of a Box have the same bounds."""
    return bool(np.ptp(box.low) == 0 and np.ptp(box.high) == 0)


def to_gym(space: Any, action: Any) -> Any:
    """Convert an action of the bridge to the range, shape and dtype of a space."""
    kind = _kind(space)
    if kind == "discrete":
        return int(getattr(space, "start", 0)) + int(action)
    value = np.reshape(action, space.shape)
    if kind == "multi_discrete":
        value = value + getattr(space, "start", 0)
    if kind == "box" and not has_uniform_bounds(space):
        value = np.clip(space.low + (value + 1) * 0.5 * (space.high - space.low), space.low, space.high)
    return value.astype(space.dtype)


def legal(space: Any, info: dict[str, Any]) -> np.ndarray:
    """Convert `info["action_mask"]` to one mask, bool [n], that concatenates the choices of all components.

    The formats are those of `space.sample(mask=...)`. MultiDiscrete: (nested) tuples with a mask for each component,
    or one array. MultiBinary: 0, 1 or 2 (both) for each component, or two entries for each.

    Raises:
        SetupError: The mask is missing, or has another size or other values.
    """
    if info.get(MASK) is None:
        raise SetupError(f"info has no {MASK!r}; allowed: one in every step and reset, as in the first")
    try:
        mask = np.concatenate([np.ravel(np.asarray(part)) for part in _parts(info[MASK])])
    except ValueError as error:
        raise SetupError(f"info[{MASK!r}] is not a mask ({error})") from None
    size = sum(_sizes(space))
    if _kind(space) == "multi_binary" and mask.size == len(_sizes(space)):
        if not np.isin(mask, (0, 1, 2)).all():
            raise SetupError(f"info[{MASK!r}] is {mask.tolist()}; allowed for a MultiBinary: 0, 1, or 2 for both")
        mask = np.stack([mask != 1, mask != 0], axis=-1).ravel()
    if mask.shape != (size,) or not np.isin(mask, (0, 1)).all():
        raise SetupError(f"info[{MASK!r}] is {mask.dtype}{list(mask.shape)}; allowed: {size} of 0 or 1")
    return mask.astype(bool)


def _sizes(space: Any) -> list[int]:
    spec = action_spec(space)
    return list(spec.get("nvec", ())) or [spec["actions"]]


def _parts(mask: Any) -> list[Any]:
    """Return the arrays in nested tuples or lists."""
    if not isinstance(mask, (tuple, list)) or not any(isinstance(x, (tuple, list, np.ndarray)) for x in mask):
        return [mask]
    return [leaf for part in mask for leaf in _parts(part)]
