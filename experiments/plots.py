"""`relic-jax plot`: one figure from several curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments import folders, run
from relic_jax.config import ConfigError
from relic_jax.plotting import plot_curves


@dataclasses.dataclass(frozen=True)
class PlotCommand:
    """One figure from several in-context curves."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or curve.json files."""
    out: Path = Path("curves.png")
    """The figure."""


def plot_main(arguments: Sequence[str]) -> None:
    """`relic-jax plot`."""
    command = tyro.cli(PlotCommand, args=arguments, prog="relic-jax plot")
    if not command.paths:
        raise ConfigError("paths is empty; allowed: run folders or curve.json files")
    summaries = [run.read_summary(path) for path in command.paths]
    for path, summary in zip(command.paths, summaries, strict=True):
        if (summary["env"], summary["split_hash"]) != (summaries[0]["env"], summaries[0]["split_hash"]):
            allowed = f"curves of one env and split in one figure ({summaries[0]['env']}, {summaries[0]['split']})"
            raise ConfigError(f"paths: '{path}' is of {summary['env']}, {summary['split']}; allowed: {allowed}")
    folders.check_writable(command.out, "out")
    plot_curves(summaries, labels(command.paths), command.out)
    print(f"wrote {command.out}")


def labels(paths: Sequence[Path]) -> list[str]:
    """A name for each curve: the folder's or the file's, and where those are the same the folder that it is in."""
    names = [path.name if path.is_dir() else path.stem for path in paths]
    return [
        path.resolve().parent.name if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)
    ]
