"""The real habitat-lab with the software simulator registered in it, through the bridge, on datasets made here.

These run where habitat-lab can be imported, or with an interpreter that has it: RELIC_HABITAT_PYTHON=PATH pytest …
"""

import ast
import functools
import gzip
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from relic_jax.bridge import process
from relic_jax.bridge.pool import Pool, PoolConfig
from relic_jax.bridge.worker import episode_seed
from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.envs.habitat import dataset
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.configuration import Settings
from relic_jax.envs.habitat.lab import dataset as lab_dataset
from relic_jax.envs.habitat.soft.house import load_scene
from relic_jax.envs.habitat.soft.objects import OBJECT_SIZE, object_color
from relic_jax.envs.registry import describe, make
from relic_jax.experiments import habitat_dataset
from relic_jax.progress import Activity

CATEGORIES = ("mug", "apple", "bowl")
EPISODES = 6
HERE = importlib.util.find_spec("habitat") is not None


@pytest.fixture(scope="module")
def python():
    found = sys.executable if HERE else os.environ.get("RELIC_HABITAT_PYTHON")
    if not found:
        pytest.skip("habitat-lab is not installed (RELIC_HABITAT_PYTHON may name an interpreter that has it)")
    return found


@pytest.fixture(scope="module")
def source():
    return dataset.generate(Settings(size=8), dataset.soft_scenes(3, 2), categories=CATEGORIES, objects=3)


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("lab")
    lab_dataset.write(str(path), source, EPISODES)
    return path


def content(folder, kind, split):
    with gzip.open(folder / kind / split / f"{split}.json.gz", "rt") as file:
        return json.load(file)


@pytest.mark.parametrize(("ours", "split"), [("train", "train"), ("test", "val")])
def test_what_is_written_fits_the_houses(source, folder, ours, split):
    found = content(folder, "objectnav", split)
    assert len(found["episodes"]) == EPISODES * len(source[ours])
    assert set(found["category_to_task_category_id"]) == set(CATEGORIES)
    simulation = Simulation(Settings(size=8))
    for index, task in enumerate(source[ours]):
        scene = f"{split}-{index}.json"
        simulation.load(str(folder / "scenes" / scene))
        here = [episode for episode in found["episodes"] if episode["scene_id"] == scene]
        assert len(here) == EPISODES
        for thing in task["objects"]:
            goals = found["goals_by_category"][f"{scene}_{thing['category']}"]
            assert [goal["position"] for goal in goals] == [pytest.approx(thing["position"], abs=1e-5)]
        for episode in here:
            goals = found["goals_by_category"][f"{scene}_{episode['object_category']}"]
            views = [np.array(v["agent_state"]["position"]) for goal in goals for v in goal["view_points"]]
            assert views and all(simulation._simulator.pathfinder.is_navigable(view) for view in views)
            length = simulation.distance(np.array(episode["start_position"]), views)
            assert episode["info"]["geodesic_distance"] == pytest.approx(length, abs=1e-4) and math.isfinite(length)
    points = content(folder, "pointnav", split)["episodes"]
    for episode in points:
        simulation.load(str(folder / "scenes" / episode["scene_id"]))
        length = simulation.distance(np.array(episode["start_position"]), [np.array(episode["goals"][0]["position"])])
        assert episode["info"]["geodesic_distance"] == pytest.approx(length, abs=1e-4)


def test_a_furnished_house_shows_its_objects(source):
    task = source["train"][0]
    rows = lab_dataset.furnished(task)["boxes"]
    bare = load_scene(task["scene"]).boxes
    assert len(rows) == len(bare.low) + len(task["objects"])
    for row, thing in zip(rows[len(bare.low) :], task["objects"], strict=True):
        low, high = np.array(row[:3]), np.array(row[3:6])
        np.testing.assert_allclose((low + high)[[0, 2]] / 2, np.array(thing["position"])[[0, 2]], atol=1e-6)
        np.testing.assert_allclose(high - low, OBJECT_SIZE, atol=1e-6)
        assert low[1] == pytest.approx(thing["position"][1]) and tuple(row[6:]) == object_color(thing["category"])


def environment(python, folder, kind, image_size=16, **workers):
    env = EnvConfig(f"habitat-lab:{folder}/{kind}.yaml", horizon=30, options={"image_size": image_size})
    return make(env, WorkerConfig(**{"python": python, "workers": 1, **workers}))


ACTIONS = [1, 2, 4, 1, 3, 5, 1, 1, 2, 1, 0]
DIRECT = """
    import json, sys
    sys.path.insert(0, sys.argv[1])
    import relic_jax_worker
    sys.meta_path.insert(0, relic_jax_worker.LibraryFinder)
    from relic_jax.envs.habitat.lab import worker as lab
    lab.import_habitat()
    import habitat, numpy as np
    config = lab.load_config(sys.argv[2], "train", None, "default", 16, 30, -1)
    scene, seed, actions, rows = sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5]), []
    with habitat.Env(config) as env:
        assert type(env.sim).__name__ == "SoftSimulator"
        episodes = [episode for episode in env.episodes if episode.scene_id == scene]
        episodes.sort(key=lambda episode: int(episode.episode_id))  # the iterator has shuffled them
        env.current_episode = episodes[np.random.RandomState(seed).randint(len(episodes))]
        seen = env.reset()
        for action in [None, *actions]:
            if action is not None:
                seen = env.step(action)
            row = {name: np.asarray(value, float).tolist() for name, value in seen.items()}
            rows.append({"over": env.episode_over, **row, "measures": env.get_metrics(), "depth": row.get("depth")})
    print("ROWS " + json.dumps(rows, default=float))
"""


def directly(python, folder, kind, scene, seed, actions):
    """What habitat.Env itself answers, before the first action and after each."""
    arguments = [process.LAUNCH, folder / f"{kind}.yaml", scene, seed, json.dumps(actions)]
    command = [python, "-c", textwrap.dedent(DIRECT), *map(str, arguments)]
    environ = process.worker_environment(0, (), {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ROWS "))[5:])


@pytest.mark.parametrize("kind", ["objectnav", "pointnav"])
def test_equals_stepping_a_real_habitat_env(python, folder, kind):
    env = environment(python, folder, kind)
    assert [len(env.splits[split]) for split in ("train", "test")] == [3, 2]
    task = env.splits["train"][1]
    actions = [action for action in ACTIONS if action < env.spec.actions]
    expected = directly(python, folder, kind, task["scene"], episode_seed(7, 0), actions)
    names = env.spec.metrics
    assert {"success", "spl", "distance_to_goal"} <= set(names)

    def check(observation, row):
        rgb, depth = (np.array(row[name]) for name in ("rgb", "depth"))
        np.testing.assert_array_equal(observation["image"][0, ..., :3], rgb)
        np.testing.assert_array_equal(observation["image"][0, ..., 3:], (255 * depth).astype(np.uint8))
        assert rgb.std() > 1 and depth.std() > 0.001
        if kind == "pointnav":
            np.testing.assert_allclose(observation["pointgoal_with_gps_compass"][0], row["pointgoal_with_gps_compass"])
            return
        np.testing.assert_allclose(observation["gps"][0], row["gps"], rtol=1e-6)
        (angle,) = row["compass"]
        np.testing.assert_allclose(observation["compass"][0], [math.cos(angle), math.sin(angle)], atol=1e-6)
        assert observation["objectgoal"][0].tolist() == [index == row["objectgoal"][0] for index in range(3)]

    with Pool(PoolConfig(env.entry, env.options, 1, 1, 1, python=python), env.spec) as pool:
        check(pool.reset([task], [7]).observation, expected[0])
        for action, before, row in zip(actions, expected, expected[1:], strict=False):
            pool.send(np.array([action]))
            batch = pool.receive()
            check(batch.observation if batch.final is None else batch.final, row)
            np.testing.assert_allclose(batch.metrics[0], [row["measures"][name] for name in names], rtol=1e-5)
            gained = before["measures"]["distance_to_goal"] - row["measures"]["distance_to_goal"]
            slack, success = -0.01, 2.5  # habitat-lab's defaults
            assert batch.reward[0] == pytest.approx(gained + slack + success * (row["measures"]["spl"] > 0), abs=1e-5)
            assert (batch.terminated[0], batch.truncated[0]) == (action == 0, False)
            assert row["over"] == (action == 0)
        assert pool.versions[0]["habitat-lab"] and pool.versions[0]["python"]


def test_a_pointgoal_that_is_followed_is_reached(python, folder):
    """The observation is (distance, angle) to the goal: turning and walking leads there if no wall is in between."""
    env = environment(python, folder, "pointnav", horizon=60)
    successes = []
    with Pool(PoolConfig(env.entry, env.options, 1, 1, 1, python=python), env.spec) as pool:
        for seed, task in enumerate(env.splits["train"] * 3):
            goal = pool.reset([task], [seed]).observation["pointgoal_with_gps_compass"][0]
            ended = False
            while not ended:
                distance, angle = goal
                turn = 2 if angle > 0 else 3
                action = 0 if distance < 0.2 else turn if abs(angle) > math.radians(15.1) else 1
                pool.send(np.array([action]))
                batch = pool.receive()
                goal = batch.observation["pointgoal_with_gps_compass"][0]
                ended = batch.terminated[0] or batch.truncated[0]
            found = dict(zip(env.spec.metrics, batch.metrics[0], strict=True))
            assert found["success"] == float(batch.terminated[0]), "what stops stops next to the goal"
            assert batch.terminated[0] != batch.truncated[0] and (found["spl"] > 0.3) == bool(found["success"])
            successes.append(found["success"])
    assert 0.2 < np.mean(successes) < 1


def test_episodes_follow_from_task_and_seed(python, folder):
    env = environment(python, folder, "objectnav")
    train, test = env.splits["train"], env.splits["test"]
    assert {task["split"] for task in train} == {"train"} and {task["split"] for task in test} == {"val"}
    assert not {task["scene"] for task in train} & {task["scene"] for task in test}
    with Pool(PoolConfig(env.entry, env.options, 1, 2, 1, python=python), env.spec) as pool:
        found = [pool.reset([task, task], [seed, seed]).observation for task in (*train, *test) for seed in (1, 2, 3)]
    for one in found:
        for value in one.values():
            np.testing.assert_array_equal(value[0], value[1])
    assert len({one["image"][0].tobytes() for one in found}) > 9
    assert "habitat-lab, by its config; horizon 30, observation image uint8" in str(describe(env.name, env))


def refused(words, config, python, horizon=None, **options):
    with pytest.raises(ConfigError) as error:
        make(EnvConfig(f"habitat-lab:{config}", horizon, options), WorkerConfig(python=python))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bad_input_is_one_line(python, folder, tmp_path):
    config = folder / "objectnav.yaml"
    refused("config 'no/such.yaml' cannot be loaded; allowed: a file, or a name", "no/such.yaml", python=python)
    gone = str(tmp_path / "{split}.json.gz")
    refused("cannot be loaded: FileNotFoundError", config, python=python, dataset=gone)
    real = "benchmark/nav/objectnav/objectnav_hssd-hab.yaml"
    has_sim = subprocess.run([python, "-c", "import habitat_sim"], capture_output=True, check=False).returncode == 0
    if not has_sim:
        refused("wants the simulator 'Sim-v0'", real, python=python)
    text = config.read_text().replace(str(folder / "scenes"), str(tmp_path))
    (tmp_path / "elsewhere.yaml").write_text(text)
    refused("train-0.json' cannot be loaded", tmp_path / "elsewhere.yaml", python=python)


@pytest.mark.skipif(HERE, reason="habitat-lab is here")
def test_without_habitat_lab_one_line_says_how_to_get_it(cli, folder, tmp_path):
    options = ["--env", f"habitat-lab:{folder}/objectnav.yaml", "--runs", tmp_path]
    code, out, err = cli("train", "darkroom-smoke", *options)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "has no habitat-lab" in err and "pip install habitat-lab" in err and "with --host.python PATH" in err


def test_a_folder_for_habitat_lab_is_made(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(habitat_dataset, "Activity", functools.partial(Activity, interval=0.001))
    scenes = ["--train", "house-0", "--test", "house-1", "--categories", "mug", "--format", "habitat-lab"]
    code, said, err = cli("habitat-dataset", "--out", tmp_path / "lab", *scenes, "--episodes", 2)
    assert code == 0 and "1 train tasks in 1 scenes" in said, err
    assert re.search(r"^writing episodes of task [12] of 2 · 0:0", said, re.MULTILINE), said
    assert len(content(tmp_path / "lab", "objectnav", "val")["episodes"]) == 2
    code, _, err = cli("habitat-dataset", "--out", tmp_path / "x", *scenes, "--backend", "habitat")
    assert code == 2 and "format is 'habitat-lab'; allowed with --backend habitat" in err


@pytest.mark.parametrize("name", ["worker", "simulator", "dataset"])
def test_the_worker_side_is_python_3_8_and_knows_no_jax(name):
    text = (Path(lab_dataset.__file__).parent / f"{name}.py").read_text()
    ast.parse(text, feature_version=(3, 8))
    assert "import jax" not in text and "from __future__ import annotations" in text
