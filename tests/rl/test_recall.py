"""The recall loss beside PPO: what it adds to the loss, which steps it counts, and what it needs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError, EnvConfig, PolicyConfig
from relic_jax.envs import registry
from relic_jax.models.policy import PolicyOutput
from relic_jax.rl import update as up
from relic_jax.rl.rollout import collect
from relic_jax.rl.segment import segment_step
from relic_jax.rl.state import init_state, make_setup
from relic_jax.rl.train import prepare, records
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


def test_shares_of_known_and_right_steps_are_recorded():
    """Of four steps, three answers are known, two of them right; the metrics of a record divide by the known ones."""
    log_probs = jnp.log(jnp.array([[[0.7, 0.3], [0.7, 0.3], [0.2, 0.8], [0.2, 0.8]]]))
    answer, known = jnp.array([[[0], [1], [1], [1]]]), jnp.array([[True, True, True, False]])
    batch = up.Batch(None, None, None, None, recall=(answer, known))
    terms = up.recall_terms(batch, up.Window(0, 4, full=True), PolicyOutput(None, None, (log_probs,)))
    means = {name: float(x.mean()) for name, x in terms.items()}
    nats = -np.log([0.7, 0.3, 0.8]).sum() / 4
    assert means == pytest.approx({"recall_loss": nats, "recall_known": 0.75, "recall_right": 0.5})
    counts = {"loss": 1.0, "episodes": 0.0, "return_sum": 0.0, "success_sum": 0.0}
    (record,) = records(CONFIG, 0, {name: np.asarray(x) for name, x in (counts | means).items()})
    assert record["recall_right"] == pytest.approx(2 / 3) and record["recall_known"] == 0.75
    (record,) = records(CONFIG, 0, counts | {"recall_known": 0.0, "recall_right": 0.0})
    assert record["recall_right"] == 0


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
    np.testing.assert_allclose(metrics["recall_known"], known.mean(), rtol=1e-5)
    assert metrics["recall_right"] <= metrics["recall_known"]
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
