"""Timing, and the measured limits of the machine that rates are compared with."""

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
    """Median durations of a call."""

    wall: float
    """Wall-clock seconds."""
    cpu: float
    """CPU seconds, summed over all threads of the process."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function."""

    compiled: Any
    """The executable."""
    compile_seconds: float
    """Duration of tracing and compiling."""

    def __call__(self, *arguments: Any) -> Any:
        """Run the function."""
        return self.compiled(*arguments)

    @property
    def cost(self) -> dict[str, float]:
        """Compile time and temporary memory of one device, as fields of a case."""
        temporary = self.compiled.memory_analysis().temp_size_in_bytes
        return {"compile_seconds": self.compile_seconds, "temporary_bytes": temporary}


def program(function: Any, *arguments: Any) -> Program:
    """Compile a function returned by `jax.jit` for these arguments."""
    start = time.perf_counter()
    return Program(function.lower(*arguments).compile(), time.perf_counter() - start)


def on_every_device(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compile `function` for these arguments so that every device runs all of it.

    This is the load of data-parallel training, in which every device (on CPU: every core) has its own environments.
    """
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return program(jax.jit(mapped), *arguments)


def timed(function: Callable[[], Any], *, repeats: int = 5) -> Timing:
    """Return the median time until the result of `function` is ready, after one warm-up call."""
    jax.block_until_ready(function())
    wall, cpu = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return Timing(statistics.median(wall), statistics.median(cpu))


def in_subprocess(module: str, *arguments: str) -> Iterator[dict[str, Any]]:
    """Run `python -m module arguments` and yield the JSON objects that it prints, one per line.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Measured limits of the machine."""

    platform: str
    """JAX's name of the platform, e.g. cpu."""
    device: str
    """Kind of device."""
    cores: int
    """CPU cores that this process can use."""
    jax: str
    """Version of JAX."""
    python: str
    """Version of Python."""
    native: bool
    """Whether attention uses the compiled CPU kernel (`models.attention.cpu`)."""
    copy_bandwidth: float
    """Bytes read plus bytes written per second by a large copy."""
    matrix_rate: float
    """Floating-point operations per second (accelerator) or per CPU second (CPU) of a float32 matrix product, 2048×2048
    on CPU and 8192×8192 on accelerators, in the platform's default precision (e.g. tf32)."""

    def rate_of(self, flops: float, timing: Timing) -> float:
        """Return the rate of `flops` per device in `timing` as a fraction of `matrix_rate`."""
        seconds = timing.cpu / len(jax.devices()) if self.platform == "cpu" else timing.wall
        return flops / seconds / self.matrix_rate


def against_arithmetic(
    machine: Machine, name: str, unit: str, steps: int, flops: float, timing: Timing, compiled: Program
) -> dict[str, Any]:
    """Return the case of a program that every device ran on its own `steps` steps, at `flops` per device."""
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
    """Measure the limits of the machine, which takes a few seconds."""
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
    if on_cpu:  # XLA can split or elide a copy; the C library's copy is the usual measure of a CPU
        source, target = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
        return 2 * size / timed(lambda: np.copyto(target, source), repeats=9).wall
    # in one call, to leave no gaps between the copies
    times, buffer = 20, jnp.ones(size // 4, jnp.float32)
    add = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, x: x + 1, x), donate_argnums=0)

    def call() -> jax.Array:
        nonlocal buffer
        buffer = add(buffer)
        return buffer

    return times * 2 * size / timed(call, repeats=9).wall
