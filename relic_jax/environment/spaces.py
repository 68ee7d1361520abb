"""Action spaces: discrete actions (`Discrete`), several at a time (`MultiDiscrete`), and bounded vectors (`Box`)."""

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
    """A set of actions. Spaces are hashable.

    A policy acts in its own units: those of the environment, or [−1, 1] for a `Box`. `to_env`, `to_policy` and
    `from_env` work on numpy and jax arrays with any leading axes.
    """

    @property
    def n(self) -> int:
        """The number of actions, or of an action's components."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one action."""
        ...

    @property
    def dtype(self) -> Any:
        """The dtype of an action."""
        ...

    @property
    def mask_size(self) -> int:
        """The length of a mask of legal actions, one entry per choice. 0 if there is nothing to mask (`Box`)."""
        ...

    @property
    def null_action(self) -> int:
        """The previous action at the first step of an episode, in every component."""
        ...

    @property
    def expert_mark(self) -> float:
        """An action that asks an environment in a worker process to let its expert act, in every component."""
        ...

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """Draw a uniformly random action.

        Args:
            key: Typed PRNG key [].
            legal: bool [mask_size]. The choices to draw from. None: all.

        Returns:
            An action in the environment's units.
        """
        ...

    def draw(self, random: np.random.Generator, count: int, legal: np.ndarray | None = None) -> np.ndarray:
        """Draw `count` uniformly random actions with numpy.

        Args:
            random: The generator.
            count: Number of actions.
            legal: bool [count, mask_size]. The choices to draw from. None: all.

        Returns:
            Actions in the environment's units, with leading axis `count`.
        """
        ...

    def allows(self, legal: Array, action: Array) -> Array:
        """Return whether actions are legal, bool [...].

        Args:
            legal: bool [..., mask_size].
            action: Actions in the environment's units.
        """
        ...

    def playable(self, legal: Array) -> Array:
        """Return whether masks, bool [..., mask_size], leave at least one legal action: bool [...]."""
        ...

    def to_env(self, action: Array) -> Array:
        """Convert a policy's action to the environment's units."""
        ...

    def to_policy(self, action: Array) -> Array:
        """Convert a policy's action to the form in which the policy reads it at the next step."""
        ...

    def from_env(self, action: Array) -> Array:
        """Convert an action from the environment's units to the policy's. The inverse of `to_env`."""
        ...


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 … n − 1 as int32 [].

    Attributes:
        n: Number of actions.
    """

    n: int

    shape: ClassVar[tuple[int, ...]] = ()
    dtype: ClassVar[Any] = np.dtype(np.int32)
    null_action: ClassVar[int] = -1
    expert_mark: ClassVar[float] = -1

    def __str__(self) -> str:
        return f"{self.n} actions"

    @property
    def mask_size(self) -> int:
        """The number of actions."""
        return self.n

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """Draw a uniformly random action, int32 []. `legal` is bool [n]; None: all actions."""
        if legal is None:
            return jax.random.randint(key, (), 0, self.n, jnp.int32)
        return jnp.argmax(jnp.where(legal, jax.random.uniform(key, (self.n,)), -1.0)).astype(jnp.int32)

    def draw(self, random: np.random.Generator, count: int, legal: np.ndarray | None = None) -> np.ndarray:
        """Draw uniformly random actions, int [count]. `legal` is bool [count, n]; None: all actions."""
        if legal is None:
            return random.integers(self.n, size=count)
        return np.where(legal, random.random((count, self.n)), -1.0).argmax(-1)

    def allows(self, legal: Array, action: Array) -> Array:
        """Return whether actions (integer [...]) are legal, bool [...]. `legal` is bool [..., n]."""
        allowed: Any = legal & (np.arange(self.n) == action[..., None])
        return allowed.any(-1)

    def playable(self, legal: Array) -> Array:
        """Return whether at least one action is legal, bool [...]. `legal` is bool [..., n]."""
        any_legal: Any = legal.any(-1)
        return any_legal

    def to_env(self, action: Array) -> Array:
        """Return the action unchanged."""
        return action

    to_policy = from_env = to_env


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several discrete actions at a time: int32 [n] with component i in 0 … nvec[i] − 1.

    A mask of legal actions, bool [sum(nvec)], concatenates the choices of the components. An action is legal if all its
    components are.

    Attributes:
        nvec: Number of choices of each component.

    Raises:
        ValueError: If a component has no choice.
    """

    nvec: tuple[int, ...]

    dtype: ClassVar[Any] = np.dtype(np.int32)
    null_action: ClassVar[int] = -1
    expert_mark: ClassVar[float] = -1

    def __post_init__(self) -> None:
        """Check the sizes."""
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
        """The number of components of an action."""
        return len(self.nvec)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an action, (n,)."""
        return (len(self.nvec),)

    @property
    def mask_size(self) -> int:
        """The number of choices of all components."""
        return sum(self.nvec)

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """Draw a uniformly random action, int32 [n]. `legal` is bool [sum(nvec)]; None: all choices."""
        noise = jax.random.uniform(key, (self.mask_size,))
        noise = noise if legal is None else jnp.where(legal, noise, -1.0)
        return jnp.stack([jnp.argmax(part) for part in self._parts(noise)]).astype(jnp.int32)

    def draw(self, random: np.random.Generator, count: int, legal: np.ndarray | None = None) -> np.ndarray:
        """Draw uniformly random actions, int [count, n]. `legal` is bool [count, sum(nvec)]; None: all choices."""
        noise = random.random((count, self.mask_size))
        noise = noise if legal is None else np.where(legal, noise, -1.0)
        return np.stack([part.argmax(-1) for part in self._parts(noise)], axis=-1)

    def allows(self, legal: Array, action: Array) -> Array:
        """Return whether actions (integer [..., n]) are legal, bool [...]. `legal` is bool [..., sum(nvec)]."""
        parts = enumerate(zip(self.nvec, self._parts(legal), strict=True))
        allowed: Any = [Discrete(n).allows(part, action[..., i]) for i, (n, part) in parts]
        return functools.reduce(operator.and_, allowed)

    def playable(self, legal: Array) -> Array:
        """Return whether every component has a legal choice, bool [...]. `legal` is bool [..., sum(nvec)]."""
        return functools.reduce(operator.and_, [part.any(-1) for part in self._parts(legal)])

    def _parts(self, choices: Any) -> list[Any]:
        """Split [..., sum(nvec)] by component."""
        ends = np.cumsum(self.nvec)
        return [choices[..., end - size : end] for end, size in zip(ends.tolist(), self.nvec, strict=True)]

    def to_env(self, action: Array) -> Array:
        """Return the action unchanged."""
        return action

    to_policy = from_env = to_env


@dataclasses.dataclass(frozen=True)
class Box:
    """Vectors of n numbers with low[i] ≤ a[i] ≤ high[i], float32 [n]. The policy acts in [−1, 1] for any bounds.

    Actions of the policy outside [−1, 1] are clipped, so the environment's actions are always within the bounds.

    Attributes:
        low: Lower bound of each component.
        high: Upper bound of each component.

    Raises:
        ValueError: If the bounds are not finite, differ in length, or a lower bound is not below the upper one.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    dtype: ClassVar[Any] = np.dtype(np.float32)
    mask_size: ClassVar[int] = 0
    null_action: ClassVar[int] = 0
    expert_mark: ClassVar[float] = float("nan")

    def __post_init__(self) -> None:
        """Check the bounds."""
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
        """The number of components of an action."""
        return len(self.low)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an action, (n,)."""
        return (len(self.low),)

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """Draw a uniformly random action, float32 [n]. `legal` is ignored."""
        del legal
        return jax.random.uniform(key, self.shape, jnp.float32, jnp.asarray(self.low), jnp.asarray(self.high))

    def draw(self, random: np.random.Generator, count: int, legal: np.ndarray | None = None) -> np.ndarray:
        """Draw uniformly random actions, float32 [count, n]. `legal` is ignored."""
        del legal
        return random.uniform(self.low, self.high, (count, self.n)).astype(np.float32)

    def allows(self, legal: Array, action: Array) -> Array:
        """Raise NotImplementedError: a `Box` has no masks."""
        raise NotImplementedError

    def playable(self, legal: Array) -> Array:
        """Raise NotImplementedError: a `Box` has no masks."""
        raise NotImplementedError

    def to_env(self, action: Array) -> Array:
        """Clip to [−1, 1] and scale to the bounds, which rounding never exceeds. float32 [..., n]."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        scaled: Any = low + (self.to_policy(action) + 1) * (0.5 * (high - low))
        return scaled.clip(low, high)

    def to_policy(self, action: Array) -> Array:
        """Clip to [−1, 1]. float32 [..., n]."""
        return action.clip(-1.0, 1.0)

    def from_env(self, action: Array) -> Array:
        """Scale from the bounds to [−1, 1] and clip. float32 [..., n]."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        scaled: Any = 2 * ((action - low) / (high - low)) - 1
        return scaled.clip(-1.0, 1.0)
