"""The batches that a pool returns, copied from the shared memory of its workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from relic_jax.bridge import protocol
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


def collect(spec: Spec, lanes: Sequence[Lane]) -> Batch:
    """Copy the results of ready lanes into fresh arrays."""
    numbers = np.concatenate([lane.numbers for lane in lanes])
    fields = [field for field in protocol.fields(spec, len(numbers)) if not field[0].startswith("final/")]
    arrays = {name: np.empty(shape, dtype) for name, dtype, shape in fields}
    valid = np.ones(len(numbers), bool)
    start = 0
    for lane in lanes:
        rows = slice(start, start + len(lane.numbers))
        _copy(arrays, lane, rows)
        valid[rows] = lane.outcome.kind in ("step", "reset")
        start = rows.stop
    observation = {name.partition("/")[2]: value for name, value in arrays.items() if "/" in name}
    ended = arrays["terminated"] | arrays["truncated"]
    final = _final(observation, ended, lanes) if ended.any() else None
    arrays["truncated"] &= ~arrays["terminated"]
    plain = {name: arrays[name] for name in ("reward", "terminated", "truncated", "acted", "metrics")}
    return Batch(numbers, observation, valid=valid, final=final, legal=arrays.get("legal"), **plain)


def _copy(arrays: dict[str, np.ndarray], lane: Lane, rows: slice) -> None:
    """Copy the arrays of a ready lane into `rows` of a batch."""
    buffers, outcome = lane.buffers, lane.outcome
    for name, value in arrays.items():
        value[rows] = buffers[lane.buffer][name][lane.rows]
    if outcome.kind != "step":  # only the observation is meaningful
        for name in ("reward", "metrics", "terminated", "truncated"):
            arrays[name][rows] = 0
        arrays["truncated"][rows] = outcome.truncated
        arrays["acted"][rows] = buffers[outcome.before]["acted"][lane.rows]


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
