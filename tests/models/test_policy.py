import dataclasses
import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import EncoderConfig, PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.envs.pointmass.env import PRESETS
from relic_jax.models.attention import tiled
from relic_jax.models.policy import Policy, policy_for
from relic_jax.runtime import ConfigError
from relic_jax.spaces import vector_spaces
from relic_jax.types import Span, StepInput

SINKS = ["kv", "kv0", "k0v", "k0v0", "token", "none"]
BATCH, STEPS = 3, 12
small_tiles = mock.patch.object(tiled, "CPU_TILES", tiled.Tiles(4, 4, 0))  # several tiles in 12 steps


def policy_with(**fields):
    toy = TransformerConfig(layers=2, heads=2, width=8, mlp_width=12, max_positions=32)
    return Policy(
        PolicyConfig(dataclasses.replace(toy, **fields)), vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(3))
    )


def random_params(policy, seed):
    """Return random parameters of order 1. Initial sinks (0) and actor weights (0.01) would not affect the outputs."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))

    def draw(x):
        return jnp.asarray(rng.normal(size=x.shape) * (x.shape[0] ** -0.5 if len(x.shape) == 2 else 1.0), jnp.float32)

    return jax.tree.map(draw, shapes)


def random_steps(seed, steps=STEPS):
    """Return steps with episodes that start anywhere, at the trial's first step in environment 0 only."""
    rng = np.random.default_rng(seed)
    first = rng.random((BATCH, steps)) < 0.25
    first[0, 0], first[1, 0] = True, False
    action = np.where(first, -1, rng.integers(0, 3, (BATCH, steps)))
    return StepInput(
        observation=jnp.asarray(rng.uniform(-1, 1, (BATCH, steps, 2)), jnp.float32),
        previous_action=jnp.asarray(action, jnp.int32),
        previous_reward=jnp.asarray(rng.normal(size=(BATCH, steps)), jnp.float32),
        first=jnp.asarray(first),
    )


def outputs(output):
    """Return logits and values, [B, Q, actions + 1]."""
    return jnp.concatenate([output.distribution.logits, output.value[..., None]], axis=-1)


def steps_of(inputs, start, stop):
    return jax.tree.map(lambda x: x[:, start:stop], inputs)


def whole(policy, params, inputs, **arguments):
    """Compute one pass over the block without a memory."""
    memory = policy.initial_memory(BATCH, 0)
    return outputs(policy.unroll(params, memory, inputs, **arguments)[0])


def acted(policy, params, inputs, capacity=STEPS):
    """Act step by step from an empty memory and return (outputs, the memory after)."""

    def step(memory, x):
        output, memory = policy.act(params, memory, x)
        return memory, outputs(output)

    by_step = jax.tree.map(lambda x: x.swapaxes(0, 1), inputs)
    memory, result = jax.lax.scan(step, policy.initial_memory(BATCH, capacity), by_step)
    return result.swapaxes(0, 1), memory


def in_equal_chunks(policy, params, inputs, size):
    """Unroll blocks of `size` steps, each with the memory of the blocks before, and return (outputs, memory)."""

    def step(memory, x):
        output, memory = policy.unroll(params, memory, x)
        return memory, outputs(output)

    chunks = jax.tree.map(lambda x: x.reshape(BATCH, -1, size, *x.shape[2:]).swapaxes(0, 1), inputs)
    memory, result = jax.lax.scan(step, policy.initial_memory(BATCH, STEPS), chunks)
    return result.swapaxes(0, 1).reshape(BATCH, STEPS, -1), memory


def in_chunks(policy, params, inputs, cuts, capacity):
    """Unroll blocks that end at `cuts`."""
    memory, parts = policy.initial_memory(BATCH, capacity), []
    for start, stop in itertools.pairwise((0, *cuts)):
        output, memory = policy.unroll(params, memory, steps_of(inputs, start, stop))
        parts.append(outputs(output))
    return jnp.concatenate(parts, axis=1), memory


ALL = list(itertools.product([True, False], repeat=3))
PAIRS = {"kv0": ALL[:1] + ALL[-1:], "k0v": ALL[1:2] + ALL[-2:-1], "k0v0": ALL[2:3] + ALL[-3:-2], "none": ALL[3:5]}
"""These sinks are tested with two opposite combinations, so each sink is tested with both values of every setting."""
SETTINGS = [(sink, *values) for sink in SINKS for values in PAIRS.get(sink, ALL)]


@pytest.mark.slow
@pytest.mark.parametrize(("sink", "episode_rope", "step_embedding", "inter_episode"), SETTINGS)
@small_tiles
def test_acting_equals_unrolling_equals_the_definition(sink, episode_rope, step_embedding, inter_episode):
    fields = {"episode_rope": episode_rope, "step_embedding": step_embedding, "inter_episode": inter_episode}
    policy, definition = (policy_with(sink=sink, attention=a, **fields) for a in ("blocked", "reference"))
    params, inputs = random_params(policy, 1), random_steps(2)

    @jax.jit
    def run(params, inputs):
        return (
            whole(definition, params, inputs),
            whole(policy, params, inputs),
            in_equal_chunks(policy, params, inputs, 6),
            acted(policy, params, inputs),
        )

    expected, block, (chunks, chunk_memory), (steps, memory) = run(params, inputs)
    assert np.abs(expected).max() > 0.5
    for actual in (block, chunks, steps):
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), chunk_memory, memory)


@small_tiles
def test_any_chunks_of_any_sizes_with_room_to_spare():
    policy = policy_with()
    params, inputs = random_params(policy, 3), random_steps(4)
    expected = jax.jit(functools.partial(whole, policy))(params, inputs)
    run = jax.jit(functools.partial(in_chunks, policy), static_argnames=("cuts", "capacity"))
    for cuts, capacity in (((1, 8, STEPS), STEPS), ((6, 7, STEPS), STEPS + 7), ((STEPS,), STEPS + 1)):
        result, memory = run(params, inputs, cuts=cuts, capacity=capacity)
        np.testing.assert_allclose(result, expected, atol=1e-5)
        assert memory.filled == STEPS


@pytest.mark.parametrize(("sink", "inter_episode"), [(sink, True) for sink in SINKS[:5]] + [("kv", False)])
def test_every_learned_half_of_the_sink_changes_the_outputs(sink, inter_episode):
    """Without this test the equalities above could hold even if the sink were ignored everywhere."""
    policy = policy_with(sink=sink, inter_episode=inter_episode)
    params, inputs = random_params(policy, 5), random_steps(6)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(whole(policy, p, inputs)))))(params)
    named = jax.tree_util.tree_leaves_with_path(gradient["transformer"])
    sinks = [(jax.tree_util.keystr(path), g) for path, g in named if "sink" in jax.tree_util.keystr(path)]
    assert len(sinks) == {"kv": 4, "kv0": 2, "k0v": 2, "token": 1}.get(sink, 0)
    for path, g in sinks:
        assert (np.abs(g).max(-1) > 1e-5).all(), path


def test_softmax_plus_one_differs_from_plain_softmax():
    params, inputs = random_params(policy_with(sink="none"), 7), random_steps(8)
    plain, plus_one = (
        jax.jit(functools.partial(whole, policy_with(sink=sink, step_embedding=False)))(params, inputs)
        for sink in ("none", "k0v0")
    )
    assert np.abs(plain - plus_one).max() > 1e-2


def test_weights_are_converted_once_for_many_steps():
    """Casting the weights of the blocks to bfloat16 changes no output bit. In float32 nothing is cast."""
    policy = policy_with(dtype="bfloat16")
    params, step = random_params(policy, 0), jax.tree.map(lambda x: x[:, 0], random_steps(1))
    once = policy.cast_weights(params)
    changed = jax.tree.map(lambda x, y: x.dtype != y.dtype, params, once)
    blocks = changed.pop("transformer")
    assert not any(jax.tree.leaves(changed))
    assert any(jax.tree.leaves(blocks))
    for path, different in jax.tree_util.tree_flatten_with_path(blocks)[0]:
        assert different == (path[-1].key == "kernel")
    run = jax.jit(lambda params: outputs(policy.act(params, policy.initial_memory(BATCH, 4), step)[0]))
    np.testing.assert_array_equal(run(params), run(once))
    assert policy_with().cast_weights(params) is params


@pytest.mark.parametrize("sink", ["kv", "token", "none"])
@small_tiles
def test_bfloat16_is_close_to_float32(sink):
    """Two layers round the residual stream (of order 4) about ten times by 2⁻⁹, with a gain of order 1.

    Measured errors of outputs that reach 3 are 0.045 at most, 0.011 in root mean square.
    """
    exact, rounded = policy_with(sink=sink), policy_with(sink=sink, dtype="bfloat16")
    params, inputs = random_params(exact, 9), random_steps(10)

    @jax.jit
    def run(params, inputs):
        steps, memory = acted(rounded, params, inputs)
        return whole(exact, params, inputs), whole(rounded, params, inputs), steps, memory

    expected, block, steps, memory = run(params, inputs)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves((memory.keys, memory.values)))
    assert block.dtype == jnp.float32
    for actual in (block, steps):
        error = np.abs(actual - expected)
        assert 1e-4 < error.max() < 0.1
        assert np.sqrt(np.mean(error**2)) < 0.02


@pytest.mark.parametrize("sink", ["kv", "token", "none"])
@small_tiles
def test_no_output_depends_on_a_later_input(sink):
    policy = policy_with(sink=sink)
    params, inputs = random_params(policy, 11), random_steps(12)
    run = jax.jit(functools.partial(whole, policy))
    before = run(params, inputs)
    for t in (0, 3, 4, 11):
        changed = inputs.replace(
            observation=inputs.observation.at[:, t].add(1.0), first=inputs.first.at[:, t].set(~inputs.first[:, t])
        )
        after = run(params, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (np.abs(after[:, t] - before[:, t]).max(-1) > 1e-3).all()


@pytest.mark.parametrize("inter_episode", [True, False])
@small_tiles
def test_an_earlier_episode_is_seen_only_with_inter_episode_attention(inter_episode):
    policy = policy_with(inter_episode=inter_episode)
    params = random_params(policy, 13)
    flags = jnp.zeros((BATCH, STEPS), bool).at[:, jnp.array([0, 5, 9])].set(True)
    inputs = random_steps(14).replace(first=flags)
    changed = inputs.replace(observation=inputs.observation.at[:, 6].add(1.0))

    @jax.jit
    def run(inputs):
        return whole(policy, params, inputs), acted(policy, params, inputs)[0]

    for before, after in zip(run(inputs), run(changed), strict=True):
        difference = np.abs(after - before).max((0, 2))
        assert (difference[6:9] > 1e-3).all()
        assert (difference[:6] == 0).all()
        assert ((difference[9:] > 1e-4) if inter_episode else (difference[9:] == 0)).all()


@pytest.mark.parametrize("attention", ["blocked", "reference"])
@small_tiles
def test_unroll_gives_the_first_valid_steps(attention):
    policy = policy_with(attention=attention)
    params, inputs = random_params(policy, 15), random_steps(16)
    run = jax.jit(functools.partial(whole, policy))
    expected = run(params, inputs)
    for valid in (1, 4, 7, STEPS):
        result = run(params, inputs, valid=jnp.int32(valid))
        np.testing.assert_allclose(result[:, :valid], expected[:, :valid], atol=1e-6)


@pytest.mark.parametrize("attention", ["blocked", "reference"])
@pytest.mark.parametrize("remat", [False, True])
@small_tiles
def test_unroll_returns_only_the_steps_of_query_span(attention, remat):
    policy = policy_with(attention=attention, remat=remat)
    params, inputs = random_params(policy, 15), random_steps(16)
    expected = jax.jit(functools.partial(whole, policy))(params, inputs)
    for size, starts in ((1, (0, STEPS - 1)), (5, (0, 3, STEPS - 5))):
        run = jax.jit(lambda start, size=size: whole(policy, params, inputs, query_span=Span(start, size)))
        for start in starts:
            np.testing.assert_allclose(run(jnp.int32(start)), expected[:, start : start + size], atol=1e-5)


@pytest.mark.parametrize("filled", [0, 7, STEPS])
def test_peek_gives_the_value_of_the_step_and_keeps_the_memory(filled):
    """This includes a full memory, which has no room for the step."""
    policy = policy_with()
    params, inputs = random_params(policy, 17), random_steps(18, STEPS + 1)
    past, present = steps_of(inputs, 0, filled), jax.tree.map(lambda x: x[:, filled], inputs)
    memory = policy.initial_memory(BATCH, STEPS)
    if filled:
        _, memory = jax.jit(policy.unroll)(params, memory, past)
    before = jax.tree.map(np.array, memory)
    peeked = jax.jit(policy.value)(params, memory, present)
    jax.tree.map(np.testing.assert_array_equal, before, memory)
    expected = jax.jit(functools.partial(whole, policy))(params, steps_of(inputs, 0, filled + 1))
    np.testing.assert_allclose(peeked, expected[:, -1, -1], atol=1e-5)


def test_window_limits_what_a_step_sees():
    """With one layer, a window of w equals acting from a memory that holds the last w − 1 steps only."""
    policy = policy_with(layers=1, episode_rope=False, step_embedding=False)
    params, inputs = random_params(policy, 19), random_steps(20)
    _, memory = jax.jit(policy.unroll)(params, policy.initial_memory(BATCH, STEPS), steps_of(inputs, 0, 11))
    act, last = jax.jit(policy.act), jax.tree.map(lambda x: x[:, 11], inputs)
    run = jax.jit(functools.partial(whole, policy))
    for window in (1, 4, 12):
        actual = outputs(act(params, memory, last, window=jnp.int32(window))[0])
        np.testing.assert_allclose(actual, run(params, steps_of(inputs, 12 - window, 12))[:, -1], atol=1e-5)


@small_tiles
def test_gradient_stops_at_the_memory():
    policy = policy_with()
    params, inputs = random_params(policy, 21), random_steps(22)

    def loss(memory):
        return jnp.sum(outputs(policy.unroll(params, memory, steps_of(inputs, 7, STEPS))[0]))

    _, memory = jax.jit(policy.unroll)(params, policy.initial_memory(BATCH, STEPS), steps_of(inputs, 0, 7))
    gradient = jax.jit(jax.grad(loss, allow_int=True))(memory)
    assert all(not np.any(x) for x in jax.tree.leaves((gradient.keys, gradient.values)))


@pytest.mark.parametrize("high", [1e39, 0.0, np.nan])
def test_a_range_that_float32_cannot_hold_is_refused(high):
    class Bad(type(PRESETS["pointmass-goal"])):
        observation_range = (np.zeros(2), np.array([1.0, high]))

    env = PRESETS["pointmass-goal"]
    env = Bad(**{field.name: getattr(env, field.name) for field in dataclasses.fields(env)})
    policy_for(env, PolicyConfig())
    with pytest.raises(ConfigError, match=r"observation range 0\.0 … .* in component 1; allowed: low below high"):
        policy_for(env, PolicyConfig(encoder=EncoderConfig(observation="scaled")))
