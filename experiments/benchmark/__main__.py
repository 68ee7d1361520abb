"""`python -m experiments.benchmark act update --out results.json --compare earlier.json`."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from relic_jax.experiments.benchmark.measure import Machine, measure_machine
from relic_jax.files import write_atomically
from relic_jax.provenance import own_commit
from relic_jax.rl.parallel import offer_cores

Suite = Literal[
    "act",
    "update",
    "refresh",
    "rollout",
    "train",
    "env",
    "suites",
    "bridge",
    "agent",
    "original",
    "peers",
    "sweep",
    "start",
    "all",
]
SUITES = ("act", "update", "refresh", "rollout", "train", "env", "suites", "bridge", "agent", "original")
"""Suites of `all`. `peers` needs a checkout, `sweep` trains 16 runs, and `start` takes an hour."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure this machine, then relic-jax on it: rates, and fractions of the machine's limits."""

    suites: Annotated[tuple[Suite, ...], tyro.conf.Positional] = ("all",)
    """Suites to run."""
    out: Path | None = None
    """Write the numbers to this JSON file."""
    compare: Path | None = None
    """Print ratios to the numbers in this JSON file."""
    cases: int | None = None
    """Number of cases to run of each suite; 0 measures the machine only. Default: all cases."""
    xland: Path | None = None
    """Checkout of XLand-MiniGrid, for `peers`, which `all` does not include."""
    presets: tuple[str, ...] = ()
    """Presets for `start`, which `all` does not include. Default: all presets."""
    against: Path | None = None
    """Python of another checkout of relic-jax, for `start`."""
    seeds: int = 8
    """Number of runs of `sweep`, which `all` does not include."""
    steps: int = 300_000
    """Environment steps of each run of `sweep`."""


def main() -> None:
    """Run the selected suites."""
    command = tyro.cli(Command, prog="python -m experiments.benchmark")
    earlier = read(command.compare) if command.compare else {}
    if command.out:
        command.out.parent.mkdir(parents=True, exist_ok=True)
    origin = provenance()
    offer_cores()  # as a training run does
    machine = measure_machine()
    print(
        f"{machine.device}, {machine.cores} cores, jax {machine.jax}: copies {machine.copy_bandwidth / 1e9:.1f} GB/s, "
        f"float32 products {machine.matrix_rate / 1e9:.0f} Gflop/s{' per core' if machine.platform == 'cpu' else ''}"
        f"{', attention compiled' if machine.native else ''}"
    )
    results: list[dict[str, Any]] = []
    for suite in SUITES if "all" in command.suites else command.suites:
        module = importlib.import_module(f"relic_jax.experiments.benchmark.{suite}")
        options = {
            "peers": (command.xland,),
            "start": (command.presets, command.against),
            "sweep": (command.seeds, command.steps),
        }
        cases = module.cases(machine, *options.get(suite, ()))
        for case in itertools.islice(cases, command.cases):
            results.append(case)
            print(line(case, earlier.get(case["name"])), flush=True)
            if command.out:  # after every case, because some take minutes
                write_atomically(command.out, json.dumps(document(origin, machine, results), indent=1) + "\n")


def line(case: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Return a case as a line of text."""
    parts = [case["name"]]
    if "rate" in case:
        parts.append(f"{case['rate']:,.0f} {case['unit']}")
    if "p99_milliseconds" in case:
        parts.append(f"median {case['milliseconds']:.2f} ms, 99th percentile {case['p99_milliseconds']:.2f} ms")
    if "first_action_seconds" in case:
        parts.append(
            f"first action {case['first_action_seconds']:.2f} s after load_policy began (loading "
            f"{case['load_seconds']:.2f} s), {case['process_seconds']:.2f} s after the process did"
        )
    if "floor_fraction" in case:
        parts.append(f"{case['floor_fraction']:.2f} of the floor ({case['floor']})")
    if "temporary_bytes" in case:
        parts.append(f"{case['temporary_bytes'] / 2**20:.0f} MiB temporary")
    if "compile_seconds" in case:
        parts.append(f"compiled in {case['compile_seconds']:.1f} s")
    if case.get("of_peer"):
        parts.append(f"{case['of_peer']:.1f}× {case.get('peer', 'the real package')}")
    if "of_original" in case:
        parts.append(f"{case['of_original']:.1f}× the original")
    if "of_causal" in case:
        parts.append(f"{case['of_causal']:.1f}× the original with causal attention")
    if "skipped" in case:
        parts.append(f"skipped, {case['skipped']}")
    for kind in ("cold", "warm", "other"):
        if kind in case:
            parts.append(f"{kind} {case[kind]['cpu_seconds']:.1f} CPU-s ({case[kind]['seconds']:.1f} s)")
    if "of_other" in case:
        parts.append(f"cold {case['of_other']:.2f}× the other checkout")
    if "share" in case:
        parts.append(", ".join(f"{name} {share:.0%}" for name, share in case["share"].items()))
    if before and "rate" in before and "rate" in case:
        parts.append(f"{case['rate'] / before['rate']:.2f}× before")
    return " · ".join(parts)


def provenance() -> dict[str, str | None]:
    """Return the command and the commit at the start of the benchmark."""
    command = " ".join(["python -m experiments.benchmark", *sys.argv[1:]])
    return {"command": command, "commit": own_commit()}


def document(origin: dict[str, str | None], machine: Machine, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the contents of the output file: provenance, machine and cases."""
    return {**origin, "machine": dataclasses.asdict(machine), "cases": cases}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the cases of an earlier output file, by name."""
    return {case["name"]: case for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}


if __name__ == "__main__":
    main()
