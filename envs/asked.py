"""Targets of object navigation: the option `asked`, and random targets for hindsight relabeling."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from relic_jax.config import ConfigError


def read_asked(name: str, asked: int | str | None, kinds: int) -> int | tuple[int, ...] | None:
    """Return the value of `env.asked` as a number, several numbers, or None for all.

    Args:
        name: Name of the environment.
        asked: The option's value.
        kinds: Number of kinds of objects.

    Raises:
        ConfigError: A number is not in 1 … kinds, or the text is not a list of numbers.
    """
    if asked is None:
        return None
    words = str(asked).split(",")
    numbers = tuple(int(word) for word in words if word.isdecimal())
    if len(numbers) < len(words) or not all(1 <= number <= kinds for number in numbers):
        allowed = f"1 to {kinds} for {name!r}, several such numbers (1,2), or None for all"
        raise ConfigError(f"env.asked is {asked!r}; allowed: {allowed}")
    return numbers if len(numbers) > 1 else numbers[0]


def sample_observed(key: jax.Array, observed: jax.Array, target: jax.Array) -> jax.Array:
    """Sample for each step of a trial one of the kinds that were observed at this step or before.

    Args:
        key: Typed PRNG key [].
        observed: Whether each kind is observed, bool [T, K].
        target: Float32 [T, K]; one-hot. Kept at steps before the first observed kind.

    Returns:
        Float32 [T, K]; one-hot.
    """
    known = jax.lax.cummax(observed.astype(jnp.int32)) > 0
    draws = jnp.where(known, jax.random.uniform(key, known.shape), -1.0)
    drawn = jax.nn.one_hot(draws.argmax(-1), known.shape[1], dtype=target.dtype)
    return jnp.where(known.any(-1, keepdims=True), drawn, target)
