"""Supervised recall: the labels against a loop over recorded observations, the measures, and learning itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import prng
from relic_jax.config import ConfigError, EncoderConfig, PolicyConfig, TransformerConfig
from relic_jax.envs import registry
from relic_jax.experiments.recall.learn import Learner, RecallConfig, shares, train
from relic_jax.experiments.recall.record import Recordings, record

SMALL = PolicyConfig(
    transformer=TransformerConfig(layers=1, heads=2, width=32, mlp_width=64, max_positions=128, episode_rope=False),
    encoder=EncoderConfig(observation="scaled"),
)


@pytest.fixture(scope="module")
def env():
    return registry.make("gridobj-9")


@pytest.fixture(scope="module")
def recordings(env):
    tasks = jax.tree.map(lambda x: jnp.asarray(x[:3]), env.tasks("train"))
    return jax.device_get(record(env, prng.key(0), tasks, 200, 0.2))


def test_labels_are_those_of_a_loop_over_what_was_in_view(env, recordings):
    view = recordings.inputs.observation["view"].reshape(3, 200, env.kinds, -1).any(-1)
    target = recordings.inputs.observation["target"].argmax(-1)
    objects = env.tasks("train").objects[:3]
    for trial in range(3):
        last = {}
        for step in range(200):
            last.update({kind: step for kind in np.flatnonzero(view[trial, step])})
            asked = target[trial, step]
            assert (recordings.cell[trial, step] == objects[trial, asked]).all()
            assert recordings.age[trial, step] == (step - last[asked] if asked in last else -1)
            if asked in last:
                assert recordings.between[trial, step] == sum(seen > last[asked] for seen in last.values())
    assert (recordings.age >= 50).any(), "some answers need a long memory"


def test_shares_by_age_and_by_kinds_between():
    age = np.array([[-1, 0, 5, 12, 60, 400]])
    recordings = Recordings(None, None, age, np.array([[0, 0, 1, 2, 3, 5]]))
    found = shares(np.array([[True, True, False, True, False, True]]), recordings)
    assert found["all"] == pytest.approx(3 / 5)
    ages = [found[f"age {name}"] for name in ("0–0", "1–9", "10–49", "50–299", "300+")]
    assert ages == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert (found["between 1"], found["between 2"], found["between 3+"]) == (0.0, 1.0, 0.5)


@pytest.mark.parametrize("steps", [60, 30])
def test_a_stopped_gradient_leaves_the_answers_unchanged(env, recordings, steps):
    config = RecallConfig(steps=60, layouts=3, segment=steps, minibatches=1)
    full = Learner.of(env, SMALL, config)
    stopped = Learner.of(env, SMALL, dataclasses.replace(config, gradient="stopped"))
    params, _ = full.init(prng.key(1))
    part = jax.tree.map(lambda x: x[:, :60], recordings)
    for one, other in zip(full.answers(params, part), stopped.answers(params, part), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    slope = [jax.tree.leaves(jax.grad(learner.loss)(params, part)) for learner in (full, stopped)]
    equal = all(np.allclose(a, b, atol=1e-6) for a, b in zip(*slope, strict=True))
    assert equal == (steps == 60), "gradients differ where they cross a segment"


def test_the_loss_falls_and_rows_report_it(env):
    config = RecallConfig(layouts=8, steps=40, held_out=4, minibatches=2, optimizer_steps=60, every=30, lr=3e-3)
    rows = []
    _, found = train(Learner.of(env, SMALL, config), 0, rows.append)
    assert found == rows
    assert [row["optimizer_steps"] for row in rows] == [30, 60]
    assert rows[1]["loss"] < rows[0]["loss"] < 2 * np.log(9) + 0.2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"minibatches": 3}, r"recall.minibatches is 3; allowed: a divisor of recall.layouts \(64\)"),
        ({"gradient": "stopped", "segment": 7}, r"recall.segment is 7; allowed: a divisor of recall.steps"),
        ({"every": 6}, "recall.every is 6; allowed: a multiple"),
        ({"noise": 1.5}, "recall.noise is 1.5; allowed: 0 … 1"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        RecallConfig(**fields).validate()
