"""Training on the probe environments. Each one isolates one ability and is solved in seconds."""

import dataclasses

import jax
import numpy as np
import pytest

from relic_jax.config import (
    CurriculumConfig,
    EncoderConfig,
    PolicyConfig,
    PPOConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
)
from relic_jax.envs.registry import make
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.train import prepare

CONFIG = TrainConfig(
    total_steps=40_000,
    devices=1,
    policy=PolicyConfig(
        transformer=TransformerConfig(layers=2, heads=2, width=32, mlp_width=64, max_positions=16),
        encoder=EncoderConfig(observation="scaled"),
    ),
    trial=TrialConfig(environments=16, steps=60, updates=3),
    ppo=PPOConfig(
        lr=2e-3,
        lr_final=1e-4,
        warmup_steps=0,
        minibatches=1,
        accumulate=1,
        value_clip=None,
        max_grad_norm=0.5,
        context_gradient="stopped",
        last_update="partial",
    ),
)


def trained(name: str, trials: int, **changes):
    """Train on a probe and return (setup, state, mean return of the last trial's episodes)."""
    config = dataclasses.replace(CONFIG, env=name, total_steps=trials * 16 * 60, **changes)
    setup = prepare(config, make(name))
    chunk, state = compile_chunk(setup), initial_state(setup)
    for _ in range(trials):
        state, metrics = chunk(state)
    metrics = jax.device_get(metrics)
    return setup, state, float(metrics["return_sum"].sum() / metrics["episodes"].sum())


def values_at(setup, state, position: int) -> np.ndarray:
    """Return the last collected values of steps at `position` in their episode, with constant weights."""
    from relic_jax.rl.rollout import collect

    fresh = setup.policy.initial_memory(16, 60)
    found = jax.jit(lambda s: collect(setup, s.params, s.trial, fresh, jax.random.key(0)))(state)
    return np.asarray(found.steps.value)[:, position :: setup.trials.env.horizon]


@pytest.mark.slow
def test_value_is_learned():
    setup, state, _ = trained("probe-value", 15)
    np.testing.assert_allclose(values_at(setup, state, 0), 1.0, atol=0.1)


@pytest.mark.slow
def test_returns_are_discounted_and_bootstrapped():
    setup, state, _ = trained("probe-discount", 25, ppo=dataclasses.replace(CONFIG.ppo, gamma=0.6))
    np.testing.assert_allclose(values_at(setup, state, 1), 1.0, atol=0.1)
    np.testing.assert_allclose(values_at(setup, state, 0), 0.6, atol=0.1)


@pytest.mark.slow
def test_policy_is_learned():
    assert trained("probe-policy", 15)[2] > 0.95  # chance: 0.5


@pytest.mark.slow
def test_memory_within_an_episode_is_learned():
    ppo = dataclasses.replace(CONFIG.ppo, normalize_advantages=True)
    assert trained("probe-memory", 50, ppo=ppo)[2] > 0.95  # chance: 0.5


@pytest.mark.slow
def test_learning_in_context_is_learned():
    """The task is the best of five arms. An episode has four pulls.

    Random pulls earn 0.8. A policy that tries one arm after the other but forgets at the end of an episode earns
    (4 + 3 + 2 + 1) / 5 = 2 on average. After 120 trials one seed in five has not reached this return.
    """
    ppo = dataclasses.replace(CONFIG.ppo, context_gradient="full", entropy_coef=0.05)
    assert trained("probe-bandit", 200, ppo=ppo)[2] > 3.0


@pytest.mark.slow
def test_a_probe_climbs_to_the_last_rung():
    """Bandits with two, three and five arms: a policy that keeps pulling the rewarded arm gains 0.5, 1 and 2."""
    ppo = dataclasses.replace(CONFIG.ppo, context_gradient="full", entropy_coef=0.05)
    curriculum = CurriculumConfig("arms", (2, 3, 5), threshold=0.25, window=64)
    config = dataclasses.replace(CONFIG, env="probe-bandit", total_steps=200 * 960, ppo=ppo, curriculum=curriculum)
    setup = prepare(config, make("probe-bandit"))
    chunk, state, rungs = compile_chunk(setup), initial_state(setup), []
    while len(rungs) < 200 and (not rungs or rungs[-1] < 2 or state.curriculum.gain[2] < 0.25):
        state, _ = chunk(state)
        rungs.append(int(state.curriculum.rung))
    assert rungs[-1] == 2 and 0 in rungs and 1 in rungs and len(rungs) < 200


@pytest.mark.slow
def test_two_devices_learn_as_one_and_stay_in_step():
    _, state, reached = trained("probe-policy", 15, devices=2)
    assert reached > 0.95
    for leaf in jax.tree.leaves(state.params):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 2
        np.testing.assert_array_equal(*copies)
    assert [shard.data.shape for shard in state.trial.first.addressable_shards] == [(8,), (8,)]


@pytest.mark.slow
def test_masks_are_learned_with():
    """Random legal actions earn 2.0, the best actions 3.625, and a policy without the masks less than 3."""
    assert trained("probe-mask", 15)[2] > 3.4


@pytest.mark.slow
def test_several_actions_at_a_time_are_learned():
    assert trained("probe-multidiscrete", 15)[2] > 0.95  # chance: 5/12
