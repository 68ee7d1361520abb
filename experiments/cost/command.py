"""`relic-jax cost PRESET`: the predicted cost of a run on other devices."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import tyro

from relic_jax.config import ConfigError, TrainConfig, validate
from relic_jax.environment.base import Environment
from relic_jax.envs import registry
from relic_jax.experiments import presets
from relic_jax.experiments.arguments import parse, with_current_names
from relic_jax.experiments.cost import devices
from relic_jax.experiments.cost.arithmetic import ImageShape
from relic_jax.experiments.cost.prediction import Prediction, predict
from relic_jax.progress import duration
from relic_jax.spaces import image_mask
from relic_jax.validation import require


@dataclasses.dataclass(frozen=True)
class CostCommand:
    """Predict the speed, the memory and the communication of a run on other devices (docs/scaling.md).

    All other options of `relic-jax cost PRESET` are fields of the configuration, as in relic-jax train. --devices
    is the number of devices. Each device has the preset's number of environments, unless --share is set.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    device: str = "h100"
    """Kind of device: a40, a100, h100, h200, or cpu (one core)."""
    share: bool = False
    """Divide the preset's environments among the devices."""
    env_rate: float | None = None
    """Steps per second of the environment alone on one device, for example that of a simulator, or from the benchmark
    env. Default: the time of a gridworld, which is part of acting."""
    json: bool = False
    """Print JSON."""


def cost_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax cost PRESET`."""
    arguments = with_current_names(arguments)
    if arguments and not arguments[0].startswith("-"):
        name, others = arguments[0], list(arguments[1:])
    elif {"-h", "--help"} & set(arguments):
        name, others = "darkroom-dpt", list(arguments)
    else:
        raise ConfigError("preset is missing; allowed: relic-jax cost PRESET (see relic-jax presets)")
    default = CostCommand(presets.get(name).config)
    command = parse(CostCommand, others, f"relic-jax cost {name}", default)
    prediction = predicted(command)
    print(json.dumps(as_json(prediction), indent=2) if command.json else table(prediction, name, command.device))


def predicted(command: CostCommand) -> Prediction:
    """Return the prediction of a command.

    Raises:
        ConfigError: If the options do not fit.
    """
    count = command.config.devices if command.config.devices is not None else 1
    device = devices.get(command.device)
    require(count > 0, "devices", count, "more than 0")
    require(command.env_rate is None or command.env_rate > 0, "env_rate", command.env_rate, "more than 0")
    config = dataclasses.replace(command.config, devices=None)
    env = registry.make(config.env)
    validate(config, horizon=env.horizon, images=image_of(env) is not None)
    options: dict[str, Any] = {"share": command.share, "image": image_of(env), "env_rate": command.env_rate}
    return predict(config, device, count, **options)


def image_of(env: Environment) -> ImageShape | None:
    """Return the shape of the first image of an observation, or None without one."""
    leaves = jax.tree.leaves(env.observation_spec)
    images = [x.shape for x, is_image in zip(leaves, image_mask(env.observation_spec), strict=True) if is_image]
    return images[0] if images else None


def table(prediction: Prediction, name: str, device: str) -> str:
    """Return the prediction as text."""
    trial, total, steps = prediction.config.trial, prediction.trial_seconds, prediction.config.total_steps
    lines = [
        f"{name} on {prediction.devices} × {device}: {prediction.environments:,} environments per device, trials of "
        f"{trial.steps:,} steps in {trial.updates} updates, {prediction.config.policy.transformer.dtype}",
        f"{'per device and trial':20} {'seconds':>9} {'share':>6} {'Gflop':>11} {'GB':>9}  limit",
    ]
    for part_name, part in prediction.parts.items():
        numbers = f"{part.seconds:9.3g} {part.seconds / total:6.0%} {part.flops / 1e9:11,.0f} {part.bytes / 1e9:9,.1f}"
        lines.append(f"{part_name:20} {numbers}  {part.limit}")
    memory = f"memory per device: {prediction.memory / 2**30:.2f} GiB, without activations"
    if (available := devices.get(device).memory) < prediction.memory:
        memory += f": more than the {available / 2**30:.0f} GiB of the device"
    lines.append(memory)
    lines.append(f"{prediction.rate:,.0f} environment steps/s, {duration(3600 * prediction.hours)} for {steps:,} steps")
    lines.append("A prediction. Of an H200 and of CPUs it was off by a factor of up to 1.5 (docs/scaling.md).")
    return "\n".join(lines)


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Return the prediction as plain values."""
    return {
        "devices": prediction.devices,
        "environments_per_device": prediction.environments,
        "parts": {name: dataclasses.asdict(part) for name, part in prediction.parts.items()},
        "memory_bytes": prediction.memory,
        "steps_per_second": prediction.rate,
        "hours": prediction.hours,
    }
