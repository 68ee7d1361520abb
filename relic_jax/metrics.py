"""The numbers of a run in its folder: `metrics.jsonl` and `timing.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from relic_jax.files import write_atomically

Record = dict[str, float]


class JsonLines:
    """`metrics.jsonl`: the deterministic numbers, one line per update. `timing.jsonl`: seconds and steps per second.

    An interrupted run is resumed from its last checkpoint, so on opening, what was logged after `env_steps` (the
    checkpoint's count) is dropped: the finished file equals that of an uninterrupted run.
    """

    def __init__(self, folder: Path, env_steps: int) -> None:
        self._files = [self._open(folder / name, env_steps) for name in ("metrics.jsonl", "timing.jsonl")]

    @staticmethod
    def _open(path: Path, env_steps: int) -> TextIO:
        kept = [line for line in read_lines(path) if line["env_steps"] <= env_steps] if path.exists() else []
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        return path.open("a", buffering=1, encoding="utf-8", newline="\n")

    def log(self, record: Record, clock: Record) -> None:
        """One line to each file."""
        for file, line in zip(self._files, (record, {"env_steps": record["env_steps"], **clock}), strict=True):
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Closes both files."""
        for file in self._files:
            file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file. A last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
