"""Compare the attention kernels with their definition at long contexts, and their speed with alternatives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.experiments.benchmark.measure import timed
from relic_jax.models import kv_formats
from relic_jax.models.attention import AttentionInputs, Context, Sink, cudnn, decode, reference, tiled
from relic_jax.models.kv_formats import KVFormat, Slots

LENGTHS = (65_535, 65_536, 65_537, 131_072)
"""Steps of context: around a power of two, where an index of 16 bits or a part that is not full would show."""
QUERIES = 256
HEADS, WIDTH = 8, 32
STEPS = 128
"""Steps of a measurement, during which the cache is copied once."""
BOUNDS: dict[str, float] = {"float32": 5e-5, "bfloat16": 2.0**-6, "int8": 5e-5, "block": 2.0**-5}
"""Largest difference from the definition, relative to the largest number of the result."""
SHARPNESS = 3.0
"""Standard deviation of the scores. A step then sees about a dozen of 100,000 keys, and outputs do not average out."""


def correctness(quick: bool) -> Iterator[dict[str, Any]]:
    """Compare every kernel of a GPU with the definition in float32.

    Args:
        quick: Use contexts of about 600 steps.

    Yields:
        JSON-serializable dicts: name, error (the largest difference), bound and passed.
    """
    lengths = (600,) if quick else LENGTHS
    formats: tuple[KVFormat, ...] = ("float32", "bfloat16", "int8")
    for slots in lengths:
        for kv_format in formats:
            yield step_case(slots, kv_format, within_episode=False)
    for sink_scale in (0.0, 8.0):  # a sink with scores of 0, and one that gets most of the attention of some heads
        yield step_case(lengths[-1], "bfloat16", within_episode=True, sink_scale=sink_scale)
    for slots in lengths:
        for name in ("cudnn", "tiled"):
            yield block_case(slots, name, within_episode=False)
    for name in ("cudnn", "tiled"):
        yield block_case(lengths[-1], name, within_episode=True)


def step_case(slots: int, kv_format: KVFormat, *, within_episode: bool, sink_scale: float = 1.0) -> dict[str, Any]:
    """Compare the decode kernel with the definition, for a full context, most of it, and a window."""
    dtype = jnp.bfloat16 if kv_format == "bfloat16" else jnp.float32
    inputs = random_inputs(slots, 1, dtype, kv_format, sink_scale).replace(within_episode=within_episode)
    interpret = jax.default_backend() == "cpu"
    kernel = jax.jit(functools.partial(decode.flash_decode, interpret=interpret))
    definition, errors = in_float32(reference.attend_step), []
    for length, window in ((slots, slots), (slots - 3, slots), (slots, slots // 3)):
        step = inputs.replace(
            context=inputs.context._replace(length=jnp.int32(length)), window=jnp.asarray(window, jnp.int32)
        )
        errors.append(difference(kernel(step), definition(step)))
    suffix = "/within-episode" * within_episode + ("" if sink_scale == 1 else f"/sink×{sink_scale:g}")
    return verdict(f"kernels/decode/{kv_format}/context{slots}{suffix}", max(errors), BOUNDS[kv_format])


def block_case(slots: int, name: str, *, within_episode: bool) -> dict[str, Any]:
    """Compare a kernel of a block, its outputs and its gradients, with the definition."""
    inputs = random_inputs(slots, QUERIES, jnp.bfloat16, "bfloat16").replace(within_episode=within_episode)
    on_cpu = jax.default_backend() == "cpu"
    kernels: dict[str, Callable[[AttentionInputs], jax.Array]] = {
        "cudnn": functools.partial(cudnn.attend, implementation="xla" if on_cpu else "cudnn"),
        "tiled": functools.partial(tiled.attend, tiles=tiled.ACCELERATOR_TILES),
    }
    found = jax.jit(functools.partial(output_and_gradients, kernels[name]))(inputs)
    expected = in_float32(functools.partial(output_and_gradients, reference.attend))(inputs)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    suffix = "/within-episode" * within_episode
    return verdict(
        f"kernels/{name}/{QUERIES}steps/context{slots}{suffix}",
        max(difference(*pair) for pair in pairs),
        BOUNDS["block"],
    )


def output_and_gradients(attend: Callable[[AttentionInputs], jax.Array], inputs: AttentionInputs) -> Any:
    """Return the outputs and the gradients of their sum of squares to queries, keys, values and the sink."""

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, sink: Sink) -> tuple[jax.Array, jax.Array]:
        out = attend(inputs.replace(query=query, key=key, value=value, sink=sink))
        return jnp.sum(jnp.square(out.astype(jnp.float32))), out

    arguments = (inputs.query, inputs.key, inputs.value, inputs.sink)
    gradients, out = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*arguments)
    return out, gradients


def random_inputs(
    slots: int, queries: int, dtype: Any, kv_format: KVFormat, sink_scale: float = 1.0
) -> AttentionInputs:
    """Return inputs with a filled context of one environment, in which an episode has about 100 steps."""
    keys_of_arrays = iter(jax.random.split(jax.random.key(slots), 7))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys_of_arrays), shape).astype(dtype)

    episodes = jnp.asarray(np.arange(slots + queries)[None] // 100, jnp.int32)
    keys, values = (kv_formats.encode(normal(1, HEADS, slots, WIDTH), kv_format) for _ in range(2))
    context = Context(keys, values, episodes[:, :slots], jnp.int32(slots))
    sink = Sink(sink_scale * normal(HEADS, WIDTH), normal(HEADS, WIDTH))
    own = episodes[:, slots - 1 : slots] if queries == 1 else episodes[:, slots:]
    query, key, value = (normal(1, HEADS, queries, WIDTH) for _ in range(3))
    query = SHARPNESS * query
    return AttentionInputs(query, key, value, own, context, sink, within_episode=False)


def in_float32(function: Callable[[AttentionInputs], Any]) -> Callable[[AttentionInputs], Any]:
    """Return the jitted function of the same numbers in float32, with exact products."""

    def wide(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x

    @jax.jit
    def run(inputs: AttentionInputs) -> Any:
        keys, values = (Slots(x.decoded(jnp.float32)) for x in inputs.context[:2])
        exact = jax.tree.map(wide, inputs).replace(context=inputs.context._replace(keys=keys, values=values))
        with jax.default_matmul_precision("highest"):
            return function(exact)

    return run


def difference(found: jax.Array, expected: jax.Array) -> float:
    """Return the largest difference, relative to the largest expected number. Infinite if a number is not finite."""
    a, b = (np.asarray(x.astype(jnp.float32), np.float64) for x in (found, expected))
    error = float(np.abs(a - b).max() / np.abs(b).max())
    return error if np.isfinite(error) else float("inf")


def verdict(name: str, error: float, bound: float) -> dict[str, Any]:
    """Return the case of a comparison."""
    return {"name": name, "error": min(error, 1e30), "bound": bound, "passed": error <= bound}


def decoders(quick: bool) -> Iterator[dict[str, Any]]:
    """Time one layer of acting with the decode kernel and with each alternative to it.

    `jax.nn.dot_product_attention` has no sink and expects ``[B, S, H, D]``. It is timed on a cache with this layout,
    and on our cache, which it has to copy.
    """
    for batch, slots in ((2, 600),) if quick else ((20, 8192), (256, 8192), (20, 65_536)):
        inputs = random_inputs(slots, 1, jnp.bfloat16, "bfloat16")
        keys, values = (jnp.repeat(x.data, batch, 0) for x in inputs.context[:2])
        query = jnp.repeat(inputs.query, batch, 0)
        ours, swapped = (keys, values), tuple(jnp.copy(x.swapaxes(1, 2)) for x in (keys, values))

        ways: dict[str, tuple[Any, Any]] = {
            "fused": (functools.partial(ours_attend, decode.attend_step, inputs), ours),
            "xla": (functools.partial(ours_attend, reference.attend_step, inputs), ours),
            "dot_product_attention": (functools.partial(library_attend, True), ours),
            "dot_product_attention, its own layout": (functools.partial(library_attend, False), swapped),
        }
        for name, (attend, cache) in ways.items():
            yield decoder_case(
                f"decoders/{name}/batch{batch}/context{slots}", attend, query, cache, 1 if cache is swapped else 2
            )


def ours_attend(attend: Any, inputs: AttentionInputs, query: jax.Array, cache: tuple[jax.Array, ...]) -> jax.Array:
    """Attend with a kernel of this library."""
    context = inputs.context._replace(keys=Slots(cache[0]), values=Slots(cache[1]))
    out: jax.Array = attend(inputs.replace(query=query, context=context))
    return out


def library_attend(swap: bool, query: jax.Array, cache: tuple[jax.Array, ...]) -> jax.Array:
    """Attend with JAX's attention, in cuDNN on a GPU. swap: whether the cache has to be brought into its layout."""
    key, value = (x.swapaxes(1, 2) if swap else x for x in cache)
    implementation: Any = "xla" if jax.default_backend() == "cpu" else "cudnn"
    pair = jnp.pad(query.swapaxes(1, 2), [(0, 0), (0, 1), (0, 0), (0, 0)])  # cuDNN needs an even number of queries
    out: Any = jax.nn.dot_product_attention(pair, key, value, implementation=implementation)
    return out[:, :1].swapaxes(1, 2)


def decoder_case(name: str, attend: Any, query: jax.Array, cache: Any, axis: int) -> dict[str, Any]:
    """Time steps that each write one slot along `axis` of the cache, and attend with the output of the step before."""

    def step(index: jax.Array, carry: Any) -> Any:
        query, cache = carry
        new = query if axis == 2 else query.swapaxes(1, 2)
        cache = tuple(jax.lax.dynamic_update_slice_in_dim(x, new, index, axis) for x in cache)
        return attend(query, cache).astype(query.dtype), cache

    run = jax.jit(lambda query, cache: jax.lax.fori_loop(0, STEPS, step, (query, cache))[0])
    seconds = timed(lambda: run(query, cache)).wall / STEPS
    size = sum(x.nbytes for x in cache)
    return {"name": name, "milliseconds": 1e3 * seconds, "bytes": size, "bytes_per_second": size / seconds}
