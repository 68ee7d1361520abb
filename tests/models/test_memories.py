"""Memories that consist of attention: single steps, blocks of any size and a plain definition in NumPy agree."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError, PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.models.cache import KVCache
from relic_jax.models.gates import Gate
from relic_jax.models.memory import joined, rows
from relic_jax.models.policy import Policy
from relic_jax.spaces import vector_spaces
from relic_jax.step import description
from relic_jax.types import Span, StepInput

BATCH, STEPS, ROOM = 2, 23, 33
CUTS = (3, 4, 10, 11, 14)
"""Ends of blocks of 3, 1, 6, 1, 3 and 9 steps. Each size compiles once."""
SMALL = TransformerConfig(layers=2, heads=2, width=16, mlp_width=16, max_positions=32, init="fan_in")
FIELDS = {
    "window": {"window": 5},
    "transformer-xl": {"memory_steps": 5},
    "memo": {"summary_every": 5, "summary_tokens": 2},
}
NAMES = list(FIELDS)


def policy_with(memory, sink="kv", **fields):
    """Return the same policy whether or not the default of `sink` is passed, so its functions compile once."""
    return cached_policy(memory, sink=sink, **fields)


@functools.cache
def cached_policy(memory, **fields):
    transformer = dataclasses.replace(SMALL, **FIELDS[memory], **fields)
    return Policy(PolicyConfig(transformer, memory=memory), vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(3)))


def random_params(policy, seed=0):
    """Parameters that are all random, also those that start at zero."""
    params = jax.jit(policy.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def random_steps(seed=0, steps=STEPS):
    rng = np.random.default_rng(seed)
    return StepInput(
        observation=jnp.asarray(rng.normal(size=(BATCH, steps, 2)), jnp.float32),
        previous_action=jnp.asarray(rng.integers(0, 3, (BATCH, steps)), jnp.int32),
        previous_reward=jnp.asarray(rng.normal(size=(BATCH, steps)), jnp.float32),
        first=jnp.asarray(rng.random((BATCH, steps)) < 0.2),
    )


def part(tree, start, stop):
    return jax.tree.map(lambda x: x[:, start:stop], tree)


def outputs(output):
    return jnp.concatenate([output.distribution.logits, output.value[..., None]], -1)


@functools.cache
def functions(policy):
    """(acted, unrolled): jitted (params, memory, steps) → (outputs [B, Q, 4], memory)."""

    def acted(params, memory, inputs):
        def step(memory, x):
            output, memory = policy.act(params, memory, x)
            return memory, outputs(output)

        memory, out = jax.lax.scan(step, memory, jax.tree.map(lambda x: x.swapaxes(0, 1), inputs))
        return out.swapaxes(0, 1), memory

    def unrolled(params, memory, inputs):
        output, memory = policy.unroll(params, memory, inputs)
        return outputs(output), memory

    return jax.jit(acted), jax.jit(unrolled)


def in_blocks(function, params, memory, inputs, cuts):
    """Process the steps in blocks that end at `cuts`."""
    results = []
    for start, stop in zip((0, *cuts), (*cuts, STEPS), strict=True):
        out, memory = function(params, memory, part(inputs, start, stop))
        results.append(out)
    return jnp.concatenate(results, 1), memory


def episodes_of(first):
    return 1 + np.cumsum(first & (np.arange(STEPS) > 0), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("sink", ["kv", pytest.param("none", marks=pytest.mark.slow), "token"])
@pytest.mark.parametrize("memory", NAMES)
def test_steps_equal_blocks_and_a_pass_over_the_trial(memory, sink):
    policy = policy_with(memory, sink=sink)
    params, inputs = random_params(policy), random_steps()
    acted, unrolled = functions(policy)
    whole, _ = unrolled(params, policy.initial_memory(BATCH, 0), inputs)
    steps, after_steps = acted(params, policy.initial_memory(BATCH, ROOM), inputs)
    np.testing.assert_allclose(steps, whole, atol=2e-5)
    for cuts in ((), CUTS):
        blocks, after = in_blocks(unrolled, params, policy.initial_memory(BATCH, ROOM), inputs, cuts)
        np.testing.assert_allclose(blocks, whole, atol=2e-5)
        assert int(after.filled) == STEPS
        more, mixed = random_steps(7, 6), [acted(params, m, random_steps(7, 6))[0] for m in (after, after_steps)]
        np.testing.assert_allclose(mixed[0], mixed[1], atol=2e-5)
        np.testing.assert_allclose(unrolled(params, after, more)[0], mixed[1], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["window", "transformer-xl"])
def test_steps_outside_of_the_window_do_not_matter(memory):
    """Two layers. The first output that step 4 cannot affect: 2·(W − 1) + 1 steps later, or in segment 3 of 5 steps."""
    policy = policy_with(memory)
    params, inputs = random_params(policy), random_steps()
    reach = {"window": 2 * (5 - 1), "transformer-xl": 10}[memory]
    _, unrolled = functions(policy)

    def changed(x):
        return x.at[:, 4].add(1.0)

    base, moved = (
        unrolled(params, policy.initial_memory(BATCH, 0), steps)[0]
        for steps in (inputs, inputs.replace(observation=changed(inputs.observation)))
    )
    differs = np.abs(moved - base).max((0, 2)) > 1e-6
    assert not differs[:4].any() and differs[4 : 5 + reach].all() and not differs[5 + reach :].any()


@pytest.mark.slow
@pytest.mark.parametrize("memory", NAMES)
def test_operations_of_the_memory(memory):
    """A part of the environments, joined parts, the empty memory again, and the memory after a segment."""
    policy = policy_with(memory)
    params, inputs = random_params(policy), random_steps()
    acted, unrolled = functions(policy)
    empty = policy.initial_memory(BATCH, ROOM)
    whole, after = unrolled(params, empty, inputs)
    parts = [rows(empty, jnp.array([b])) for b in range(BATCH)]
    runs = [acted(params, m, jax.tree.map(lambda x, b=b: x[b : b + 1], inputs)) for b, m in enumerate(parts)]
    np.testing.assert_allclose(jnp.concatenate([out for out, _ in runs]), whole, atol=2e-5)
    together = joined([m for _, m in runs])
    assert jax.tree.structure(together) == jax.tree.structure(after)
    assert together.length.tolist() == [STEPS] * BATCH
    again, _ = unrolled(params, after.rewound(inputs.first, jnp.int32(0)), inputs)
    np.testing.assert_allclose(again, whole, atol=2e-5)
    _, middle = unrolled(params, empty, part(inputs, 0, 9))
    copy = middle.prefix(ROOM)
    out, copy = acted(params, policy.for_acting(copy), part(inputs, 9, STEPS))
    np.testing.assert_allclose(out, whole[:, 9:], atol=2e-5)
    appended = middle.append(policy.for_storage(copy.last_steps(STEPS - 9)))
    more = random_steps(5, 3)
    expected, _ = unrolled(params, after, more)
    np.testing.assert_allclose(unrolled(params, appended, more)[0], expected, atol=2e-5)
    earlier = appended.as_of(middle)
    np.testing.assert_allclose(unrolled(params, earlier, part(inputs, 9, STEPS))[0], whole[:, 9:], atol=2e-5)
    step = jax.tree.map(lambda x: x[:, 0], more)
    np.testing.assert_allclose(policy.value(params, after, step), expected[:, 0, -1], atol=2e-5)
    with pytest.raises(ValueError, match="window"):
        policy.act(params, after, step, window=jnp.int32(4))


@pytest.mark.slow
@pytest.mark.parametrize("memory", NAMES)
def test_gradients_are_finite_and_reach_every_parameter(memory):
    """Also if the blocks are computed again in the backward pass."""
    policy = policy_with(memory, gate="gru", remat=True)
    params, inputs = random_params(policy), random_steps()

    def loss(params, memory, inputs):
        output, _ = policy.unroll(params, memory, inputs)
        return jnp.sum(outputs(output) ** 2)

    gradients = jax.jit(jax.grad(loss))(params, policy.initial_memory(BATCH, 0), inputs)
    for path, x in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(x).all() and np.any(x), path


@pytest.mark.parametrize("memory", NAMES)
def test_some_steps_and_valid_steps_of_a_block(memory):
    policy = policy_with(memory)
    params, inputs = random_params(policy), random_steps()
    _, unrolled = functions(policy)
    whole, _ = unrolled(params, policy.initial_memory(BATCH, 0), inputs)

    @jax.jit
    def span(start, valid):
        output, _ = policy.unroll(
            params, policy.initial_memory(BATCH, 0), inputs, valid=valid, query_span=Span(start, 4)
        )
        return outputs(output)

    for start in (0, 5, 12, 19):
        np.testing.assert_allclose(span(jnp.int32(start), jnp.int32(start + 4)), whole[:, start : start + 4], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("memory", NAMES)
def test_steps_equal_blocks_with_rounded_keys_and_within_episodes(memory):
    policy = policy_with(memory, cache="int8", inter_episode=memory == "memo")
    params, inputs = random_params(policy), random_steps()
    acted, unrolled = functions(policy)
    memory = policy.initial_memory(BATCH, ROOM)
    whole, after = unrolled(params, policy.initial_memory(BATCH, 0), inputs)
    blocks, after = in_blocks(unrolled, params, memory, inputs, CUTS)
    np.testing.assert_allclose(blocks, whole, atol=2e-5)
    assert after.kv_format == "int8"
    steps, _ = acted(params, policy.for_acting(memory), inputs)
    np.testing.assert_allclose(steps, whole, atol=2e-5)


def test_a_step_finds_its_episode_in_the_ring():
    """The slots of a ring are not in the order of their episodes. A step that sees its episode only finds them all."""
    policy = policy_with("window", inter_episode=False)
    params, inputs = random_params(policy), random_steps()
    acted, unrolled = functions(policy)
    whole, _ = unrolled(params, policy.initial_memory(BATCH, 0), inputs)
    steps, _ = acted(params, policy.initial_memory(BATCH, STEPS), inputs)
    np.testing.assert_allclose(steps, whole, atol=2e-5)


def test_the_ring_keeps_the_last_steps_in_the_configured_format():
    policy = policy_with("window", cache="int8")
    params, inputs = random_params(policy), random_steps()
    acted, unrolled = functions(policy)
    memory = policy.initial_memory(BATCH, 1000)
    assert isinstance(memory, KVCache) and memory.keys[0].data.shape == (BATCH, 2, 5, 8)
    assert policy.initial_memory(BATCH, 0).keys[0].data.shape[2] == 0
    whole, after = unrolled(params, memory, inputs)
    assert after.kv_format == "int8"
    steps, _ = acted(params, policy.for_acting(memory), inputs)
    np.testing.assert_allclose(steps, whole, atol=2e-5)
    episodes = episodes_of(np.asarray(inputs.first))
    for slot in range(5):
        step = STEPS - 1 - (STEPS - 1 - slot) % 5
        np.testing.assert_array_equal(after.episodes[:, slot], episodes[:, step])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_gate_equals_the_paper_s_equations_and_starts_close_to_the_identity():
    gate, rng = Gate(jax.nn.initializers.lecun_normal()), np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(3, 16)), jnp.float32) for _ in range(2))
    params = gate.init(jax.random.key(0), x, y)["params"]
    np.testing.assert_array_equal(params["bias"], 2.0)
    found = gate.apply({"params": params}, x, y)
    w_r, w_z, w_h = np.split(np.asarray(params["branch"]["kernel"], np.float64), 3, axis=1)
    u_r, u_z = np.split(np.asarray(params["stream"]["kernel"], np.float64), 2, axis=1)
    u_h = np.asarray(params["candidate"]["kernel"], np.float64)
    x, y = np.asarray(x, np.float64), np.maximum(np.asarray(y, np.float64), 0)
    z = sigmoid(y @ w_z + x @ u_z - 2)
    h = np.tanh(y @ w_h + (sigmoid(y @ w_r + x @ u_r) * x) @ u_h)
    np.testing.assert_allclose(found, (1 - z) * x + z * h, atol=1e-5)
    small = jax.tree.map(lambda w: w * (w.ndim == 1), params)  # without weights: 1 − σ(−2) = 0.88 of the stream
    close = gate.apply({"params": small}, x, y)
    np.testing.assert_allclose(close, 0.8808 * x, atol=1e-4)


@pytest.mark.parametrize(
    ("memory", "fields", "message"),
    [
        (
            "transformer",
            {"window": 8},
            "policy.transformer.window is 8; allowed: None if policy.memory is 'transformer'",
        ),
        ("window", {"window": 0}, "policy.transformer.window is 0; allowed: more than 0, or None"),
    ],
)
def test_a_field_of_another_memory_is_refused(memory, fields, message):
    with pytest.raises(ConfigError) as error:
        PolicyConfig(dataclasses.replace(SMALL, **fields), memory=memory).validate()
    assert str(error.value).startswith(message)


def test_an_agent_or_an_export_is_refused():
    with pytest.raises(ConfigError) as error:
        description(policy_with("window"), "float32", 8)
    assert str(error.value).startswith("policy.memory is 'window'; allowed: 'transformer' or ")
