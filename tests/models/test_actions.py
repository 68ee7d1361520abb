"""Continuous actions in the network: the embedding of the previous action and the head for the next one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import EncoderConfig, HeadConfig, PolicyConfig, TransformerConfig
from relic_jax.distributions import Categorical, Gaussian, TanhGaussian
from relic_jax.environment.base import Box, Discrete
from relic_jax.models import actions
from relic_jax.models.policy import Policy
from relic_jax.spaces import vector_spaces
from relic_jax.types import StepInput

BATCH, STEPS, SPACE = 3, 10, Box((-2.0, 0.0), (2.0, 1.0))
HEADS = [HeadConfig(action=action, std=std) for action in ("tanh", "gaussian") for std in ("learned", "state")]


def policy_with(head, observation="raw"):
    toy = TransformerConfig(layers=1, heads=2, width=8, mlp_width=12, max_positions=32)
    return Policy(PolicyConfig(toy, EncoderConfig(observation), head), vector_spaces((-1.0,) * 3, (1.0,) * 3, SPACE))


def random_params(policy, seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * (x.shape or (1,))[0] ** -0.5, jnp.float32), shapes
    )


def random_steps(seed):
    rng = np.random.default_rng(seed)
    first = rng.random((BATCH, STEPS)) < 0.3
    first[:, 0] = True
    previous = np.where(first[..., None], 0.0, rng.uniform(-1, 1, (BATCH, STEPS, 2)))
    return StepInput(
        observation=jnp.asarray(rng.normal(size=(BATCH, STEPS, 3)), jnp.float32),
        previous_action=jnp.asarray(previous, jnp.float32),
        previous_reward=jnp.asarray(rng.normal(size=(BATCH, STEPS)), jnp.float32),
        first=jnp.asarray(first),
    )


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.action}-{head.std}")
def test_acting_equals_unrolling_and_log_probabilities_are_the_same_in_both(head):
    policy = policy_with(head)
    params, inputs = random_params(policy, 0), random_steps(1)

    @jax.jit
    def run(params, inputs, key):
        def step(memory, x):
            output, memory = policy.act(params, memory, x[0])
            action = output.distribution.sample(x[1])
            return memory, (output, action, output.distribution.log_prob(action))

        by_step = jax.tree.map(lambda x: x.swapaxes(0, 1), inputs), jax.random.split(key, STEPS)
        _, acted = jax.lax.scan(step, policy.initial_memory(BATCH, STEPS), by_step)
        output, action, log_prob = jax.tree.map(lambda x: x.swapaxes(0, 1), acted)
        block, _ = policy.unroll(params, policy.initial_memory(BATCH, 0), inputs)
        return output, action, log_prob, block, block.distribution.log_prob(action)

    acted, action, log_prob, block, again = run(params, inputs, jax.random.key(2))
    assert isinstance(block.distribution, {"tanh": TanhGaussian, "gaussian": Gaussian}[head.action])
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), acted, block)
    assert action.shape == (BATCH, STEPS, 2) and log_prob.shape == (BATCH, STEPS)
    # the ratio of densities at a stored action, which is PPO's ratio, is 1 before the first update
    np.testing.assert_allclose(jnp.exp(again - log_prob), 1, atol=1e-4)
    assert np.abs(block.distribution.mean).max() > 0.1
    spread = np.ptp(np.asarray(block.distribution.log_std), axis=(0, 1))
    assert (spread > 1e-3).all() if head.std == "state" else (spread == 0).all()


@pytest.mark.parametrize("part", ["previous_action", "first"])
def test_the_previous_action_is_read_except_at_the_start_of_an_episode(part):
    policy = policy_with(HeadConfig())
    params, inputs = random_params(policy, 3), random_steps(4)
    run = jax.jit(lambda x: policy.network.apply({"params": params}, x, method=lambda net, x: net.encoder(x)))
    before = run(inputs)
    changed = {
        "previous_action": inputs.replace(previous_action=inputs.previous_action + 1.0),
        "first": inputs.replace(first=~inputs.first),
    }[part]
    differs = np.abs(run(changed) - before).max(-1) > 1e-3
    np.testing.assert_array_equal(differs, ~inputs.first if part == "previous_action" else np.ones_like(differs))


@pytest.mark.parametrize("x", [-1e6, 0.0, 1e6])
def test_deviations_start_as_configured_and_keep_their_limits(x):
    config = HeadConfig(log_std=-1.0, log_std_min=-3.0, log_std_max=0.25, std="state")
    head = actions.head(SPACE, config)
    params = head.init(jax.random.key(0), jnp.zeros((1, 4)))
    start = head.apply(params, jnp.zeros((1, 4))).log_std
    np.testing.assert_allclose(start, -1.0, atol=1e-6)
    params["params"]["log_std"] = jnp.full(2, x)
    found = head.apply(params, jnp.zeros((1, 4))).log_std
    np.testing.assert_allclose(found, np.clip(-1.375 + np.sign(x) * 1.625, -3.0, 0.25), atol=1e-6)


def test_discrete_actions_have_the_parameters_they_always_had():
    toy = TransformerConfig(layers=1, heads=2, width=8, mlp_width=12, max_positions=32)
    policy = Policy(PolicyConfig(toy), vector_spaces((-1.0,) * 2, (1.0,) * 2, Discrete(3)))
    params = jax.eval_shape(policy.init, jax.random.key(0))
    assert {name: x.shape for name, x in params["actor"].items()} == {"kernel": (8, 3), "bias": (3,)}
    assert jax.tree.map(jnp.shape, params["encoder"]) == {"action": {"embedding": (4, 8)}}
    assert isinstance(
        actions.head(Discrete(3), HeadConfig()).apply(
            {"params": {"kernel": jnp.ones((8, 3)), "bias": jnp.zeros(3)}}, jnp.ones((2, 8))
        ),
        Categorical,
    )
