"""The teacher loss beside PPO: its labels at the steps that the policy visits, what it adds to the loss, and errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from relic_jax.config import ConfigError, EnvConfig
from relic_jax.envs import registry
from relic_jax.envs.darkroom.env import MOVES
from relic_jax.experiments.faults.processes import arrays
from relic_jax.rl import train
from relic_jax.rl import update as up
from relic_jax.rl.optimizer import teacher_coef
from relic_jax.rl.parallel import state_specs
from relic_jax.rl.rollout import collect
from relic_jax.rl.state import AXIS, init_state, make_setup
from relic_jax.rl.teaching import check_teaching, teacher_labels
from tests.support.recall import recall_config

CONFIG = recall_config(last_update="partial", teacher_coef=0.5, teacher_coef_final=0.1)


def changed(config=CONFIG, **ppo):
    return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, **ppo))


@pytest.fixture(scope="module")
def data():
    """Return (setup, state after two segments of acting, the collected segments)."""
    setup = make_setup(CONFIG, registry.make("gridobj-9"))

    def act(state, key, segment):
        collected = collect(setup, state.params, state.trial, state.memory, key, state.teacher)
        start = 30 * segment
        trajectory = jax.tree.map(lambda x, y: x.at[:, start : start + 30].set(y), state.trajectory, collected.steps)
        parts = {"trial": collected.trial, "memory": collected.memory, "teacher": collected.teacher}
        return state.replace(**parts, trajectory=trajectory, segment=jnp.int32(segment)), collected

    @jax.jit
    def two(key):
        state, first = act(init_state(setup), jax.random.fold_in(key, 0), 0)
        state, second = act(state, jax.random.fold_in(key, 1), 1)
        return state, (first, second), up.make_batch(setup, state, state.memory, second.last_value)

    return setup, *two(jax.random.key(1))


def loop(observations, size=9):
    """Yield the best actions at each step of a trial, from its observations: a searcher in plain Python."""
    unseen, places = {(x, y) for x in range(size) for y in range(size)}, {}
    for position, target, view in zip(*(observations[name] for name in ("position", "target", "view")), strict=True):
        x, y = position[:size].argmax(), position[size:].argmax()
        unseen -= {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
        for kind, i, j in np.argwhere(view.reshape(-1, 3, 3)):
            places[kind] = (x + i - 1, y + j - 1)
        goals = [places[target.argmax()]] if target.argmax() in places else unseen
        ends = [(min(max(x + i, 0), size - 1), min(max(y + j, 0), size - 1)) for i, j in MOVES]
        left = np.array([min(abs(a - c) + abs(b - d) for c, d in goals) for a, b in ends])
        yield left == left.min(), target.argmax() in places


@pytest.mark.slow
def test_labels_are_those_of_a_searcher_that_sees_the_policys_observations(data):
    setup, state, segments, _ = data
    chosen = np.concatenate([segment.probabilities for segment in segments], axis=1)
    knows = make_setup(changed(teacher_where="recall"), setup.trials.env)
    masked = teacher_labels(knows, state, segments[1])
    assert (teacher_labels(setup, state, segments[1]) == segments[1].probabilities).all()
    observations = jax.device_get(state.trajectory.inputs.observation)
    known = 0
    for row in range(8):
        trial = {name: x[row] for name, x in observations.items()}
        for step, (best, seen) in enumerate(loop(trial)):
            np.testing.assert_allclose(chosen[row, step], best / best.sum(), rtol=1e-6)
            if step >= 30:
                np.testing.assert_array_equal(masked[row, step - 30], chosen[row, step] * seen)
                known += seen
    assert 0 < known < 240
    assert state.teacher.cells.sum() > segments[0].teacher.cells.sum() > 9 * 8, "remembered between segments"


def test_the_loss_adds_the_divergence_from_the_teacher(data):
    setup, state, segments, batch = data
    window = up.Window(30, 30, full=False)
    labels = np.where(np.arange(30)[:, None] < 10, 0.0, segments[1].probabilities)

    @jax.jit
    def loss(batch):
        return up.minibatch_loss(setup, 500, state.params, batch, window, jax.random.key(0))

    value, metrics = loss(batch._replace(teacher=labels))
    without, others = loss(batch)
    assert metrics.keys() - others.keys() == {"teacher_loss"}
    output = up.window_output(setup, state.params, batch, window, jax.random.key(0))
    log_p = np.asarray(jax.nn.log_softmax(output.distribution.logits))
    nats = (labels * (np.log(np.where(labels > 0, labels, 1)) - log_p)).sum(-1)
    np.testing.assert_allclose(metrics["teacher_loss"], nats.mean(), rtol=1e-5)
    np.testing.assert_allclose(value, without + 0.3 * metrics["teacher_loss"], rtol=1e-5)
    assert float(teacher_coef(CONFIG.ppo, 1000, 0)) == 0.5


def test_the_memory_of_the_teacher_is_saved_and_split_over_devices(data, tmp_path):
    setup, state, *_ = data
    assert state.teacher.cells.shape == (8, 9, 9)
    train.save(setup, tmp_path, state, train.Progress(480))
    restored, _ = train.restore(setup, tmp_path)
    assert arrays(restored) == arrays(state)
    assert set(jax.tree.leaves(state_specs(setup.abstract_state).teacher)) == {P(AXIS)}
    assert init_state(make_setup(changed(teacher_coef=0.0, teacher_coef_final=None), setup.trials.env)).teacher is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(teacher_coef=-1.0), "ppo.teacher_coef is -1.0; allowed: 0 or more"),
        (
            dataclasses.replace(CONFIG, env=EnvConfig("darkroom-dpt")),
            "ppo.teacher_coef is 0.5; allowed: 0 in 'darkroom-dpt', which has no scripted agent with a memory",
        ),
        (
            changed(teacher="expert"),
            "ppo.teacher is 'expert'; allowed: 'forgetful searcher', 'remembering searcher' in 'gridobj-9'",
        ),
        (
            changed(teacher_coef=0.0, last_update="full"),
            "ppo.last_update is 'full'; allowed: 'partial' with ppo.teacher_coef_final",
        ),
        (
            changed(dataclasses.replace(CONFIG, env=EnvConfig("house-objnav-small")), teacher_where="recall"),
            "ppo.teacher_where is 'recall'; allowed: 'all' in 'house-objnav-small', which labels what can be "
            "recalled only with env.view 'symbols' and env.pose 'house' or 'dock'",
        ),
    ],
)
def test_a_teacher_loss_without_a_teacher_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        config.ppo.validate()
        check_teaching(config, registry.make(config.env))
