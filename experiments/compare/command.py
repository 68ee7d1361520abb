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
from relic_jax.experiments.compare.measure import RETURNS, Measure, read_measure
from relic_jax.experiments.compare.methods import Method, methods_of, run_folders
from relic_jax.experiments.compare.results import CURVE, RECORDS
from relic_jax.experiments.sweep.folder import STUDY
from relic_jax.experiments.sweep.grid import members, methods
from relic_jax.experiments.sweep.study import read_study
from relic_jax.progress import Activity


@dataclasses.dataclass(frozen=True)
class CompareCommand:
    """Compare evaluated runs: a table and a figure of methods, with seeds pooled and 95% intervals."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The folder of one study, also of its committed results: the study's methods. Or run folders, and folders that
    hold run folders: runs that differ in the seed only are one method, named after the settings that differ."""
    out: Path = Path("comparison")
    """Folder of table.md, table.csv and figure.png."""
    baseline: str | None = None
    """Method that the others are compared with, by its name in the table. Default: the first."""
    metric: str | None = None
    """return, success, or a metric of the environment, e.g. steps or spl. Default: the study's, else return."""
    episodes: str | None = None
    """The later episodes, counted from 1: FIRST-LAST. Default: the study's with its metric, else all after the policy's
    first."""
    curve: str = CURVE
    """Name of the evaluation in each run folder, e.g. that of a JSON file of relic-jax evaluate."""


def compare_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax compare`."""
    command = parse(CompareCommand, arguments, "relic-jax compare")
    if not command.paths:
        raise ConfigError("paths is empty; allowed: run folders, and folders of studies")
    found, measure = study_methods(command.paths) or (methods_of(run_folders(command.paths)), RETURNS)
    if command.metric is not None or command.episodes is not None:
        measure = read_measure(command.metric or measure.metric, command.episodes)
    folders.check_writable(command.out / "table.md", "out")
    with Activity("computing intervals"):
        comparison = compare(found, command.baseline, command.curve, measure)
    with Activity(f"drawing {command.out / 'figure.png'}"):
        files = write(comparison, command.out)
    print(comparison.markdown(), end="")
    print("wrote " + ", ".join(map(str, files)))


def study_methods(paths: Sequence[Path]) -> tuple[list[Method], Measure] | None:
    """Return the methods of a study, by its own names and in its order, and its measure.

    Returns:
        The methods and the measure. None if `paths` is not the folder of one study, or another version wrote it.
    """
    if len(paths) != 1 or not (paths[0] / STUDY).is_file():
        return None
    try:
        study = read_study(paths[0] / STUDY)
        runs = members(study)
    except ConfigError:
        return None
    there = [run for run in runs if any((paths[0] / name).is_file() for name in (f"{run.name}/config.json", RECORDS))]
    return (methods(there, paths[0]), study.measure) if there else None
