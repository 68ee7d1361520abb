"""The fused kernel of acting: run in XLA here (`interpret`) it is `attend_step`, and it can be lowered for CUDA."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.models import decode, kv_formats
from relic_jax.models.attention import Context, Sink, attend_step
from relic_jax.models.decode import attend_step_fused, flash_decode
from relic_jax.models.policy import Policy, PolicyConfig
from relic_jax.models.transformer import TransformerConfig
from relic_jax.types import StepInput

BATCH, HEADS, WIDTH, SLOTS = 3, 2, 32, 1300  # three parts (int8: two), the last of them cut off, as is its last tile


def random_inputs(form="float32", dtype=jnp.float32, width=WIDTH):
    """(query, context with everything filled, sink); scores reach ±20."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(1.5 * rng.normal(size=shape), dtype)

    keys, values = (kv_formats.encode(normal(BATCH, HEADS, SLOTS, width), form) for _ in range(2))
    episodes = np.cumsum(rng.random((BATCH, SLOTS)) < 0.01, axis=1).astype(np.int32)
    sink = Sink(normal(HEADS, width), normal(HEADS, width))
    return normal(BATCH, HEADS, width), Context(keys, values, jnp.asarray(episodes), jnp.int32(SLOTS)), sink


@functools.cache
def compiled(form, has_sink, within):
    """jitted (length, window) → (the kernel's result, the definition's)."""
    query, context, sink = random_inputs(form)

    @jax.jit
    def both(length, window):
        filled = context._replace(length=length)
        episode = context.episodes[:, length - 1] if within else None
        options = {"episode": episode, "window": window}
        used = sink if has_sink else None
        return flash_decode(query, filled, used, **options, interpret=True), attend_step(query, filled, used, **options)

    return both


@settings(deadline=None, max_examples=40)
@given(
    form=st.sampled_from(["float32", "bfloat16", "int8"]),
    has_sink=st.booleans(),
    within=st.booleans(),
    length=st.one_of(st.integers(1, SLOTS), st.sampled_from([1, 64, 65, 512, 513, SLOTS])),
    window=st.lists(st.integers(1, SLOTS + 10), min_size=BATCH, max_size=BATCH),
)
def test_the_kernel_is_attend_step(form, has_sink, within, length, window):
    """For every format, length, window per environment and episode; parts that see nothing weigh nothing."""
    found, expected = compiled(form, has_sink, within)(jnp.int32(length), jnp.asarray(window, jnp.int32))
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_sums_are_float32_whatever_is_stored():
    """A bfloat16 policy: beside the same numbers in float32, only the result is rounded."""
    query, context, sink = random_inputs("bfloat16", jnp.bfloat16)
    found = jax.jit(functools.partial(flash_decode, episode=None, interpret=True))(query, context, sink)
    exact = Context(*(kv_formats.Slots(x.data.astype(jnp.float32)) for x in context[:2]), *context[2:])
    wide = Sink(*(x.astype(jnp.float32) for x in sink))
    expected = attend_step(query.astype(jnp.float32), exact, wide, episode=None)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-7, atol=1e-5)


def test_what_is_not_filled_is_not_read():
    query, context, sink = random_inputs()
    filled = np.arange(SLOTS)[:, None] < 700
    poisoned = context._replace(
        keys=kv_formats.Slots(jnp.where(filled, context.keys.data, jnp.nan)),
        values=kv_formats.Slots(jnp.where(filled, context.values.data, jnp.nan)),
        length=jnp.int32(700),
    )
    run = jax.jit(functools.partial(flash_decode, episode=None, interpret=True))
    np.testing.assert_array_equal(run(query, poisoned, sink), run(query, context._replace(length=jnp.int32(700)), sink))


def lowered(form, dtype, width, platform):
    query, context, sink = random_inputs(form, dtype, width)
    run = jax.jit(functools.partial(attend_step_fused, episode=context.episodes[:, -1], window=jnp.int32(9)))
    card = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")  # jax 0.12 asks which
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=card)):
        return run.trace(query, context, sink).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_it_can_be_lowered_for_cuda(form, width):
    for dtype in (jnp.float32, jnp.bfloat16):
        assert lowered(form, dtype, width, "cuda").count("triton") > 0
        assert "triton" not in lowered(form, dtype, width, "cpu")


@pytest.mark.parametrize("width", [8, 24])
def test_heads_of_other_widths_are_left_to_xla(width):
    assert "triton" not in lowered("float32", jnp.float32, width, "cuda")


def test_without_triton_it_is_left_to_xla():
    with mock.patch.object(decode, "triton", None):
        assert "triton" not in lowered("float32", jnp.float32, 32, "cuda")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_on_a_gpu_it_is_what_it_is_in_xla(form):
    query, context, sink = random_inputs(form)
    for length in (1, 500, SLOTS):
        filled = context._replace(length=jnp.int32(length))
        found = jax.jit(functools.partial(attend_step_fused, episode=None))(query, filled, sink)
        expected = jax.jit(functools.partial(flash_decode, episode=None, interpret=True))(query, filled, sink)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_a_policy_with_it_acts_the_same_here():
    config = TransformerConfig(layers=1, heads=2, width=32, mlp_width=16, max_positions=64)
    inputs = StepInput(jnp.ones((4, 2)), jnp.zeros(4, jnp.int32), jnp.ones(4), jnp.zeros(4, bool))
    plain, fused = (
        Policy(PolicyConfig(dataclasses.replace(config, decode=choice)), 3, (0.0, 0.0), (1.0, 1.0))
        for choice in ("xla", "fused")
    )
    params, results = jax.jit(plain.init)(jax.random.key(0)), []
    for policy in (plain, fused):
        output, _ = jax.jit(policy.act)(params, policy.initial_memory(4, 32), inputs)
        results.append(np.asarray(output.value))
    np.testing.assert_array_equal(*results)
