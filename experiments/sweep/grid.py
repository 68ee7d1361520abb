"""The runs of a study, and the programs that train them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError, TrainConfig, check_fields
from relic_jax.experiments import folders
from relic_jax.experiments.compare.methods import Method, differing, setting
from relic_jax.experiments.sweep.study import Study, with_fields
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


def describe(study: Study, runs: Sequence[Member]) -> list[str]:
    """Return the grid in lines of text."""
    variants, steps = len({run.variant for run in runs}), sum(total_env_steps(run.config) for run in runs)
    lines = [
        f"sweep {study.name}: {count(len(runs), 'run')} ({count(variants, 'variant')} × "
        f"{count(len(study.seeds), 'seed')}), {steps:,} environment steps, env {runs[0].config.env.name}"
    ]
    if study.methods[0].name:
        lines.append(f"  methods: {', '.join(method.name for method in study.methods)}")
    lines += [f"  {field}: {', '.join(map(_text, values))}" for field, values in study.vary.items()]
    return [*lines, f"  seeds: {', '.join(map(str, study.seeds))}"]


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 run` or `1,000 runs`."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
