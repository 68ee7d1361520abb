"""JAX's global settings. What would change results or break shapes is set aside inside our functions, thread by thread.

A program that uses this library can keep its own settings, such as 64-bit numbers, for its own computations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import jax

from relic_jax.runtime import ConfigError

STANDARD = {
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "threefry_partitionable": True,
}
"""What this library computes with, by the name of JAX's setting (`jax_…`, in the environment `JAX_…`)."""

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


@contextmanager
def standard() -> Iterator[None]:
    """Within it, the settings are STANDARD. Raises ConfigError where one cannot be set aside."""
    check()
    with ExitStack() as stack:
        for name, value in STANDARD.items():
            setting: Any = getattr(jax, name, None)
            if setting is not None:  # JAX may give one up
                stack.enter_context(setting(value))
        yield


def with_standard(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """`function`, called with STANDARD settings."""

    @functools.wraps(function)
    def called(*arguments: Inputs.args, **named: Inputs.kwargs) -> Output:
        with standard():
            return function(*arguments, **named)

    return called


def check() -> None:
    """Raises ConfigError where compilation is off: programs are compiled whole, with what they donate and share."""
    config: Any = jax.config
    if config.jax_disable_jit:
        raise ConfigError("jax_disable_jit (JAX_DISABLE_JIT) is True; allowed: False, JAX's default")
