"""The recall loss beside PPO: what it adds to the loss, which steps it counts, and what it needs."""

import dataclasses

import jax
import numpy as np
import pytest

from relic_jax.config import ConfigError, EnvConfig, PolicyConfig
from relic_jax.envs import registry
from relic_jax.rl import update as up
from relic_jax.rl.rollout import collect
from relic_jax.rl.segment import segment_step
from relic_jax.rl.state import init_state, make_setup
from relic_jax.rl.train import prepare
from tests.support.recall import recall_config

CONFIG = recall_config(recall_coef=0.5, recall_coef_final=0.25)


def changed(**ppo):
    return dataclasses.replace(CONFIG, ppo=dataclasses.replace(CONFIG.ppo, **ppo))


@pytest.fixture(scope="module")
def data():
    """Return (setup, state after the first segment's rollout, batch) of the first segment."""
    setup = make_setup(CONFIG, registry.make("gridobj-9"))

    @jax.jit
    def rollout(key):
        state = init_state(setup)
        collected = collect(setup, state.params, state.trial, state.memory, key)
        trajectory = jax.tree.map(lambda x, y: x.at[:, :30].set(y), state.trajectory, collected.steps)
        after = state.replace(memory=collected.memory, trajectory=trajectory)
        return after, up.make_batch(setup, after, state.memory, collected.last_value)

    return setup, *rollout(jax.random.key(1))


@pytest.mark.slow
def test_the_loss_adds_the_nats_of_the_steps_whose_answer_the_trial_has_shown(data):
    setup, state, batch = data
    window = up.Window(0, 30, full=False)

    def loss(setup, batch):
        return jax.jit(lambda: up.minibatch_loss(setup, 500, state.params, batch, window, jax.random.key(0)))()

    with_recall, metrics = loss(setup, batch)
    without, others = loss(setup, batch._replace(recall=None))
    assert "recall_loss" not in others
    answer, known = (np.asarray(x[:, :30]) for x in batch.recall)
    output = up.window_output(setup, state.params, batch, window, jax.random.key(0))
    nats = -sum(
        np.take_along_axis(np.asarray(x), answer[..., i, None], -1)[..., 0] for i, x in enumerate(output.recall)
    )
    assert 0 < known.sum() < known.size
    np.testing.assert_allclose(metrics["recall_loss"], nats[known].sum() / known.size, rtol=1e-5)
    np.testing.assert_allclose(with_recall, without + 0.375 * metrics["recall_loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_segment_trains_the_recall_head(data):
    setup, _, _ = data
    state = init_state(setup)
    after, metrics = jax.jit(lambda state: segment_step(setup, state))(state)
    assert np.isfinite(metrics["recall_loss"])
    assert np.abs(after.params["recall"]["kernel"] - state.params["recall"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            dataclasses.replace(CONFIG, env=EnvConfig("darkroom-dpt")),
            r"ppo.recall_coef is 0.5; allowed: 0 in 'darkroom",
        ),
        (
            dataclasses.replace(CONFIG, policy=dataclasses.replace(CONFIG.policy, recall=(9,))),
            r"policy.recall is \(9,\); allowed: \(9, 9\) with ppo.recall_coef in 'gridobj-9'",
        ),
        (changed(recall_coef=-1.0), "ppo.recall_coef is -1.0; allowed: 0 or more"),
    ],
)
def test_a_recall_loss_without_labels_or_head_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        prepare(config, registry.make(config.env))


def test_no_head_without_classes():
    policy = make_setup(
        dataclasses.replace(changed(recall_coef=0.0), policy=PolicyConfig()), registry.make("gridobj-9")
    )
    assert "recall" not in jax.eval_shape(policy.policy.init, jax.random.key(0))
