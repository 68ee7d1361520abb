"""Which settings of the network and of the training decide whether recall is learned? One table, without PPO.

python -m experiments.recall_table --out experiments/results/recall

Every variant changes the options of `python -m experiments.recall` that its name says. Finished runs are not repeated.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relic_jax.config import ConfigError
from relic_jax.experiments import arguments
from relic_jax.experiments.recall import __main__ as recall
from relic_jax.files import write_atomically

NETWORK = "--policy.transformer"

VARIANTS = {
    "default": "",
    "gradient stopped every 100 steps": "--pretrain.segment 100",
    "rotary angles by episode": f"{NETWORK}.episode-rope",
    "no step embedding": f"{NETWORK}.no-step-embedding",
    "init fan_in": f"{NETWORK}.init fan_in",
    "1 layer": f"{NETWORK}.layers 1",
    "3 layers": f"{NETWORK}.layers 3",
    "1 head": f"{NETWORK}.heads 1",
    "8 heads": f"{NETWORK}.heads 8",
    "width 32": f"{NETWORK}.width 32 {NETWORK}.mlp-width 128",
    "width 128": f"{NETWORK}.width 128 {NETWORK}.mlp-width 512",
    "no sink": f"{NETWORK}.sink none",
    "GTrXL gates": f"{NETWORK}.gate gru",
    "inputs not scaled": "--policy.encoder.observation raw",
    "inputs normalized": "--policy.encoder.observation normalized",
    "relabeled copies": "--pretrain.relabel",
    "learning rate 3e-4": "--pretrain.lr 3e-4",
    "learning rate 3e-3": "--pretrain.lr 3e-3",
    "gradient norm 0.2": "--pretrain.max-grad-norm 0.2",
    "epsilon of Adam 1e-5": "--pretrain.adam-eps 1e-5",
    "GRU": "--policy.memory gru --policy.recurrent.width 160",
    "LSTM": "--policy.memory lstm --policy.recurrent.width 128",
    "gated delta rule": "--policy.memory gated-delta",
    "LRU": "--policy.memory lru",
    "window of 64 steps": f"--policy.memory window {NETWORK}.window 64",
    "Transformer-XL, segments of 64": f"--policy.memory transformer-xl {NETWORK}.memory-steps 64",
    "Memo, 8 tokens per 64 steps": "--policy.memory memo",
}
"""Options by name."""

LEARNED = 0.9
"""Share of right answers from which recall counts as learned."""
LONG = "age 50–299"
"""The oldest group of answers: in trials of 400 steps on `gridobj-9`, hardly any was last in view longer ago."""
EVERY = 40
"""Optimizer steps between evaluations."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Train every variant with every seed, one after the other, and write one table."""

    out: Path
    """Folder for one JSON file per variant and seed, and for table.md."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds."""
    steps: int = 1000
    """Optimizer steps of a run."""
    only: tuple[str, ...] = ()
    """Names of variants to train; all if empty. The table contains all finished ones."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"out is {self.out}, which is a file; allowed: a folder, or a path without a file")
        for name in self.only:
            if name not in VARIANTS:
                raise ConfigError(f"only is {name!r}; allowed: {', '.join(VARIANTS)}")


def file_of(folder: Path, variant: str, seed: int) -> Path:
    """Return the path of the results of a run."""
    words = "".join(letter if letter.isalnum() or letter in "-_" else " " for letter in variant.lower()).split()
    return folder / f"{'-'.join(words)}-seed{seed}.json"


def summary(runs: Iterable[Sequence[dict[str, Any]]]) -> dict[str, list[float]]:
    """Return numbers of the runs of one variant, one per seed.

    Args:
        runs: The rows of each run, see `learn.train`.

    Returns:
        right: share of right answers after the last step; long: the same at steps whose answer was last in view at
        least 50 steps ago; steps: optimizer steps until `LEARNED` of the answers were right, infinite if they never
        were; minutes: CPU-minutes of the run with compilation and evaluations.
    """
    found: dict[str, list[float]] = {"right": [], "long": [], "steps": [], "minutes": []}
    for rows in runs:
        learned = (float(row["optimizer_steps"]) for row in rows if row["all"] >= LEARNED)
        found["right"].append(rows[-1]["all"])
        found["long"].append(rows[-1][LONG])
        found["steps"].append(next(learned, float("inf")))
        found["minutes"].append(rows[-1]["cpu_s"] / 60)
    return found


def table(folder: Path, seeds: Sequence[int]) -> str:
    """Return the table of all finished runs in a folder, in Markdown."""
    columns = ("variant", "seeds", "right", "50 steps back and more", "optimizer steps to 90% right", "CPU-minutes")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in VARIANTS:
        files = [path for seed in seeds if (path := file_of(folder, name, seed)).is_file()]
        if not files:
            continue
        found = summary(json.loads(path.read_text())["rows"] for path in files)
        shares = (", ".join(f"{100 * x:.0f}%" for x in found[key]) for key in ("right", "long"))
        steps = ", ".join("never" if np.isinf(x) else f"{x:.0f}" for x in found["steps"])
        cells = (name, len(files), *shares, steps, f"{np.mean(found['minutes']):.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    command = arguments.parse(Command, sys.argv[1:] if argv is None else argv, "python -m experiments.recall_table")
    try:
        command.validate()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    command.out.mkdir(parents=True, exist_ok=True)
    for name in command.only or VARIANTS:
        for seed in command.seeds:
            path = file_of(command.out, name, seed)
            if not path.is_file():
                print(f"{name}, seed {seed}", flush=True)
                steps = ["--pretrain.steps", str(command.steps), "--every", str(min(command.steps, EVERY))]
                recall.main([*VARIANTS[name].split(), *steps, "--seeds", str(seed), "--out", str(path)])
            write_atomically(command.out / "table.md", table(command.out, command.seeds))


if __name__ == "__main__":
    main()
