"""Devices for which the cost model has numbers, with their sources."""

from __future__ import annotations

import dataclasses
import difflib

from relic_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Device:
    """Limits of one device, and the shares of them that programs reach.

    Attributes:
        bandwidth: Bytes per second that large copies reach.
        half_rate: Floating-point operations per second of dense bfloat16 products.
        single_rate: The same of float32 products; on GPUs in tf32, as XLA computes them.
        memory: Bytes.
        link: Bytes per second and direction to other devices of the machine.
        network: The same to other machines.
        per_machine: Devices of one machine.
        kernel_seconds: Duration of a small kernel, with the pause before it.
        attention: Share of the matrix rate that the attention of a block reaches.
        dense: Share of the matrix rate that the other products reach.
        reading: Share of the bandwidth at which acting reads the context.
    """

    bandwidth: float
    half_rate: float
    single_rate: float
    memory: float
    link: float
    network: float
    per_machine: int
    kernel_seconds: float
    attention: float
    dense: float
    reading: float


# Copies reach 0.87 of the H200's data sheet (4,179 of 4,800 GB/s, results/benchmark/h200.json). The other GPUs are
# assumed to reach the same share, and to have the H200's kernel_seconds, attention and dense (docs/scaling.md).
_COPY = 0.87
_H200 = {"kernel_seconds": 2.9e-6, "attention": 0.058, "dense": 0.1, "reading": 1.0}
_NETWORK = 25e9  # 200 Gbit/s for each GPU, an assumption
DEVICES: dict[str, Device] = {
    # NVIDIA A40 data sheet: 696 GB/s, 149.7 Tflop/s in bfloat16, 74.8 in tf32, 48 GB. PCIe 4.0 ×16, of which 25 GB/s.
    "a40": Device(_COPY * 696e9, 149.7e12, 74.8e12, 48e9, 25e9, _NETWORK, 4, **_H200),
    # NVIDIA A100 80GB SXM data sheet: 2,039 GB/s, 312 and 156 Tflop/s, NVLink 600 GB/s in both directions together.
    "a100": Device(_COPY * 2039e9, 312e12, 156e12, 80e9, 300e9, _NETWORK, 8, **_H200),
    # NVIDIA H100 SXM data sheet: 3,350 GB/s, 989 and 494 Tflop/s without sparsity, NVLink 900 GB/s.
    "h100": Device(_COPY * 3350e9, 989e12, 494e12, 80e9, 450e9, _NETWORK, 8, **_H200),
    # NVIDIA H200 data sheet: 4,800 GB/s, otherwise as the H100.
    "h200": Device(_COPY * 4800e9, 989e12, 494e12, 141e9, 450e9, _NETWORK, 8, **_H200),
    # One of the two cores of results/benchmark/native-cpu2.json, an Intel Xeon with AVX-512. They share the bandwidth
    # of 25.5 GB/s. The shares are those of its cases at 4k steps: act 0.73, update 0.71. Memory is an assumption.
    "cpu": Device(12.7e9, 148e9, 148e9, 8e9, 10e9, 1e9, 2, 0.0, attention=0.71, dense=0.71, reading=0.73),
}


def get(name: str) -> Device:
    """Return a device by its name. Raises ConfigError that offers the nearest names."""
    if name.lower() in DEVICES:
        return DEVICES[name.lower()]
    near = difflib.get_close_matches(name.lower(), DEVICES, n=2, cutoff=0.3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"device is {name!r}; allowed: {', '.join(DEVICES)}{hint}")
