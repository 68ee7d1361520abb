"""Attention on CPUs, by compiled C++ kernels: of a block of steps (`cpu.cpp`) and of a single step (`cpu_step.cpp`).

XLA calls a kernel through its foreign-function interface, whose headers ship with JAX. A kernel is compiled once per
machine, on first use, for the head width and the processor. That takes a few seconds and needs a C++ compiler (``CXX``,
``c++``, ``g++`` or ``clang++``). `cpu_build` caches the result in ``~/.cache/relic-jax``. Without a compiler, and on
Windows, `select` picks kernels in XLA.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from relic_jax.models.attention import cpu_build
from relic_jax.models.attention.gradients import sink_gradients, zero_cotangent
from relic_jax.models.attention.inputs import AttentionInputs, Context, Sink

_FOLDER = Path(__file__).parent
_SYMBOLS = {"cpu.cpp": ("forward", "backward"), "cpu_step.cpp": ("step",)}
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-w")
_TARGETS: set[str] = set()
_UNLIMITED = 2**31 - 1


@functools.cache
def available(width: int, source: str = "cpu.cpp") -> bool:
    """Compile a kernel for a head width and register it with XLA.

    Args:
        width: Numbers per head, a power of two from 4 on.
        source: The kernel's file: "cpu.cpp" for a block of steps, "cpu_step.cpp" for a single step.

    Returns:
        Whether the kernel can be called. False if it cannot be compiled here.
    """
    symbols = _SYMBOLS[source]
    try:
        library = _library(width, source)
    except (OSError, AttributeError, cpu_build.KernelError):
        return False
    for target, name in ((_target(name, width), name) for name in symbols):
        if target not in _TARGETS:  # XLA accepts a name once per process
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
            _TARGETS.add(target)
    return True


def _target(name: str, width: int) -> str:
    """Return the name that XLA knows a function of the kernel by."""
    return f"relic_attention_{name}_{width}"


def _library(width: int, source: str = "cpu.cpp") -> ctypes.CDLL:
    """Return the compiled kernel, cached for its source, compiler, processor and jaxlib."""
    flags = (*_FLAGS, f"-DHEAD_WIDTH={width}")
    salt = jaxlib.__version__ + hashlib.sha256((_FOLDER / "cpu_vectors.h").read_bytes()).hexdigest()
    stem = f"attention-{Path(source).stem}-{width}"
    return cpu_build.load(stem, _FOLDER / source, flags, _SYMBOLS[source], jax.ffi.include_dir(), salt)


def attend(inputs: AttentionInputs) -> jax.Array:
    """Compute attention for a block of steps.

    Keys of earlier episodes are skipped if attention stays within the episode, and keys before the window.

    Args:
        inputs: Queries, block and context, all float32. See `AttentionInputs`.

    Returns:
        float32 ``[B, H, Q, D]``.

    Raises:
        KernelError: The kernel cannot be compiled here.
    """
    heads, rows, width = inputs.query.shape[1:]
    if not available(width):
        raise cpu_build.KernelError(f"attention for heads of width {width} cannot be compiled here")
    used = rows if inputs.valid is None else jnp.minimum(inputs.valid - inputs.start, rows)
    window = _UNLIMITED if inputs.window is None else inputs.window
    bounds = jnp.stack([jnp.asarray(x, jnp.int32) for x in (inputs.context.length, inputs.start, used, window)])
    has_sink = inputs.sink is not None
    sink = inputs.sink if has_sink else Sink(*2 * (jnp.zeros((heads, width), jnp.float32),))
    scaled = inputs.query * jnp.float32(1.0 / math.sqrt(width))
    arrays = scaled, inputs.key, inputs.value, sink, inputs.episodes, inputs.context, bounds
    return inputs.zero_invalid(_attend(has_sink, inputs.within_episode, *arrays))


def attend_step(inputs: AttentionInputs) -> jax.Array:
    """Compute attention for one step per environment against a cache that holds the step's own key and value.

    Slots before the first and after the last one that the step sees are not read.

    Args:
        inputs: A single step (Q = 1) and a context that includes it, all float32. See `AttentionInputs`.

    Returns:
        float32 ``[B, H, 1, D]``.

    Raises:
        KernelError: The kernel cannot be compiled here.
    """
    query, context = inputs.query[:, :, 0], inputs.context
    batch, _, width = query.shape
    if not available(width, "cpu_step.cpp"):
        raise cpu_build.KernelError(f"attention for heads of width {width} cannot be compiled here")
    last = jnp.broadcast_to(context.length, (batch,)).astype(jnp.int32)
    first = jnp.zeros_like(last) if inputs.window is None else jnp.maximum(last - inputs.window, 0).astype(jnp.int32)
    episodes = jnp.zeros((batch, 0), jnp.int32)
    if inputs.within_episode:  # the slots of a ring are in any order, so the kernel compares episodes too
        episodes, slot = context.episodes, jnp.arange(context.capacity)
        first = jnp.maximum(first, jnp.where(episodes == inputs.episodes, slot, context.capacity).min(1))
    has_sink = inputs.sink is not None
    sink = [jnp.broadcast_to(x, query.shape) for x in inputs.sink] if inputs.sink is not None else 2 * [query]
    scaled = query * jnp.float32(1.0 / math.sqrt(width))
    call = jax.ffi.ffi_call(_target("step", width), _like(query), vmap_method="broadcast_all")
    seen = jnp.stack([first, last, inputs.episodes[:, 0]], 1)
    out = call(scaled, context.keys.data, context.values.data, *sink, seen, episodes, has_sink=has_sink)
    return out[:, :, None]


def _buffers(q, k, v, sink: Sink, episodes, context: Context, bounds) -> tuple[jax.Array, ...]:
    """Return the arguments of both functions of the kernel in their order."""
    return q, k, v, *sink, episodes, context.keys.data, context.values.data, context.episodes, bounds


def _call(name: str, results: tuple[Any, ...], has_sink: bool, within_episode: bool, *buffers: jax.Array) -> Any:
    """Call a function of the kernel."""
    width = buffers[0].shape[-1]
    call = jax.ffi.ffi_call(_target(name, width), results, vmap_method="sequential")
    return call(*buffers, has_sink=has_sink, within_episode=within_episode)


def _like(x: jax.Array, axes: int | None = None) -> jax.ShapeDtypeStruct:
    """Return a float32 array type with the first ``axes`` axes of x."""
    return jax.ShapeDtypeStruct(x.shape[:axes], jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(has_sink: bool, within_episode: bool, q, k, v, sink: Sink, episodes, context: Context, bounds) -> jax.Array:
    """Return the output ``[B, H, Q, D]`` of scaled queries.

    ``bounds`` is int32 ``[4]``: the filled slots of the context, the step of the first query, the number of queries
    that matter, and the window. The output of the other queries is 0.
    """
    return _attend_fwd(has_sink, within_episode, q, k, v, sink, episodes, context, bounds)[0]


def _attend_fwd(has_sink, within_episode, q, k, v, sink, episodes, context, bounds):
    arrays = q, k, v, sink, episodes, context, bounds
    out, lse = _call("forward", (_like(q), _like(q, 3)), has_sink, within_episode, *_buffers(*arrays))
    return out, (arrays, out, lse)


def _attend_bwd(has_sink, within_episode, residuals, d_out):
    arrays, out, lse = residuals
    q, k, v, sink, *rest = arrays
    delta = jnp.sum(d_out * out, -1)
    results = tuple(_like(x) for x in (q, k, v))
    d_q, d_k, d_v = _call("backward", results, has_sink, within_episode, *_buffers(*arrays), lse, delta, d_out)
    d_sink = jax.tree.map(jnp.zeros_like, sink)
    if has_sink:
        part, d_sink = sink_gradients(q, d_out, lse, delta, sink)
        d_q += part
    return d_q, d_k, d_v, d_sink, *jax.tree.map(zero_cotangent, tuple(rest))


_attend.defvjp(_attend_fwd, _attend_bwd)
