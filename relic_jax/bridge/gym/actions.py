"""gymnasium's action spaces and action masks as the bridge announces them. Worker side: Python 3.8 and numpy.

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
"""The key of `info` that holds the mask, as gymnasium's and PettingZoo's environments name it."""


def action_spec(space: Any) -> dict[str, Any]:
    """The part of a `Spec` about actions. Raises SetupError where the bridge has no such actions.

    A Box is announced as a vector; with bounds that differ between components, as one in [-1, 1].
    """
    nothing = {"actions": 0, "low": 0.0, "high": 0.0}
    kind = _kind(space)
    if kind == "discrete":
        return {**nothing, "action": ArraySpec("int32", ()), "actions": int(space.n)}
    if kind in ("multi_discrete", "multi_binary"):
        nvec = (2,) * int(np.prod(space.shape)) if kind == "multi_binary" else tuple(map(int, np.ravel(space.nvec)))
        if nvec:
            return {**nothing, "action": ArraySpec("int32", (len(nvec),)), "nvec": nvec}
    if kind == "box" and space.dtype.kind == "f" and np.isfinite([space.low, space.high]).all():
        low, high = (float(np.min(space.low)), float(np.max(space.high))) if one_range(space) else (-1.0, 1.0)
        return {"action": ArraySpec("float32", (int(space.low.size),)), "actions": 0, "low": low, "high": high}
    allowed = "Discrete, MultiDiscrete, MultiBinary, a Box of floats with finite bounds"
    raise SetupError(f"action space is {space}; allowed: {allowed}")


def _kind(space: Any) -> str:
    """By what a space has: the classes may be gymnasium's or gym's."""
    if hasattr(space, "nvec"):
        return "multi_discrete"
    if hasattr(space, "low"):
        return "box"
    if hasattr(space, "n"):
        return "multi_binary" if getattr(space, "shape", ()) else "discrete"
    return "other"


def one_range(box: Any) -> bool:
    """Whether all components of a Box have the same bounds."""
    return bool(np.ptp(box.low) == 0 and np.ptp(box.high) == 0)


def translated(space: Any, action: Any) -> Any:
    """An action as the bridge has it, in the space's own numbers, shape and dtype."""
    kind = _kind(space)
    if kind == "discrete":
        return int(getattr(space, "start", 0)) + int(action)
    own = np.reshape(action, space.shape)
    if kind == "multi_discrete":
        own = own + getattr(space, "start", 0)
    if kind == "box" and not one_range(space):
        own = np.clip(space.low + (own + 1) * 0.5 * (space.high - space.low), space.low, space.high)
    return own.astype(space.dtype)


def legal(space: Any, info: dict[str, Any]) -> np.ndarray:
    """`info["action_mask"]` as one mask, bool [n], with the choices of one component after those of the other.

    As `space.sample(mask=...)` takes it: of a MultiDiscrete (nested) tuples with a mask for each component, or one
    array of all; of a MultiBinary a 0, a 1, or a 2 (both) for each component, or two entries for each. Raises
    SetupError where there is none, or one of another size or with other values.
    """
    if info.get(MASK) is None:
        raise SetupError(f"info has no {MASK!r}; allowed: one in every step and reset, as in the first")
    try:
        mask = np.concatenate([np.ravel(np.asarray(part)) for part in _parts(info[MASK])])
    except ValueError as error:
        raise SetupError(f"info[{MASK!r}] is no mask ({error})") from None
    size = sum(_sizes(space))
    if _kind(space) == "multi_binary" and mask.size == len(_sizes(space)):
        if not np.isin(mask, (0, 1, 2)).all():
            raise SetupError(f"info[{MASK!r}] is {mask.tolist()}; allowed for a MultiBinary: 0, 1, or 2 for both")
        mask = np.stack([mask != 1, mask != 0], axis=-1).ravel()
    if mask.shape != (size,) or not np.isin(mask, (0, 1)).all():
        raise SetupError(f"info[{MASK!r}] is {mask.dtype}{list(mask.shape)}; allowed: {size} of 0 or 1")
    return mask.astype(bool)


def _sizes(space: Any) -> list[int]:
    found = action_spec(space)
    return list(found.get("nvec", ())) or [found["actions"]]


def _parts(mask: Any) -> list[Any]:
    """The arrays in nested tuples or lists of them."""
    if not isinstance(mask, (tuple, list)) or not any(isinstance(x, (tuple, list, np.ndarray)) for x in mask):
        return [mask]
    return [leaf for part in mask for leaf in _parts(part)]
