"""Action spaces: discrete actions, several of them at a time, and bounded vectors."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)


class ActionSpace(Protocol):
    """A set of actions, hashable. A policy has units of its own: the environment's, or [−1, 1] (`Box`).

    `to_env`, `to_policy` and `from_env` work on arrays of numpy and of jax with any leading axes.
    """

    @property
    def n(self) -> int:
        """Number of actions, or of an action's components."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one action."""
        ...

    @property
    def dtype(self) -> Any:
        """Of an action."""
        ...

    @property
    def mask_size(self) -> int:
        """Entries of a mask of legal actions: one for each choice; 0 where there is none to mask (`Box`)."""
        ...

    @property
    def null_action(self) -> int:
        """Fills the place of the previous action at the first step of an episode."""
        ...

    @property
    def expert_mark(self) -> float:
        """Asks an environment in a worker process to let its scripted expert act, in the place of every component."""
        ...

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """A uniformly random action in the environment's units. key: typed PRNG key [].

        legal: bool [mask_size], which choices it is drawn from; None: all.
        """
        ...

    def draw(self, random: np.random.Generator, count: int, legal: np.ndarray | None = None) -> np.ndarray:
        """`count` of them from a numpy generator. legal: bool [count, mask_size]; None: all choices."""
        ...

    def allows(self, legal: Array, action: Array) -> Array:
        """Whether actions are legal: bool [...]. legal: bool [..., mask_size]. action: in the environment's units."""
        ...

    def playable(self, legal: Array) -> Array:
        """Whether masks leave an action at all: bool [...]. legal: bool [..., mask_size]."""
        ...

    def to_env(self, action: Array) -> Array:
        """What a policy's action is to the environment."""
        ...

    def to_policy(self, action: Array) -> Array:
        """What the policy reads of its own action at the next step."""
        ...

    def from_env(self, action: Array) -> Array:
        """What an action of the environment's is to a policy; the inverse of `to_env`."""
        ...


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 … n−1, as int32 []."""

    n: int

    shape: ClassVar[tuple[int, ...]] = ()
    dtype: ClassVar[Any] = np.dtype(np.int32)
    null_action: ClassVar[int] = -1
    expert_mark: ClassVar[float] = -1

    def __str__(self) -> str:
        return f"{self.n} actions"

    @property
    def mask_size(self) -> int:
        """n."""
        return self.n

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """A uniformly random action, int32 []. key: typed PRNG key []. legal: bool [n]; None: all."""
        if legal is None:
            return jax.random.randint(key, (), 0, self.n, jnp.int32)
        return jnp.argmax(jnp.where(legal, jax.random.uniform(key, (self.n,)), -1.0)).astype(jnp.int32)

    def draw(self, random: np.random.Generator, count: int, legal: np.ndarray | None = None) -> np.ndarray:
        """Uniformly random actions, int [count]. legal: bool [count, n]; None: all."""
        if legal is None:
            return random.integers(self.n, size=count)
        return np.where(legal, random.random((count, self.n)), -1.0).argmax(-1)

    def allows(self, legal: Array, action: Array) -> Array:
        """bool [...]. legal: bool [..., n]. action: integer [...]."""
        allowed: Any = legal & (np.arange(self.n) == action[..., None])
        return allowed.any(-1)

    def playable(self, legal: Array) -> Array:
        """bool [...]: at least one is legal. legal: bool [..., n]."""
        found: Any = legal.any(-1)
        return found

    def to_env(self, action: Array) -> Array:
        """The action itself."""
        return action

    to_policy = from_env = to_env


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several discrete actions at a time: vectors with 0 … nvec[i] − 1 in component i, as int32 [n].

    A mask of legal actions has the choices of one component after those of the other, bool [sum(nvec)]; an action is
    legal where every component is. Raises ValueError where a component has no choice.
    """

    nvec: tuple[int, ...]

    dtype: ClassVar[Any] = np.dtype(np.int32)
    null_action: ClassVar[int] = -1
    expert_mark: ClassVar[float] = -1

    def __post_init__(self) -> None:
        """Checks the sizes."""
        if (
            not isinstance(self.nvec, tuple)
            or not self.nvec
            or not all(isinstance(size, int) and size > 0 for size in self.nvec)
        ):
            raise ValueError(f"a MultiDiscrete has nvec {self.nvec!r}; allowed: a tuple of ints, each 1 or more")

    def __str__(self) -> str:
        return f"actions of {self.n} choices among " + " × ".join(map(str, self.nvec))

    @property
    def n(self) -> int:
        """Components of an action."""
        return len(self.nvec)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (len(self.nvec),)

    @property
    def mask_size(self) -> int:
        """sum(nvec)."""
        return sum(self.nvec)

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """A uniformly random action, int32 [n]. key: typed PRNG key []. legal: bool [sum(nvec)]; None: all."""
        noise = jax.random.uniform(key, (self.mask_size,))
        noise = noise if legal is None else jnp.where(legal, noise, -1.0)
        return jnp.stack([jnp.argmax(part) for part in self._parts(noise)]).astype(jnp.int32)

    def draw(self, random: np.random.Generator, count: int, legal: np.ndarray | None = None) -> np.ndarray:
        """Uniformly random actions, int [count, n]. legal: bool [count, sum(nvec)]; None: all."""
        noise = random.random((count, self.mask_size))
        noise = noise if legal is None else np.where(legal, noise, -1.0)
        return np.stack([part.argmax(-1) for part in self._parts(noise)], axis=-1)

    def allows(self, legal: Array, action: Array) -> Array:
        """bool [...]. legal: bool [..., sum(nvec)]. action: integer [..., n]."""
        parts = enumerate(zip(self.nvec, self._parts(legal), strict=True))
        allowed: Any = [Discrete(n).allows(part, action[..., i]) for i, (n, part) in parts]
        return functools.reduce(operator.and_, allowed)

    def playable(self, legal: Array) -> Array:
        """bool [...]: every component has a legal choice. legal: bool [..., sum(nvec)]."""
        return functools.reduce(operator.and_, [part.any(-1) for part in self._parts(legal)])

    def _parts(self, choices: Any) -> list[Any]:
        """[..., sum(nvec)] by component."""
        ends = np.cumsum(self.nvec)
        return [choices[..., end - size : end] for end, size in zip(ends.tolist(), self.nvec, strict=True)]

    def to_env(self, action: Array) -> Array:
        """The action itself."""
        return action

    to_policy = from_env = to_env


@dataclasses.dataclass(frozen=True)
class Box:
    """Vectors of n numbers, low[i] ≤ a[i] ≤ high[i], as float32 [n]. To a policy they are −1 … 1, whatever the bounds.

    What a policy chooses outside of that is clipped to the bounds, so an environment sees none. Raises ValueError where
    the bounds are not finite, not of one length or the wrong way round.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    dtype: ClassVar[Any] = np.dtype(np.float32)
    mask_size: ClassVar[int] = 0
    null_action: ClassVar[int] = 0
    expert_mark: ClassVar[float] = float("nan")

    def __post_init__(self) -> None:
        """Checks the bounds."""
        with np.errstate(over="ignore", invalid="ignore"):
            low, high = (np.asarray(end, np.float32) for end in (self.low, self.high))
            fits = low.shape == high.shape and low.size > 0 and bool((np.isfinite(high - low) & (low < high)).all())
        if not fits:
            allowed = "finite, as many, low below high, in float32"
            raise ValueError(f"a Box is low {self.low}, high {self.high}; allowed: {allowed}")

    def __str__(self) -> str:
        bounds = sorted(set(zip(self.low, self.high, strict=True)))
        return f"actions of {self.n} numbers in " + ", ".join(f"[{low:g}, {high:g}]" for low, high in bounds)

    @property
    def n(self) -> int:
        """Components of an action."""
        return len(self.low)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (len(self.low),)

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """A uniformly random action, float32 [n]. key: typed PRNG key []. legal: not read."""
        del legal
        return jax.random.uniform(key, self.shape, jnp.float32, jnp.asarray(self.low), jnp.asarray(self.high))

    def draw(self, random: np.random.Generator, count: int, legal: np.ndarray | None = None) -> np.ndarray:
        """Uniformly random actions, float32 [count, n]. legal: not read."""
        del legal
        return random.uniform(self.low, self.high, (count, self.n)).astype(np.float32)

    def allows(self, legal: Array, action: Array) -> Array:
        """There is nothing to mask."""
        raise NotImplementedError

    def playable(self, legal: Array) -> Array:
        """There is nothing to mask."""
        raise NotImplementedError

    def to_env(self, action: Array) -> Array:
        """From −1 … 1, clipped, to the bounds, which rounding does not exceed. float32 [..., n]."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        scaled: Any = low + (self.to_policy(action) + 1) * (0.5 * (high - low))
        return scaled.clip(low, high)

    def to_policy(self, action: Array) -> Array:
        """Clipped to −1 … 1. float32 [..., n]."""
        return action.clip(-1.0, 1.0)

    def from_env(self, action: Array) -> Array:
        """From the bounds to −1 … 1, clipped. float32 [..., n]."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        scaled: Any = 2 * ((action - low) / (high - low)) - 1
        return scaled.clip(-1.0, 1.0)
