"""Base of the adapters of JAX suites, which only map the reset, step and spaces of a suite.

The automatic resets of the suites are not used: environments of this library do not reset automatically.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax import prng
from relic_jax.config import ConfigError
from relic_jax.environment.base import ActionSpace, Box, Discrete, PyTree, Split, TimeStep, VisualEnvironment

SEEDS = {"train": range(1000), "test": range(1000, 1100)}
"""The tasks of suites without tasks: seeds of the reset, the same in all episodes of a trial."""
UNBOUNDED = 1e6
"""Bounds of observations from here on say nothing about their scale."""


def load(module: str, extra: str, name: str) -> Any:
    """Import a module of a suite for the environment `name`. Raises ConfigError with the extra if it is missing."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"env {name!r} needs the package {package}, which is missing; pip install relic-jax[{extra}]")
    try:
        with jax.ensure_compile_time_eval():  # suites create arrays on import, which must not be tracers
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"env {name!r}: {module} cannot be imported ({error}); pip install relic-jax[{extra}]"
        ) from None


def check_known(name: str, prefix: str, ids: Iterable[str]) -> None:
    """Raise ConfigError, with the closest names, if `name` is not one of the suite's environments."""
    known = [f"{prefix}:{id}" for id in ids]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"env is {name!r}; allowed: {prefix}: and an id of its suite; {hint}")


def action_space(space: Any, name: str) -> ActionSpace:
    """Convert a discrete or bounded action space of a suite. Raises ConfigError for other spaces."""
    kind, shape = type(space).__name__, tuple(getattr(space, "shape", ()))
    with jax.ensure_compile_time_eval():  # some spaces compute their sizes
        if kind == "Discrete" and shape == ():
            return Discrete(int(space.n))
        if kind == "Box" and len(shape) == 1:
            low, high = (tuple(np.broadcast_to(np.asarray(x, float), shape).tolist()) for x in (space.low, space.high))
            return Box(low, high)
    raise ConfigError(f"env is {name!r}; allowed: one with discrete actions or a bounded vector, not {space}")


class Reply(NamedTuple):
    """The result of a suite's step.

    Attributes:
        inner: State of the suite.
        seen: Observation of the suite.
        reward: Number [].
        terminated: Bool [].
        truncated: Bool []; the time limit is reached.
    """

    inner: PyTree
    seen: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


@struct.dataclass
class SuiteState:
    """The state of an episode.

    Attributes:
        inner: State of the suite.
        seen: Observation of the suite.
        opening: (inner, seen) at the start of the trial if all its episodes start in the same state, else None.
    """

    inner: PyTree
    seen: PyTree
    opening: PyTree = None


@dataclasses.dataclass(frozen=True)
class Suite(VisualEnvironment):
    """An environment of a suite.

    A subclass defines `begin`, `advance` and `action_space`, and `encode` if a policy needs another observation. By
    default, the task is a seed (`SEEDS`), int32 []: resets draw from it, so all episodes of a trial start in the same
    state, while the randomness of steps differs.

    Attributes:
        name: Name of the environment.
        id: Name of the environment in the suite.
        horizon: Steps of the longest episode.
        same_start: Whether all episodes of a trial start in the same state.
    """

    name: str
    id: str
    horizon: int

    same_start: ClassVar[bool] = True

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """Reset the suite. Return its state and its observation."""
        raise NotImplementedError

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """Take a step of the suite, without a reset."""
        raise NotImplementedError

    def encode(self, inner: PyTree, seen: PyTree) -> PyTree:
        """Return the observation of the policy. Default: the suite's, with integers and booleans as float32."""
        del inner
        return jax.tree.map(_as_input, seen)

    def reseeded(self, key: jax.Array, inner: PyTree) -> PyTree:
        """Return the start of an episode with a fresh key, if the suite keeps a key in its state."""
        del key
        return inner

    @property
    def observation_spec(self) -> PyTree:
        """Shapes and dtypes of `encode`. Only subclasses declare images."""
        return _observation_spec(self)

    def start(self, key: jax.Array, task: PyTree) -> SuiteState:
        """Start the first episode of a trial."""
        inner, seen = _settled(self.begin(prng.key(task) if self.same_start else key, task))
        opening = (inner, seen) if self.same_start else None
        return SuiteState(self.reseeded(key, inner), seen, opening)

    def restart(self, key: jax.Array, state: SuiteState, task: PyTree) -> SuiteState:
        """Start a later episode, from the stored start if all episodes start in the same state."""
        if state.opening is None:
            return self.start(key, task)
        inner, seen = state.opening
        return SuiteState(self.reseeded(key, inner), seen, state.opening)

    def transition(
        self, key: jax.Array, state: SuiteState, action: jax.Array, task: PyTree
    ) -> tuple[SuiteState, TimeStep]:
        """Take a step of the suite."""
        reply = self.advance(key, state.inner, action, task)
        terminated = jnp.asarray(reply.terminated, bool)
        inner, seen = _settled((reply.inner, reply.seen), (state.inner, state.seen))
        return SuiteState(inner, seen, state.opening), TimeStep(
            observation=None,
            reward=jnp.asarray(reply.reward, jnp.float32),
            terminated=terminated,
            truncated=jnp.asarray(reply.truncated, bool) & ~terminated,
        )

    def observe(self, state: SuiteState, task: PyTree) -> tuple[SuiteState, PyTree]:
        """Encode the suite's observation."""
        del task
        return state, self.encode(state.inner, state.seen)

    def tasks(self, split: Split) -> PyTree:
        """Return seeds, int32 [N]."""
        return np.asarray(SEEDS[split], np.int32)


@functools.cache
def _observation_spec(env: Suite) -> PyTree:
    task = jax.tree.map(lambda x: x[0], env.tasks("train"))
    return jax.eval_shape(lambda key: env.reset(key, task)[1].observation, jax.random.key(0))


def _as_input(x: jax.Array) -> jax.Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def _settled(tree: PyTree, like: PyTree | None = None) -> PyTree:
    """Convert leaves to arrays with the dtypes of `like` (None: unchanged) and no weak types, for a scan's carry."""

    def settle(x: Any, like: Any) -> jax.Array:
        is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        return x if is_key else jax.lax.convert_element_type(x, like.dtype)

    tree = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(settle, tree, tree if like is None else like)


def one_hots(values: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Concatenate one-hot vectors of categories.

    The result is uint8, since trials store observations. On a CPU, a scatter takes a sixth of the time of comparisons.

    Args:
        values: Integers [n] with values[i] in 0 … sizes[i] − 1.
        sizes: Number of categories of each value.

    Returns:
        Uint8 [Σ sizes].
    """
    first = np.cumsum([0, *sizes[:-1]])
    ones = jnp.ones((), jnp.uint8)
    return jnp.zeros(sum(sizes), jnp.uint8).at[values.astype(jnp.int32) + first].set(ones, unique_indices=True)


def finite_range(low: Any, high: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of a suite as an `observation_range`; [−1, 1] if they are infinite, UNBOUNDED or equal."""
    low, high = (np.broadcast_to(np.asarray(x, np.float32), shape).copy() for x in (low, high))
    unusable = ~(np.abs(low) < UNBOUNDED) | ~(np.abs(high) < UNBOUNDED) | ~(high > low)
    low[unusable], high[unusable] = -1.0, 1.0
    return low, high
