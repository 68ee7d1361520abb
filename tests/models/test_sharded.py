"""A context that is split over devices: attention, cache and policy equal those of the whole context.

The devices are the lanes of `jax.vmap`, whose collectives work as those of devices.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.models.attention import AttentionInputs, Context, Sink, reference, tiled
from relic_jax.models.attention.tiled import Tiles
from relic_jax.models.kv_formats import Slots
from relic_jax.models.policy import Policy
from relic_jax.models.sharded import ContextShards
from relic_jax.spaces import vector_spaces
from relic_jax.types import Span, StepInput

BATCH, HEADS, WIDTH, SLOTS, QUERIES = 2, 2, 4, 7, 5
small_tiles = functools.partial(tiled.attend, tiles=Tiles(2, 3, 0))


def parts_of(seed, lengths):
    """Return (parts, whole): contexts with a leading axis over devices, and one with the slots of all."""
    rng = np.random.default_rng(seed)
    keys, values = rng.normal(size=(2, len(lengths), BATCH, HEADS, SLOTS, WIDTH)).astype(np.float32)
    episodes = np.sort(rng.integers(1, 4, (len(lengths), BATCH, SLOTS)).astype(np.int32), axis=-1)
    parts = Context(Slots(jnp.asarray(keys)), Slots(jnp.asarray(values)), jnp.asarray(episodes), jnp.asarray(lengths))

    filled = np.arange(SLOTS) < np.asarray(lengths)[:, None]
    order = np.argsort(~filled.ravel(), kind="stable")  # the filled slots of all parts come first

    def joined(x, axis):
        return jnp.take(jnp.concatenate(list(x), axis), order, axis)

    whole = Context(Slots(joined(keys, 2)), Slots(joined(values, 2)), joined(episodes, 1), jnp.asarray(sum(lengths)))
    return parts, whole


def block_of(seed, steps):
    """Return query, key and value of a block, a sink, and the episodes of its steps."""
    rng = np.random.default_rng(seed + 1)
    query, key, value = jnp.asarray(rng.normal(size=(3, BATCH, HEADS, steps, WIDTH)), jnp.float32)
    sink = Sink(*jnp.asarray(rng.normal(size=(2, HEADS, WIDTH)), jnp.float32))
    return query, key, value, sink, jnp.full((BATCH, steps), 3, jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def outputs(attend, within, axis, query, key, value, sink, episodes, context):
    """Return the output and its gradients."""

    def out(query, key, value, sink):
        options = {"within_episode": within, "axis": axis, "valid": jnp.asarray(QUERIES - 1)}
        return attend(AttentionInputs(query, key, value, episodes, context, sink, **options))

    result, pullback = jax.vjp(out, query, key, value, sink)
    return result, pullback(jnp.cos(jnp.arange(result.size)).reshape(result.shape))


@functools.partial(jax.jit, static_argnums=0)
def of_devices(within, *inputs):
    """Return `outputs` on all devices, with a leading axis over them. The last of the inputs are the parts."""
    *block, parts = inputs
    return jax.vmap(lambda part: outputs(small_tiles, within, "context", *block, part), axis_name="context")(parts)


def step_output(axis, query, key, value, sink, episodes, context):
    """Return the output of a single step."""
    inputs = AttentionInputs(query, key, value, episodes, context, sink, within_episode=False, axis=axis)
    return reference.attend_step(inputs)


@jax.jit
def step_of_devices(*inputs):
    """Return `step_output` on all devices."""
    *block, parts = inputs
    return jax.vmap(lambda part: step_output("context", *block, part), axis_name="context")(parts)


lengths_of_parts = st.lists(st.integers(0, SLOTS), min_size=3, max_size=3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), lengths_of_parts, st.booleans())
def test_a_block_attends_to_uneven_and_empty_parts_as_to_the_whole_context(seed, lengths, within):
    block, (parts, whole) = block_of(seed, QUERIES), parts_of(seed, lengths)
    expected = outputs(reference.attend, within, None, *block, whole)
    each = of_devices(within, *block, parts)
    for device in range(len(lengths)):
        chex.assert_trees_all_close(jax.tree.map(lambda x, d=device: x[d], each), expected, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), lengths_of_parts.filter(any), st.booleans())
def test_a_step_attends_to_uneven_and_empty_parts_as_to_the_whole_context(seed, lengths, has_sink):
    (query, key, value, sink, episodes), (parts, whole) = block_of(seed, 1), parts_of(seed, lengths)
    sink = sink if has_sink else None

    expected = jax.jit(step_output, static_argnums=0)(None, query, key, value, sink, episodes, whole)
    each = step_of_devices(query, key, value, sink, episodes, parts)
    for device in range(len(lengths)):
        chex.assert_trees_all_close(each[device], expected, atol=1e-6)


@pytest.fixture(scope="module")
def policy():
    network = TransformerConfig(layers=2, heads=2, width=8, mlp_width=8, max_positions=32, sink="kv0")
    return Policy(PolicyConfig(network), vector_spaces((-1.0,) * 2, (1.0,) * 2, Discrete(3)))


def random_steps(steps):
    """Return the inputs of two trials."""
    rng = np.random.default_rng(0)
    return StepInput(
        observation=jnp.asarray(rng.normal(size=(2, steps, 2)), jnp.float32),
        previous_action=jnp.asarray(rng.integers(-1, 3, (2, steps)), jnp.int32),
        previous_reward=jnp.asarray(rng.normal(size=(2, steps)), jnp.float32),
        first=jnp.asarray(rng.random((2, steps)) < 0.2),
    )


def passes(policy, params, inputs):
    """Act for 5 steps, value the next, act for 7 more, unroll 12 from there, go back to 4 steps and unroll 8.

    Working copies are taken as in training.
    """

    def at(start, stop):
        return jax.tree.map(lambda x: x[:, start:stop], inputs)

    def act(memory, start, stop):
        def step(memory, observed):
            output, memory = policy.act(params, memory, observed)
            return memory, (output.distribution.log_p, output.value)

        return jax.lax.scan(step, memory, jax.tree.map(lambda x: x.swapaxes(0, 1), at(start, stop)))

    memory = policy.initial_memory(2, 24)
    working, first = act(memory.prefix(12), 0, 5)
    peeked = policy.value(params, working, jax.tree.map(lambda x: x[:, 5], inputs))
    working, second = act(working, 5, 12)
    memory = memory.append(working.last_steps(12))
    output, after = policy.unroll(params, memory, at(12, 24))
    again = after.rewound(inputs.first, 4)
    more, _ = policy.unroll(params, again, at(4, 12))
    numbers = (first, peeked, second, output.value, more.value, more.distribution.log_p)
    return numbers, (after.keys, after.values), (after.episodes, after.length, after.position, again.episode)


def test_a_pass_over_a_trial_that_is_split_has_the_outputs_and_the_gradient_of_a_whole_one(policy, drawn):
    """Each of four devices has the losses of a quarter of the steps, or of a quarter of a span."""
    params, inputs = drawn(policy), random_steps(24)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, 24)), jnp.float32)

    def loss(params, policy, span, own):
        memory, valid = policy.initial_memory(2, 0), jnp.asarray(20)
        output, _ = policy.unroll(params, memory, inputs, valid=valid, query_span=span)
        return (output.value * own.of(weight) + output.distribution.entropy()).mean(), output.value

    take = jax.value_and_grad(loss, has_aux=True)
    split = policy.over_devices(ContextShards("context", 4))
    for span in (None, Span(12, 8)):
        every = span or Span(0, 24)
        size = every.size // 4
        (expected, value), gradient = jax.jit(lambda p, s=span, e=every: take(p, policy, s, e))(params)

        def one(device, span=span, every=every, size=size):
            (part, value), gradient = take(params, split, span, Span(every.start + device * size, size))
            return jax.lax.pmean((part, gradient), "context"), value

        (loss_of_all, gradients), values = jax.jit(jax.vmap(one, axis_name="context"))(jnp.arange(4))
        chex.assert_trees_all_close(jnp.concatenate(list(values), axis=1), value, atol=2e-5)
        chex.assert_trees_all_close(loss_of_all[0], expected, atol=1e-5)
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[3], gradients), gradient, atol=2e-5)


def test_a_policy_acts_and_unrolls_with_a_split_context_as_with_a_whole_one(policy, drawn):
    params, inputs = drawn(policy), random_steps(24)
    numbers, slots, counters = jax.jit(lambda: passes(policy, params, inputs))()
    split = policy.over_devices(ContextShards("context", 4))
    run = jax.vmap(lambda _: passes(split, params, inputs), axis_name="context")
    each, parts, part_counters = jax.jit(run)(jnp.arange(4))
    for device in range(4):
        chex.assert_trees_all_close(jax.tree.map(lambda x, d=device: x[d], each), numbers, atol=2e-5)
    for whole, part in zip(
        jax.tree.leaves(slots), jax.tree.leaves(parts), strict=True
    ):  # device c has steps c, c + 4 …
        for device in range(4):
            np.testing.assert_allclose(part[device], whole[:, :, device::4], atol=2e-5)
    episodes, *others = counters
    for device in range(4):
        np.testing.assert_array_equal(part_counters[0][device], episodes[:, device::4])
        for part, whole in zip(part_counters[1:], others, strict=True):
            np.testing.assert_array_equal(part[device], whole)
