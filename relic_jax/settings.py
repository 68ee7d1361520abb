"""Override JAX's global settings inside this library's functions, for the current thread.

Settings that would change results or shapes have fixed values there. A program that uses this library can keep other
settings, such as 64-bit numbers, for its own computations.
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
"""The values that this library uses, by the name of JAX's setting (`jax_…`; as an environment variable, `JAX_…`)."""

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


@contextmanager
def standard() -> Iterator[None]:
    """Use the settings in STANDARD within the context. Raises ConfigError if compilation is disabled."""
    check()
    with ExitStack() as stack:
        for name, value in STANDARD.items():
            setting: Any = getattr(jax, name, None)
            if setting is not None:  # JAX may remove a setting
                stack.enter_context(setting(value))
        yield


def with_standard(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """Return a function that calls `function` under the settings in STANDARD."""

    @functools.wraps(function)
    def called(*arguments: Inputs.args, **named: Inputs.kwargs) -> Output:
        with standard():
            return function(*arguments, **named)

    return called


def check() -> None:
    """Raise ConfigError if compilation is disabled. The library relies on it, for example to donate buffers."""
    config: Any = jax.config
    if config.jax_disable_jit:
        raise ConfigError("jax_disable_jit (JAX_DISABLE_JIT) is True; allowed: False, JAX's default")
