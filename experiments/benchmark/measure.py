"""Timing, and the machine's own limits that every rate is compared with."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from relic_jax.config import TransformerConfig
from relic_jax.models.attention import select
from relic_jax.rl.parallel import cores


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians over several calls. wall, cpu: seconds a call; cpu sums the seconds of all of the process's threads."""

    wall: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function, which is called as itself. compile_seconds: what tracing and compiling it took."""

    compiled: Any
    compile_seconds: float

    def __call__(self, *arguments: Any) -> Any:
        """Runs it."""
        return self.compiled(*arguments)

    @property
    def cost(self) -> dict[str, float]:
        """What a case says of it beside its speed. Temporary memory is that of one device."""
        temporary = self.compiled.memory_analysis().temp_size_in_bytes
        return {"compile_seconds": self.compile_seconds, "temporary_bytes": temporary}


def program(function: Any, *arguments: Any) -> Program:
    """A function from `jax.jit`, compiled for these arguments."""
    start = time.perf_counter()
    return Program(function.lower(*arguments).compile(), time.perf_counter() - start)


def on_every_device(function: Callable[..., Any], *arguments: Any) -> Program:
    """`function` compiled for these arguments so that every device does all of its work, as in data-parallel training
    every device has its own environments (on CPU: every core).
    """
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return program(jax.jit(mapped), *arguments)


def timed(function: Callable[[], Any], *, repeats: int = 5) -> Timing:
    """Median time of `function`, whose result is waited for. One call before the first measured one warms up."""
    jax.block_until_ready(function())
    wall, cpu = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return Timing(statistics.median(wall), statistics.median(cpu))


def in_own_process(module: str, *arguments: str) -> Iterator[dict[str, Any]]:
    """What `python -m module arguments` prints: one JSON object per line. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the machine can do, measured: the floor under every other number.

    native: whether attention is a compiled kernel here (`models.attention.cpu`). copy_bandwidth: bytes read plus
    bytes written per second by a large copy. matrix_rate: float operations per second
    (accelerator) or per CPU second (CPU) of a float32 product of 2048×2048 matrices (accelerator: 8192×8192, rounded to
    tf32 where that is the platform's default, as in everything that is measured).
    """

    platform: str
    device: str
    cores: int
    jax: str
    python: str
    native: bool
    copy_bandwidth: float
    matrix_rate: float

    def rate_of(self, flops: float, timing: Timing) -> float:
        """`flops` of every device in `timing` as a fraction of `matrix_rate`."""
        seconds = timing.cpu / len(jax.devices()) if self.platform == "cpu" else timing.wall
        return flops / seconds / self.matrix_rate


def against_arithmetic(
    machine: Machine, name: str, unit: str, steps: int, flops: float, timing: Timing, compiled: Program
) -> dict[str, Any]:
    """The case of a program that every device ran on `steps` steps of its own, which take `flops`."""
    return {
        "name": name,
        "rate": len(jax.devices()) * steps / timing.wall,
        "unit": unit,
        "seconds": timing.wall,
        "cpu_seconds": timing.cpu,
        "floor_fraction": machine.rate_of(flops, timing),
        "floor": f"{flops / 1e9:.0f} Gflop at the measured matrix rate",
        **compiled.cost,
    }


def measure_machine() -> Machine:
    """Takes a few seconds."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    matrix = jnp.eye(size, dtype=jnp.float32) + jax.random.normal(jax.random.key(0), (size, size)) / size
    product = jax.jit(lambda x: x @ x)
    timing = timed(lambda: product(matrix), repeats=20)
    return Machine(
        platform=jax.default_backend(),
        device=jax.devices()[0].device_kind,
        cores=cores(),
        jax=jax.__version__,
        python=platform.python_version(),
        native=select(TransformerConfig()).name == "cpu",
        copy_bandwidth=_copy_bandwidth(on_cpu),
        matrix_rate=2 * size**3 / (timing.cpu if on_cpu else timing.wall),
    )


def _copy_bandwidth(on_cpu: bool) -> float:
    size = 2**28 if on_cpu else 2**32
    if on_cpu:  # XLA may split a copy over cores or elide it; the C library's copy is what a CPU's limit usually means
        source, target = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
        return 2 * size / timed(lambda: np.copyto(target, source), repeats=9).wall
    # in one call, so that there are no gaps between them
    times, buffer = 20, jnp.ones(size // 4, jnp.float32)
    add = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, x: x + 1, x), donate_argnums=0)

    def call() -> jax.Array:
        nonlocal buffer
        buffer = add(buffer)
        return buffer

    return times * 2 * size / timed(call, repeats=9).wall
