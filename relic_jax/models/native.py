"""Learning on a CPU: attention of a block of steps by a compiled kernel, `native.cpp`.

XLA calls it through its foreign-function interface, whose headers come with jax. The kernel is compiled once per
machine, the first time that it is needed, for the width of a head and the processor: a few seconds, kept in
`~/.cache/relic-jax` (`XDG_CACHE_HOME`), see `kernels`. It takes a C++ compiler (`CXX`, `c++`, `g++` or `clang++`);
without one, and on Windows, XLA's `attention.attend_block` computes the same.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from relic_jax.models import kernels
from relic_jax.models.attention import Context, Sink, attend_block, first_steps, sink_gradients, zero_cotangent

WIDTHS = (4, 8, 16, 32, 64, 128)  # of a head
_SOURCE = Path(__file__).with_name("native.cpp")
_SYMBOLS = ("forward", "backward")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-w")
_TARGETS: set[str] = set()


def native_fits(width: int) -> bool:
    """Whether there is a kernel for float32 heads of this width, here: on a CPU, with a C++ compiler."""
    return jax.default_backend() == "cpu" and width in WIDTHS and _registered(width)


@functools.cache
def _registered(width: int) -> bool:
    """Makes the kernel known to XLA. False where it cannot be compiled."""
    try:
        library = _library(width)
    except (OSError, AttributeError, kernels.KernelError):
        return False
    for target, name in ((_target(name, width), name) for name in _SYMBOLS):
        if target not in _TARGETS:  # XLA knows a name once per process
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
            _TARGETS.add(target)
    return True


def _target(name: str, width: int) -> str:
    return f"relic_attention_{name}_{width}"


def _library(width: int) -> ctypes.CDLL:
    """The compiled kernel: an earlier one of the same source, compiler, processor and jaxlib, or a new one."""
    flags = (*_FLAGS, f"-DHEAD_WIDTH={width}")
    include, version = jax.ffi.include_dir(), jaxlib.__version__
    return kernels.load(f"attention-{width}", _SOURCE, flags, _SYMBOLS, include, version)


def native_block(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    episodes: jax.Array,
    context: Context,
    sink: Sink | None,
    *,
    within_episode: bool,
    valid: jax.Array | None = None,
    start: jax.Array | int = 0,
) -> jax.Array:
    """As `attend_block`, arguments and result, and that itself where the kernel does not fit.

    The kernel takes float32 queries and a context that is stored in float32. Where attention stays within the episode,
    keys that no query of a vector of them sees are skipped.
    """
    heads, rows, width = query.shape[1:]
    float32 = all(x.dtype == jnp.float32 for x in (query, context.keys.data, context.values.data))
    if not float32 or not native_fits(width):
        return attend_block(
            query, key, value, episodes, context, sink, within_episode=within_episode, valid=valid, start=start
        )
    used = rows if valid is None else jnp.minimum(valid - start, rows)
    bounds = jnp.stack([jnp.asarray(x, jnp.int32) for x in (context.length, start, used)])
    slot = sink if sink is not None else Sink(*2 * (jnp.zeros((heads, width), jnp.float32),))
    scaled = query * jnp.float32(1.0 / math.sqrt(width))
    out = _attend(sink is not None, within_episode, scaled, key, value, slot, episodes, context, bounds)
    return first_steps(out, valid, start)


def _inputs(q, k, v, sink: Sink, episodes, context: Context, bounds) -> tuple[jax.Array, ...]:
    return q, k, v, *sink, episodes, context.keys.data, context.values.data, context.episodes, bounds


def _call(name: str, results: tuple[Any, ...], has_sink: bool, within_episode: bool, *inputs: jax.Array) -> Any:
    width = inputs[0].shape[-1]
    call = jax.ffi.ffi_call(_target(name, width), results, vmap_method="sequential")
    return call(*inputs, has_sink=has_sink, within_episode=within_episode)


def _like(x: jax.Array, axes: int | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[:axes], jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(has_sink: bool, within_episode: bool, q, k, v, sink: Sink, episodes, context: Context, bounds) -> jax.Array:
    """q: [B, H, Q, D], scaled; k, v: [B, H, K, D]; sink: [H, D] each; episodes: int32 [B, K]; bounds: int32 [3], slots
    of the context that are filled, the step of the first query, queries that matter. The others' outputs are 0.
    """
    return _attend_fwd(has_sink, within_episode, q, k, v, sink, episodes, context, bounds)[0]


def _attend_fwd(has_sink, within_episode, q, k, v, sink, episodes, context, bounds):
    inputs = q, k, v, sink, episodes, context, bounds
    out, lse = _call("forward", (_like(q), _like(q, 3)), has_sink, within_episode, *_inputs(*inputs))
    return out, (inputs, out, lse)


def _attend_bwd(has_sink, within_episode, residuals, d_out):
    inputs, out, lse = residuals
    q, k, v, sink, *rest = inputs
    delta = jnp.sum(d_out * out, -1)
    results = tuple(_like(x) for x in (q, k, v))
    d_q, d_k, d_v = _call("backward", results, has_sink, within_episode, *_inputs(*inputs), lse, delta, d_out)
    d_sink = jax.tree.map(jnp.zeros_like, sink)
    if has_sink:
        part, d_sink = sink_gradients(q, d_out, lse, delta, sink)
        d_q += part
    return d_q, d_k, d_v, d_sink, *jax.tree.map(zero_cotangent, tuple(rest))


_attend.defvjp(_attend_fwd, _attend_bwd)
