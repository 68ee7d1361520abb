"""Run the committed studies one after the other, and copy their results to the repository.

python -m experiments.studies                       # all that finish in one night on two cores
python -m experiments.studies length sinks          # some

After an interruption, the same command continues: finished runs are not repeated, and others go on bit for bit.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import tyro

from relic_jax.config import ConfigError
from relic_jax.experiments.arguments import parse
from relic_jax.experiments.studies import FOLDER, LONG, NIGHT
from relic_jax.experiments.studies.results import write_results
from relic_jax.validation import did_you_mean

RELIC_JAX = "import sys; sys.argv[0] = 'relic-jax'; from relic_jax.experiments.entry import main; main()"
"""Program of a child process, which is the command `relic-jax`."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Run committed studies and copy their results."""

    studies: Annotated[tuple[str, ...], tyro.conf.Positional] = NIGHT
    """Names of studies: those of one night, length and stale-keys-full."""
    runs: Path = Path("runs")
    """Folder that holds the folders of the studies."""
    out: Path = Path("experiments/results")
    """Folder of the results. Those of a study are written to OUT/STUDY when it is finished."""
    devices: int | None = None
    """Number of devices, as of relic-jax sweep. Default: all."""
    dry_run: bool = False
    """Print the grids and their costs, and stop."""
    recorded: bool = False
    """Train only runs that OUT/*/runs.jsonl does not have, and take the numbers of the others from there."""
    results_only: bool = False
    """Copy the results of studies that are finished, or not yet, and stop."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    command = parse(Command, sys.argv[1:] if argv is None else argv, "python -m experiments.studies")
    try:
        check(command.studies)
        sys.exit(start(command))
    except ConfigError as error:
        sys.exit(f"error: {error}")


def check(names: Sequence[str]) -> None:
    """Raise ConfigError that offers the nearest name if a study does not exist."""
    known = (*NIGHT, *LONG)
    for name in names:
        if name not in known:
            raise ConfigError(f"studies is {name!r}; allowed: {', '.join(known)}{did_you_mean(name, known)}")


def start(command: Command) -> int:
    """Run the studies of a command.

    Returns:
        The exit code: 0, or that of the study that was stopped or could not run. Failed runs do not stop the others.
    """
    failed = 0
    for name in command.studies:
        folder = command.runs / name
        code = 0 if command.results_only else run_sweep(sweep_arguments(name, command))
        if code > 1:
            return code
        failed = max(failed, code)
        if not command.dry_run and (folder / "table.csv").is_file():
            files = write_results(folder, command.out / name)
            size = sum(file.stat().st_size for file in files)
            print(f"wrote {len(files)} files, {size / 1000:.0f} kB, to {command.out / name}", flush=True)
    return failed


def sweep_arguments(name: str, command: Command) -> list[str]:
    """Return the arguments of the command that starts a study, or continues it if its folder exists."""
    folder = command.runs / name
    arguments = ["sweep", str(FOLDER / f"{name}.toml"), "--runs", str(command.runs), "--reuse"]
    arguments += ["--resume", str(folder)] if (folder / "study.toml").is_file() else []
    arguments += ["--recorded", str(command.out)] if command.recorded else []
    arguments += [] if command.devices is None else ["--devices", str(command.devices)]
    return [*arguments, *(["--dry-run"] if command.dry_run else [])]


def run_sweep(arguments: Sequence[str]) -> int:
    """Run `relic-jax` in a child process, which ends with this one, and return its exit code."""
    print("relic-jax " + " ".join(arguments), flush=True)
    child = subprocess.Popen([sys.executable, "-c", RELIC_JAX, *arguments])

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    earlier = signal.signal(signal.SIGTERM, forward)
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the child received it too; it saves and ends
                continue
    finally:
        signal.signal(signal.SIGTERM, earlier)


if __name__ == "__main__":
    main()
