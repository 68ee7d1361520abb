"""Curricula that cannot work are refused in one line, before anything is compiled."""

import dataclasses

import numpy as np
import pytest

from relic_jax.config import ConfigError, CurriculumConfig, EnvConfig
from relic_jax.envs.registry import make
from relic_jax.rl import curriculum as cur
from relic_jax.rl.train import prepare

ARMS = CurriculumConfig(option="arms", values=(2, 3, 5))


@pytest.mark.parametrize(
    ("env", "changes", "message"),
    [
        ("darkroom-dpt", {}, r"option is 'arms'; allowed: None in 'darkroom-dpt', which has no task option"),
        ("gridobj-9", {}, r"option is 'arms'; allowed: 'asked' in 'gridobj-9', or None"),
        (
            "probe-bandit",
            {"values": (2, 9)},
            r"values is \(2, 9\); allowed: \(\) or two or more of 1, 2, 3, 4, 5, in",
        ),
        ("probe-bandit", {"values": (3, 2)}, r"values is \(3, 2\); allowed: .*in this order"),
        ("probe-bandit", {"values": (2, 2, 3)}, r"values is \(2, 2, 3\); allowed"),
        ("probe-bandit", {"values": (2,)}, r"values is \(2,\); allowed: \(\) or two or more"),
        ("probe-bandit", {"option": None}, r"values is \(2, 3, 5\); allowed: \(\) without an option"),
        ("probe-bandit", {"later": 1}, r"later is 1; allowed: 2 or more"),
        ("probe-bandit", {"standard_errors": -1.0}, r"standard_errors is -1.0; allowed: 0 or more"),
        ("probe-bandit", {"window": 0}, r"window is 0; allowed: more than 0"),
        ("probe-bandit", {"easier": 1.0}, r"easier is 1.0; allowed: 0 or more, less than 1"),
        ("probe-bandit", {"starts": (0.5,)}, r"starts is \(0.5,\); allowed: \(\) with curriculum.mode 'gain'"),
        ("probe-bandit", {"mode": "schedule", "starts": (0.5,)}, r"starts is \(0.5,\); allowed: 2 fractions"),
        ("probe-bandit", {"mode": "schedule", "starts": (0.5, 0.2)}, r"starts is \(0.5, 0.2\); allowed: increasing"),
        ("probe-bandit", {"mode": "schedule", "starts": (0.5, 1.0)}, r"starts is \(0.5, 1.0\); allowed: increasing"),
    ],
)
def test_a_curriculum_that_does_not_fit_is_refused_in_one_line(tiny, env, changes, message):
    transformer = dataclasses.replace(tiny().policy.transformer, max_positions=256)
    policy = dataclasses.replace(tiny().policy, transformer=transformer)
    config = tiny(env=env, policy=policy, curriculum=dataclasses.replace(ARMS, **changes))
    with pytest.raises(ConfigError, match=rf"^curriculum\.{message}") as error:
        prepare(config, make(env))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env", "later", "message"),
    [
        (EnvConfig("gridobj-9"), 3, None),  # 64 steps, of which the limit of one episode takes 60
        (
            EnvConfig("gridobj-9"),
            65,
            "trial.steps is 64; allowed: 65 or more, as many as curriculum.later, or curriculum.mode 'schedule'",
        ),
        (EnvConfig("gridobj-9", options={"asked": 1}), 3, "env.asked is 1; allowed: one number, 2 or more, or None"),
        (EnvConfig("gridobj-9", options={"asked": "1,2"}), 3, "env.asked is '1,2'; allowed: one number, 2 or more"),
    ],
)
def test_trials_and_tasks_that_cannot_show_a_gain_are_refused(tiny, env, later, message):
    config = dataclasses.replace(tiny(), env=env, curriculum=CurriculumConfig("asked", later=later))
    if message is None:
        return cur.check_curriculum(config, make(env))
    with pytest.raises(ConfigError, match=f"^{message}"):
        cur.check_curriculum(config, make(env))
    scheduled = dataclasses.replace(config.curriculum, mode="schedule")
    if message.startswith("trial"):
        cur.check_curriculum(dataclasses.replace(config, curriculum=scheduled), make(env))


def test_an_option_with_one_value_is_refused(tiny):
    class One(type(make("probe-bandit"))):
        rungs = property(lambda self: {"arms": (5,)})

    with pytest.raises(ConfigError, match=r"^curriculum.option is 'arms'; allowed: .* two or more values in 'probe-"):
        cur.check_curriculum(tiny(env="probe-bandit", curriculum=CurriculumConfig("arms")), One())


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            np.zeros((3, 2), np.int32),
            r"'arms'; allowed: an option whose tasks are int32\[\]; those of 2 are int32\[2\]$",
        ),
        (np.zeros(0, np.int32), "'arms'; allowed: an option with training tasks of every value; 2 has none"),
    ],
)
def test_tasks_of_a_rung_that_do_not_fit_are_refused(tiny, tasks, message):
    class Broken(type(make("probe-bandit"))):
        def rung_tasks(self, option, value):
            return tasks

    with pytest.raises(ConfigError, match=message):
        prepare(tiny(env="probe-bandit", curriculum=ARMS), Broken())
