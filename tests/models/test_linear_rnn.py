"""The gated delta rule and the linear recurrent unit: plain loops in numpy, gradients, acting and unrolling."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError, LinearRNNConfig, PolicyConfig
from relic_jax.environment.base import Discrete
from relic_jax.models.linear_rnn import lru
from relic_jax.models.linear_rnn.blocks import MIXERS, empty_state
from relic_jax.models.linear_rnn.delta import Steps, delta_chunks, delta_scan
from relic_jax.models.policy import Policy
from relic_jax.spaces import vector_spaces
from relic_jax.types import Span, StepInput

KINDS = ["gated-delta", "lru"]
CONFIG = LinearRNNConfig(layers=2, width=8, mlp_width=12, heads=2, state_width=None)
BATCH, STEPS = 3, 11


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def delta_case(steps=STEPS, size=4, heads=2):
    """Return (state, steps), some of whose keys repeat."""
    key = normal(1, BATCH, heads, steps, size)
    key[:, :, 2::3] = key[:, :, :1]
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    rng = np.random.default_rng(2)
    keep, rate = (rng.uniform(low, 1, (BATCH, heads, steps)) for low in (0.5, 0.0))
    query, value = (normal(seed, BATCH, heads, steps, size) for seed in (3, 4))
    return normal(5, BATCH, heads, size, size), Steps(
        query, key, value, np.log(keep).astype(np.float32), np.float32(rate)
    )


def plain_delta(state, steps):
    """Compute the rule by the formula of the paper, in float64."""
    state, outputs = state.astype(np.float64).copy(), np.zeros(steps.value.shape)
    for b, h, t in itertools.product(*(range(size) for size in steps.rate.shape)):
        k, v = steps.key[b, h, t].astype(np.float64), steps.value[b, h, t]
        alpha, beta = np.exp(np.float64(steps.log_keep[b, h, t])), steps.rate[b, h, t]
        state[b, h] = alpha * state[b, h] @ (np.eye(len(k)) - beta * np.outer(k, k)) + beta * np.outer(v, k)
        outputs[b, h, t] = state[b, h] @ steps.query[b, h, t]
    return state, outputs


@pytest.mark.parametrize("apply", [delta_scan, *(functools.partial(delta_chunks, chunk=c) for c in (1, 4, 32))])
def test_the_delta_rule_equals_the_formula_in_numpy_for_every_size_of_chunk(apply):
    state, steps = delta_case()
    chex.assert_trees_all_close(jax.jit(apply)(state, steps), plain_delta(state, steps), atol=2e-5)


def test_a_key_that_is_written_at_rate_one_is_read_exactly_and_others_are_left_alone():
    key, values = jnp.eye(3)[jnp.array([0, 1, 0])], jnp.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    steps = Steps(key, key, values, jnp.zeros(3), jnp.ones(3))
    steps = jax.tree.map(lambda x: x[None, None], steps)
    state, outputs = jax.jit(delta_chunks)(jnp.zeros((1, 1, 3, 3)), steps)
    np.testing.assert_allclose(outputs[0, 0], values, atol=1e-6)
    np.testing.assert_allclose(state[0, 0], np.stack([values[2], values[1], 0 * values[0]], axis=1), atol=1e-6)


def test_gradients_of_the_chunks_are_those_of_the_loop():
    state, steps = delta_case()

    def loss(apply, state, steps):
        last, outputs = apply(state, steps)
        return jnp.sum(jnp.sin(outputs)) + jnp.sum(last**2)

    found, expected = (
        jax.jit(jax.grad(functools.partial(loss, apply), argnums=(0, 1)))(state, steps)
        for apply in (functools.partial(delta_chunks, chunk=4), delta_scan)
    )
    chex.assert_trees_all_close(found, expected, atol=1e-4)


def test_the_diagonal_recurrence_equals_complex_numbers_in_numpy_in_both_forms():
    state, drive = normal(0, BATCH, 2, 5), normal(1, BATCH, STEPS, 2, 5)
    factor = np.stack([np.linspace(0.5, 0.9, 5), np.linspace(-0.4, 0.4, 5)]).astype(np.float32)
    x, expected = state[:, 0] + 1j * state[:, 1], []
    for d in drive.swapaxes(0, 1):
        x = (factor[0] + 1j * factor[1]) * x + d[:, 0] + 1j * d[:, 1]
        expected.append(np.stack([x.real, x.imag], axis=1))
    expected = np.stack(expected, axis=1)

    def loss(apply, *arguments):
        states = apply(*arguments)
        return jnp.sum(jnp.sin(states)), states

    gradients = []
    for apply in (lru.diagonal_scan, lru.diagonal_parallel):
        run = jax.jit(jax.grad(functools.partial(loss, apply), argnums=(0, 1, 2), has_aux=True))
        gradient, states = run(state, factor, drive)
        np.testing.assert_allclose(states, expected, atol=1e-5)
        gradients.append(gradient)
    chex.assert_trees_all_close(*gradients, atol=1e-4)


def mixer_case(kind):
    """Return (mixer, random parameters, x, state before)."""
    mixer, x = MIXERS[kind](CONFIG), normal(0, BATCH, STEPS, CONFIG.width)
    state = normal(1, *empty_state(CONFIG, kind, BATCH).state[:, 0].shape)
    params = jax.device_get(jax.jit(mixer.init)(jax.random.key(0), x, state)["params"])
    return mixer, params, x, state


def test_a_new_lru_layer_equals_its_equations_in_complex_numbers():
    mixer, params, x, state = mixer_case("lru")
    found, after = jax.jit(mixer.apply)({"params": params}, x, state)
    size, p = CONFIG.width, params
    factor = np.exp(-np.exp(p["decay"]) + 1j * np.exp(p["phase"]))
    memory = -1 / np.log(np.abs(factor))
    assert (memory > 9.9).all() and (memory < 1010).all()
    np.testing.assert_allclose(np.exp(p["scale"]), np.sqrt(1 - np.abs(factor) ** 2), rtol=1e-3)
    into = p["input"]["kernel"][:, :size] + 1j * p["input"]["kernel"][:, size:]
    out = p["output"]["kernel"][:size] - 1j * p["output"]["kernel"][size:]
    h, outputs = state[:, 0] + 1j * state[:, 1], []
    for u in x.swapaxes(0, 1):
        h = factor * h + np.exp(p["scale"]) * (u @ into)
        outputs.append((h @ out).real + p["skip"] * u)
    np.testing.assert_allclose(found, np.stack(outputs, axis=1), atol=1e-4)
    np.testing.assert_allclose(after, np.stack([h.real, h.imag], axis=1), atol=1e-4)


def test_a_delta_layer_equals_its_equations_in_numpy_and_starts_with_the_configured_memories():
    mixer, params, x, state = mixer_case("gated-delta")
    found, after = jax.jit(mixer.apply)({"params": params}, x, state)
    np.testing.assert_allclose(1 / np.log1p(np.exp(params["forget"]["bias"])), [10, 1000], rtol=1e-3)

    def linear(name):
        return x @ params[name]["kernel"] + params[name].get("bias", 0)

    def silu(y):
        return y / (1 + np.exp(-y))

    def heads(y):
        return y.reshape(BATCH, STEPS, CONFIG.heads, -1).swapaxes(1, 2)

    q, k, v = (heads(silu(linear(name))) for name in ("q_proj", "k_proj", "v_proj"))
    q, k = (y / np.sqrt((y**2).sum(-1, keepdims=True) + 1e-6) for y in (q, k))
    keep, rate = -np.log1p(np.exp(linear("forget"))), 1 / (1 + np.exp(-linear("rate")))
    last, outputs = plain_delta(state, Steps(q, k, v, keep.swapaxes(1, 2), rate.swapaxes(1, 2)))
    outputs = outputs / np.sqrt((outputs**2).mean(-1, keepdims=True) + 1e-6) * params["norm"]["scale"]
    gated = outputs.swapaxes(1, 2).reshape(x.shape) * silu(linear("gate_proj"))
    np.testing.assert_allclose(found, gated @ params["o_proj"]["kernel"], atol=1e-4)
    np.testing.assert_allclose(after, last, atol=1e-4)


# --- the policy ---


@functools.cache
def policy_case(kind):
    """Return (policy, parameters, inputs, outputs, memory), of one unroll of all steps."""
    policy = Policy(PolicyConfig(memory=kind, linear_rnn=CONFIG), vector_spaces((-1.0,) * 2, (1.0,) * 2, Discrete(3)))
    params = jax.jit(policy.init)(jax.random.key(0))
    seeds = itertools.count()
    params = jax.tree.map(lambda x: x + 0.3 * normal(next(seeds), *x.shape), params)
    rng = np.random.default_rng(2)
    first = rng.random((BATCH, STEPS)) < 0.25
    inputs = StepInput(
        observation=rng.uniform(-1, 1, (BATCH, STEPS, 2)).astype(np.float32),
        previous_action=np.where(first, -1, rng.integers(0, 3, (BATCH, STEPS))).astype(np.int32),
        previous_reward=normal(3, BATCH, STEPS),
        first=first,
    )
    output, memory = jax.jit(policy.unroll)(params, policy.initial_memory(BATCH, STEPS), inputs)
    return policy, params, inputs, output, memory


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_acting_equals_unrolling_whole_and_in_blocks(kind):
    policy, params, inputs, expected, memory = policy_case(kind)
    assert np.abs(expected.value).max() > 0.3 and memory.filled == STEPS

    @jax.jit
    def act(params, inputs):
        def step(memory, x):
            output, memory = policy.act(params, memory, x)
            return memory, output

        start = policy.initial_memory(BATCH, STEPS)
        memory, output = jax.lax.scan(step, start, jax.tree.map(lambda x: x.swapaxes(0, 1), inputs))
        return jax.tree.map(lambda x: x.swapaxes(0, 1), output), memory

    @jax.jit
    def blocks(params, inputs):
        head, memory = policy.unroll(
            params, policy.initial_memory(BATCH, STEPS), jax.tree.map(lambda x: x[:, :4], inputs)
        )
        rest = jax.tree.map(lambda x: x[:, 4:], inputs)
        tail, memory = policy.unroll(params, memory, rest, query_span=Span(1, 6))
        return head.value, tail.value, memory

    found, after = act(params, inputs)
    chex.assert_trees_all_close((found, after), (expected, memory), atol=2e-5)
    head, tail, after = blocks(params, inputs)
    np.testing.assert_allclose(head, expected.value[:, :4], atol=2e-5)
    np.testing.assert_allclose(tail, expected.value[:, 5:], atol=2e-5)
    chex.assert_trees_all_close(after, memory, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_lives_through_episodes_and_gets_no_gradient(kind):
    policy, params, inputs, _, memory = policy_case(kind)

    def last(observation, first, memory):
        seen = inputs.replace(observation=observation, first=first)
        return policy.unroll(params, memory, seen)[0].value[:, -1].sum()

    run = jax.jit(jax.value_and_grad(last, argnums=(0, 2), allow_int=True))
    value, (through, into) = run(inputs.observation, inputs.first, memory)
    assert (np.abs(through).max((0, 2)) > 0).all() and not np.any(into.state)
    for first, start in ((~inputs.first, memory), (inputs.first, memory.rewound(inputs.first, 0))):
        assert abs(run(inputs.observation, first, start)[0] - value) > 1e-4


def test_settings_that_cannot_work_are_refused_in_one_line():
    for fields, message in (
        ({"layers": 0}, "policy.linear_rnn.layers is 0; allowed: more than 0"),
        ({"heads": 3}, "policy.linear_rnn.heads is 3; allowed: a divisor of policy.linear_rnn.width (64)"),
        ({"state_width": 0}, "policy.linear_rnn.state_width is 0; allowed: more than 0, or None"),
        ({"longest_memory": 5.0}, "policy.linear_rnn.longest_memory is 5.0; allowed: at least policy.linear_rnn"),
        ({"largest_phase": 7.0}, "policy.linear_rnn.largest_phase is 7.0; allowed: more than 0, up to 2π"),
    ):
        with pytest.raises(ConfigError) as error:
            PolicyConfig(memory="lru", linear_rnn=LinearRNNConfig(**fields)).validate()
        assert str(error.value).startswith(message)
        PolicyConfig(memory="gru", linear_rnn=LinearRNNConfig(**fields)).validate()
