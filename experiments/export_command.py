"""The command `relic-jax export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from relic_jax.config import ConfigError
from relic_jax.experiments import presets, run
from relic_jax.experiments.arguments import parse
from relic_jax.export import Dtype, ExportFormat, export_policy


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Export a policy in a standard format, with its config and a model card, and verify the files."""

    path: tyro.conf.Positional[Path | None] = None
    """Run folder, checkpoint folder or exported folder."""
    to: Path | None = None
    """Folder to create."""
    format: ExportFormat = "safetensors"
    """safetensors: weights; stablehlo, onnx: the acting step as a program, with a script that runs it; orbax:
    parameters only."""
    dtype: Dtype = "float32"
    """Dtype of the weights, with safetensors."""
    context: int | None = None
    """Capacity of the context in steps (stablehlo: fixed). Default: a trial of the training or of the evaluation,
    whichever is longer."""
    pretrained: str | None = None
    """Name of a pretrained policy that is included, e.g. darkroom-dpt, instead of a path."""
    name: str | None = None
    """Name of the model in its card. Default: the run's name."""
    note: str = ""
    """Text in the card, after the results."""
    trust: bool = False
    """Make the environment that the config of a checkpoint without saved spaces names. It can be any program."""


def export_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax export`."""
    command = parse(ExportCommand, arguments, "relic-jax export")
    if command.to is None:
        raise ConfigError("to is missing; allowed: a new folder, --to DIR")
    (trained,) = run.load([] if command.path is None else [command.path], command.pretrained, trust=command.trust)
    check = export_policy(
        trained,
        command.to,
        format=command.format,
        dtype=command.dtype,
        context=command.context,
        name=command.name,
        preset=presets.name_of(trained.config),
        note=command.note,
    )
    print(
        f"verified: {check['steps']} steps of {check['batch']} environments across {check['episode_ends']} ends of "
        f"episodes, largest difference {check['largest_difference']:.2g} "
        f"({check['largest_scaled_difference']:.2g} of the output's largest number; allowed {check['tolerance']:.0e})"
    )
    print(f"wrote {command.to}: {', '.join(sorted(path.name for path in command.to.iterdir()))}")
