"""Verify an export: run it beside the original policy and measure the differences."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from relic_jax import runtime, step
from relic_jax.models.policy import Policy
from relic_jax.runtime import MASKED, Arrays, Backend
from relic_jax.spaces import is_image
from relic_jax.types import Params

STEPS = 200
EPISODE = 37  # steps of the longest episode, for several episodes within STEPS
TOLERANCE = 1e-5
"""Tolerance for float32 activations: the largest difference in an output, relative to the output's largest number if
that is more than 1. Rounding errors of a sum are proportional to its terms."""
TOLERANCE_BFLOAT16 = 2e-2
"""Tolerance for bfloat16 activations, which have 8 bits of precision, after a few layers."""


class Beside:
    """A backend that passes its inputs to two backends, compares the outputs, and returns those of the reference.

    Attributes:
        largest: The largest difference so far.
        scaled: The largest difference so far relative to the output's largest number if that is more than 1.
    """

    def __init__(self, reference: Backend, other: Backend) -> None:
        """Create the backend. Its outputs are those of `reference`."""
        self._both = reference, other
        self.largest = self.scaled = 0.0

    def empty(self, batch: int, slots: int) -> Arrays:
        """See `Backend`."""
        return {"both": tuple(backend.empty(batch, slots) for backend in self._both)}

    def to_device(self, arrays: dict[str, np.ndarray]) -> Arrays:
        """See `Backend`."""
        return {"both": tuple(backend.to_device(arrays) for backend in self._both)}

    def to_host(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """See `Backend`."""
        return self._both[0].to_host(arrays["both"][0])

    def step(self, arrays: Arrays, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Arrays]:
        """See `Backend`."""
        stepped = [b.step(own, dict(inputs)) for b, own in zip(self._both, arrays["both"], strict=True)]
        (expected, _), (found, _) = stepped
        for name, x in expected.items():
            hidden = (x < MASKED / 2) & (found[name] < MASKED / 2)  # logits of illegal actions
            x = np.where(hidden, 0, x)
            difference = np.abs(np.where(hidden, 0, np.asarray(found[name], np.float64)) - x)
            if not np.isfinite(difference).all():
                difference = np.full_like(difference, np.inf)
            self.largest = max(self.largest, float(difference.max()))
            self.scaled = max(self.scaled, float(difference.max() / max(np.abs(x).max(), 1)))
        return expected, {"both": tuple(after for _, after in stepped)}

    def shift(self, arrays: Arrays, slots: int, turn: np.ndarray | None) -> Arrays:
        """See `Backend`."""
        return {"both": tuple(b.shift(own, slots, turn) for b, own in zip(self._both, arrays["both"], strict=True))}

    def hold(self, arrays: Arrays, rows: np.ndarray) -> Arrays:
        """See `Backend`."""
        return {"both": tuple(b.hold(own, rows) for b, own in zip(self._both, arrays["both"], strict=True))}


def live(about: Mapping[str, Any], policy: Policy, params: Params) -> runtime.Jax:
    """Return a backend that runs the policy itself. ``about`` is the content of its config.json."""

    @functools.partial(jax.jit, donate_argnums=1)
    def run(params: Params, arrays: Arrays, inputs: Arrays) -> Any:
        return runtime.in_place(functools.partial(step.step, policy, params))(arrays, inputs)

    return runtime.Jax(about, functools.partial(run, params))


def compare(
    about: Mapping[str, Any], reference: Backend, other: Backend, *, batch: int, context: int, steps: int = STEPS
) -> dict[str, Any]:
    """Run two backends on the same steps of several episodes, with actions sampled from the reference.

    Args:
        about: Content of config.json.
        reference: The backend that samples the actions.
        other: The backend to compare.
        batch: Number of environments.
        context: Number of slots of the context.
        steps: Number of steps.

    Returns:
        The arguments and the largest differences, plain numbers.
    """
    beside, random = Beside(reference, other), np.random.default_rng(0)
    agent = runtime.Agent(
        about, beside, batch=batch, capacity=context, full="drop", seed=0, greedy=False, slots=context
    )
    spaces = about["spaces"]
    longest = min(EPISODE, spaces["horizon"], context)
    actions = runtime.Actions(spaces["action"])
    ended, ends, age = np.zeros(batch, bool), 0, np.zeros(batch, int)
    for _ in range(steps):
        rewards = random.uniform(-1, 1, batch).astype(np.float32)
        truncated = ended & (random.random(batch) < 0.5)
        legal = _legal(actions, random, batch)
        agent.step(_observation(spaces, random, batch), rewards, ended & ~truncated, truncated, legal=legal)
        ends += int(ended.sum())
        age = np.where(ended, 1, age + 1)
        ended = (random.random(batch) < 1.5 / longest) | (age >= longest)
    return {
        "steps": steps,
        "batch": batch,
        "episode_ends": ends,
        "largest_difference": beside.largest,
        "largest_scaled_difference": beside.scaled,
    }


def _legal(actions: runtime.Actions, random: np.random.Generator, batch: int) -> np.ndarray | None:
    """Sample masks with at least one legal choice per component, bool [batch, n]. None if actions are not masked."""
    if not actions.masked:
        return None
    noise = random.random((batch, sum(actions.sizes)))
    return np.concatenate(
        [part >= np.minimum(part.max(-1, keepdims=True), 0.5) for part in actions.parts(noise)], axis=-1
    )


def _observation(spaces: Mapping[str, Any], random: np.random.Generator, batch: int) -> Any:
    """Sample an observation uniformly within the range of each component, with any pixels in images."""
    low, high = np.asarray(spaces["low"]), np.asarray(spaces["high"])
    taken = 0

    def draw(spec: Mapping[str, Any]) -> Any:
        nonlocal taken
        if "keys" in spec:
            return {key: draw(spec["keys"][key]) for key in sorted(spec["keys"])}
        if "items" in spec:
            return tuple(draw(item) for item in spec["items"])
        shape, dtype = (batch, *spec["shape"]), np.dtype(spec["dtype"])
        if is_image(spec):
            pixels = random.integers(0, 256, shape)
            return pixels.astype(dtype) if dtype.kind in "iub" else (pixels / 127.5 - 1).astype(dtype)
        size = int(np.prod(spec["shape"]))
        start, stop = (end[taken : taken + size].reshape(spec["shape"]) for end in (low, high))
        taken += size
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            first, last = (np.clip(end, limits.min, limits.max).astype(dtype) for end in (np.ceil(start), stop))
            return random.integers(first, np.maximum(first, last), shape, dtype, endpoint=True)
        if dtype.kind == "b":
            return random.random(shape) < 0.5
        return random.uniform(start, stop, shape).astype(dtype)

    return draw(spaces["observation"])
