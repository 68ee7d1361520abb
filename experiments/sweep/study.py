"""Studies: what a sweep varies, as a TOML file or a command line, and the file in a study's folder."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from relic_jax.config import ConfigError, TrainConfig, differences, from_json, leaves
from relic_jax.envs import registry
from relic_jax.experiments import folders, presets
from relic_jax.experiments.api import override
from relic_jax.experiments.compare.measure import RETURN, RETURNS, Measure, read_measure
from relic_jax.experiments.sweep.evaluations import Table, read_attention, read_tables
from relic_jax.validation import did_you_mean, require, shown

KEYS = ("name", "preset", "config", "seeds", "metric", "episodes", "set", "vary", "method", "evaluate", "attention")
"""Keys of a study file."""
MANAGED = ("seed", "devices")
"""Fields that a study cannot set: `seeds` lists the seeds, and every run trains on one device."""
MAX_SEEDS = 10_000


@dataclasses.dataclass(frozen=True)
class Method:
    """A named group of fields that differ from the study's base.

    Attributes:
        name: Its name. Empty if the study has no methods.
        config: Its config.
    """

    name: str
    config: TrainConfig


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs: every method with every combination of the varied fields and every seed.

    Attributes:
        name: Name of the study's folder.
        seeds: Seeds of each combination.
        methods: One or more.
        vary: Values by dotted name of a field.
        evaluate: Evaluations of each run after its training. They are no part of its settings and can be added later.
        attention: Where attention goes is computed for each run. None: it is not.
        measure: What the report compares: the keys `metric` and `episodes`. It can be changed later.
    """

    name: str
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    vary: dict[str, tuple[Any, ...]]
    evaluate: tuple[Table, ...] = ()
    attention: Table | None = None
    measure: Measure = RETURNS


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: The file cannot be read or does not fit. The nearest key, field or preset is offered.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"study is '{path}'; allowed: a TOML file that can be read ({reason})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"study is '{path}'; allowed: a TOML file ({error})") from None
    try:
        return study_of(content, path)
    except ConfigError as error:
        raise ConfigError(f"'{path}': {error}") from None


def study_of(content: Mapping[str, Any], path: Path, methods: tuple[Method, ...] = ()) -> Study:
    """Return the study in the content of a file, for methods that are given or those of the file. See `read_study`."""
    for key in content:
        _check_key(key, content[key])
    name = content.get("name", path.stem)
    require(isinstance(name, str), "name", name, "text")
    folders.check_name(name)
    if not methods:
        shared = _flat(content.get("set", {}), "set")
        base = _base(content, path, TrainConfig())
        methods = tuple(_methods(content.get("method", []), path, base, shared))
    vary = {field: _values(methods, field, value) for field, value in _flat(content.get("vary", {}), "vary").items()}
    names = [method.name for method in methods if method.name]
    tables = read_tables(content.get("evaluate", []), names), read_attention(content.get("attention"), names)
    measure = read_measure(content.get("metric", RETURN), content.get("episodes"))
    return Study(name, seeds_of(content.get("seeds", 1)), methods, vary, *tables, measure)


def _check_key(key: str, value: Any) -> None:
    """Raise ConfigError if a study file has no such key: where it goes if it is a field, else the nearest key."""
    if key in KEYS:
        return
    if key in MANAGED:
        _refuse_managed(key, value, key)
    if key in [field.name for field in dataclasses.fields(TrainConfig)]:
        field, shown_value = next(iter(_flat({key: value}, key).items()), (key, value))
        allowed = "below [set], [vary] or [[method]], which hold fields of the configuration"
        raise ConfigError(f"{field} is {shown(shown_value)}; allowed: {allowed}")
    raise ConfigError(f"{key} is unknown; allowed: {', '.join(KEYS)}{did_you_mean(key, KEYS)}")


def _base(content: Mapping[str, Any], path: Path, default: TrainConfig) -> TrainConfig:
    """Return the config that `preset` or `config` names."""
    preset, config = content.get("preset"), content.get("config")
    if preset is not None and config is not None:
        raise ConfigError(f"config is {shown(config)}; allowed: nothing if preset is set")
    if preset is not None:
        require(isinstance(preset, str), "preset", preset, "the name of a preset")
        return presets.get(preset).config
    if config is None:
        return default
    require(isinstance(config, str), "config", config, "the path of a config.json")
    file = path.parent / config
    try:
        return from_json((file / "config.json" if file.is_dir() else file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"config is {config!r}; allowed: the path of a config.json") from None


def _methods(found: Any, path: Path, base: TrainConfig, shared: Mapping[str, Any]) -> Iterator[Method]:
    """Yield the methods: base or the method's preset, then the fields of all methods, then its fields."""
    require(isinstance(found, list), "method", found, "[[method]] tables")
    if not found:
        yield Method("", with_fields(base, shared, "set"))
    names: set[str] = set()
    for table in found:
        require(isinstance(table, dict) and "name" in table, "method", table, "a table with a name")
        name, fields = table["name"], {key: value for key, value in table.items() if key not in ("name", "preset")}
        require(
            isinstance(name, str) and bool(name) and name not in names, "method.name", name, "another name for each"
        )
        names.add(name)
        config = with_fields(_base({"preset": table.get("preset")}, path, base), shared, "set")
        yield Method(name, with_fields(config, _flat(fields, "method"), f"method {name}"))


def seeds_of(value: Any) -> tuple[int, ...]:
    """Return the seeds 0 … n − 1 for a number n, or a list of seeds as it is."""
    allowed = f"a number from 1 to {MAX_SEEDS:,}, or a list of different seeds"
    if type(value) is int:
        require(0 < value <= MAX_SEEDS, "seeds", value, allowed)
        return tuple(range(value))
    is_list = isinstance(value, list | tuple) and bool(value) and all(type(seed) is int for seed in value)
    require(is_list and len(set(value)) == len(value), "seeds", value, allowed)
    return tuple(value)


def _flat(table: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """Return nested tables as values by dotted name. Both `ppo.lr` and `"ppo.lr"` are accepted in a file."""
    require(isinstance(table, dict), where, table, "a table")
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        found |= _flat(value, where, f"{name}.") if isinstance(value, dict) else {name: value}
    return {("env" if name == "env.name" else name): value for name, value in found.items()}


def _values(methods: tuple[Method, ...], field: str, values: Any) -> tuple[Any, ...]:
    """Return the values of a varied field in their declared type, after checking them in every method."""
    require(isinstance(values, list | tuple) and bool(values), f"vary.{field}", values, "a list of values")
    read = tuple(_value(methods[0].config, field, value) for value in values)
    for method in methods[1:]:
        for value in values:
            with_fields(method.config, {field: value}, "vary")
    require(len(set(map(repr, read))) == len(read), f"vary.{field}", values, "different values")
    return read


def _value(config: TrainConfig, field: str, value: Any) -> Any:
    changed = with_fields(config, {field: value}, "vary")
    return dict(leaves(changed)).get(field)


def with_fields(config: TrainConfig, fields: Mapping[str, Any], where: str) -> TrainConfig:
    """Return the config with the fields of a table set, `env` first because the others depend on it.

    The text "None" stands for None, which TOML does not have.

    Args:
        config: The config.
        fields: Values by dotted name.
        where: Name of the table, for errors.

    Raises:
        ConfigError: A field is unknown or managed by the sweep, or a value has the wrong type.
    """
    for field in sorted(fields, key=lambda name: name != "env"):
        if field in MANAGED:
            _refuse_managed(field, fields[field], f"{where}.{field}")
        _check_field(config, field, fields[field], where)
        config = _override(config, field, fields[field])
    return config


def _refuse_managed(field: str, value: Any, name: str) -> NoReturn:
    allowed = "seeds" if field == "seed" else "--devices of relic-jax sweep"
    raise ConfigError(f"{name} is {shown(value)}; allowed: {allowed} instead")


def _override(config: TrainConfig, field: str, value: Any) -> TrainConfig:
    if value != "None":
        return override(config, {field: value})
    try:
        return override(config, {field: None})
    except ConfigError:  # the field takes text
        return override(config, {field: value})


def _check_field(config: TrainConfig, field: str, value: Any, where: str) -> None:
    """Raise ConfigError that offers the nearest field if the config has no field of this name."""
    known = {name for name, _ in leaves(config)} - set(MANAGED) | {f"env.{x}" for x in _env_options(config)}
    if field not in known:
        own = f"policy.{config.policy.traits.section}."  # the section of this memory, of those with equal fields
        first = sorted(known, key=lambda name: (not name.startswith(own), len(name), name))
        hint = did_you_mean(field, first) or "; docs/commands.md lists the fields"
        raise ConfigError(f"{where}.{field} is {shown(value)}; allowed: a field of the configuration{hint}")


def _env_options(config: TrainConfig) -> tuple[str, ...]:
    try:
        return registry.option_names(config.env.name)
    except registry.UnknownEnvironmentError as error:
        raise ConfigError(str(error)) from None


def resolved(study: Study) -> str:
    """Return the study as TOML that depends on no preset: the content of `study.toml` in its folder."""
    lines = [f"name = {_toml(study.name)}", f"seeds = {_toml(study.seeds)}"]
    if study.measure.metric != RETURN:
        lines.append(f"metric = {_toml(study.measure.metric)}")
    if study.measure.episodes is not None:
        lines.append(f"episodes = {_toml(study.measure.text)}")
    shared = [name for name, _ in leaves(study.methods[0].config)]
    for method in study.methods[1:]:
        unequal = differences(study.methods[0].config, method.config)
        shared = [name for name in shared if name not in unequal]
    base = dict(leaves(study.methods[0].config))
    lines += ["", "[set]", *(_line(name, base[name]) for name in shared if name not in MANAGED)]
    if study.vary:
        lines += ["", "[vary]", *(_line(name, values) for name, values in study.vary.items())]
    for method in study.methods if study.methods[0].name else ():
        own = {name: value for name, value in leaves(method.config) if name not in shared}
        lines += ["", "[[method]]", f"name = {_toml(method.name)}"]
        lines += [_line(name, value) for name, value in own.items()]
    for table in study.evaluate:
        lines += ["", "[[evaluate]]", f"name = {_toml(table.name)}", *_table_lines(table)]
    if study.attention is not None:
        lines += ["", "[attention]", *_table_lines(study.attention)]
    return "\n".join(lines) + "\n"


def _table_lines(table: Table) -> list[str]:
    lines = [f"tasks = {_toml(table.split)}"] + ([f"methods = {_toml(table.methods)}"] if table.methods else [])
    return lines + [_line(name, values if len(values) > 1 else values[0]) for name, values in table.options.items()]


def _line(name: str, value: Any) -> str:
    key = "env.name" if name == "env" else name
    return f"{_toml(key)} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(x)}" for key, x in value.items()) + "}"
    return '"None"' if value is None else json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans agree


def first_difference(old: Study, new: Study) -> str | None:
    """Return the first setting of runs in which two studies differ as `FIELD is NEW; allowed: OLD`, or None."""
    pairs: list[tuple[str, Any, Any]] = [("seeds", list(old.seeds), list(new.seeds))]
    pairs += [("methods", [m.name for m in old.methods], [m.name for m in new.methods])]
    for before, after in zip(old.methods, new.methods, strict=False):
        left, right = dict(leaves(before.config)), dict(leaves(after.config))
        pairs += [(name, left.get(name), right.get(name)) for name in differences(before.config, after.config)]
    fields = dict.fromkeys([*old.vary, *new.vary])
    pairs += [(f"vary.{name}", old.vary.get(name), new.vary.get(name)) for name in fields]
    for name, left, right in pairs:
        if left != right:
            return f"{name} is {shown(right)}; allowed: {shown(left)}"
    return None
