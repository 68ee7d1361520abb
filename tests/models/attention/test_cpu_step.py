"""The compiled CPU kernel of a single step equals the definition, and reads the filled slots only."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.models.attention import AttentionInputs, Context, Sink, cpu, reference
from relic_jax.models.kv_formats import Slots

BATCH, HEADS, SLOTS = 3, 2, 1300
compiled = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not hasattr(os, "geteuid") or not cpu.available(8, "cpu_step.cpp"),
    reason="no C++ compiler",
)


@functools.cache
def inputs(width, has_sink=True, slots=SLOTS):
    """A step against a context with all slots filled; scores reach ±20."""
    rng = np.random.default_rng(width)

    def normal(*shape):
        return jnp.asarray(1.5 * rng.normal(size=shape), jnp.float32)

    keys, values = (Slots(normal(BATCH, HEADS, slots, width)) for _ in range(2))
    episodes = jnp.asarray(np.cumsum(rng.random((BATCH, slots)) < 0.02, axis=1), jnp.int32)
    sink = Sink(normal(HEADS, width), normal(HEADS, width)) if has_sink else None
    query = normal(BATCH, HEADS, 1, width)
    own = jnp.full_like(query, jnp.nan)  # the step's key and value are read from the context
    context = Context(keys, values, episodes, jnp.int32(slots))
    return AttentionInputs(query, own, own, episodes[:, -1:], context, sink, within_episode=False)


def at(step, length, within=False, window=None):
    """The step as the `length`-th of its trial. Later slots hold NaN."""
    after = jnp.arange(step.context.capacity)[:, None] >= length
    keys, values = (Slots(jnp.where(after, jnp.nan, x.data)) for x in (step.context.keys, step.context.values))
    context = step.context._replace(keys=keys, values=values, length=jnp.int32(length))
    own = step.context.episodes[:, length - 1 : length]
    return step.replace(context=context, within_episode=within, window=window, episodes=own)


def finite(step):
    """The step with zeros in place of NaN: the definition multiplies unfilled slots by 0."""
    keys, values = (Slots(jnp.nan_to_num(x.data)) for x in (step.context.keys, step.context.values))
    return step.replace(context=step.context._replace(keys=keys, values=values))


def assert_same(step):
    actual, expected = cpu.attend_step(step), reference.attend_step(finite(step))
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


@compiled
@pytest.mark.parametrize("has_sink", [True, False])
@pytest.mark.parametrize("width", [4, 8, 16, 32, 64, 128])
def test_it_equals_the_definition(width, has_sink):
    for length in (1, 2, 3, 15, 16, 17, 33, 700, SLOTS):
        assert_same(at(inputs(width, has_sink), length))


@compiled
@pytest.mark.parametrize("length", [1, 40, 1299])
def test_it_sees_its_window_and_its_episode(length):
    step = inputs(16)
    assert_same(at(step, length, within=True))
    assert_same(at(step, length, window=jnp.int32(7)))
    assert_same(at(step, length, window=jnp.asarray([1, 30, 5000], jnp.int32)))
    assert_same(at(step, length, within=True, window=jnp.int32(3)))


@compiled
def test_it_can_be_mapped():
    steps = [at(inputs(16), length) for length in (5, 600)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *steps)
    mapped = jax.jit(jax.vmap(cpu.attend_step))(stacked)
    for actual, step in zip(mapped, steps, strict=True):
        np.testing.assert_array_equal(actual, cpu.attend_step(step))


@compiled
def test_threads_give_the_same_numbers():
    """A context of more than 4 MiB is shared by threads. The numbers do not depend on how."""
    step = at(inputs(64, slots=1500), 1500)
    assert 2 * step.context.keys.data.nbytes > 1 << 22
    whole = cpu.attend_step(step)
    for index in range(BATCH):
        one = jax.tree.map(lambda x, i=index: x[i : i + 1] if jnp.ndim(x) > 1 else x, step.replace(sink=None))
        np.testing.assert_array_equal(cpu.attend_step(one.replace(sink=step.sink)), whole[index : index + 1])


@pytest.mark.slow
@compiled
@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([4, 8, 16, 32]),
    has_sink=st.booleans(),
    capacity=st.integers(1, 70),
    filled=st.floats(0, 1),
    kinds=st.sampled_from(["ascending", "ring"]),
    within=st.booleans(),
    window=st.none() | st.integers(1, 80),
    seed=st.integers(0, 2**31),
)
def test_it_equals_the_definition_with_any_shape_and_mask(
    width, has_sink, capacity, filled, kinds, within, window, seed
):
    """Also if the slots of an episode are apart, as in a ring whose oldest step is not in its first slot."""
    rng, length = np.random.default_rng(seed), 1 + int(filled * (capacity - 1))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    episodes = np.cumsum(rng.random((2, capacity)) < 0.1, axis=1).astype(np.int32)
    if kinds == "ring":
        episodes = np.stack([np.roll(row, rng.integers(capacity)) for row in episodes])
    newest = np.arange(length)[None] >= length - (window or length)
    own = np.where(newest, episodes[:, :length], -1).max(1, keepdims=True)  # the step sees at least one slot
    keys, values = (Slots(jnp.asarray(normal(2, 3, capacity, width))) for _ in range(2))
    sink = Sink(*(jnp.asarray(normal(3, width)) for _ in range(2))) if has_sink else None
    query = jnp.asarray(normal(2, 3, 1, width))
    context = Context(keys, values, jnp.asarray(episodes), jnp.int32(length))
    limit = None if window is None else jnp.int32(window)
    assert_same(
        AttentionInputs(query, query, query, jnp.asarray(own), context, sink, within_episode=within, window=limit)
    )


@compiled
@pytest.mark.parametrize("part", ["query", "keys", "values"])
def test_nan_is_not_hidden(part):
    """Training detects numbers that are not finite by the outputs of the policy."""
    step = at(inputs(16), 40)
    if part == "query":
        step = step.replace(query=step.query.at[1, 1, 0, 3].set(jnp.nan))
    else:
        slots = Slots(getattr(step.context, part).data.at[1, 1, 20, 3].set(jnp.nan))
        step = step.replace(context=step.context._replace(**{part: slots}))
    wrong = ~np.isfinite(cpu.attend_step(step))
    assert wrong[1, 1].any() and wrong.sum() == wrong[1, 1].sum()
