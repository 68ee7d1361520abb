"""Meta-World through the bridge against metaworld itself, in this process; its split, its expert, bad input."""

import sys

import numpy as np
import pytest

from relic_jax.bridge.worker import SetupError, episode_seed
from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs.metaworld import worker
from relic_jax.envs.registry import describe, make
from relic_jax.experiments import presets

ID = "ml1:reach-v3"


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("metaworld")


@pytest.fixture(scope="module")
def reach(package):
    return make(EnvConfig(f"metaworld:{ID}", horizon=40), WorkerConfig(workers=1))


def test_the_split_is_meta_worlds(reach):
    assert isinstance(reach, HostEnvironment) and [len(reach.splits[split]) for split in ("train", "test")] == [50, 50]
    said = describe(reach.name, reach)
    assert f"metaworld {worker.VERSION}" in str(said) and said.train_hash != said.test_hash
    assert str(reach.action_space) and reach.action_space.shape == (4,) and reach.observation_spec.shape == (39,)


def test_equals_meta_world(package, reach):
    task, actions = reach.splits["train"][7], np.random.RandomState(0).uniform(-1.2, 1.2, (50, 4)).astype(np.float32)
    original = package.ML1("reach-v3", seed=0)
    env = original.train_classes["reach-v3"]()
    env.set_task(original.train_tasks[7])
    with reach.start(1) as pool:
        found = pool.reset([task], [5]).observation["observation"][0]
        np.testing.assert_array_equal(found, env.reset(seed=episode_seed(5, 0))[0].astype(np.float32))
        assert not found[-3:].any(), "the goal is not seen"
        for index, action in enumerate(actions):
            pool.send(action[None])
            batch = pool.receive()
            seen, reward, *_, info = env.step(action)
            assert batch.reward[0] == np.float32(reward) and batch.metrics[0, 0] == info["success"]
            assert batch.truncated[0] == (index == 39) and not batch.terminated[0]
            if index == 39:
                np.testing.assert_array_equal(batch.final["observation"][0], seen.astype(np.float32))
                seen = env.reset(seed=episode_seed(5, 1))[0]
            np.testing.assert_array_equal(batch.observation["observation"][0], seen.astype(np.float32))


def test_the_expert_succeeds_where_chance_does_not(reach):
    env = worker.make(id=ID, horizon=150)
    assert env.spec._replace(horizon=40) == reach.spec
    reached = {}
    for name, act in (("expert", env.expert), ("nothing", lambda: np.zeros(4, np.float32))):
        reached[name] = 0.0
        for index in (0, 1, 2):
            env.reset(reach.splits["test"][index], 0)
            reached[name] += max(env.step(act())[-1]["success"] for _ in range(150)) / 3
    assert reached == {"expert": 1.0, "nothing": 0.0}
    env.close()


def test_tasks_are_told_apart(package, reach):
    env = worker.make(id=ID)
    goals = []
    for task in [*reach.splits["train"][:3], reach.splits["train"][0]]:
        env.reset(task, 0)
        goals.append(tuple(env._env._target_pos))
    assert len(set(goals)) == 3 and goals[0] == goals[3]
    env.close()


def test_ml10_has_other_robot_tasks_in_its_test_split(package):
    found = worker.survey("ml10")
    names = [{task["env"] for task in found[split]} for split in ("train", "test")]
    assert [len(tasks) for tasks in found.values()] == [500, 250] and [len(n) for n in names] == [10, 5]
    assert not names[0] & names[1]


@pytest.mark.parametrize(
    ("id", "said"),
    [("ml1", "benchmark is 'ml1'; allowed: ml1:ENV"), ("ml1:fly-v3", "environment is 'fly-v3'; allowed: assembly-v3"),
     ("ml10:reach-v3", "benchmark is 'ml10:reach-v3'"), ("ml3", "benchmark is 'ml3'")],
)  # fmt: skip
def test_what_there_is_not_is_one_line(package, id, said):
    with pytest.raises(ConfigError) as error:
        make(f"metaworld:{id}", WorkerConfig(workers=1))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_without_metaworld_or_with_another_version_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(SetupError, match=f"has no metaworld .*pip install metaworld=={worker.VERSION}"):
        worker.benchmark("ml10")
    monkeypatch.setitem(sys.modules, "metaworld", np)
    monkeypatch.setattr(worker.importlib.metadata, "version", lambda name: "2.0")
    with pytest.raises(SetupError, match=f"metaworld is 2.0; allowed: {worker.VERSION}"):
        worker.benchmark("ml10")


def test_presets_ask_for_them():
    assert [presets.get(f"metaworld-{name}").config.env.name for name in ("ml1-reach", "ml10", "ml45")] == [
        "metaworld:ml1:reach-v3",
        "metaworld:ml10",
        "metaworld:ml45",
    ]
