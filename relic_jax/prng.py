"""How JAX makes random numbers. A run goes on with what it began with, whatever JAX's settings are by then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax

IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
ORIGINAL = {"implementation": "threefry2x32", "partitionable": True}
"""What runs used before it was recorded."""


def current() -> dict[str, Any]:
    """JAX's settings now, as JSON values: `jax_default_prng_impl` and `jax_threefry_partitionable`."""
    config: Any = jax.config
    return {
        "implementation": str(config.jax_default_prng_impl),
        "partitionable": bool(getattr(config, "jax_threefry_partitionable", True)),
    }


def is_known(settings: Any) -> bool:
    """Whether this is what `current` gives."""
    return (
        isinstance(settings, dict)
        and set(settings) == set(ORIGINAL)
        and settings["implementation"] in IMPLEMENTATIONS
        and isinstance(settings["partitionable"], bool)
    )


def key(seed: Any) -> jax.Array:
    """The key of a task, an evaluation or an agent: threefry, whatever JAX's default. seed: int or integer array []."""
    return jax.random.key(seed, impl="threefry2x32")


@contextmanager
def using(settings: dict[str, Any]) -> Iterator[None]:
    """Within it, `jax.random.key` and what is drawn from keys follow `settings` (of `current`)."""
    partitionable = getattr(jax, "threefry_partitionable", lambda _: nullcontext())  # a setting that JAX may give up
    with jax.default_prng_impl(settings["implementation"]), partitionable(settings["partitionable"]):
        yield
