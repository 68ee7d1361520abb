"""Gymnasium environments through the bridge against gymnasium itself, in this process."""

import sys
import textwrap

import numpy as np
import pytest

from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.protocol import EXPERT
from relic_jax.bridge.worker import episode_seed

gymnasium = pytest.importorskip("gymnasium")
ENTRY = "relic_jax.bridge.gym:GymEnvironment"


def config(id, **options):
    return PoolConfig(ENTRY, {"id": id, **options}, workers=1, environments=2)


@pytest.mark.parametrize(
    "task",
    [{}, {"seed": 3}, {"seed": 4, "options": {"low": -0.9, "high": 0.9}}, {"arguments": {"sutton_barto_reward": True}}],
)
def test_equals_gymnasium(task):
    env = gymnasium.make("CartPole-v1", **task.get("arguments", {}))
    actions = np.random.RandomState(0).randint(2, size=60)
    with Pool(config("CartPole-v1")) as pool:
        assert pool.spec.horizon == 500 and pool.spec.actions == 2
        with pytest.raises(PoolError, match="allowed: 0 or more"):
            pool.send(np.array([EXPERT, 0]))
        assert pool.versions[0]["gymnasium"] == gymnasium.__version__
        found = pool.reset([task, {}], [5, 6]).observation["observation"]
        episode, ends = 0, 0

        def begin():
            return env.reset(seed=task.get("seed", episode_seed(5, episode)), options=task.get("options"))[0]

        np.testing.assert_array_equal(found[0], begin())
        for action in actions:
            pool.send(np.array([action, 0]))
            batch = pool.receive()
            observation, reward, terminated, truncated, _ = env.step(int(action))
            assert batch.reward[0] == np.float32(reward)
            assert (batch.terminated[0], batch.truncated[0]) == (terminated, truncated)
            if terminated:
                np.testing.assert_array_equal(batch.final["observation"][0], observation)
                episode, ends = episode + 1, ends + 1
                observation = begin()
            np.testing.assert_array_equal(batch.observation["observation"][0], observation)
        assert ends >= 2


def test_the_horizon_truncates_and_continuous_actions_arrive():
    with Pool(config("Pendulum-v1", horizon=7)) as pool:
        assert pool.spec.actions == 0 and (pool.spec.low, pool.spec.high) == (-2.0, 2.0)
        pool.reset([{}, {}], [0, 1])
        ends = []
        for _ in range(21):
            pool.send(np.array([[1.5], [-0.5]], np.float32))
            batch = pool.receive()
            np.testing.assert_array_equal(batch.acted, np.array([[1.5], [-0.5]], np.float32))
            ends.append(batch.truncated.tolist())
        assert [index for index, end in enumerate(ends) if all(end)] == [6, 13, 20]
        assert sum(map(any, ends)) == 3


def test_dictionaries_and_metrics_of_a_package_of_ones_own(tmp_path):
    (tmp_path / "my_package.py").write_text(
        textwrap.dedent("""
        import gymnasium, numpy as np
        __version__ = "1.2"
        class Env(gymnasium.Env):
            observation_space = gymnasium.spaces.Dict(
                rgb=gymnasium.spaces.Box(0, 255, (2, 2, 3), np.uint8), goal=gymnasium.spaces.Discrete(3))
            action_space = gymnasium.spaces.Discrete(2)
            def reset(self, seed=None, options=None):
                return {"rgb": np.full((2, 2, 3), 7, np.uint8), "goal": 2}, {}
            def step(self, action):
                return self.reset()[0], 0.5, False, False, {"score": action}
        gymnasium.register("Mine-v0", Env, max_episode_steps=9)
    """)
    )
    options = {"id": "Mine-v0", "package": "my_package", "metrics": ["score", "absent"]}
    with Pool(PoolConfig(ENTRY, options, workers=1, groups=1, paths=(str(tmp_path),))) as pool:
        assert {name: str(spec) for name, spec in pool.spec.observation.items()} == {
            "goal": "int64[]",
            "rgb": "uint8[2, 2, 3]",
        }
        assert pool.versions[0]["my_package"] == "1.2"
        pool.reset([{}], [0])
        pool.send(np.array([1]))
        batch = pool.receive()
        assert batch.metrics.tolist() == [[1.0, 0.0]] and batch.observation["goal"].tolist() == [2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": "NoSuch-v0"}, "gymnasium cannot make 'NoSuch-v0'"),
        ({"id": "CartPole-v1", "package": "no_such_package"}, "package 'no_such_package' is missing"),
        ({"id": "Blackjack-v1"}, "has no time limit of its own; set horizon"),
        ({"id": "Blackjack-v1", "horizon": 9}, "is not an array"),
    ],
)
def test_what_cannot_be_made_is_one_line(options, words):
    with pytest.raises(PoolError) as error:
        Pool(PoolConfig(ENTRY, options, workers=1, groups=1))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_interpreter_without_gymnasium_is_one_line(tmp_path):
    (tmp_path / "gymnasium.py").write_text("raise ImportError('not here')")
    with pytest.raises(PoolError, match="package 'gymnasium' is missing") as error:
        Pool(PoolConfig(ENTRY, {"id": "CartPole-v1"}, workers=1, groups=1, paths=(str(tmp_path),)))
    assert sys.executable in str(error.value)
