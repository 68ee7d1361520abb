"""Time from the command to the end of the first update, without and with cached programs.

    python -m experiments.benchmark start --presets darkroom-smoke darkroom-dpt --against OTHER/bin/python

Every measurement is `relic-jax train PRESET --chunk segment` in its own process, which ends after the first update.
Cold processes have an empty cache of programs, warm ones that of the cold one. The CPU kernel of attention, which is
compiled once per machine, exists already. Presets whose packages are missing, or that do not fit into memory, are
skipped. CPU times are read from `/proc`, so this suite needs Linux.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from relic_jax.experiments import presets
from relic_jax.experiments.benchmark.measure import Machine

COLD_TARGET = 0.6
"""CPU time of a cold start as a share of the other checkout's."""
WARM_TARGET = 3.0
"""Seconds of CPU time of a warm start."""
TIMEOUT = 900.0
"""Seconds after which a process is stopped."""

CHILD = """
import json, os, sys, time
from relic_jax.experiments import entry
getattr(entry, "collect_rarely", int)()  # older checkouts do not have it
from relic_jax.experiments import cli
from relic_jax.rl import train

def cpu_seconds():
    "CPU time of the processes of this session, which the benchmark began."
    total, session = 0.0, os.getsid(0)
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total

def first_update(*_):
    result = {"cpu_seconds": cpu_seconds(), "seconds": time.time() - float(os.environ["STARTED"])}
    print("RESULT" + json.dumps(result), flush=True)
    os._exit(0)

train.records = first_update  # called with the metrics of the first chunk
cli.main()
"""
KERNEL = """
import sys
from relic_jax.models.attention import cpu
width = int(sys.argv[1])
cpu.available(width)
if hasattr(cpu, "attend_step"):
    cpu.available(width, "cpu_step.cpp")
"""


def cases(
    machine: Machine, names: Sequence[str] = (), against: Path | None = None, repeats: int = 1
) -> Iterator[dict[str, Any]]:
    """Measure presets.

    Args:
        machine: Not used.
        names: The presets. Default: all.
        against: The Python of another checkout's environment, measured cold in turn with this one.
        repeats: Processes of each kind. The fastest is reported.

    Yields:
        JSON-serializable dicts: name; cold and warm, each with cpu_seconds and seconds; other (the other checkout);
        of_other (the ratio of the CPU times, cold); reached (whether both targets were reached); or skipped (a reason).
    """
    del machine
    for name in names or presets.PRESETS:
        yield measure(name, against, repeats)


def measure(name: str, against: Path | None, repeats: int) -> dict[str, Any]:
    """Measure one preset."""
    case: dict[str, Any] = {"name": f"start/{name}"}
    head_width = presets.get(name).config.policy.transformer.head_width
    with tempfile.TemporaryDirectory(prefix="relic-jax-start-") as scratch:
        kernels = Path(scratch, "kernels")
        python = Path(sys.executable)
        for each in filter(None, (python, against)):
            subprocess.run([each, "-c", KERNEL, str(head_width)], env=environment(kernels), cwd=scratch, check=True)
        measured: dict[str, list[dict[str, float]]] = {"cold": [], "warm": [], "other": []}
        for index in range(repeats):
            folder = Path(scratch, str(index))
            folder.mkdir(mode=0o700)
            for kind, interpreter in (("other", against), ("cold", python), ("warm", python)):
                if interpreter is None:
                    continue
                home = folder if kind != "other" else folder / "other"
                result = first_update(name, interpreter, home, kernels)
                if isinstance(result, str):
                    return {**case, "skipped": f"{kind}: {result}"}
                measured[kind].append(result)
    best = {kind: min(results, key=lambda x: x["cpu_seconds"]) for kind, results in measured.items() if results}
    case |= best | {"marks": {"of_other": COLD_TARGET, "warm": WARM_TARGET}}
    case["reached"] = best["warm"]["cpu_seconds"] <= WARM_TARGET
    if against is not None:
        case["of_other"] = best["cold"]["cpu_seconds"] / best["other"]["cpu_seconds"]
        case["reached"] &= case["of_other"] <= COLD_TARGET
    return case


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of a user who has set nothing but the cache folder."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "RELIC_JAX_"))}
    return {**others, "XDG_CACHE_HOME": str(cache), "STARTED": str(time.time())}


def first_update(name: str, python: Path, folder: Path, kernels: Path) -> dict[str, float] | str:
    """Run a preset to the end of its first update.

    Args:
        name: The preset.
        python: The interpreter.
        folder: Holds the cache of programs, `cache`, and the run. Created if missing.
        kernels: The cache that holds the compiled CPU kernel.

    Returns:
        cpu_seconds of the process and its child processes, and seconds from its start; or the reason why there is no
        update.
    """
    cache = folder / "cache" / "relic-jax"
    cache.mkdir(parents=True, mode=0o700, exist_ok=True)
    for kernel in (kernels / "relic-jax").glob("*.so"):
        if not (cache / kernel.name).exists():
            os.link(kernel, cache / kernel.name)
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        command = [str(python), "-c", CHILD, "train", name, "--chunk", "segment", "--runs", runs]
        with subprocess.Popen(
            command,
            env=environment(folder / "cache"),
            cwd=folder,  # Python imports from the current folder first, which can be a checkout
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, error = process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                out, error = "", f"no update within {TIMEOUT:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    for line in out.splitlines():
        if "RESULT" in line:
            result: dict[str, float] = json.loads(line.partition("RESULT")[2])
            return result
    return error.strip().splitlines()[-1] if error.strip() else f"exit code {process.returncode}"
