"""Settings of JAX's random number generator. A resumed run keeps those it started with, even if JAX's have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax

IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
ORIGINAL = {"implementation": "threefry2x32", "partitionable": True}
"""The settings of runs that did not record them."""


def current() -> dict[str, Any]:
    """Return the current values of `jax_default_prng_impl` and `jax_threefry_partitionable` as JSON values."""
    config: Any = jax.config
    return {
        "implementation": str(config.jax_default_prng_impl),
        "partitionable": bool(getattr(config, "jax_threefry_partitionable", True)),
    }


def is_known(settings: Any) -> bool:
    """Return whether this is a value that `current` can return."""
    return (
        isinstance(settings, dict)
        and set(settings) == set(ORIGINAL)
        and settings["implementation"] in IMPLEMENTATIONS
        and isinstance(settings["partitionable"], bool)
    )


def key(seed: Any) -> jax.Array:
    """Return the threefry key of a task, an evaluation or an agent, independent of JAX's default.

    Args:
        seed: An integer, or an integer array ``[]``.
    """
    return jax.random.key(seed, impl="threefry2x32")


@contextmanager
def using(settings: dict[str, Any]) -> Iterator[None]:
    """Create and use keys under `settings`, a value of `current`, within the context."""
    partitionable = getattr(jax, "threefry_partitionable", lambda _: nullcontext())  # JAX may remove this setting
    with jax.default_prng_impl(settings["implementation"]), partitionable(settings["partitionable"]):
        yield
