"""The decode kernel: in XLA (`interpret`) it equals `reference.attend_step`, and it can be lowered for CUDA."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.models import kv_formats
from relic_jax.models.attention import AttentionInputs, Backend, Context, Sink, decode, select
from relic_jax.models.attention.decode import flash_decode
from relic_jax.models.attention.reference import attend_step
from relic_jax.models.policy import Policy
from relic_jax.spaces import vector_spaces
from relic_jax.types import StepInput

BATCH, HEADS, WIDTH, SLOTS = 3, 2, 32, 1300  # three parts (int8: two), the last of them cut off, as is its last tile


def random_inputs(form="float32", dtype=jnp.float32, width=WIDTH):
    """A step against a context with all slots filled; scores reach ±20."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(1.5 * rng.normal(size=shape), dtype)

    keys, values = (kv_formats.encode(normal(BATCH, HEADS, SLOTS, width), form) for _ in range(2))
    episodes = np.cumsum(rng.random((BATCH, SLOTS)) < 0.01, axis=1).astype(np.int32)
    sink = Sink(normal(HEADS, width), normal(HEADS, width))
    query = normal(BATCH, HEADS, width)[:, :, None]
    context = Context(keys, values, jnp.asarray(episodes), jnp.int32(SLOTS))
    own = jnp.full_like(query, jnp.nan)  # a decode kernel reads the step's key and value from the context
    return AttentionInputs(query, own, own, context.episodes[:, -1:], context, sink, within_episode=False)


def with_length(inputs, length):
    return inputs.replace(context=inputs.context._replace(length=jnp.int32(length)))


interpreted = functools.partial(flash_decode, interpret=True)


@functools.cache
def compiled(form, has_sink, within):
    """jitted (length, window) → (the kernel's result, the definition's)."""
    inputs = random_inputs(form).replace(within_episode=within)
    inputs = inputs if has_sink else inputs.replace(sink=None)

    @jax.jit
    def both(length, window):
        episode = jax.lax.dynamic_slice_in_dim(inputs.context.episodes, length - 1, 1, axis=1)
        step = with_length(inputs, length).replace(episodes=episode, window=window)
        return interpreted(step), attend_step(step)

    return both


@pytest.mark.slow
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
    inputs = random_inputs("bfloat16", jnp.bfloat16)
    context = inputs.context
    found = jax.jit(interpreted)(inputs)
    exact = Context(*(kv_formats.Slots(x.data.astype(jnp.float32)) for x in context[:2]), *context[2:])
    wide = Sink(*(x.astype(jnp.float32) for x in inputs.sink))
    expected = attend_step(inputs.replace(query=inputs.query.astype(jnp.float32), context=exact, sink=wide))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-7, atol=1e-5)


def test_what_is_not_filled_is_not_read():
    inputs = with_length(random_inputs(), 700)
    filled = np.arange(SLOTS)[:, None] < 700
    keys, values = (
        kv_formats.Slots(jnp.where(filled, x.data, jnp.nan)) for x in (inputs.context.keys, inputs.context.values)
    )
    poisoned = inputs.replace(context=inputs.context._replace(keys=keys, values=values))
    run = jax.jit(interpreted)
    np.testing.assert_array_equal(run(poisoned), run(inputs))


def lowered(form, dtype, width, platform):
    inputs = random_inputs(form, dtype, width).replace(within_episode=True, window=jnp.int32(9))
    config = TransformerConfig(heads=HEADS, width=HEADS * width)
    run = jax.jit(select(config, Backend("gpu", 9.0), decode=True).attend)
    card = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")  # jax 0.12 asks which
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=card)):
        return run.trace(inputs).lower(lowering_platforms=(platform,)).as_text()


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
    kernel = select(TransformerConfig(heads=HEADS, width=HEADS * WIDTH), decode=True)
    assert kernel.name == "decode"
    for length in (1, 500, SLOTS):
        inputs = with_length(random_inputs(form), length)
        found, expected = jax.jit(kernel.attend)(inputs), jax.jit(interpreted)(inputs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_a_policy_with_it_acts_the_same_here():
    config = TransformerConfig(layers=1, heads=2, width=32, mlp_width=16, max_positions=64)
    inputs = StepInput(jnp.ones((4, 2)), jnp.zeros(4, jnp.int32), jnp.ones(4), jnp.zeros(4, bool))
    spaces = vector_spaces((0.0, 0.0), (1.0, 1.0), Discrete(3))
    plain, fused = (
        Policy(PolicyConfig(dataclasses.replace(config, decode=choice)), spaces) for choice in ("xla", "fused")
    )
    params, results = jax.jit(plain.init)(jax.random.key(0)), []
    for policy in (plain, fused):
        output, _ = jax.jit(policy.act)(params, policy.initial_memory(4, 32), inputs)
        results.append(np.asarray(output.value))
    np.testing.assert_allclose(*results, rtol=1e-6)
