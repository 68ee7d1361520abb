"""Configurations as JSON text, in the present layout and the one before it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from relic_jax.config.environment import EnvConfig
from relic_jax.config.reading import read
from relic_jax.config.train import TrainConfig
from relic_jax.errors import ConfigError
from relic_jax.validation import require

FORMAT = "relic-jax-config-2"
"""Layout of the JSON text. Layout 1 had no such field: `env` was a string there, and `host` held the options of the
environment beside those of the workers."""

_MOVED = {
    "backend": "soft",
    "dataset": None,
    "wrappers": "",
    "text": "omit",
    "scene_dataset": "default",
    "objects": "",
    "image_size": 64,
    "horizon": None,
}
"""Fields of `host` in layout 1 that belong to the environment, with their defaults there."""
_READ = {
    "gym": {"dataset", "wrappers", "text", "horizon"},
    "habitat-lab": {"dataset", "scene_dataset", "image_size", "horizon"},
    "extobjnav": {"backend", "dataset", "scene_dataset", "objects", "image_size", "horizon"},
    **{name: {"horizon"} for name in ("metaworld", "gymnax", "xland", "navix", "craftax", "playground")},
    **{name: {"horizon"} for name in ("xland-anyside", "xland-trivial", "xland-small", "xland-medium")},
}
"""Which of them an environment read, by its name up to the first colon; others read none."""
_HABITAT_SIM = {"scene_dataset", "objects"}
"""Which of them extobjnav did not read with the backend soft."""


def to_json(config: TrainConfig) -> str:
    """Return the configuration as indented JSON text."""
    return json.dumps(to_data(config), indent=2) + "\n"


def to_data(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as a JSON object, with the number of its layout."""
    return {"format": FORMAT, **dataclasses.asdict(config)}


def from_json(text: str) -> TrainConfig:
    """Return the configuration that `to_json` wrote, in this or the previous layout.

    Raises:
        ConfigError: The text is not JSON, a field is unknown, or a value does not have the type of its field.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config is not JSON: {error}") from None
    return from_data(data)


def from_data(data: Any) -> TrainConfig:
    """Return the configuration in a JSON object, see `from_json`."""
    if isinstance(data, dict):
        data = dict(data)
        if "format" in data:
            found = data.pop("format")
            require(found == FORMAT, "config format", found, repr(FORMAT))
        else:
            data = _from_layout_1(data)
    return read(TrainConfig, data)


def _from_layout_1(data: dict[str, Any]) -> dict[str, Any]:
    """Move the environment's options out of `host`. Options that the environment did not read are dropped."""
    name, host = data.get("env", EnvConfig().name), data.get("host", {})
    if not isinstance(name, str) or not isinstance(host, dict):
        return data  # to be refused, or of a caller who writes only some fields, in the present layout
    used = _READ.get(name.partition(":")[0], set())
    if name == "extobjnav" and host.get("backend", _MOVED["backend"]) == "soft":
        used = used - _HABITAT_SIM
    moved = {field: host[field] for field in _MOVED.keys() & host.keys()}
    options = {field: value for field, value in moved.items() if field in used and value != _MOVED[field]}
    env = {"name": name, "horizon": options.pop("horizon", None), "options": options}
    workers = {field: value for field, value in host.items() if field not in moved}
    return {**data, "env": env, "host": workers}
