"""How long the training of a study takes: from the speed of earlier runs, or from the cost model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax

from relic_jax import checkpoint
from relic_jax.config import ConfigError, EvalConfig, TrainConfig, from_json
from relic_jax.environment.base import Environment
from relic_jax.experiments.cost.devices import DEVICES
from relic_jax.experiments.cost.prediction import predict
from relic_jax.experiments.sweep.folder import StudyFolder
from relic_jax.experiments.sweep.grid import Member, count, programs
from relic_jax.metrics import read_lines
from relic_jax.progress import duration
from relic_jax.rl.population import common_config
from relic_jax.rl.state import Setup
from relic_jax.rl.train import total_env_steps
from relic_jax.spaces import image_mask

TIMED_TRIALS = 4
"""Trials of a run that only measures the speed. That of the first one includes compilation."""


def describe(
    folder: StudyFolder, runs: Sequence[Member], setups: Mapping[str, Setup], devices: int, taken: Collection[str]
) -> list[str]:
    """Return lines about what is left to train, and how long it takes.

    Args:
        folder: The study's folder, which need not exist.
        runs: The runs of the study.
        setups: Their setups, by name.
        devices: Number of devices.
        taken: Names of runs whose results are taken from other studies.
    """
    left = {run.name: 0 if run.name in taken else steps_left(folder, run) for run in runs}
    groups = [[run for run in group if left[run.name]] for group in programs(runs)]
    groups = [group for group in groups if group]
    if not groups:
        return ["  estimated time: 0:00 of training, no run is left to train"]
    at_once, waiting = min(devices, max(map(len, groups))), sum(map(len, groups))
    lines = [] if waiting == len(runs) else [f"  left to train: {count(waiting, 'run')} of {len(runs):,}"]
    lines.append(
        f"  {count(len(groups), 'program')} to compile; {count(at_once, 'run')} at a time on "
        f"{count(devices, 'device')}; folder {folder.path}"
    )
    return [*lines, f"  estimated time: {_time(folder, groups, setups, devices, left)}"]


def steps_left(folder: StudyFolder, run: Member) -> int:
    """Return the environment steps that a run still trains: 0 if it is finished or failed."""
    if folder.is_finished(run) or folder.failure(run) is not None:
        return 0
    saved = max(checkpoint.complete_steps(folder.run(run) / "checkpoints"), default=0)
    return max(0, total_env_steps(run.config) - saved)


def _time(
    folder: StudyFolder,
    groups: Sequence[Sequence[Member]],
    setups: Mapping[str, Setup],
    devices: int,
    left: Mapping[str, int],
) -> str:
    """Return the time of training as text, or how to find it out."""
    timed = _speeds([*folder.path.parent.glob("*/config.json"), *folder.path.parent.glob("*/*/config.json")])
    seconds, is_predicted = 0.0, False
    for group in groups:
        run = group[0]
        speed = timed.get(_settings(run.config))
        if speed is None:
            speed, is_predicted = predicted_speed(run.config, setups[run.name].trials.env), True
        if speed is None:
            steps = TIMED_TRIALS * run.config.trial.environments * run.config.trial.steps
            measured = f"to measure it, train with --seeds 1 --total-steps {steps} --name speed"
            return f"unknown, no run like {run.variant} was trained in {folder.path.parent}; {measured}"
        steps_of_batches = sorted((left[run.name] for run in group), reverse=True)[::devices]
        seconds += sum(steps_of_batches) / speed
    pretrains = any(run.config.pretrain.steps for group in groups for run in group)
    source = ", as relic-jax cost predicts with an environment as fast as a gridworld" if is_predicted else ""
    without = "without compilation, pretraining and evaluations" if pretrains else "without compilation and evaluations"
    return f"about {duration(max(seconds, 1))} of training, {without}{source}"


def predicted_speed(config: TrainConfig, env: Environment) -> float | None:
    """Return the steps per second of a run on one device of this machine that `relic-jax cost` predicts.

    None: it has no numbers for the device or the memory, or for environments with images or worker processes.
    """
    kind = jax.devices()[0].device_kind.lower()
    name = next((name for name in DEVICES if name in kind), None)
    if name is None or env.on_host or any(image_mask(env.observation_spec)):
        return None
    try:
        return predict(dataclasses.replace(config, devices=None), DEVICES[name]).rate
    except ConfigError:
        return None


def _speeds(configs: Sequence[Path]) -> dict[TrainConfig, float]:
    """Return environment steps per second and device of earlier runs, by their `_settings`."""
    found: dict[TrainConfig, float] = {}
    for file in configs[:1000]:
        try:
            config = from_json(file.read_text(encoding="utf-8"))
            record = read_lines(file.with_name("timing.jsonl"))[-1]
            found[_settings(config)] = float(record["steps_per_second"]) / (config.devices or 1)
        except (OSError, ValueError, LookupError):
            continue
    return found


def _settings(config: TrainConfig) -> TrainConfig:
    """Return the settings that the speed depends on."""
    return dataclasses.replace(common_config(config), total_steps=1, eval=EvalConfig())
