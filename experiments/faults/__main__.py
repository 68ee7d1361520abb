"""`python -m experiments.faults`: injects faults and prints a table. The exit code is 1 if a check fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from relic_jax.experiments.faults import damage, options, processes, several, workers
from relic_jax.rl.parallel import offer_cores

Part = Literal["options", "damage", "workers", "kills", "disks", "two", "several"]
PARTS: tuple[Part, ...] = ("options", "damage", "workers", "kills", "disks", "two", "several")
Row = tuple[str, int, list[str]]


@dataclasses.dataclass(frozen=True)
class Command:
    """Inject faults and check that no data is lost or changed silently and that no traceback is printed."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = PARTS
    """Faults: odd options, flipped bits, killed workers, killed runs, full disks, two processes on one run, and a
    run of two processes, one of which is killed."""
    options: int = 600
    """Number of command lines with odd values."""
    bits: int = 8
    """Number of bits to flip in every file."""
    workers: int = 20
    """Number of workers to kill."""
    kills: int = 10
    """Number of times to kill a run."""
    writing: int = 3
    """Number of these kills that happen while a checkpoint is written."""
    losses: int = 10
    """Number of times to kill one of two processes of a run."""
    disks: int = 4
    """Number of limits on the size of a file to test."""
    quick: bool = False
    """Use small counts, which take about two minutes on two idle cores."""
    seed: int = 0
    """Random seed of the values, the bits and the times of kills."""
    out: Path | None = None
    """JSON file to write with the results."""


QUICK: dict[str, Any] = {"options": 100, "bits": 1, "workers": 4, "kills": 3, "writing": 1, "losses": 2, "disks": 1}


def main() -> None:
    """Inject the selected faults and print the results."""
    command = tyro.cli(Command, prog="python -m experiments.faults")
    command = dataclasses.replace(command, **QUICK) if command.quick else command
    offer_cores(2)
    rows: list[tuple[Row, float]] = []
    with tempfile.TemporaryDirectory() as name:
        for part in command.parts:
            start = time.monotonic()
            for row in ROWS[part](command, Path(name)):
                rows.append((row, time.monotonic() - start))
                print(f"{row[0]}: {row[1]} tried, {len(row[2])} failed", flush=True)
                for failure in row[2]:
                    print(f"    {failure}", flush=True)
                start = time.monotonic()
    width = max(len(row[0]) for row, _ in rows)
    print(f"\n{'fault':{width}}  tried  failed  seconds")
    for (fault, tried, failures), seconds in rows:
        print(f"{fault:{width}}  {tried:5}  {len(failures):6}  {seconds:7.0f}")
    if command.out is not None:
        keys = ("fault", "tried", "failures", "seconds")
        results = [dict(zip(keys, (*row, round(seconds)), strict=True)) for row, seconds in rows]
        command.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if any(row[2] for row, _ in rows) else 0)


def odd_options(command: Command, folder: Path) -> Iterator[Row]:
    """Run random commands, each with one or two options set to odd values."""
    bench, rng = options.Bench.make(folder / "options"), random.Random(command.seed)
    every = {name: options.options_of(kind) for name, kind in options.COMMANDS.items()}
    failures = []
    for _ in range(command.options):
        name = rng.choice(["train", rng.choice(list(every))])
        chosen = rng.sample(every[name], min(rng.choice((1, 2)), len(every[name])))
        line = bench.line(name, {option: rng.choice(options.values(option, name)) for option in chosen})
        try:
            fault = bench.attempt(*line).fault(chosen)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        failures += [f"{line}: {fault}"[:500]] if fault else []
    yield "command lines with odd values", command.options, failures


def flipped_bits(command: Command, folder: Path) -> Iterator[Row]:
    """Flip bits of a checkpoint and of every export format that can be written here."""
    onnx = all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime"))
    formats = ("safetensors", "stablehlo", "orbax", *(("onnx",) if onnx else ()))
    for name, (count, failures) in damage.damaged_folders(folder / "damage", command.bits, formats).items():
        yield f"flipped bits, {name}", count, failures


def killed_workers(command: Command, folder: Path) -> Iterator[Row]:
    """Kill workers while a run trains."""
    yield "killed workers", command.workers, workers.killed_workers(folder / "workers", command.workers)


def _whole(command: Command, folder: Path) -> Path:
    """Return the run without faults that the others are compared with, trained on first use."""
    runs = folder / "runs"
    return runs / "whole" if (runs / "whole").exists() else processes.run_whole(runs, 16 + 8 * command.kills)


def killed_runs(command: Command, folder: Path) -> Iterator[Row]:
    """Kill a run repeatedly and resume it."""
    whole = _whole(command, folder)
    failures = processes.killed_runs(whole, command.kills, command.writing, command.seed)
    yield f"kills of a run, {command.writing} while it writes a checkpoint", command.kills, failures


def full_disks(command: Command, folder: Path) -> Iterator[Row]:
    """Limit the size of files so that metrics, metadata or arrays cannot be written."""
    whole = _whole(command, folder)
    for size in (4096, 512, 65_536, 0)[: command.disks]:
        yield f"no file larger than {size} bytes", 1, processes.full_disk(whole, size)


def two_processes(command: Command, folder: Path) -> Iterator[Row]:
    """Start a second process on a run folder."""
    yield "two processes on one run", 1, processes.two_processes(_whole(command, folder))


def lost_processes(command: Command, folder: Path) -> Iterator[Row]:
    """Kill one of two processes of a run repeatedly and resume it."""
    (folder / "several").mkdir()
    failures, seconds = several.killed_processes(folder / "several", command.losses, command.seed)
    fault = f"kills of one of two processes, the other ended after {min(seconds):.1f} to {max(seconds):.1f} s"
    yield fault, command.losses, failures


ROWS: dict[Part, Callable[[Command, Path], Iterator[Row]]] = {
    "options": odd_options,
    "damage": flipped_bits,
    "workers": killed_workers,
    "kills": killed_runs,
    "disks": full_disks,
    "two": two_processes,
    "several": lost_processes,
}

if __name__ == "__main__":
    main()
