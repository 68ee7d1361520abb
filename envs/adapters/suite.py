"""What adapters of JAX suites share: they map a suite's reset, step and spaces, everything else is here.

The suites' own auto-resets are never used: an environment here does not reset itself.
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
"""The tasks of suites that have none: what the suite draws from a seed at reset, again in every episode."""
UNBOUNDED = 1e6
"""From here on a bound of an observation says nothing about its scale."""


def load(module: str, extra: str, name: str) -> Any:
    """A suite's module. Raises ConfigError where it is missing, which names the extra. name: of the environment."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"env {name!r} needs the package {package}, which is missing; pip install relic-jax[{extra}]")
    try:
        with jax.ensure_compile_time_eval():  # suites make arrays when they are imported; they must not be a trace's
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"env {name!r}: {module} cannot be imported ({error}); pip install relic-jax[{extra}]"
        ) from None


def check_known(name: str, prefix: str, ids: Iterable[str]) -> None:
    """Raises ConfigError that offers the nearest names where a suite has no environment of the id in `name`."""
    known = [f"{prefix}:{id}" for id in ids]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"env is {name!r}; allowed: {prefix}: and an id of its suite; {hint}")


def action_space(space: Any, name: str) -> ActionSpace:
    """Ours for a suite's discrete or bounded space. Raises ConfigError for any other."""
    kind, shape = type(space).__name__, tuple(getattr(space, "shape", ()))
    with jax.ensure_compile_time_eval():  # some compute their sizes
        if kind == "Discrete" and shape == ():
            return Discrete(int(space.n))
        if kind == "Box" and len(shape) == 1:
            low, high = (tuple(np.broadcast_to(np.asarray(x, float), shape).tolist()) for x in (space.low, space.high))
            return Box(low, high)
    raise ConfigError(f"env is {name!r}; allowed: one with discrete actions or a bounded vector, not {space}")


class Reply(NamedTuple):
    """What a suite answers to a step. inner: its state. seen: its observation. terminated, truncated: apart."""

    inner: PyTree
    seen: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


@struct.dataclass
class SuiteState:
    """inner: the suite's state. seen: its observation there. opening: both as the trial's first episode opened, kept
    where every episode opens alike (None elsewhere).
    """

    inner: PyTree
    seen: PyTree
    opening: PyTree = None


@dataclasses.dataclass(frozen=True)
class Suite(VisualEnvironment):
    """An environment of a suite. Subclasses define `begin`, `advance`, `action_space` and, where the suite's
    observation is not what a policy should read, `encode`.

    By default the task is a seed (`SEEDS`), int32 []: what the suite draws at reset is drawn from it, so all episodes
    of a trial open alike, while what it draws in steps differs.
    """

    name: str
    id: str
    horizon: int

    opens_alike: ClassVar[bool] = True

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """The suite's reset: (its state, its observation)."""
        raise NotImplementedError

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """The suite's step, without any reset."""
        raise NotImplementedError

    def encode(self, inner: PyTree, seen: PyTree) -> PyTree:
        """What the policy reads. Default: the suite's observation, its integers and booleans as float32."""
        del inner
        return jax.tree.map(_as_input, seen)

    def reseeded(self, key: jax.Array, inner: PyTree) -> PyTree:
        """The state of an episode's start with randomness of its own, where the suite keeps a key in its state."""
        del key
        return inner

    @property
    def observation_spec(self) -> PyTree:
        """Shapes and dtypes of `encode`; no images unless a subclass declares `Image`s."""
        return _observation_spec(self)

    def start(self, key: jax.Array, task: PyTree) -> SuiteState:
        """A trial's first episode."""
        inner, seen = _settled(self.begin(prng.key(task) if self.opens_alike else key, task))
        opening = (inner, seen) if self.opens_alike else None
        return SuiteState(self.reseeded(key, inner), seen, opening)

    def restart(self, key: jax.Array, state: SuiteState, task: PyTree) -> SuiteState:
        """A later one: where all open alike, nothing needs to be generated again."""
        if state.opening is None:
            return self.start(key, task)
        inner, seen = state.opening
        return SuiteState(self.reseeded(key, inner), seen, state.opening)

    def transition(
        self, key: jax.Array, state: SuiteState, action: jax.Array, task: PyTree
    ) -> tuple[SuiteState, TimeStep]:
        """The suite's step."""
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
        """`encode` of what the suite shows."""
        del task
        return state, self.encode(state.inner, state.seen)

    def tasks(self, split: Split) -> PyTree:
        """Seeds, int32 [N]."""
        return np.asarray(SEEDS[split], np.int32)


@functools.cache
def _observation_spec(env: Suite) -> PyTree:
    task = jax.tree.map(lambda x: x[0], env.tasks("train"))
    return jax.eval_shape(lambda key: env.reset(key, task)[1].observation, jax.random.key(0))


def _as_input(x: jax.Array) -> jax.Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def _settled(tree: PyTree, like: PyTree | None = None) -> PyTree:
    """Arrays of the dtypes of `like` (None: their own), none of them weak: a scan carries them."""

    def settle(x: Any, like: Any) -> jax.Array:
        is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        return x if is_key else jax.lax.convert_element_type(x, like.dtype)

    tree = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(settle, tree, tree if like is None else like)


def one_hots(values: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Categories, [n] with values[i] in 0 … sizes[i] − 1, one-hot one after the other: uint8 [Σ sizes].

    uint8, since a trial keeps what was seen. A scatter takes a CPU a sixth of the time of comparisons.
    """
    first = np.cumsum([0, *sizes[:-1]])
    ones = jnp.ones((), jnp.uint8)
    return jnp.zeros(sum(sizes), jnp.uint8).at[values.astype(jnp.int32) + first].set(ones, unique_indices=True)


def finite_range(low: Any, high: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A suite's bounds as an `observation_range`: −1 … 1 where they are infinite, as good as that, or equal."""
    low, high = (np.broadcast_to(np.asarray(x, np.float32), shape).copy() for x in (low, high))
    vague = ~(np.abs(low) < UNBOUNDED) | ~(np.abs(high) < UNBOUNDED) | ~(high > low)
    low[vague], high[vague] = -1.0, 1.0
    return low, high
