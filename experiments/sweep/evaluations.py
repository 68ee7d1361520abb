"""Evaluations that a study declares: `[[evaluate]]` and `[attention]` tables, and their files in run folders."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from relic_jax.config import ConfigError, EvalConfig, TrainConfig, validate
from relic_jax.environment.base import Environment
from relic_jax.evaluation.tasks import changed_tasks, check_evaluated
from relic_jax.experiments import folders
from relic_jax.spaces import image_mask
from relic_jax.validation import did_you_mean, require, shown

OPTIONS: dict[str, tuple[type, ...]] = {
    "episodes": (int,),
    "repeats": (int,),
    "limit": (int,),
    "expert_episodes": (int,),
    "expert_quality": (float, int),
    "context_limit": (int,),
    "change_task_at": (int,),
}
"""Options of an `[[evaluate]]` table, those of `relic-jax evaluate`, with their types."""
ATTENTION_OPTIONS = ("episodes", "limit")
"""Options of the `[attention]` table, those of `relic-jax attention`."""
SPLITS = ("test", "train")


@dataclasses.dataclass(frozen=True)
class Table:
    """An `[[evaluate]]` table, or the `[attention]` table.

    Attributes:
        name: Its name. Files of an evaluation are called `evaluate-NAME.json` in each run folder.
        split: Split of the tasks.
        methods: Names of the methods that are evaluated. Empty: all.
        options: Values by option. Every combination is an evaluation.
    """

    name: str
    split: Literal["test", "train"] = "test"
    methods: tuple[str, ...] = ()
    options: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def varied(self) -> tuple[str, ...]:
        """The options with several values."""
        return tuple(name for name, values in self.options.items() if len(values) > 1)

    def covers(self, method: str) -> bool:
        """Return whether the runs of a method are evaluated."""
        return not self.methods or method in self.methods


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run after its training.

    Attributes:
        table: The table that declares it.
        values: Values of the varied options.
        config: Its settings.
    """

    table: Table
    values: dict[str, Any]
    config: EvalConfig

    @property
    def stem(self) -> str:
        """Name of its files without suffix."""
        parts = [f"{name.replace('_', '-')}-{value:g}" for name, value in self.values.items()]
        return "_".join([f"evaluate-{self.table.name}", *parts])

    def is_done(self, run: Path) -> bool:
        """Return whether a run folder holds the results, with these settings."""
        try:
            found = json.loads((run / f"{self.stem}.json").read_bytes())
        except (OSError, ValueError):
            return False
        own = self.config
        if not isinstance(found, dict) or found.get("split") != self.table.split:
            return False
        names = ("episodes", "repeats", "expert_episodes", "context_limit", "change_task_at")
        same = all(found.get(name) == getattr(own, name) for name in names)
        return same and found.get("limit") == own.tasks and found.get("expert_quality", 1.0) == own.expert_quality


def read_tables(content: Any, methods: Sequence[str]) -> tuple[Table, ...]:
    """Return the `[[evaluate]]` tables of a study file. Raises ConfigError that offers the nearest name."""
    require(isinstance(content, list), "evaluate", content, "[[evaluate]] tables")
    found: list[Table] = []
    for table in content:
        require(isinstance(table, dict) and "name" in table, "evaluate", table, "a table with a name")
        name, names = table["name"], [other.name for other in found]
        fits = isinstance(name, str) and bool(name) and name not in names
        require(fits, "evaluate.name", name, "another name for each")
        folders.check_name(name)
        found.append(_table(table, "evaluate", OPTIONS, methods))
    return tuple(found)


def read_attention(content: Any, methods: Sequence[str]) -> Table | None:
    """Return the `[attention]` table of a study file, or None. Raises ConfigError that offers the nearest name."""
    if content is None:
        return None
    require(isinstance(content, dict), "attention", content, "a table")
    table = _table(content, "attention", {name: OPTIONS[name] for name in ATTENTION_OPTIONS}, methods)
    for option in table.varied:
        raise ConfigError(f"attention.{option} is {list(table.options[option])}; allowed: one value")
    return table


def _table(
    content: Mapping[str, Any], where: str, options: Mapping[str, tuple[type, ...]], methods: Sequence[str]
) -> Table:
    known = ("name", "tasks", "methods", *options)
    for key in content:
        if key not in known:
            raise ConfigError(f"{where}.{key} is unknown; allowed: {', '.join(known)}{did_you_mean(key, known)}")
    split, selected = content.get("tasks", "test"), content.get("methods", [])
    require(split in SPLITS, f"{where}.tasks", split, f"'test', 'train'{did_you_mean(split, SPLITS, repr)}")
    require(isinstance(selected, list | tuple), f"{where}.methods", selected, "a list of names of methods")
    for name in selected:
        if name not in methods:
            allowed = ", ".join(map(repr, methods)) if methods else "none, the study has no [[method]]"
            raise ConfigError(f"{where}.methods is {shown(name)}; allowed: {allowed}{did_you_mean(name, methods)}")
    values = {name: _values(f"{where}.{name}", content[name], options[name]) for name in options if name in content}
    return Table(content.get("name", where), split, tuple(selected), values)


def _values(field: str, value: Any, types: tuple[type, ...]) -> tuple[Any, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    kind = "a whole number" if types == (int,) else "a number"
    fits = bool(values) and all(type(x) in types for x in values)
    require(fits and len(set(values)) == len(values), field, value, f"{kind}, or a list of different ones")
    return tuple(values)


def evaluations_of(tables: Sequence[Table], method: str, config: TrainConfig) -> list[Evaluation]:
    """Return the evaluations of a run.

    An expert's quality does not matter without episodes of the expert. Such combinations are one evaluation.

    Args:
        tables: The `[[evaluate]]` tables.
        method: Name of the run's method, or "".
        config: Its config.
    """
    return [found for table in tables if table.covers(method) for found in _combinations(table, config.eval)]


def _combinations(table: Table, own: EvalConfig) -> Iterator[Evaluation]:
    seen = set()
    plain = dataclasses.replace(own, expert_episodes=0, expert_quality=1.0, context_limit=None, change_task_at=None)
    for combination in itertools.product(*table.options.values()):
        options = dict(zip(table.options, combination, strict=True))
        values = {name: options[name] for name in table.varied}
        if not options.get("expert_episodes"):
            options.pop("expert_quality", None)
            values.pop("expert_quality", None)
        options |= {"tasks": options.pop("limit")} if "limit" in options else {}
        config = dataclasses.replace(plain, **options)
        if config not in seen:
            seen.add(config)
            yield Evaluation(table, values, config)


def check(found: Sequence[Evaluation], config: TrainConfig, env: Environment) -> None:
    """Raise ConfigError, with the name of the table, if an evaluation cannot work for a run in its environment."""
    images = any(image_mask(env.observation_spec))
    for evaluation in found:
        try:
            validate(dataclasses.replace(config, eval=evaluation.config), horizon=env.horizon, images=images)
            check_evaluated(config.policy, evaluation.config, env, evaluation.table.split)
            if evaluation.config.change_task_at is not None:
                changed_tasks(env, evaluation.table.split, evaluation.config)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the evaluation {evaluation.table.name!r})") from None


def attention_is_done(run: Path, table: Table, config: EvalConfig) -> bool:
    """Return whether a run folder holds the attention that a table declares, with these settings."""
    try:
        found = json.loads((run / "attention.json").read_bytes())
        same = found["split"] == table.split and len(found["sink"][0][0]) == config.episodes
        return bool(same and found["tasks"] <= (config.tasks or 0))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def attention_config(table: Table, own: EvalConfig, default_tasks: int) -> EvalConfig:
    """Return the settings of the `[attention]` table for a run."""
    options = {name: values[0] for name, values in table.options.items()}
    return EvalConfig(episodes=options.get("episodes", own.episodes), tasks=options.get("limit", default_tasks))
