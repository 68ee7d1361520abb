"""Checks of single values, which the `validate` methods of the configuration dataclasses share.

Compiled code cannot hold every Python number: sizes and counters of a trial are int32 there, real numbers float32. The
steps of a run are counted in two words (`relic_jax.rl.steps`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from relic_jax.errors import ConfigError

LARGEST = 2**31 - 1
"""Largest size or counter in compiled code (int32)."""
MAX_STEPS = 10**15
"""Largest number of environment steps of a run; every JSON reader keeps integers of this size exactly."""
UNSIGNED = frozenset({"seed", "total_steps", "ppo.warmup_steps"})
"""Integer fields that have their own limits."""
TINY, HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Smallest and largest magnitude of a normal float32. Smaller numbers become 0 in compiled code."""
MAX_LAYERS, MAX_EPOCHS, MAX_WORKERS, MAX_SECONDS = 256, 10_000, 10_000, 1_000_000
"""Limits beyond which a run would not finish: every layer is traced separately, every worker is a process."""


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raise ConfigError `FIELD is VALUE; allowed: ALLOWED` if the condition is false."""
    if not condition:
        raise ConfigError(f"{field} is {shown(value)}; allowed: {allowed}")


def shown(value: Any) -> str:
    """Return a value as text for an error, without the middle of a long one."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]} … {text[-50:]}"


def nearest(name: Any, known: Iterable[str], separator: str = ".") -> str | None:
    """Return the known name that is nearest to a mistyped one, or None.

    The last part of a name counts if the whole does not fit, because people leave out its start. Of names with equal
    last parts, the first is returned.

    Args:
        name: What was written.
        known: The names that are allowed.
        separator: Separates the parts of a name.
    """
    known, written = list(known), str(name)
    if near := difflib.get_close_matches(written, known, n=1):
        return near[0]
    ends: dict[str, str] = {}
    for candidate in known:
        ends.setdefault(candidate.rpartition(separator)[2], candidate)
    near = difflib.get_close_matches(written.rpartition(separator)[2], ends, n=1)
    return ends[near[0]] if near else None


def did_you_mean(name: Any, known: Iterable[str], show: Callable[[str], str] = str, separator: str = ".") -> str:
    """Return `; did you mean NAME?` with the nearest known name as `show` writes it, or "". See `nearest`."""
    near = nearest(name, known, separator)
    return "" if near is None else f"; did you mean {show(near)}?"


def check_value(field: str, value: Any) -> None:
    """Raise ConfigError if compiled code cannot hold a number, or the operating system a text."""
    if isinstance(value, float):
        require(math.isfinite(value), field, value, "a finite number")
        require(abs(value) <= HUGE, field, value, f"at most {HUGE:.3g}, the largest float32")
        require(value == 0 or abs(value) >= TINY, field, value, f"0, or at least {TINY:.3g}, the smallest float32")
    elif isinstance(value, int) and field not in UNSIGNED:
        require(abs(value) <= LARGEST, field, value, "less than 2^31")
    elif isinstance(value, str):
        require("\0" not in value, field, value, "text without NUL")


def check_positive(config: Any, section: str, *fields: str) -> None:
    """Raise ConfigError at the first of the fields that is not positive. section: dotted name of the config."""
    for field in fields:
        value = getattr(config, field)
        require(value > 0, f"{section}.{field}" if section else field, value, "more than 0")


def check_most(field: str, value: float, limit: int) -> None:
    """Raise ConfigError if a value is above its limit."""
    require(value <= limit, field, value, f"at most {limit:,}")
