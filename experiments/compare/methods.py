"""Runs that are compared: which folders hold them, which seeds belong to one method, and what each method is called."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError, TrainConfig, differences, leaves
from relic_jax.experiments import folders
from relic_jax.experiments.pooling import MAY_DIFFER

EVALUATION = "eval."
"""Settings of the evaluation are no part of a method. They must be equal, which `comparison` checks."""


@dataclasses.dataclass(frozen=True)
class Method:
    """The seeds of one method.

    Attributes:
        name: Its label in tables and figures.
        runs: Run folders.
        settings: The settings that differ between methods, by dotted name.
        configs: The configs of the runs. Empty: those of the folders.
    """

    name: str
    runs: tuple[Path, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    configs: tuple[TrainConfig, ...] = ()


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders at `paths`: a path itself, or the run folders in a study's folder, sorted by name.

    Raises:
        ConfigError: If a path is neither, or if a run is named twice.
    """
    found: list[Path] = []
    for path in paths:
        if (path / "config.json").is_file():
            found.append(path)
            continue
        inside = sorted(file.parent for file in path.glob("*/config.json")) if path.is_dir() else []
        if not inside:
            raise ConfigError(f"paths: '{path}' holds no run; allowed: run folders, and folders of studies")
        found += inside
    resolved = [path.resolve() for path in found]
    twice = next((path for path in found if resolved.count(path.resolve()) > 1), None)
    if twice is not None:
        raise ConfigError(f"paths: '{twice}' is there twice; allowed: each run once")
    return found


def methods_of(runs: Sequence[Path]) -> list[Method]:
    """Group runs by the settings that differ between them. Runs that differ in the seed only are one method.

    A name consists of as few of the differing settings as distinguish the methods, e.g. `sink=kv, updates=4`.

    Args:
        runs: Run folders.

    Raises:
        ConfigError: If a folder has no readable config, or two runs of a method have the same seed.
    """
    configs = [read_config(run) for run in runs]
    fields = differing(configs)
    rows = [tuple(setting(config, field) for field in fields) for config in configs]
    used = _distinguishing(rows, fields)
    names = _short_names([fields[index] for index in used])
    found: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        texts = (f"{name}={_text(row[column])}" for name, column in zip(names, used, strict=True))
        found.setdefault(", ".join(texts) or _common_name(runs), []).append(index)
    for members in found.values():
        _check_seeds([runs[index] for index in members], [configs[index].seed for index in members])
    return [
        Method(name, tuple(runs[i] for i in members), dict(zip(fields, rows[members[0]], strict=True)))
        for name, members in found.items()
    ]


def read_config(run: Path) -> TrainConfig:
    """Return the config of a run folder. Raises ConfigError that names the folder."""
    try:
        return folders.read_config(run)
    except ConfigError as error:
        raise ConfigError(str(error).replace("resume is", "paths:", 1)) from None


def differing(configs: Sequence[TrainConfig]) -> list[str]:
    """Return the settings that differ between runs, in the order of the config."""
    changed = {field for config in configs for field in differences(configs[0], config)}
    found = []
    for field in dict.fromkeys(name for config in configs for name, _ in leaves(config)):
        kept = field in changed and field not in MAY_DIFFER and not field.startswith(EVALUATION)
        if kept and len({setting(config, field) for config in configs}) > 1:
            found.append(field)
    return found


def setting(config: TrainConfig, field: str) -> Any:
    """Return the value of a setting. Numbers in `start_from` do not count: seeds continue the seeds of other runs."""
    value = dict(leaves(config)).get(field)
    return re.sub(r"\d+", "N", value) if field == "start_from" and value is not None else value


def _distinguishing(rows: Sequence[tuple[Any, ...]], fields: Sequence[str]) -> list[int]:
    """Return the columns that tell all different rows apart, chosen greedily, in the order of the fields."""
    used: list[int] = []

    def classes(columns: Sequence[int]) -> int:
        return len({tuple(row[column] for column in columns) for row in rows})

    while classes(used) < len(set(rows)):
        rest = [index for index in range(len(fields)) if index not in used]
        used.append(max(rest, key=lambda index: (classes([*used, index]), fields[index] == "policy.memory")))
    return sorted(used)


def _short_names(fields: Sequence[str]) -> list[str]:
    """Return the last part of each dotted name, or the whole name if last parts are equal."""
    last = [field.rpartition(".")[2] for field in fields]
    return [name if last.count(name) == 1 else field for name, field in zip(last, fields, strict=True)]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _common_name(runs: Sequence[Path]) -> str:
    """Return the name of the only method: that of its runs without the seed."""
    return re.sub(r"[-_]?seed[-_]?\d+$", "", runs[0].resolve().name) or "all runs"


def _check_seeds(runs: Sequence[Path], seeds: Sequence[int]) -> None:
    """Raise ConfigError if two runs of a method have the same seed."""
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            pair = f"'{runs[seeds.index(seed)]}' and '{runs[index]}'"
            raise ConfigError(f"paths: {pair} have the same settings and seed {seed}; allowed: one run of each seed")
