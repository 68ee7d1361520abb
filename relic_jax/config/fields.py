"""Fields of configurations by their dotted names, as on the command line: `ppo.lr`, `env`, `env.horizon`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from relic_jax.config.environment import EnvConfig, Options


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every field that is not itself a configuration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, EnvConfig):
            yield from value.leaves()
        elif dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}{field.name}.")
        else:
            yield path + field.name, value


def differences(a: Any, b: Any) -> list[str]:
    """Return the dotted names of the fields in which two configurations of one class differ."""
    left, right = dict(leaves(a)), dict(leaves(b))
    missing = object()
    return [name for name in {**left, **right} if left.get(name, missing) != right.get(name, missing)]


def value_of(config: Any, field: str) -> Any:
    """Return the value of a field by its dotted name; None for an option of the environment that is not set."""
    if field.startswith("env"):
        return dict(leaves(config)).get(field)
    for name in field.split("."):
        config = getattr(config, name)
    return config


def changed(config: Any, field: str, value: Any) -> Any:
    """Return the configuration with the field of this dotted name set to `value`."""
    name, _, rest = field.partition(".")
    if isinstance(config, EnvConfig) and name not in ("name", "horizon"):
        return dataclasses.replace(config, options=Options({**config.options, field: value}))
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})
