"""The command line of `relic-jax compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from relic_jax.config import ConfigError
from relic_jax.experiments import folders
from relic_jax.experiments.arguments import parse
from relic_jax.experiments.compare.comparison import compare, write
from relic_jax.experiments.compare.methods import methods_of, run_folders
from relic_jax.experiments.compare.results import CURVE
from relic_jax.progress import Activity


@dataclasses.dataclass(frozen=True)
class CompareCommand:
    """Compare evaluated runs: a table and a figure of methods, with seeds pooled and 95% intervals."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, and folders of studies that hold run folders. Runs that differ in the seed only are one method;
    methods are named after the settings that differ."""
    out: Path = Path("comparison")
    """Folder of table.md, table.csv and figure.png."""
    baseline: str | None = None
    """Method that the others are compared with, by its name in the table. Default: the first."""
    curve: str = CURVE
    """Name of the evaluation in each run folder, e.g. that of a JSON file of relic-jax evaluate."""


def compare_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax compare`."""
    command = parse(CompareCommand, arguments, "relic-jax compare")
    if not command.paths:
        raise ConfigError("paths is empty; allowed: run folders, and folders of studies")
    methods = methods_of(run_folders(command.paths))
    folders.check_writable(command.out / "table.md", "out")
    with Activity("computing intervals"):
        comparison = compare(methods, command.baseline, command.curve)
    with Activity(f"drawing {command.out / 'figure.png'}"):
        files = write(comparison, command.out)
    print(comparison.markdown(), end="")
    print("wrote " + ", ".join(map(str, files)))
