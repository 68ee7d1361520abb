"""The batches that a pool returns, copied from the shared memory of its workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from relic_jax.bridge.member import Lane
from relic_jax.bridge.protocol import Spec


class Batch(NamedTuple):
    """The answers of b environments. Arrays are copies that the caller owns, with leading axis b."""

    environments: np.ndarray
    """int32; indices of the environments."""
    observation: dict[str, np.ndarray]
    """Arrays by name; what the policy observes next."""
    reward: np.ndarray
    """float32."""
    terminated: np.ndarray
    """bool. The next episode has started already."""
    truncated: np.ndarray
    """bool; never true where `terminated` is."""
    acted: np.ndarray
    """The executed actions."""
    metrics: np.ndarray
    """float32 [b, len(spec.metrics)]; metrics of this step."""
    valid: np.ndarray
    """bool. False: the outcome of the step is unknown, see `pool`."""
    final: dict[str, np.ndarray] | None
    """Last observation of each episode that ended, `observation` elsewhere; None if no episode ended."""
    legal: np.ndarray | None = None
    """bool [b, spec.mask_size]; actions that are legal next; None if the environments have no masks."""


_PLAIN = ("reward", "terminated", "truncated", "acted", "metrics")  # fields of `Batch` with the same array names


def collect(spec: Spec, lanes: Sequence[Lane]) -> Batch:
    """Copy the results of ready lanes into fresh arrays."""
    numbers = np.concatenate([lane.numbers for lane in lanes])
    sources = [(lane.buffers[lane.buffer], lane.rows) for lane in lanes]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([buffer[name][rows] for buffer, rows in sources])

    arrays = {name: joined(name) for name in _PLAIN}
    observation = {name: joined(f"observation/{name}") for name in spec.observation}
    legal = joined("legal") if spec.masks else None
    valid = np.ones(len(numbers), bool)
    start = 0
    for lane in lanes:
        rows = slice(start, start + len(lane.numbers))
        if lane.outcome.kind != "step":
            _clear(arrays, lane, rows)
        valid[rows] = lane.outcome.kind in ("step", "reset")
        start = rows.stop
    ended = arrays["terminated"] | arrays["truncated"]
    final = _final(observation, ended, lanes) if ended.any() else None
    arrays["truncated"] &= ~arrays["terminated"]
    return Batch(numbers, observation, valid=valid, final=final, legal=legal, **arrays)


def _clear(arrays: dict[str, np.ndarray], lane: Lane, rows: slice) -> None:
    """Clear everything but the observation in the `rows` of a lane that has not stepped."""
    for name in ("reward", "metrics", "terminated", "truncated"):
        arrays[name][rows] = 0
    arrays["truncated"][rows] = lane.outcome.truncated
    arrays["acted"][rows] = lane.buffers[lane.outcome.before]["acted"][lane.rows]


def _final(observation: dict[str, np.ndarray], ended: np.ndarray, lanes: Sequence[Lane]) -> dict[str, np.ndarray]:
    """Return the last observations of ended episodes; for lost ones, the observation that the policy acted on."""
    final = {name: value.copy() for name, value in observation.items()}
    start = 0
    for lane in lanes:
        rows = np.flatnonzero(ended[start : start + len(lane.numbers)])
        known = lane.outcome.kind == "step"
        arrays = lane.buffers[lane.buffer if known else lane.outcome.before]
        for name in final if len(rows) else ():
            source = arrays[("final/" if known else "observation/") + name][lane.rows]
            final[name][start + rows] = source[rows]
        start += len(lane.numbers)
    return final
