"""Which attention kernel a model uses on which devices.

Kernels differ in the order of their sums, so their results differ in rounding. A run that is resumed bit for bit needs
the kernels that it was started with: their names are stored in its checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
from jax.extend.backend import get_backend

from relic_jax.models.attention.inputs import AttentionInputs
from relic_jax.models.attention.reference import attend, attend_step
from relic_jax.models.kv_formats import KVFormat

CPU_WIDTHS = (4, 8, 16, 32, 64, 128)
"""Numbers per head for which the compiled CPU kernel exists."""
CUDNN_MAX_WIDTH = 128
"""Largest number of numbers per head in cuDNN's kernels. It must also be a multiple of 8."""


class AttentionConfig(Protocol):
    """The fields of `TransformerConfig` that decide which kernel is used."""

    @property
    def attention(self) -> str:
        """Requested kernel of a block of steps."""

    @property
    def decode(self) -> str:
        """Requested kernel of a single step."""

    @property
    def dtype(self) -> str:
        """Dtype of queries."""

    @property
    def cache_format(self) -> KVFormat:
        """Format of the context's keys and values."""

    @property
    def head_width(self) -> int:
        """D, numbers per head."""

    @property
    def inter_episode(self) -> bool:
        """Whether steps attend across episodes."""


class Backend(NamedTuple):
    """The devices that a program is compiled for.

    Attributes:
        platform: As `jax.default_backend()` names it: "cpu", "gpu" or "tpu".
        compute_capability: Of CUDA devices, such as 9.0. 0 for all others.
    """

    platform: str
    compute_capability: float = 0.0

    @classmethod
    def current(cls) -> Backend:
        """Return the devices that JAX uses by default."""
        backend = get_backend()
        cuda = "cuda" in backend.platform_version
        return cls(jax.default_backend(), float(backend.devices()[0].compute_capability) if cuda else 0.0)


class Kernel(NamedTuple):
    """An attention kernel.

    Attributes:
        name: The module of this package that implements it: "reference", "tiled", "cpu", "cudnn" or "decode".
        attend: Maps `AttentionInputs` to ``[B, H, Q, D]``.
    """

    name: str
    attend: Callable[[AttentionInputs], jax.Array]


def select(
    config: AttentionConfig,
    backend: Backend | None = None,
    *,
    decode: bool = False,
    kv_format: KVFormat | None = None,
) -> Kernel:
    """Return the attention kernel of a model.

    The first call for a head width on a CPU compiles the kernel of a block, which takes a few seconds (see `cpu`).

    Args:
        config: The model, for example a `TransformerConfig`.
        backend: The devices. None for those that JAX uses by default.
        decode: Whether the kernel attends with a single step against the cache, or with a block of steps.
        kv_format: Format of the context that is attended to, if it is not ``config.cache_format``.

    Returns:
        The kernel and its name.
    """
    backend, kv_format = backend or Backend.current(), kv_format or config.cache_format
    return _decode(config, backend, kv_format) if decode else _block(config, backend, kv_format)


def _block(config: AttentionConfig, backend: Backend, kv_format: KVFormat) -> Kernel:
    """Return the kernel for a block of steps."""
    if config.attention == "reference":
        return Kernel("reference", attend)
    if _wants_cudnn(config) and backend.compute_capability >= 8:  # Ampere or later
        from relic_jax.models.attention import cudnn

        return Kernel("cudnn", cudnn.attend)
    if config.attention in ("auto", "native") and _fits_cpu(config, backend, kv_format):
        from relic_jax.models.attention import cpu

        return Kernel("cpu", cpu.attend)
    from relic_jax.models.attention import tiled

    tiles = tiled.CPU_TILES if backend.platform == "cpu" else tiled.ACCELERATOR_TILES
    return Kernel("tiled", functools.partial(tiled.attend, tiles=tiles))


def _decode(config: AttentionConfig, backend: Backend, kv_format: KVFormat) -> Kernel:
    """Return the kernel for a single step."""
    if config.decode == "fused":
        if config.attention in ("auto", "native") and _fits_cpu(config, backend, kv_format, "cpu_step.cpp"):
            from relic_jax.models.attention import cpu

            return Kernel("cpu", cpu.attend_step)
        from relic_jax.models.attention import decode

        if decode.available(config.head_width):
            # the compiler decides which branch runs, so that an artifact can be lowered for other devices
            return Kernel("decode" if backend.compute_capability else "reference", decode.attend_step)
    return Kernel("reference", attend_step)


def _wants_cudnn(config: AttentionConfig) -> bool:
    """Whether cuDNN's kernels are requested, or fit the model and do not compute masked scores in vain."""
    if config.attention != "auto":
        return config.attention == "flash"
    fits = config.dtype == "bfloat16" and config.head_width % 8 == 0 and config.head_width <= CUDNN_MAX_WIDTH
    return config.inter_episode and fits


def _fits_cpu(config: AttentionConfig, backend: Backend, kv_format: KVFormat, source: str = "cpu.cpp") -> bool:
    """Whether a compiled CPU kernel takes these numbers and is available here."""
    float32 = config.dtype == kv_format == "float32"
    if backend.platform != "cpu" or not float32 or config.head_width not in CPU_WIDTHS:
        return False
    from relic_jax.models.attention import cpu

    return cpu.available(config.head_width, source)
