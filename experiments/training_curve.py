"""Return and success of a run's training episodes, in equal parts of its steps, as CSV.

python -m experiments.training_curve runs/house-objnav-small-seed0 --out training.csv
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from relic_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Command:
    """Write return and success of training episodes, from metrics.jsonl."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    out: Path
    """The CSV file to write."""
    parts: int = 10
    """Rows for each run."""


def main() -> None:
    """Write the training curves of runs as CSV."""
    command = tyro.cli(Command, prog="python -m experiments.training_curve")
    rows = ["run,env_steps,episodes,return,success"]
    rows += [row for path in command.paths for row in curve(path, command.parts)]
    write_atomically(command.out, "\n".join(rows) + "\n")
    print("\n".join(rows))


def curve(path: Path, parts: int) -> Iterator[str]:
    """Yield a row for each part in which an episode ended, with means over its episodes and the steps at its end."""
    updates = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    bounds = [round(len(updates) * part / parts) for part in range(parts + 1)]
    for start, stop in itertools.pairwise(bounds):
        ended = [update for update in updates[start:stop] if update["episodes"]]
        count = sum(update["episodes"] for update in ended)
        if count:
            means = (sum(u[name] * u["episodes"] for u in ended) / count for name in ("return", "success"))
            yield f"{path.name},{updates[stop - 1]['env_steps']},{count:.0f}," + ",".join(f"{x:.4f}" for x in means)


if __name__ == "__main__":
    main()
