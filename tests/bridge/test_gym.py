"""Gymnasium environments through the bridge against gymnasium itself, in this process."""

import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.protocol import EXPERT
from relic_jax.bridge.worker import episode_seed
from relic_jax.config import WorkerConfig
from relic_jax.envs.registry import make

gymnasium = pytest.importorskip("gymnasium")
ENTRY = "relic_jax.bridge.gym:GymEnvironment"


def scaled(observation):
    """CartPole's position and angle by their bounds; its velocities have none."""
    return observation / np.array([4.8, 1, 24 * 2 * np.pi / 360, 1])


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

        np.testing.assert_allclose(found[0], scaled(begin()), rtol=1e-6)
        for action in actions:
            pool.send(np.array([action, 0]))
            batch = pool.receive()
            observation, reward, terminated, truncated, _ = env.step(int(action))
            assert batch.reward[0] == np.float32(reward)
            assert (batch.terminated[0], batch.truncated[0]) == (terminated, truncated)
            if terminated:
                np.testing.assert_allclose(batch.final["observation"][0], scaled(observation), rtol=1e-6)
                episode, ends = episode + 1, ends + 1
                observation = begin()
            np.testing.assert_allclose(batch.observation["observation"][0], scaled(observation), rtol=1e-6)
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
            "goal": "uint8[3]",
            "rgb": "float32[2, 2, 3]",  # too small for an image
        }
        assert pool.versions[0]["my_package"] == "1.2"
        pool.reset([{}], [0])
        pool.send(np.array([1]))
        batch = pool.receive()
        assert batch.metrics.tolist() == [[1.0, 0.0]] and batch.observation["goal"].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": "NoSuch-v0"}, "gymnasium cannot make 'NoSuch-v0'"),
        ({"id": "CartPole-v1", "package": "no_such_package"}, "package 'no_such_package' is missing"),
        ({"id": "Blackjack-v1"}, "has no time limit; set horizon"),
        ({"id": "CartPole-v1", "wrappers": ["no_such_module:Wrapper"]}, "wrapper is 'no_such_module:Wrapper'"),
        (
            {"id": "CartPole-v1", "wrappers": ["gymnasium.wrappers"]},
            "wrapper is 'gymnasium.wrappers'; allowed: MODULE:",
        ),
        ({"id": "CartPole-v1", "wrappers": ["os:sep"]}, "wrapper is 'os:sep', a str"),
        ({"id": "CartPole-v1", "wrappers": ["builtins:int"]}, "wrapper 'builtins:int' does not accept 'CartPole-v1'"),
        ({"id": "CartPole-v1", "wrappers": ["builtins:str"]}, "wrapper 'builtins:str' returns a str"),
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


def test_a_limit_that_the_environment_applies_itself_is_read(tmp_path):
    """MiniWorld truncates after `max_episode_steps`, which it keeps out of gymnasium's registry."""
    (tmp_path / "limited.py").write_text(
        textwrap.dedent("""
        import gymnasium, numpy as np
        class Env(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
            action_space = gymnasium.spaces.Discrete(2)
            max_episode_steps = 7
            def reset(self, seed=None, options=None):
                self.count = 0
                return np.zeros(2, np.float32), {}
            def step(self, action):
                self.count += 1
                return np.zeros(2, np.float32), 0.0, False, self.count >= self.max_episode_steps, {}
        gymnasium.register("Limited-v0", Env)
    """)
    )
    config = PoolConfig(ENTRY, {"id": "Limited-v0", "package": "limited"}, workers=1, groups=1, paths=(str(tmp_path),))
    with Pool(config) as pool:
        assert pool.spec.horizon == 7


PICTURES = """
    import gymnasium, numpy as np
    class Env(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (8, 9, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)
        def reset(self, seed=None, options=None):
            self.count = 0
            return np.full((8, 9, 3), 7, np.uint8), {}
        def step(self, action):
            self.count += 1
            return np.full((8, 9, 3), self.count, np.uint8), 0.5, False, False, {}
    gymnasium.register("Pictures-v0", Env, max_episode_steps=9)
"""


def test_an_image_that_is_all_there_is_comes_without_a_vector(tmp_path):
    """An empty array cannot be learned from or saved."""
    (tmp_path / "pictures.py").write_text(textwrap.dedent(PICTURES))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    env = make("gym:pictures:Pictures-v0", WorkerConfig(python=str(python)))
    assert (env.observation_spec.shape, env.observation_spec.dtype) == ((8, 9, 3), np.uint8)
    with env.start(2) as pool:
        batch = pool.reset([{}, {}], [0, 1])
        assert env.observe(batch.observation).shape == (2, 8, 9, 3) and (batch.observation["observation"] == 7).all()
        trajectory = SimpleNamespace(observation=env.observe(batch.observation))
        assert env.render_trial(trajectory).shape == (2, 8, 9, 3)
