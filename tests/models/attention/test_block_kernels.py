"""Every kernel of a block of steps against the definition, and the definition against NumPy in float64."""

import functools
import itertools
import math
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import TransformerConfig
from relic_jax.models.attention import (
    AttentionInputs,
    Backend,
    Context,
    Sink,
    cpu,
    cudnn,
    reference,
    select,
    tiled,
)
from relic_jax.models.attention.tiled import ACCELERATOR_TILES, CPU_TILES, Tiles
from relic_jax.models.kv_formats import Slots

BATCH, HEADS, WIDTH = 2, 2, 8
CUDNN = TransformerConfig(attention="flash", dtype="bfloat16", heads=HEADS, width=HEADS * WIDTH)
HOPPER = Backend("gpu", 9.0)
cudnn_in_xla = functools.partial(cudnn.attend, implementation="xla")
attend_tiled = functools.partial(tiled.attend, tiles=CPU_TILES)
small_tiles = functools.partial(tiled.attend, tiles=Tiles(4, 4, 0))  # many tiles from few steps
HAS_CPU_KERNEL = jax.default_backend() == "cpu" and cpu.available(WIDTH)
needs_cpu_kernel = pytest.mark.skipif(not HAS_CPU_KERNEL, reason="needs a CPU and a C++ compiler")
compiled_kernel = pytest.param(cpu.attend, marks=needs_cpu_kernel)


def episode_layout(rng, steps):
    """int32 [B, steps]: episodes start anywhere, differently in each environment."""
    return np.cumsum(rng.random((BATCH, steps)) < 0.2, axis=1).astype(np.int32) + 1


def random_inputs(seed, q_len, slots, dtype=jnp.float32, scale=1.5):
    """(query, key, value, sink, context with length 0, episodes of the block, cotangent)."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(scale * rng.normal(size=shape), dtype)

    episodes = episode_layout(rng, slots + q_len)
    query, key, value, cotangent = (normal(BATCH, HEADS, q_len, WIDTH) for _ in range(4))
    keys, values = (Slots(normal(BATCH, HEADS, slots, WIDTH)) for _ in range(2))
    context = Context(keys, values, jnp.asarray(episodes[:, :slots]), 0)
    sink = Sink(normal(HEADS, WIDTH), normal(HEADS, WIDTH))
    return query, key, value, sink, context, jnp.asarray(episodes[:, slots:]), cotangent


@functools.cache  # tests share what the reference compiles
def output_and_gradients(attend, within_episode):
    """jitted (inputs, length, valid) → (output, gradients of Σ output·cotangent to q, k, v, sink, context)."""

    @jax.jit
    def run(query, key, value, sink, context, episodes, cotangent, length, valid=None):
        def f(query, key, value, sink, keys, values):
            filled = Context(keys, values, context.episodes, length)
            options = {"within_episode": within_episode, "valid": valid}
            return attend(AttentionInputs(query, key, value, episodes, filled, sink, **options))

        output, pullback = jax.vjp(f, query, key, value, sink, context.keys, context.values)
        return output, pullback(cotangent.astype(output.dtype))

    return run


def assert_close(actual, expected, tolerance):
    """Every array differs by at most `tolerance` times its largest entry (1 where that is smaller)."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1.0, np.abs(e).max(initial=0.0)))


def attention_in_float64(query, keys, values, visible, sink=None):
    """The definition in NumPy. query [B, H, Q, D], keys and values [B, H, K, D], visible [B, Q, K]."""
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    scores = np.einsum("bhqd,bhkd->bhqk", query, keys) / math.sqrt(query.shape[-1])
    weights = np.where(visible[:, None], np.exp(scores), 0.0)
    total, out = weights.sum(-1), weights @ values
    if sink is not None:
        sink_key, sink_value = (np.asarray(x, np.float64) for x in sink)
        weight = np.exp(np.einsum("bhqd,hd->bhq", query, sink_key) / math.sqrt(query.shape[-1]))
        total, out = total + weight, out + weight[..., None] * sink_value[:, None]
    return out / total[..., None]


def block_visibility(context_episodes, episodes, length, within_episode):
    """bool [B, Q, S + Q] by a plain loop over the definition."""
    every = np.concatenate([context_episodes, episodes], axis=1)
    slots, q_len = context_episodes.shape[1], episodes.shape[1]
    visible = np.zeros((len(every), q_len, slots + q_len), bool)
    for b, i, k in np.ndindex(*visible.shape):
        past = k < length if k < slots else k - slots <= i
        visible[b, i, k] = past and (not within_episode or every[b, slots + i] == every[b, k])
    return visible


BOTH = [True, False]


@pytest.mark.parametrize(
    ("q_len", "has_sink", "within_episode"),
    [(130, has_sink, within) for has_sink in BOTH for within in BOTH]
    + [(q_len, both, both) for q_len in (1, 7, 300) for both in BOTH],
)
@pytest.mark.parametrize("slots", [0, 150])
@pytest.mark.parametrize("attend", [attend_tiled, compiled_kernel])
def test_block_equals_reference_in_outputs_and_gradients(attend, q_len, slots, has_sink, within_episode):
    query, key, value, sink, *rest = random_inputs(q_len + slots, q_len, slots)
    inputs = (query, key, value, sink if has_sink else None, *rest)
    block, definition = (output_and_gradients(f, within_episode) for f in (attend, reference.attend))
    for length in (0, slots // 2 - 5, slots) if slots else (0,):
        expected = definition(*inputs, length)
        assert_close(block(*inputs, length), expected, 1e-5)


@pytest.mark.parametrize("within_episode", BOTH)
@pytest.mark.parametrize("scores", [0, ACCELERATOR_TILES.untiled_scores])
def test_block_on_an_accelerator(scores, within_episode):
    """The same with larger tiles, of which there are several, and without tiles if there are few scores."""
    query, key, value, sink, *rest = random_inputs(0, 300, 1500)
    expected = output_and_gradients(attend_tiled, within_episode)(query, key, value, sink, *rest, 1300)
    tiles = ACCELERATOR_TILES._replace(untiled_scores=scores)
    run = output_and_gradients(functools.partial(tiled.attend, tiles=tiles), within_episode)
    loops = str(jax.make_jaxpr(run)(query, key, value, sink, *rest, 1300)).count("while[")
    assert_close(run(query, key, value, sink, *rest, 1300), expected, 1e-5)
    assert (loops > 0) == (scores == 0)


@pytest.mark.parametrize(
    ("q_len", "slots", "has_sink", "within_episode"),
    [(q_len, slots, *both) for q_len, slots in ((12, 0), (7, 0), (7, 9)) for both in itertools.product(BOTH, BOTH)],
)
def test_cudnn_equals_reference_in_outputs_and_gradients(q_len, slots, has_sink, within_episode):
    """The arguments of the platform's attention, which XLA computes here."""
    query, key, value, sink, *rest = random_inputs(q_len + slots, q_len, slots)
    inputs = (query, key, value, sink if has_sink else None, *rest)
    found, definition = (output_and_gradients(f, within_episode) for f in (cudnn_in_xla, reference.attend))
    for length in (0, 4, slots) if slots else (0,):
        assert_close(found(*inputs, length), definition(*inputs, length), 1e-5)


@pytest.mark.parametrize(
    ("q_len", "slots", "within_episode", "kernel"),
    [(6, 0, False, "fmhaSoftmax"), (7, 0, False, "fmhaSoftmax"), (7, 8, False, "fmhaScaleBiasSoftmax")]
    + [(7, slots, True, "fmhaScaleBiasSoftmax") for slots in (0, 8)],
)
def test_cudnn_takes_the_arguments(q_len, slots, within_episode, kernel):
    """JAX's checks of shapes and dtypes pass as on a Hopper with cuDNN 9.10, and both kernels are in the program."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn_checks  # private: only here

    query, key, value, sink, context, episodes, cotangent = random_inputs(0, q_len, slots, jnp.bfloat16)

    def loss(query, key, value, sink):
        filled = context._replace(length=jnp.int32(slots))
        inputs = AttentionInputs(query, key, value, episodes, filled, sink, within_episode=within_episode)
        return jnp.vdot(select(CUDNN, backend).attend(inputs), cotangent)

    backend = HOPPER
    with mock.patch.multiple(cudnn_checks, check_cudnn_version=lambda: 91000, check_compute_capability=lambda _: True):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).trace(query, key, value, sink)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert f"__cudnn${kernel}(" in program
    assert f"__cudnn${kernel}Backward(" in program
    backend = Backend("cpu")
    here = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(query, key, value, sink).as_text()
    assert "cudnn" not in here


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("within_episode", [True, False])
@pytest.mark.parametrize(("q_len", "slots"), [(130, 0), (131, 0), (130, 150), (131, 151)])
def test_cudnn_on_a_gpu_is_within_the_rounding_of_bfloat16(q_len, slots, within_episode):
    """cuDNN's kernels against the float32 definition of the same inputs: as in the next test."""
    inputs = random_inputs(0, q_len, slots, jnp.bfloat16)
    *bfloat16, context, episodes, cotangent = inputs
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (*bfloat16, cotangent))
    keys, values = (Slots(x.decoded(jnp.float32)) for x in context[:2])
    exact = (*wide[:-1], context._replace(keys=keys, values=values), episodes, wide[-1])
    assert select(CUDNN).name == "cudnn"
    for length in (0, 70, slots) if slots else (0,):
        actual = output_and_gradients(cudnn.attend, within_episode)(*inputs, length)
        with jax.default_matmul_precision("highest"):
            expected = output_and_gradients(reference.attend, within_episode)(*exact, length)
        assert_close(actual, expected, 2**-5)


@pytest.mark.parametrize("within_episode", [True, False])
def test_block_in_bfloat16_is_within_its_rounding(within_episode):
    """Against the float32 definition of the same (rounded) inputs.

    bfloat16 keeps 8 bits, so one rounding is 2⁻⁹ relative. Scores, weights and outputs are each rounded once, sums are
    float32; scores reach about 12 here, whose rounding of the scaled query moves a weight by up to 12·2⁻⁹ ≈ 2⁻⁵.
    """
    inputs = random_inputs(0, 130, 150, jnp.bfloat16)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, inputs[:4] + inputs[5:])
    keys, values = (Slots(slots.decoded(jnp.float32)) for slots in inputs[4][:2])
    context = inputs[4]._replace(keys=keys, values=values)
    for length in (0, 70, 150):
        actual = output_and_gradients(attend_tiled, within_episode)(*inputs, length)
        expected = output_and_gradients(reference.attend, within_episode)(*exact[:4], context, *exact[4:], length)
        assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(actual))
        assert_close(actual, expected, 2**-5)


@pytest.mark.parametrize("attend", [small_tiles, compiled_kernel, reference.attend])
@pytest.mark.parametrize("within_episode", [True, False])
def test_block_and_reference_equal_the_definition_in_float64(attend, within_episode):
    query, key, value, sink, context, episodes, _ = random_inputs(1, 11, 10)
    run = jax.jit(attend)
    for length in (0, 7, 10):
        visible = block_visibility(context.episodes, episodes, length, within_episode)
        keys, values = (np.concatenate([s.data, x], 2) for s, x in ((context.keys, key), (context.values, value)))
        for slot in (sink, None):
            filled = context._replace(length=length)
            actual = run(AttentionInputs(query, key, value, episodes, filled, slot, within_episode=within_episode))
            assert_close(actual, attention_in_float64(query, keys, values, visible, slot), 2e-6)


@pytest.mark.parametrize("attend", [small_tiles, compiled_kernel])
@pytest.mark.parametrize("within_episode", [True, False])
def test_gradient_of_the_sink_equals_finite_differences_in_float64(attend, within_episode):
    query, key, value, sink, context, episodes, cotangent = inputs = random_inputs(2, 11, 10)
    _, (_, _, _, actual, _, _) = output_and_gradients(attend, within_episode)(*inputs, 7)
    visible = block_visibility(context.episodes, episodes, 7, within_episode)
    keys, values = (np.concatenate([s.data, x], 2) for s, x in ((context.keys, key), (context.values, value)))

    def loss(flat):
        sink_key, sink_value = flat.reshape(2, HEADS, WIDTH)
        out = attention_in_float64(query, keys, values, visible, Sink(sink_key, sink_value))
        return np.sum(out * np.asarray(cotangent, np.float64))

    point = np.stack(sink).astype(np.float64).ravel()
    steps = 1e-5 * np.eye(len(point))
    numeric = np.array([(loss(point + s) - loss(point - s)) / 2e-5 for s in steps]).reshape(2, HEADS, WIDTH)
    assert_close(np.stack(actual), numeric, 1e-5)


@pytest.mark.parametrize("attend", [small_tiles, compiled_kernel, reference.attend, cudnn_in_xla])
def test_context_gets_no_gradient(attend):
    *_, d_keys, d_values = output_and_gradients(attend, False)(*random_inputs(3, 6, 9), 9)[1]
    assert not np.any(d_keys.data)
    assert not np.any(d_values.data)


@pytest.mark.parametrize("has_sink", [True, False])
def test_only_valid_steps_come_out_and_get_gradients(has_sink):
    query, key, value, sink, *rest, cotangent = random_inputs(4, 14, 9)
    kernels = [reference.attend, small_tiles, cudnn_in_xla] + [cpu.attend] * HAS_CPU_KERNEL
    definition, *others = (output_and_gradients(x, True) for x in kernels)
    inputs = (query, key, value, sink if has_sink else None, *rest)
    for valid in (0, 1, 4, 6, 13, 14):
        kept = (jnp.arange(14) < valid)[:, None]
        full, expected = definition(*inputs, cotangent * kept, 5)
        for attend in (definition, *others):
            output, gradients = attend(*inputs, cotangent, 5, jnp.int32(valid))
            assert_close(output, full * kept, 1e-5)
            assert_close(gradients, expected, 1e-5)


@pytest.mark.parametrize("within_episode", BOTH)
@pytest.mark.parametrize("attend", [small_tiles, compiled_kernel, reference.attend, cudnn_in_xla])
def test_some_queries_of_a_block_equal_those_rows_of_all(attend, within_episode):
    """Outputs, and gradients of a loss on those rows. Tiles are 4 long; the rows begin with one, or within one."""
    query, key, value, sink, context, episodes, cotangent = random_inputs(7, 14, 9)
    everything = output_and_gradients(reference.attend, within_episode)
    for size, starts in ((1, (0, 7, 13)), (5, (0, 3, 4, 9))):

        @jax.jit
        def some(start, valid, size=size):
            def f(query, key, value, sink, keys, values):
                filled = Context(keys, values, context.episodes, jnp.int32(9))
                some = jax.lax.dynamic_slice_in_dim(query, start, size, axis=2)
                options = {"within_episode": within_episode, "valid": valid, "start": start}
                return attend(AttentionInputs(some, key, value, episodes, filled, sink, **options))

            output, pullback = jax.vjp(f, query, key, value, sink, context.keys, context.values)
            return output, pullback(jax.lax.dynamic_slice_in_dim(cotangent, start, size, axis=2))

        for start in starts:
            rows = (jnp.arange(14) >= start) & (jnp.arange(14) < start + size)
            output, gradients = everything(query, key, value, sink, context, episodes, cotangent * rows[:, None], 9)
            for valid in (start + size, 14):
                actual = some(jnp.int32(start), jnp.int32(valid))
                assert_close(actual, (output[:, :, start : start + size], gradients), 1e-5)


@pytest.mark.parametrize("attend", [small_tiles, compiled_kernel])
def test_tiles_of_earlier_episodes_are_not_even_looked_at(attend):
    """Episodes start at slots 0, 6 and 12 of 26; the last ten steps, all of the third episode, are the block.

    With tiles of 4, slots 0 … 11 make up tiles of earlier episodes. What is not a number there does not show; in the
    next tile, which the third episode shares, it does (a masked weight of 0 times NaN).
    """
    query, key, value, sink, context, _, cotangent = random_inputs(8, 10, 16)
    layout = jnp.asarray(np.repeat([1, 2, 3], [6, 6, 14])[None].repeat(BATCH, 0))
    context = context._replace(episodes=layout[:, :16])
    run = output_and_gradients(attend, True)

    def poisoned(upto):
        slots = (Slots(s.data.at[:, :, :upto].set(jnp.nan)) for s in (context.keys, context.values))
        poisoned_context = Context(*slots, context.episodes, 0)
        output, gradients = run(query, key, value, sink, poisoned_context, layout[:, 16:], cotangent, 16)
        return [bool(jnp.isfinite(x).all()) for x in (output, *jax.tree.leaves(gradients[:4]))]

    assert all(poisoned(12))
    assert not all(poisoned(13))


@pytest.mark.parametrize("within_episode", BOTH)
@pytest.mark.parametrize("attend", [small_tiles, compiled_kernel, reference.attend, cudnn_in_xla])
def test_a_window_equals_the_definition_in_float64_and_its_gradients(attend, within_episode):
    """Of every width, with and without a context, and from a later query on."""
    query, key, value, sink, context, episodes, cotangent = random_inputs(8, 14, 9)
    keys, values = (np.concatenate([s.data, x], 2) for s, x in ((context.keys, key), (context.values, value)))
    for window, length, start in ((1, 9, 0), (4, 6, 0), (4, 9, 5), (30, 9, 0)):
        queries, weight = query[:, :, start:], cotangent[:, :, start:]

        def output(f, query, key, value, window=window, length=length, start=start):
            filled = context._replace(length=jnp.int32(length))
            options = {"within_episode": within_episode, "start": jnp.int32(start), "window": window}
            return f(AttentionInputs(query, key, value, episodes, filled, sink, **options))

        visible = block_visibility(context.episodes, episodes, length, within_episode)
        step = np.concatenate([np.arange(9), length + np.arange(14)])
        visible &= length + np.arange(14)[:, None] - step < window
        expected = attention_in_float64(queries, keys, values, visible[:, start:], sink)
        assert_close(output(attend, queries, key, value), expected, 1e-5)

        def gradients(f, queries=queries, weight=weight, output=output):
            def loss(*x):
                return jnp.vdot(output(f, *x), weight)

            return jax.jit(jax.grad(loss, (0, 1, 2)))(queries, key, value)

        assert_close(gradients(attend), gradients(reference.attend), 1e-5)


def test_one_trace_serves_every_length():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(length, valid):
        query, key, value, sink, context, episodes, _ = random_inputs(5, 6, 9)
        context = context._replace(length=length)
        options = {"within_episode": False, "valid": valid}
        return small_tiles(AttentionInputs(query, key, value, episodes, context, sink, **options))

    results = [run(jnp.int32(length), jnp.int32(valid)) for length in range(10) for valid in (2, 6)]
    assert len({np.asarray(x).tobytes() for x in results}) == 20


@functools.cache
def compiled(q_len, slots, has_sink, within_episode):
    """The pair to compare, compiled once for all examples of these shapes."""
    del q_len, slots, has_sink
    return tuple(output_and_gradients(f, within_episode) for f in (small_tiles, reference.attend))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    shape=st.sampled_from([(9, 0), (10, 7)]),
    filled=st.floats(0, 1),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    has_sink=st.booleans(),
    within_episode=st.booleans(),
)
def test_block_equals_reference_for_any_layout(seed, shape, filled, scale, has_sink, within_episode):
    """The scores of scale 3 reach ±50: the running softmax must move its maximum from tile to tile."""
    query, key, value, sink, *rest = random_inputs(seed, *shape, scale=scale)
    inputs = (query, key, value, sink if has_sink else None, *rest, round(filled * shape[1]))
    block, definition = compiled(*shape, has_sink, within_episode)
    # float32 rounds a score of 50 by 50·2⁻²⁴, and a gradient sums products of values up to 3·3·3
    assert_close(block(*inputs), definition(*inputs), 3e-5)


@pytest.mark.parametrize("has_sink", [True, False])
@pytest.mark.parametrize("by_episode", [True, False])
def test_step_equals_reference_with_one_query(has_sink, by_episode):
    query, key, value, sink, context, _, _ = random_inputs(6, 1, 12)
    sink = sink if has_sink else None
    step, block = jax.jit(reference.attend_step), jax.jit(reference.attend)
    slot = np.arange(12)
    for length, window in itertools.product((1, 5, 12), (None, 1, 3, 12)):
        episodes = np.asarray(context.episodes)
        own = episodes[:, length - 1]
        visible = np.broadcast_to(slot < length, episodes.shape)
        if window is not None:
            visible = visible & (slot >= length - window)
        if by_episode:
            visible = visible & (episodes == own[:, None])
        filled = context._replace(
            keys=Slots(context.keys.data.at[:, :, length - 1].set(key[:, :, 0])),
            values=Slots(context.values.data.at[:, :, length - 1].set(value[:, :, 0])),
            length=length,
        )
        options = {"within_episode": by_episode, "window": window}
        actual = step(AttentionInputs(query, key, value, own[:, None], filled, sink, **options))
        # the visible slots are marked as one episode; the step's own slot is the block
        marks = np.where(visible & (slot < length - 1), 1, 0)
        past = filled._replace(episodes=jnp.asarray(marks), length=length - 1)
        one = jnp.ones((BATCH, 1), jnp.int32)
        assert_close(actual, block(AttentionInputs(query, key, value, one, past, sink, within_episode=True)), 2e-6)
        every = attention_in_float64(query, filled.keys.data, filled.values.data, visible[:, None], sink)
        assert_close(actual, every, 2e-6)
