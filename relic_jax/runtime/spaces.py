"""Observation and action spaces as JSON: validation, and the arrays of an observation by name."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .actions import Actions
from .errors import ConfigError, require, short

UNBOUNDED = 2**31 - 1
"""Largest int32: a limit where there is no limit."""
DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
)
"""Dtypes of arrays in files."""


def named_leaves(spec: Mapping[str, Any], tree: Any, name: str = "observation") -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, spec, leaf) of every array of an observation, in tree order.

    Args:
        spec: The `observation` section of a config.json: {"keys": {name: spec}}, {"items": [spec]}, or {"shape",
            "dtype"} for an array.
        tree: The observation.
        name: Name of the root.

    Raises:
        ConfigError: If the observation has another structure.
    """
    if "keys" in spec:
        if not isinstance(tree, Mapping) or set(tree) != set(spec["keys"]):
            actual = sorted(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
            raise ConfigError(f"{name} is {actual}; allowed: a dictionary with the keys {sorted(spec['keys'])}")
        for key in sorted(spec["keys"]):
            yield from named_leaves(spec["keys"][key], tree[key], f"{name}.{key}")
    elif "items" in spec:
        if not isinstance(tree, tuple | list) or len(tree) != len(spec["items"]):
            raise ConfigError(f"{name} is {type(tree).__name__}; allowed: a tuple of {len(spec['items'])}")
        for index, item in enumerate(spec["items"]):
            yield from named_leaves(item, tree[index], f"{name}.{index}")
    else:
        yield name, spec, tree


def blank_observation(spec: Mapping[str, Any]) -> Any:
    """Return an observation of zeros."""
    if "keys" in spec:
        return {key: blank_observation(item) for key, item in spec["keys"].items()}
    if "items" in spec:
        return tuple(blank_observation(item) for item in spec["items"])
    return np.zeros(spec["shape"], spec["dtype"])


def is_integer(value: Any, low: int, high: int) -> bool:
    """Return whether a JSON value is an integer in low … high."""
    return type(value) is int and low <= value <= high


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) in (int, float) and abs(x) < 1e300 for x in value)


def check_spaces(spaces: Any) -> None:
    """Check the `spaces` section of a config.json.

    Raises:
        ConfigError: If a JSON value does not describe a policy's observations and actions.
    """
    require(isinstance(spaces, dict), "spaces", spaces, "an object")
    for name in ("observation", "low", "high", "action", "horizon"):
        require(name in spaces, f"spaces.{name}", None, "a value")
    check_observation(spaces["observation"])
    for end in ("low", "high"):
        require(_are_numbers(spaces[end]), f"spaces.{end}", spaces[end], "a list of numbers")
    low, high = spaces["low"], spaces["high"]
    ordered = len(low) == len(high) and all(map(operator.le, low, high))
    require(ordered, "spaces.high", high, f"as many numbers as spaces.low ({short(low)}) has, none of them lower")
    require(is_integer(spaces["horizon"], 1, UNBOUNDED), "spaces.horizon", spaces["horizon"], "1 … 2^31 − 1")
    check_action(spaces["action"])


def check_observation(spec: Any, name: str = "observation", depth: int = 0) -> None:
    """Raise ConfigError if a JSON value does not describe an observation, see `named_leaves`."""
    whole = isinstance(spec, dict) and depth < 32
    require(whole, name, spec, 'an object with "keys", "items", or "shape" and "dtype"')
    if "keys" in spec:
        require(isinstance(spec["keys"], dict), f"{name}.keys", spec["keys"], "an object")
        for key, item in spec["keys"].items():
            check_observation(item, f"{name}.{key}", depth + 1)
    elif "items" in spec:
        require(isinstance(spec["items"], list), f"{name}.items", spec["items"], "a list")
        for index, item in enumerate(spec["items"]):
            check_observation(item, f"{name}.{index}", depth + 1)
    else:
        shape, dtype = spec.get("shape"), spec.get("dtype")
        sizes = isinstance(shape, list) and all(is_integer(size, 0, UNBOUNDED) for size in shape)
        fits = sizes and len(shape) <= 8 and math.prod(shape) <= UNBOUNDED
        require(fits, f"{name}.shape", shape, "a list of at most 8 integers, whose product is below 2^31")
        require(dtype in DTYPES, f"{name}.dtype", dtype, ", ".join(DTYPES))


def check_action(action: Any) -> None:
    """Raise ConfigError if a JSON value does not describe an action space."""
    require(isinstance(action, dict), "action", action, "an object")
    fields = {"discrete": ("n",), "multi_discrete": ("nvec",), "box": ("low", "high")}
    kind = action.get("type")
    require(isinstance(kind, str) and kind in fields, "action.type", kind, ", ".join(map(repr, fields)))
    for name in fields[kind]:
        require(name in action, f"action.{name}", None, "a value")
    if kind == "discrete":
        require(is_integer(action["n"], 1, 2**20), "action.n", action["n"], "1 … 2^20")
    if kind == "multi_discrete":
        sizes = action["nvec"]
        fits = isinstance(sizes, list) and len(sizes) > 0 and all(is_integer(size, 1, 2**20) for size in sizes)
        require(fits, "action.nvec", sizes, "a list of numbers, each 1 … 2^20")
    if kind == "box":
        low, high = action["low"], action["high"]
        fits = _are_numbers(low) and _are_numbers(high) and 0 < len(low) == len(high)
        fits = fits and all(map(operator.lt, low, high))
        require(fits, "action.low", low, f"as many numbers as action.high ({short(high)}) has, each of them lower")
    Actions(action)
