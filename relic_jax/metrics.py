"""Write and read the metrics in a run folder.

Writes `metrics.jsonl`, `timing.jsonl` and `pretraining.jsonl`; reads `evaluations.jsonl` too.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from relic_jax.files import append, remove_leftovers, write_atomically

Record = dict[str, float]
EVALUATIONS = "evaluations.jsonl"
"""File of the evaluations during training (`evaluation.during` writes it)."""
PRETRAINING = "pretraining.jsonl"
"""File of the records of the pretraining."""


class Damage(NamedTuple):
    """The first line of a file that is not a record.

    Attributes:
        line: Number of the line, from 1.
        reason: Why it is not a record.
    """

    line: int
    reason: str


class JsonLines:
    """A tracker that writes one line per update to two files, and one per record of the pretraining to a third.

    `metrics.jsonl` has the deterministic numbers, `timing.jsonl` seconds and steps per second. An interrupted run
    resumes from its last checkpoint. Opening the files therefore drops the records after the checkpoint, and the
    finished file equals that of an uninterrupted run. A file with a damaged line is kept under another name, and
    logging continues after the records before that line. The first record of a pretraining replaces
    `pretraining.jsonl`.

    Args:
        folder: The run folder.
        env_steps: Environment steps of the checkpoint. Later records are dropped.
        tell: Receives a one-line message about each loss of records. None: print to standard error.
    """

    def __init__(self, folder: Path, env_steps: int, tell: Callable[[str], None] | None = None) -> None:
        """Open the files. Raises OSError if they cannot be read or written."""
        tell = tell or to_stderr
        self._pretraining = folder / PRETRAINING
        self._pretraining_file: BinaryIO | None = None
        self._files: list[BinaryIO] = []
        for name in ("metrics.jsonl", "timing.jsonl"):
            for line in reopen(folder / name, env_steps):
                tell(line)
            self._files.append((folder / name).open("ab", buffering=0))

    def log(self, record: Record, clock: Record) -> None:
        """Append a line to each file. Raises OSError, which leaves the earlier lines intact."""
        for file, line in zip(self._files[:2], (record, {"env_steps": record["env_steps"], **clock}), strict=True):
            append(file, (json.dumps(line) + "\n").encode())

    def pretrained(self, record: Record, steps: int) -> None:
        """Append a line to the file of the pretraining, which the first line replaces."""
        del steps
        if self._pretraining_file is None:
            self._pretraining_file = self._pretraining.open("wb", buffering=0)
            self._files.append(self._pretraining_file)
        append(self._pretraining_file, (json.dumps(record) + "\n").encode())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def to_stderr(line: str) -> None:
    """Print a one-line message to standard error."""
    print(f"relic-jax: {line}", file=sys.stderr, flush=True)


def reopen(path: Path, env_steps: int, *, numbers: bool = True) -> list[str]:
    """Drop the records after `env_steps` from a file of a run that is resumed.

    Args:
        path: The file. It can be missing.
        env_steps: Environment steps of the checkpoint.
        numbers: See `read_lines`.

    Returns:
        One-line messages for the user about lost records.

    Raises:
        OSError: If the file cannot be read or written.
    """
    remove_leftovers(path)
    existed = path.exists()
    data = path.read_bytes() if existed else b""
    lines, records, damage = _parse(data, numbers)
    kept = [(line, record) for line, record in zip(lines, records, strict=True) if record["env_steps"] <= env_steps]
    content = b"".join(line + b"\n" for line, _ in kept)
    reached = int(kept[-1][1]["env_steps"]) if kept else 0
    messages = []
    if damage is not None:
        aside = _keep_aside(path)
        messages.append(
            f"{path}: line {damage.line} cannot be read ({damage.reason}); the file is kept as {aside.name}, "
            f"logging continues after its record of step {reached:,}"
        )
    if reached < env_steps and path.name == "metrics.jsonl":
        state = "ends at step " + f"{reached:,}" if existed and kept else "has no records" if existed else "is missing"
        messages.append(f"{path}: {state}; the checkpoint is of step {env_steps:,}, the records in between are lost")
    if content != data:
        write_atomically(path, content)
    return messages


def _keep_aside(path: Path) -> Path:
    """Keep a file under a second name, `NAME.damaged-1` or the next free number. Copied only if links do not work."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.damaged-{number}")
        try:
            os.link(path, aside)
            return aside
        except FileExistsError:
            number += 1
        except OSError:  # a file system without links
            if aside.exists():
                number += 1
                continue
            shutil.copyfile(path, aside)
            return aside


def read_lines(path: Path, *, numbers: bool = True) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file up to the first line that is not one. The last line can be truncated.

    Args:
        path: The file.
        numbers: Whether all values of a record are numbers and the first record is after step 0, as in `metrics.jsonl`.
    """
    return _parse(path.read_bytes(), numbers)[1]


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Return the evaluations in `evaluations.jsonl` up to the first damaged line. Empty if there is no file."""
    return read_lines(path, numbers=False) if path.is_file() else []


def _parse(data: bytes, numbers: bool) -> tuple[list[bytes], list[dict[str, Any]], Damage | None]:
    """Return lines, their records, and the first damaged line. Skips blank lines and a truncated last line."""
    lines: list[bytes] = []
    records: list[dict[str, Any]] = []
    *whole, last = data.split(b"\n")
    for number, line in enumerate([*whole, last], 1):
        if not line.strip(b" \t\r"):
            continue
        found = _record(line, records[-1]["env_steps"] if records else 0 if numbers else -1, numbers)
        if isinstance(found, str):
            cut = number == len(whole) + 1 and line.startswith(b"{") and line.isascii() and line.decode().isprintable()
            return lines, records, None if cut else Damage(number, found)
        lines.append(line)
        records.append(found)
    return lines, records, None


def _record(line: bytes, after: float, numbers: bool) -> dict[str, Any] | str:
    """Return the record in a line, or the reason why it is not one. `after` is env_steps of the previous record."""
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "zeros" if not line.strip(b"\0") else "not JSON"
    steps = found.get("env_steps") if isinstance(found, dict) else None
    if isinstance(steps, bool) or not isinstance(steps, int | float) or not math.isfinite(steps):
        return "not a record with env_steps"
    if numbers and not all(isinstance(value, int | float) and not isinstance(value, bool) for value in found.values()):
        return "not a record of numbers"
    return found if steps > after else f"env_steps {steps:,} after {after:,}"
