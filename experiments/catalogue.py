"""`relic-jax presets` and `relic-jax envs`: lists of presets and of environments."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from relic_jax.config import ConfigError, EnvConfig, WorkerConfig, to_json
from relic_jax.environment.base import Split
from relic_jax.envs import registry
from relic_jax.experiments import presets, run
from relic_jax.experiments.arguments import find_env, parse, parse_env, split_env_options, with_current_names
from relic_jax.progress import Activity


@dataclasses.dataclass(frozen=True)
class PresetsCommand:
    """List presets with their cost and expected results. `relic-jax presets NAME` prints the config of one."""

    preset: tyro.conf.Positional[str | None] = None
    """Name of a preset, whose config is printed as JSON."""


@dataclasses.dataclass(frozen=True)
class EnvsCommand:
    """List environments. `relic-jax envs NAME` computes the returns of random actions and of the expert."""

    name: tyro.conf.Positional[str | None] = None
    """Name of an environment, as for `relic-jax train --env`. --env.OPTION sets its options."""
    reference_returns: bool = True
    """Compute the mean returns of random actions and of the scripted expert (with NAME)."""
    json: bool = False
    """Print JSON: an object with NAME, else a list of them."""
    host: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    """Worker processes, for environments that run in them (with NAME)."""


def presets_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax presets [NAME]`."""
    command = parse(PresetsCommand, arguments, "relic-jax presets")
    if command.preset is not None:
        print(to_json(presets.get(command.preset).config), end="")
        return
    print("relic-jax train NAME; relic-jax presets NAME prints its config\n")
    for name, preset in presets.PRESETS.items():
        print(f"{name}\n    summary   {preset.summary}\n    command   {preset.command(name)}")
        print(f"    cost      {preset.cost or 'not measured'}\n    expected  {preset.expected or 'untested'}")


def envs_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax envs [NAME]`."""
    options, others = split_env_options(with_current_names(arguments))
    command = parse(EnvsCommand, others, "relic-jax envs")
    if command.name is None:
        _check_no_options(command, options)
        _list(command.json)
        return
    find_env(command.name)
    config = parse_env(EnvConfig(command.name), options, "relic-jax envs")
    run.check_workers(command.name, command.host, WorkerConfig())
    config.validate()
    command.host.validate()
    env = run.make_env(config, command.host)
    description = registry.describe(command.name, env)
    with Activity(f"computing the reference returns of {command.name}", sys.stderr if command.json else None):
        splits: tuple[Split, ...] = ("train", "test") if command.reference_returns else ()
        found = {split: run.reference_means(env, split) for split in splits}
    if command.json:
        print(json.dumps({**dataclasses.asdict(description), "reference_returns": found}, indent=2))
        return
    print(description)
    if text := registry.numbered(description.action_names, description.actions):
        print(f"actions: {text}")
    if description.observation_names:
        print(f"observation: {', '.join(description.observation_names)}")
    for option, values in env.rungs.items():
        if values:
            print(f"curriculum.option {option}: {', '.join(map(str, values))}, from easy to hard")
    for split, line in found.items():
        optimal = "no expert" if line["optimal"] is None else f"optimal {line['optimal']:.4g}"
        print(f"{split}: {optimal}, random {line['random']:.3g} (mean return per episode)")


def _check_no_options(command: EnvsCommand, options: Sequence[str]) -> None:
    if options or command.host != WorkerConfig() or not command.reference_returns:
        allowed = "an environment, if --env or --host options or --no-reference-returns are given"
        raise ConfigError(f"name is missing; allowed: {allowed}")


def _list(as_json: bool) -> None:
    """Print every registered environment, then the prefixes."""
    descriptions: list[dict[str, Any]] = []
    if not as_json:
        print("relic-jax envs NAME computes the returns of random actions and of the scripted expert\n")
    for name in registry.names():
        try:
            description = registry.describe(name)
            descriptions.append(dataclasses.asdict(description))
            text = str(description)
        except ConfigError as error:  # an extra that is not installed
            descriptions.append({"name": name, "error": str(error)})
            text = f"{name}: {error}"
        if not as_json:
            print(text)
    if as_json:
        print(json.dumps(descriptions, indent=2))
        return
    for prefix in registry.prefixes():
        print(f"{prefix}ID: {registry.TABLE[prefix].summary} (docs/environments.md)")
