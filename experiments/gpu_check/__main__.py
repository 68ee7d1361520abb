"""`python -m experiments.gpu_check --out results.json`: run the parts of the check, each in a separate process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import tyro

from relic_jax.config import ConfigError
from relic_jax.experiments.benchmark.__main__ import line
from relic_jax.experiments.benchmark.measure import Machine, measure_machine
from relic_jax.experiments.gpu_check.parts import PARTS
from relic_jax.files import write_atomically
from relic_jax.provenance import own_commit
from relic_jax.validation import require

MACHINE = "machine"
"""The part that measures the device. It runs first, and the others receive its result."""
PROCESS = (sys.executable, "-m", "relic_jax.experiments.gpu_check")
"""The command that runs one part."""
QUICK_FACTOR = 5
"""Factor of all limits in the quick mode, for busy CPUs."""
LEAST_SECONDS = 5.0
"""A part with less time than this is skipped."""
QUICK_MACHINE = Machine("cpu", "cpu", 1, "", "", native=False, copy_bandwidth=1e10, matrix_rate=1e11)
"""Limits that the quick mode assumes instead of measuring them."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Check the attention kernels on a GPU, and measure the speed of training and of its parts."""

    parts: str | None = None
    """Parts to run, separated by commas. Default: all, in the order of --list."""
    out: Path = Path("gpu_check.json")
    """The JSON file, which is written after every result."""
    minutes: float = 10.0
    """Limit of the whole check. Every part also has its own (--list)."""
    list: bool = False
    """Print the parts with their limits, and stop."""
    platform: Literal["gpu", "cpu"] = "gpu"
    """cpu: test this command on a machine without a GPU, together with --quick."""
    quick: bool = False
    """Use tiny sizes, which take seconds. The numbers mean nothing."""
    run: str | None = None
    """Internal: run this part in this process and print one JSON object per line."""
    machine: str | None = None
    """Internal: the machine as JSON, for --run."""
    seconds: float = 60.0
    """Internal: the limit of the part, for --run."""


def main() -> None:
    """Run the check. Bad input prints one line to stderr and ends with exit code 2, a failed part with 1."""
    command = tyro.cli(Command, prog="python -m experiments.gpu_check")
    if command.run is not None:
        run_part(command, command.run)
        return
    if command.list:
        for name, part in PARTS.items():
            print(f"{name:10} {part.seconds:4.0f} s  {part.summary}")
        return
    try:
        sys.exit(0 if check(command) else 1)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def run_part(command: Command, name: str) -> None:
    """Run a part in this process and print its cases."""
    if name == MACHINE:
        found = QUICK_MACHINE if command.quick else measure_machine()
        print(json.dumps({"name": MACHINE, **dataclasses.asdict(found)}), flush=True)
        return
    machine = QUICK_MACHINE if command.machine is None else Machine(**json.loads(command.machine))
    for case in PARTS[name].cases(machine, command.quick, command.seconds):
        print(json.dumps(case), flush=True)


def check(command: Command) -> bool:
    """Run the selected parts and write their results. Returns whether nothing failed.

    Raises:
        ConfigError: If a part is unknown, or there is no GPU.
    """
    names = list(PARTS) if command.parts is None else command.parts.split(",")
    for name in names:
        require(name in PARTS, "parts", name, ", ".join(PARTS))
    allowed = "a GPU, or cpu with --quick"
    require(command.platform == "gpu" or command.quick, "platform", command.platform, allowed)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * command.minutes
    machine = device(command, end)
    document: dict[str, Any] = {
        "command": " ".join(["python -m experiments.gpu_check", *sys.argv[1:]]),
        "commit": own_commit(),
        "machine": machine,
        "parts": {},
    }
    for name in names:
        part: dict[str, Any] = {"cases": []}
        document["parts"][name] = part
        limit = min(PARTS[name].seconds * (QUICK_FACTOR if command.quick else 1), end - time.monotonic())
        if limit < LEAST_SECONDS:
            part["status"] = "skipped: no time left"
            print(f"{name}: {part['status']}", flush=True)
            save(command.out, document)
            continue
        start = time.monotonic()
        for case in cases(command, name, limit, machine):
            if "status" in case:
                part["status"] = case["status"]
            else:
                part["cases"].append(case)
                print(summary(case), flush=True)
            part["seconds"] = time.monotonic() - start
            save(command.out, document)
        print(f"{name}: {part['status']}, {part['seconds']:.0f} s", flush=True)
    print(f"{command.out}")
    return not failures(document)


def save(path: Path, document: dict[str, Any]) -> None:
    """Write the results so far."""
    write_atomically(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def failures(document: dict[str, Any]) -> list[str]:
    """Return the names of parts that failed and of cases that are wrong. Parts that ran out of time are excluded."""
    found = [name for name, part in document["parts"].items() if part["status"].startswith("failed")]
    every = (case for part in document["parts"].values() for case in part["cases"])
    return found + [case["name"] for case in every if "error" in case and not case.get("passed", False)]


def device(command: Command, end: float) -> dict[str, Any]:
    """Measure the device in a separate process, which then frees its memory.

    Raises:
        ConfigError: If it is not a GPU, or cannot be used.
    """
    *found, last = cases(command, MACHINE, min(90.0, end - time.monotonic()), None)
    if not found:
        raise ConfigError(f"platform is {command.platform!r}, which cannot be used: {last['status']}")
    machine = found[0]
    if command.platform == "gpu" and machine["platform"] == "cpu":
        raise ConfigError("platform is 'cpu'; allowed: a GPU that JAX finds, or --platform cpu --quick")
    machine.pop("name")
    text = f"{machine['device']}, jax {machine['jax']}: copies {machine['copy_bandwidth'] / 1e9:,.0f} GB/s"
    print(f"{text}, float32 products {machine['matrix_rate'] / 1e12:,.1f} Tflop/s", flush=True)
    return machine


def cases(command: Command, name: str, limit: float, machine: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Run a part in a separate process and yield its cases as they come, then its status.

    Args:
        command: The options.
        name: The part.
        limit: Its limit in seconds, after which its processes are killed.
        machine: The fields of `Machine`, or None to measure them.
    """
    arguments = [*PROCESS, "--run", name, "--seconds", str(limit)] + ["--quick"] * command.quick
    arguments += [] if machine is None else ["--machine", json.dumps(machine)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"} if command.platform == "cpu" else dict(os.environ)
    process = subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,  # its group holds the runs that it starts
    )
    assert process.stdout is not None and process.stderr is not None
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []
    threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
    reader.start()
    end = time.monotonic() + limit
    try:
        with contextlib.suppress(queue.Empty):
            while (text := lines.get(timeout=max(end - time.monotonic(), 0.01))) is not None:
                if text.startswith("{"):
                    yield json.loads(text)
            code = process.wait(timeout=5)
            reader.join(timeout=5)
            last = errors[-1].strip() if errors else f"exit code {code}"
            yield {"status": "done" if code == 0 else f"failed: {last[:500]}"}
            return
        yield {"status": f"stopped at its limit of {limit:.0f} s"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Put every line of a stream into a queue, and None at its end."""
    for text in stream:
        lines.put(text)
    lines.put(None)


def summary(case: dict[str, Any]) -> str:
    """Return a case as a line of text."""
    if "bound" in case:
        verdict = "ok" if case["passed"] else "WRONG"
        return f"  {case['name']} · {verdict}, largest difference {case['error']:.1e} (bound {case['bound']:.0e})"
    text = line(case, None)
    if "bytes_per_second" in case:
        text += f" · {case['milliseconds']:.3f} ms · {case['bytes_per_second'] / 1e9:,.0f} GB/s"
    if "env_steps" in case:
        text += f" · {case['env_steps']:,} steps in {case['seconds']:.0f} s"
    if "steps_per_second" in case:
        text += f" · {case['steps_per_second']:,.0f} steps/s after {case['startup_seconds']:.0f} s"
    if "reached" in case and "first" in case:
        text += f" · {case['first']:.1f}, then {case['later']:.1f}: {'reached' if case['reached'] else 'target missed'}"
    if "error" in case:
        text += f" · {case['error'].strip().splitlines()[-1]}"
    return f"  {text}"


if __name__ == "__main__":
    main()
