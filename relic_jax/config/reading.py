"""Strict conversion of JSON values to configuration dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar

from relic_jax.errors import ConfigError
from relic_jax.validation import did_you_mean, require, shown

T = TypeVar("T")


def read(cls: type[T], data: Any, path: str = "") -> T:
    """Build a dataclass, and the dataclasses nested in it, from JSON values.

    Args:
        cls: A dataclass whose fields are scalars, `Literal`s, unions or tuples of scalars, mappings or dataclasses.
        data: The decoded JSON object. Missing fields have their defaults.
        path: Prefix of the field names in errors, e.g. `"ppo."`.

    Returns:
        The instance.

    Raises:
        ConfigError: A field is unknown, or its value does not have the declared type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{path.rstrip('.') or 'config'} is {shown(data)}; allowed: an object")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in sorted(set(data) - set(names)):
        hint = did_you_mean(name, names, lambda near: path + near)
        raise ConfigError(f"{path}{shown(name)[1:-1]} is unknown; allowed: {', '.join(sorted(names)) or 'none'}{hint}")
    return cls(**{name: _value(hints[name], value, path + name) for name, value in data.items()})


def _value(hint: Any, value: Any, field: str) -> Any:
    """Return a JSON value as the declared type: a dataclass, a mapping, a `Literal`, a tuple, a scalar or a union."""
    if dataclasses.is_dataclass(hint):
        return read(hint, value, f"{field}.")  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, dict):
        require(isinstance(value, dict), field, value, "an object")
        return hint(value)
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:  # the nearest is only looked for if it is needed
            hint = did_you_mean(value, map(str, allowed), repr)
            raise ConfigError(f"{field} is {shown(value)}; allowed: {', '.join(map(repr, allowed))}{hint}")
        return value
    if typing.get_origin(hint) is tuple:
        element, _ = typing.get_args(hint)
        require(isinstance(value, (list, tuple)), field, value, "a list")
        return tuple(_value(element, item, f"{field}[{index}]") for index, item in enumerate(value))
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in options and type(value) is int and abs(value) < 2**53:
        return float(value)
    require(type(value) in options, field, value, " or ".join(option.__name__ for option in options))
    return value
