"""The folder of a study.

study.toml    the study, resolved: it depends on no preset
origin.json   command, commit, versions and device it was started with
RUN/          one run folder per run (`relic_jax.experiments.run`); failed.txt: why a run has no result;
              evaluate-NAME….*, attention.*: evaluations that the study declares; record.json: the numbers of
              a recorded run, which has no weights
table.md, table.csv, figure.png, report.html; evaluations.*, attention.*
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relic_jax import trust
from relic_jax.config import ConfigError, TrainConfig, differences
from relic_jax.experiments import folders
from relic_jax.experiments.compare.results import RECORD
from relic_jax.experiments.sweep.grid import Member
from relic_jax.experiments.sweep.study import Study, first_difference, read_study, resolved
from relic_jax.files import write_atomically
from relic_jax.locks import is_lock_file, run_lock

STUDY = "study.toml"
FAILED = "failed.txt"


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study.

    Attributes:
        path: The folder.
    """

    path: Path

    def run(self, member: Member) -> Path:
        """Return the folder of a run."""
        return self.path / member.name

    def is_finished(self, member: Member) -> bool:
        """Return whether a run was trained and evaluated, or is recorded. A trained run's last file is its figure."""
        return any((self.run(member) / name).is_file() for name in ("curve.png", RECORD))

    def failure(self, member: Member) -> str | None:
        """Return why a run failed, or None."""
        file = self.run(member) / FAILED
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None

    def create_run(self, member: Member) -> None:
        """Create the folder of a run unless it exists.

        Raises:
            ConfigError: It holds a run with another config, or cannot be written.
        """
        folder = self.run(member)
        if (folder / "config.json").is_file():
            found = folders.read_config(folder)
            if fields := differences(member.config, found):
                raise ConfigError(f"{fields[0]} of '{folder}' differs from the study; allowed: an unchanged run folder")
            return
        (folder / "origin.json").unlink(missing_ok=True)  # of a process that was killed while it created the folder
        folders.create_folder(folder, member.config)


def read(path: Path) -> Study:
    """Return the study of a folder. Raises ConfigError if there is none."""
    if not (path / STUDY).is_file():
        raise ConfigError(f"resume is '{path}'; allowed: the folder of a study (it has no {STUDY})")
    return read_study(path / STUDY)


def check_new(path: Path, study: Study) -> None:
    """Raise ConfigError if the folder exists, with the first setting that differs if it holds another study."""
    if not path.exists() or (path.is_dir() and all(is_lock_file(file.name) for file in path.iterdir())):
        return
    remedy = f"another --name, or resume it with: relic-jax sweep --resume {path}"
    if (path / STUDY).is_file():
        check_same(path, study)
    raise ConfigError(f"name is {path.name!r}: '{path}' is already there; allowed: {remedy}")


def check_same(path: Path, study: Study) -> None:
    """Raise ConfigError if the folder holds a study with other settings."""
    if difference := first_difference(read(path), study):
        raise ConfigError(f"{difference}, which '{path}' was started with (or another --name)")


@contextmanager
def opened(path: Path, study: Study, runs: Sequence[Member], *, resume: bool) -> Iterator[StudyFolder]:
    """Create or open the folder of a study and hold its lock.

    Raises:
        ConfigError: The folder exists and is not resumed, another process works on it, or it cannot be written.
    """
    if not resume:
        check_new(path, study)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"name is {path.name!r}; allowed: a folder that can be written ({error.strerror})") from None
    with run_lock(path, "resume" if resume else "name"):
        if not resume:
            check_new(path, study)
            owners = sorted({signature for run in runs if (signature := trust.sign(run.config))})
            write_atomically(path / "origin.json", json.dumps(folders.origin() | {"owners": owners}, indent=2) + "\n")
            write_atomically(path / STUDY, resolved(study))
        elif (earlier := read(path)) != study:  # evaluations or the measure were added or changed
            changed = {name: getattr(study, name) for name in ("evaluate", "attention", "measure")}
            extended = dataclasses.replace(earlier, **changed)
            write_atomically(path / STUDY, resolved(extended))
        yield StudyFolder(path)


def check_trust(path: Path, runs: Sequence[Member]) -> None:
    """Raise ConfigError if the study of another user names programs or files."""
    owners = folders.read_origin(path).get("owners")
    signatures = owners if isinstance(owners, list) else []
    checked: set[TrainConfig] = set()
    for run in runs:
        if run.config not in checked:
            checked.add(run.config)
            own = any(trust.is_own(run.config, signature) for signature in signatures)
            trust.check(run.config, path, own=own)
