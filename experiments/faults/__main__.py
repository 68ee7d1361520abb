"""`python -m experiments.faults`: injects faults, with counts and a table. Exit code 1 where something went wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from relic_jax.experiments.faults import damage, options, processes, workers
from relic_jax.rl.parallel import offer_cores

Part = Literal["options", "damage", "workers", "kills", "disks", "two"]
PARTS: tuple[Part, ...] = ("options", "damage", "workers", "kills", "disks", "two")
Row = tuple[str, int, list[str]]


@dataclasses.dataclass(frozen=True)
class Command:
    """Kill, damage, fill up, fuzz: nothing may be lost, nothing may differ silently, there is no traceback."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = PARTS
    """Which faults: odd options, wrong bits, killed workers, killed runs, full disks, two processes on one run."""
    options: int = 600
    """Command lines with odd values."""
    bits: int = 8
    """Wrong bits in every file."""
    workers: int = 20
    """Workers that are killed."""
    kills: int = 10
    """Kills of one run."""
    writing: int = 3
    """How many of them while a checkpoint is written."""
    disks: int = 4
    """Sizes from which on a file cannot grow."""
    quick: bool = False
    """Small counts: about two minutes on two idle cores."""
    seed: int = 0
    """Of the values, bits and moments."""


QUICK: dict[str, Any] = {"options": 100, "bits": 1, "workers": 4, "kills": 3, "writing": 1, "disks": 1}


def main() -> None:
    """Entry point."""
    command = tyro.cli(Command, prog="python -m experiments.faults")
    command = dataclasses.replace(command, **QUICK) if command.quick else command
    offer_cores(2)
    rows: list[tuple[Row, float]] = []
    with tempfile.TemporaryDirectory() as name:
        for part in command.parts:
            begun = time.monotonic()
            for row in ROWS[part](command, Path(name)):
                rows.append((row, time.monotonic() - begun))
                print(f"{row[0]}: {row[1]} tried, {len(row[2])} wrong", flush=True)
                for what in row[2]:
                    print(f"    {what}", flush=True)
                begun = time.monotonic()
    width = max(len(row[0]) for row, _ in rows)
    print(f"\n{'fault':{width}}  tried  wrong  seconds")
    for (what, tried, wrong), seconds in rows:
        print(f"{what:{width}}  {tried:5}  {len(wrong):5}  {seconds:7.0f}")
    sys.exit(1 if any(row[2] for row, _ in rows) else 0)


def odd_options(command: Command, folder: Path) -> Iterator[Row]:
    """Random commands, each with one or two options set to odd values."""
    bench, rng = options.Bench.make(folder / "options"), random.Random(command.seed)
    every = {name: options.options_of(kind) for name, kind in options.COMMANDS.items()}
    wrong = []
    for _ in range(command.options):
        name = rng.choice(["train", rng.choice(list(every))])
        chosen = rng.sample(every[name], min(rng.choice((1, 2)), len(every[name])))
        line = bench.line(name, {option: rng.choice(options.values(option, name)) for option in chosen})
        try:
            what = bench.attempt(*line).fault(chosen)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
        wrong += [f"{line}: {what}"[:500]] if what else []
    yield "command lines with odd values", command.options, wrong


def wrong_bits(command: Command, folder: Path) -> Iterator[Row]:
    """Of a checkpoint and of every export format that can be made here."""
    onnx = all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime"))
    formats = ("safetensors", "stablehlo", "orbax", *(("onnx",) if onnx else ()))
    for name, (count, wrong) in damage.damaged_folders(folder / "damage", command.bits, formats).items():
        yield f"wrong bits, {name}", count, wrong


def killed_workers(command: Command, folder: Path) -> Iterator[Row]:
    """While a run trains."""
    yield "killed workers", command.workers, workers.killed_workers(folder / "workers", command.workers)


def _whole(command: Command, folder: Path) -> Path:
    """The run that the others are compared with; made once."""
    runs = folder / "runs"
    return runs / "whole" if (runs / "whole").exists() else processes.run_whole(runs, 16 + 8 * command.kills)


def killed_runs(command: Command, folder: Path) -> Iterator[Row]:
    """One run, killed again and again."""
    whole = _whole(command, folder)
    wrong = processes.killed_runs(whole, command.kills, command.writing, command.seed)
    yield f"kills of a run, {command.writing} while it writes a checkpoint", command.kills, wrong


def full_disks(command: Command, folder: Path) -> Iterator[Row]:
    """Limits of a file's size that stop metrics, metadata or arrays."""
    whole = _whole(command, folder)
    for size in (4096, 512, 65_536, 0)[: command.disks]:
        yield f"no file beyond {size} bytes", 1, processes.full_disk(whole, size)


def two_processes(command: Command, folder: Path) -> Iterator[Row]:
    """The second one on a run's folder."""
    yield "two processes on one run", 1, processes.two_processes(_whole(command, folder))


ROWS: dict[Part, Callable[[Command, Path], Iterator[Row]]] = {
    "options": odd_options,
    "damage": wrong_bits,
    "workers": killed_workers,
    "kills": killed_runs,
    "disks": full_disks,
    "two": two_processes,
}

if __name__ == "__main__":
    main()
