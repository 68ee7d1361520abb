"""Finished runs of other studies, which a study takes over instead of training them again (`--reuse`, `--recorded`).

A run is determined by its configuration and its seed, so studies that compare with the same baseline can share it.
Of recorded runs there are only numbers, in the files `runs.jsonl` that `experiments.studies` writes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError, TrainConfig
from relic_jax.experiments import folders
from relic_jax.experiments.compare.results import RECORD, result_of
from relic_jax.experiments.sweep.folder import StudyFolder
from relic_jax.experiments.sweep.grid import Member, members
from relic_jax.experiments.sweep.study import Study, read_study
from relic_jax.files import write_atomically
from relic_jax.locks import is_lock_file

ORIGIN = ("command", "commit", "jax", "device")
"""Values of `origin.json` that records have."""
COPY = ".copy"
"""Folder of an unfinished copy. A killed process leaves it, and the next one removes it."""


def reuse_runs(folder: StudyFolder, runs: Sequence[Member]) -> list[tuple[Member, Path]]:
    """Copy finished runs with the same configuration from the studies beside a study's folder.

    Evaluations that another study declares are left out. `origin.json` of a copy names the run in `copied_from`.

    Args:
        folder: The study's folder, whose lock this process holds.
        runs: The runs of the study. Those that have a checkpoint are left as they are.

    Returns:
        The copied runs and where they come from.
    """
    shutil.rmtree(folder.path / COPY, ignore_errors=True)
    found = find_reusable(folder, runs)
    for run, source in found:
        _copy(source, folder.path / COPY / run.name)
        shutil.rmtree(folder.run(run), ignore_errors=True)  # a run that has not started
        os.replace(folder.path / COPY / run.name, folder.run(run))
    shutil.rmtree(folder.path / COPY, ignore_errors=True)
    return found


def find_reusable(folder: StudyFolder, runs: Sequence[Member]) -> list[tuple[Member, Path]]:
    """Return the runs that `reuse_runs` would copy, and where they come from. Nothing is written."""
    missing = [run for run in runs if not (folder.run(run) / "checkpoints").exists()]
    found = _finished(folder.path) if missing else {}
    return [(run, found[run.config]) for run in missing if run.config in found]


def take_recorded(folder: StudyFolder, study: Study, runs: Sequence[Member], results: Path) -> list[tuple[Member, str]]:
    """Create run folders with the numbers of recorded runs that have the same configuration and seed.

    Args:
        folder: The study's folder, whose lock this process holds.
        study: The study. If it declares evaluations, which need weights, no run is taken.
        runs: Its runs. Those that have a folder with a checkpoint or a result are left as they are.
        results: Folder that holds RESULT/study.toml and RESULT/runs.jsonl.

    Returns:
        The runs and the names of their records.

    Raises:
        ConfigError: The folder holds no results, or a file of results is damaged.
    """
    taken = []
    for run, source, record in find_recorded(folder, study, runs, results):
        if source != f"{study.name}/{run.name}":
            record = record | {"copied_from": source}
        folder.create_run(run)
        origin = {name: record[name] for name in (*ORIGIN, "copied_from") if name in record}
        write_atomically(folder.run(run) / "origin.json", json.dumps(origin, indent=2) + "\n")
        write_atomically(folder.run(run) / RECORD, json.dumps(record) + "\n")
        taken.append((run, source))
    return taken


def find_recorded(
    folder: StudyFolder, study: Study, runs: Sequence[Member], results: Path
) -> list[tuple[Member, str, dict[str, Any]]]:
    """Return the runs that `take_recorded` would take, with the names and the content of their records.

    Nothing is written. Raises as `take_recorded` does.
    """
    if not any(results.glob("*/runs.jsonl")):
        raise ConfigError(f"recorded is '{results}'; allowed: a folder with files RESULT/runs.jsonl")
    if study.evaluate or study.attention is not None:
        return []
    missing = [run for run in runs if not (folder.run(run) / "checkpoints").exists() and not folder.is_finished(run)]
    recorded = _recorded(results, study.name) if missing else {}
    found = [(run, *recorded[run.config]) for run in missing if run.config in recorded]
    for run, source, record in found:
        result_of(record, folder.run(run), run.config, f"recorded: '{source}' in '{results}'")
    return found


def _recorded(results: Path, name: str) -> dict[TrainConfig, tuple[str, dict[str, Any]]]:
    """Return the names and the records of recorded runs by their configuration, those of the study `name` first."""
    found: dict[TrainConfig, tuple[str, dict[str, Any]]] = {}
    for file in sorted(results.glob("*/runs.jsonl"), key=lambda file: (file.parent.name != name, file)):
        try:
            configs = {member.name: member.config for member in members(read_study(file.with_name("study.toml")))}
        except ConfigError:  # of another version
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                config, own = configs[record["run"]], f"{file.parent.name}/{record['run']}"
            except (ValueError, LookupError, TypeError):
                about = f"recorded: line {number} of '{file}' is no run of its study"
                raise ConfigError(f"{about}; allowed: what experiments.studies writes") from None
            found.setdefault(config, (record.get("copied_from", own), record))
    return found


def _finished(path: Path) -> dict[TrainConfig, Path]:
    """Return the finished runs in the studies beside a folder, by their configuration."""
    found: dict[TrainConfig, Path] = {}
    for file in sorted(path.parent.glob("*/*/config.json")):
        run = file.parent
        if run.parent == path or not (run / "curve.png").is_file() or not (run / "checkpoints").is_dir():
            continue
        try:
            found.setdefault(folders.read_config(run), run)
        except ConfigError:  # of another version
            continue
    return found


def _copy(source: Path, target: Path) -> None:
    def left_out(_: str, names: list[str]) -> set[str]:
        return {name for name in names if name.startswith(("evaluate-", "attention.")) or is_lock_file(name)}

    shutil.copytree(source, target, ignore=left_out)
    origin = folders.read_origin(target) | {"copied_from": f"{source.parent.name}/{source.name}"}
    write_atomically(target / "origin.json", json.dumps(origin, indent=2) + "\n")
