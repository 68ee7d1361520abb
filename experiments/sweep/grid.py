"""The runs of a study, the programs that train them, and what they cost."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError, TrainConfig, check_fields, from_json
from relic_jax.experiments import folders
from relic_jax.experiments.compare.methods import Method, differing, setting
from relic_jax.experiments.sweep.study import Study, with_fields
from relic_jax.metrics import read_lines
from relic_jax.progress import duration
from relic_jax.rl.population import common_config
from relic_jax.rl.train import total_env_steps


@dataclass(frozen=True)
class Member:
    """A run of a study.

    Attributes:
        name: Name of its folder.
        variant: Name of its method and settings, which its seeds share.
        settings: The varied fields and their values.
        config: Its config, on one device.
    """

    name: str
    variant: str
    settings: dict[str, Any]
    config: TrainConfig


def members(study: Study) -> list[Member]:
    """Return the runs of a study: seeds vary fastest, methods slowest.

    Raises:
        ConfigError: A combination of fields cannot work, or two runs would have equal folders.
    """
    found = []
    for method in study.methods:
        for values in itertools.product(*study.vary.values()):
            chosen = dict(zip(study.vary, values, strict=True))
            variant = _variant(method.name, chosen)
            try:
                config = with_fields(method.config, {k: _as_given(v) for k, v in chosen.items()}, "vary")
                config = replace(config, devices=1)
                check_fields(config)
            except ConfigError as error:
                raise ConfigError(f"{error} (in {variant})" if variant else str(error)) from None
            for seed in study.seeds:
                name = "_".join(filter(None, [re.sub(r"[^\w.+-]+", "-", variant), f"seed{seed}"]))
                settings = ({"method": method.name} if method.name else {}) | chosen
                found.append(Member(name, variant or study.name, settings, replace(config, seed=seed)))
    names = [member.name for member in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"method.name and vary give two runs the folder {name!r}; allowed: different names")
        folders.check_name(name)
    return found


def _as_given(value: Any) -> Any:
    return "None" if value is None else value


def _variant(method: str, chosen: dict[str, Any]) -> str:
    """Return the name of a method with its varied fields, named by the last part of their names if that is unique."""
    ends = [field.rpartition(".")[2] for field in chosen]
    short = {field: end if ends.count(end) == 1 else field for field, end in zip(chosen, ends, strict=True)}
    parts = [f"{short[field].replace('_', '-')}-{_text(value)}" for field, value in chosen.items()]
    return "_".join(filter(None, [method, *parts]))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def programs(runs: Sequence[Member]) -> list[list[Member]]:
    """Divide runs into groups that share a compiled program, in the order of their first runs."""
    groups: dict[TrainConfig, list[Member]] = {}
    for run in runs:
        groups.setdefault(common_config(run.config), []).append(run)
    return list(groups.values())


def methods(runs: Sequence[Member], folder: Path) -> list[Method]:
    """Return the variants of a study as methods to compare, in its order and with the settings in which they differ.

    Args:
        runs: The runs, of which all seeds of a variant are one method.
        folder: The study's folder.
    """
    fields = differing([run.config for run in runs])
    variants: dict[str, list[Member]] = {}
    for run in runs:
        variants.setdefault(run.variant, []).append(run)
    return [
        Method(
            name,
            tuple(folder / run.name for run in own),
            {field: setting(own[0].config, field) for field in fields},
            tuple(run.config for run in own),
        )
        for name, own in variants.items()
    ]


def describe(study: Study, runs: Sequence[Member], folder: Path, devices: int) -> list[str]:
    """Return the grid and its cost in lines of text."""
    groups, variants = programs(runs), len({run.variant for run in runs})
    steps = sum(total_env_steps(run.config) for run in runs)
    lines = [
        f"sweep {study.name}: {_count(len(runs), 'run')} ({_count(variants, 'variant')} × "
        f"{_count(len(study.seeds), 'seed')}), {steps:,} environment steps, env {runs[0].config.env.name}"
    ]
    if study.methods[0].name:
        lines.append(f"  methods: {', '.join(method.name for method in study.methods)}")
    lines += [f"  {field}: {', '.join(map(_text, values))}" for field, values in study.vary.items()]
    lines.append(f"  seeds: {', '.join(map(str, study.seeds))}")
    at_once = min(devices, max(map(len, groups)))
    lines.append(
        f"  {_count(len(groups), 'program')} to compile; {_count(at_once, 'run')} at a time on "
        f"{_count(devices, 'device')}; folder {folder}"
    )
    seconds = estimate(groups, folder, devices)
    known = f"about {duration(seconds)} of training" if seconds is not None else "unknown, no such run was trained here"
    return [*lines, f"  estimated time: {known}"]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def estimate(groups: Sequence[Sequence[Member]], folder: Path, devices: int) -> float | None:
    """Return the seconds of training, from the speed of runs with the same program beside or in the study's folder.

    Returns:
        The seconds, without compilation and evaluation. None if the speed of a group is not known.
    """
    speeds = _speeds([*folder.parent.glob("*/config.json"), *folder.parent.glob("*/*/config.json")])
    total = 0.0
    for group in groups:
        config = common_config(group[0].config)
        if config not in speeds:
            return None
        batches = -(-len(group) // min(devices, len(group)))
        total += batches * total_env_steps(config) / speeds[config]
    return total


def _speeds(configs: Sequence[Path]) -> dict[TrainConfig, float]:
    """Return environment steps per second and device, by the `common_config` of the runs."""
    found: dict[TrainConfig, float] = {}
    for file in configs[:1000]:
        try:
            config = from_json(file.read_text(encoding="utf-8"))
            record = read_lines(file.with_name("timing.jsonl"))[-1]
            speed = float(record["steps_per_second"]) / (config.devices or 1)
            found[common_config(config)] = speed
        except (OSError, ValueError, LookupError):
            continue
    return found
