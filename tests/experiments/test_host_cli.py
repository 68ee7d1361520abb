"""The command line with environments in worker processes: training, figures and errors."""

import dataclasses
import functools
import json
import re
import shutil
import sys
import venv

import jax
import numpy as np
import pytest

from relic_jax.bridge import process, protocol
from relic_jax.config import ConfigError, EnvConfig, TrialConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs import registry
from relic_jax.envs.habitat import dataset
from relic_jax.envs.registry import describe, make
from relic_jax.experiments import habitat_dataset, navigation_speed, presets, run
from relic_jax.experiments.arguments import with_current_names
from relic_jax.experiments.training import parse_train
from relic_jax.metrics import read_lines
from relic_jax.progress import Activity
from relic_jax.rl.host import HostRunner
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.train import prepare

OPTIONS = ["--total-steps", "1000", "--trial.steps", "60", "--host.horizon", "30", "--eval.episodes", "2"]


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps({"train": [{"seed": 0}, {"seed": 1}], "test": [{"options": {"low": -0.01}}, {}]}))
    return path


@pytest.mark.slow
def test_gymnasium_from_the_command_to_the_figure(cli, tmp_path, tasks):
    pytest.importorskip("gymnasium")
    options = ["--env", "gym:CartPole-v1", "--host.dataset", tasks, "--runs", tmp_path, "--name", "run", *OPTIONS]
    code, out, err = cli("train", "darkroom-smoke", *options)
    assert code == 0, err
    assert "gym:CartPole-v1: an environment of gymnasium; horizon 30, observation float32 [4], 2 actions" in out
    assert "random" in out and (tmp_path / "run" / "curve.png").exists()
    assert sum(record["lost_steps"] for record in read_lines(tmp_path / "run" / "metrics.jsonl")) == 0
    code, out, err = cli("evaluate", tmp_path / "run", "--tasks", "train", "--episodes", 1)
    assert code == 0 and "2 training tasks (gym:CartPole-v1" in out, err
    summary = json.loads((tmp_path / "run" / "evaluate-train-1-episodes.json").read_text())
    assert 5 < summary["reference_returns"]["random"] < 29 and summary["reference_returns"]["optimal"] is None
    out = tmp_path / "play.gif"
    code, _, err = cli("play", tmp_path / "run", "--episodes", 1, "--out", out)  # the environment cannot be drawn
    assert (
        code == 2 and "allowed: an environment that can be drawn" in err and err.count("\n") == 1 and not out.exists()
    )
    code, _, err = cli("play", tmp_path / "run", "--human")
    assert code == 2 and "gym:CartPole-v1 lives in worker processes" in err and err.count("\n") == 1


def test_minigrid_trains_by_its_id(cli, tmp_path):
    pytest.importorskip("minigrid")
    options = ["--total-steps", "256", "--trial.steps", "32", "--trial.updates", "2", "--eval.episodes", "1"]
    options += ["--runs", tmp_path, "--name", "run", "--host.horizon", "12", "--eval.tasks", "2"]
    code, out, err = cli("train", "darkroom-smoke", "--env", "gym:MiniGrid-Empty-5x5-v0", *options)
    assert code == 0 and (tmp_path / "run" / "curve.png").is_file(), out + err


def test_gymnasiums_tasks_are_seeds_unless_told_otherwise(tasks):
    pytest.importorskip("gymnasium")
    env = make("gym:CartPole-v1")
    assert isinstance(env, HostEnvironment) and env.horizon == 500
    assert (len(env.splits["train"]), len(env.splits["test"])) == (80, 20)
    assert env.task(env.tasks("test")[3]) == {"seed": 83}
    assert describe("gym:CartPole-v1", env).train_hash != describe("gym:CartPole-v1", env).test_hash
    assert make(EnvConfig("gym:CartPole-v1", options={"dataset": str(tasks)})).splits["test"][1] == {}


def one_line(found, *said):
    code, out, err = found
    assert code == 2 and out == "" and err.startswith("relic-jax: ") and err.count("\n") == 1, err
    for words in said:
        assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("gym:CartPol-v1", ["env is 'gym:CartPol-v1'", "Did you mean: `CartPole`"]),
        ("gym:CartPole-v9", ["[ `v0`, `v1` ]"]),
        ("gym:no_such_package:Thing-v0", ["no_such_package"]),
        ("extobjna", ["did you mean extobjnav?"]),
    ],
)
def test_unknown_environments(cli, tmp_path, env, said):
    pytest.importorskip("gymnasium")
    one_line(cli("train", "darkroom-smoke", "--env", env, "--runs", tmp_path, "--host.horizon", "30"), *said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "JSONDecodeError"),
        ('{"train": [{}]}', "KeyError: 'test'"),
        ('{"train": [{}], "test": []}', "empty split"),
        ('{"train": [{}], "test": [{"sed": 1}]}', "the task {'sed': 1}"),
    ],
)
def test_bad_tasks_for_gymnasium(tmp_path, content, said):
    path = tmp_path / "tasks.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"env\.dataset is .*; allowed: a JSON file") as error:
        make(EnvConfig("gym:CartPole-v1", options={"dataset": str(path)}))
    assert said in str(error.value) and "\n" not in str(error.value)


def small(scenes, position=(2, 1, 2), **changes):
    """Return a dataset of the software simulator with one mug in every scene."""
    tasks = [{"scene": scene, "objects": [{"category": "mug", "position": list(position)}]} for scene in scenes]
    data = {"format": dataset.FORMAT, "backend": "soft", "scene_dataset": "default", "categories": ["mug"]}
    return {**data, "train": tasks[:1], "test": tasks[1:], **changes}


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (None, ["--habitat-python", "/no/python"], "python is '/no/python'; allowed: a Python interpreter"),
        (None, ["--host.scene-dataset", "/no/set.json"], "env.scene_dataset is '/no/set.json'; allowed: 'default'"),
        (None, ["--host.objects", "/no/objects"], "env.objects is '/no/objects'; allowed: '' with env.backend soft"),
        (
            None,
            ["--host.dataset", "/no/tasks.json"],
            "env.dataset is '/no/tasks.json'; dataset",
        ),
        (small(["a-house.glb", "house-1"]), [], "scene 'a-house.glb' cannot be loaded"),
        (small(["house-1", "z-house.glb"]), [], "scene 'z-house.glb' cannot be loaded"),
        (small(["house-0", "house-0"]), [], "scene 'house-0' is in both splits"),
        (small(["house-0", "house-1"], categories=["mug", "unicorn"]), [], "category 'unicorn' is in no scene"),
        (small(["house-0", "house-1"], (2, 1e300, 2)), [], "the position [2, 1e+300, 2]; allowed: three numbers"),
        (small(["house-0", "house-1"]), ["--backend", "habitat"], "env.backend is 'habitat'; allowed: 'soft'"),
        (None, ["--host.image-size", "0"], "env.image_size is 0; allowed: more than 0"),
    ],
)
def test_object_navigation_refuses_bad_input_before_training(cli, tmp_path, data, options, said):
    if data is not None:
        path = tmp_path / "tasks.json"
        path.write_text(json.dumps(data))
        options = [*options, "--host.dataset", path]
    one_line(cli("train", "extobjnav-soft", "--runs", tmp_path / "runs", *options), said)
    assert not (tmp_path / "runs").exists()


def test_a_worker_of_another_protocol_is_refused_before_training(cli, tmp_path, monkeypatch):
    """The worker's packages are copies of ours with another protocol number."""
    root = process.LAUNCH.parent.parent.parent
    for package in ("relic_jax", "envs"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "relic_jax" / "bridge" / "protocol.py"
    ours = f"PROTOCOL = {protocol.PROTOCOL}"
    assert ours in file.read_text()
    file.write_text(file.read_text().replace(ours, "PROTOCOL = 99"))
    monkeypatch.setattr(process, "LAUNCH", tmp_path / "relic_jax" / "bridge" / "launch")
    said = f"the learner speaks protocol {protocol.PROTOCOL}, the worker 99"
    one_line(cli("train", "extobjnav-soft", "--runs", tmp_path / "runs"), "env 'extobjnav' cannot start", said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("position", [0, 1])
def test_a_scene_without_navmesh_is_refused_before_training(cli, tmp_path, position):
    scene, tasks = tmp_path / "full.json", tmp_path / "tasks.json"
    scene.write_text(json.dumps({"size": [1, 1], "boxes": [[0, 0, 0, 1, 2, 1, 9, 9, 9]], "tables": []}))
    scenes = ["house-1"]
    scenes.insert(position, str(scene))
    tasks.write_text(json.dumps(small(scenes)))
    options = ["--host.dataset", tasks, "--runs", tmp_path / "runs"]
    one_line(cli("train", "extobjnav-soft", *options), f"scene '{scene}' has no navmesh")
    making = ["--train", scene, "--test", "house-1", "--out", tmp_path / "made.json"]
    one_line(cli("habitat-dataset", *making), f"scene '{scene}' has no navmesh")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "made.json").exists()


def test_the_habitat_backend_says_how_to_get_it(cli, tmp_path):
    try:
        import habitat_sim  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("habitat_sim is here")
    train = cli("train", "extobjnav-soft", "--runs", tmp_path, "--backend", "habitat")
    options = "with --host.python PATH; or leave --env.backend at soft"
    one_line(train, "has no habitat_sim", "conda", options)
    making = ["habitat-dataset", "--backend", "habitat", "--out", tmp_path / "d.json", "--train", "a", "--test", "b"]
    options = "with --habitat-python PATH; or leave --backend at soft"
    one_line(cli(*making), "has no habitat_sim", sys.executable, options)


def test_an_interpreter_without_numpy_says_how_to_get_it(cli, tmp_path):
    venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    words = ("cannot import numpy", f"install it with: {python} -m pip install numpy")
    one_line(cli("train", "extobjnav-soft", "--runs", tmp_path / "runs", "--host.python", python), *words)
    one_line(cli("habitat-dataset", "--out", tmp_path / "d.json", "--habitat-python", python), *words)
    assert not (tmp_path / "runs").exists()


def test_the_scene_dataset_of_the_options_replaces_that_of_the_episodes(tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(small(["a", "b"], backend="habitat", scene_dataset="old.json")))
    for options, expected in (({}, "old.json"), ({"scene_dataset": "new.json", "objects": "o"}, "new.json")):
        env = make(EnvConfig("extobjnav", options={"backend": "habitat", "dataset": str(path), **options}))
        used = [env.options[name] for name in ("scene_dataset", "objects", "templates")]
        assert used == [expected, options.get("objects", ""), ["mug"]]


def test_an_episode_dataset_is_made_and_read(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(habitat_dataset, "Activity", functools.partial(Activity, interval=0.001))
    out = tmp_path / "tasks.json"
    scenes = ["--train", "house-0", "house-1", "--test", "house-2", "--categories", "mug", "apple", "--layouts", "2"]
    code, said, err = cli("habitat-dataset", "--out", out, *scenes)
    assert code == 0 and "4 train tasks in 2 scenes, 2 test tasks in 1 scenes, 2 categories" in said, err
    assert re.search(r"^arranging objects in scene [123] of 3\b.* · 0:0", said, re.MULTILINE), said
    env = make(EnvConfig("extobjnav", options={"dataset": str(out)}))
    assert {task["scene"] for task in env.splits["train"]} == {"house-0", "house-1"}
    assert env.observation_spec["vector"].shape == (2 + 2,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train", "house-1"], "test is empty; allowed: ids or files of scenes"),
        (["--train", "house-1", "--test", "house-1"], "scene 'house-1' is in both splits"),
        (["--train", "house-1", "--test", "nowhere.glb"], "scene 'nowhere.glb' cannot be loaded"),
        (["--train", "house-1", "--test", "house-2", "--objects", "1"], "is in no scene of the dataset"),
        (["--habitat-python", "/no/python"], "python is '/no/python'; allowed: a Python interpreter"),
        (["--habitat-python", "/bin/false"], "/bin/false ended with 1"),
        (["--layouts", "0"], "layouts is 0; allowed: 1 … 100,000"),
        (["--scene-dataset", "/no/set.json"], "scene_dataset is '/no/set.json'; allowed: 'default' with backend soft"),
        (["--templates", "/no/objects"], "templates is '/no/objects'; allowed: '' with backend soft"),
    ],
)
def test_what_no_dataset_can_be_made_of(cli, tmp_path, options, said):
    one_line(cli("habitat-dataset", "--out", tmp_path / "d.json", *options), said)
    assert not (tmp_path / "d.json").exists()


@pytest.mark.slow
def test_object_navigation_trains_on_images(tiny):
    env = make(EnvConfig("extobjnav", 30, {"image_size": 16}))
    config = tiny(env="extobjnav", trial=TrialConfig(environments=4, steps=16, updates=1))
    encoder = dataclasses.replace(config.policy.encoder, features=8)
    setup = prepare(dataclasses.replace(config, policy=dataclasses.replace(config.policy, encoder=encoder)), env)
    state = initial_state(setup)
    with HostRunner(setup) as segments:
        segments._trials.reset(np.asarray(state.trial.task), np.asarray(state.trial.env))
        found = segments._collect(state, 0)
        seen = found.steps.inputs.replace(observation=found.observation)
        output, _ = jax.jit(setup.policy.unroll)(state.params, setup.policy.initial_memory(4, 16), seen)
        np.testing.assert_allclose(found.steps.log_prob, output.distribution.log_prob(found.steps.action), atol=1e-5)
        assert found.observation["image"].shape == (4, 16, 16, 16, 3) and found.observation["image"].std() > 10
        state, metrics = segments(state)
    metrics = jax.device_get(metrics)
    assert int(state.env_steps) == 64 and all(np.isfinite(value) for value in metrics.values())
    assert metrics["lost_steps"] == 0 and metrics["nonfinite/observation"] == 0


def test_environments_are_made_as_the_config_says():
    assert run.make_env(EnvConfig("extobjnav", horizon=7)).horizon == 7


OLD_SPELLINGS = {
    "--backend": ("--env.backend", "habitat"),
    "--host.backend": ("--env.backend", "habitat"),
    "--host.dataset": ("--env.dataset", "tasks.json"),
    "--host.wrappers": ("--env.wrappers", "a:B"),
    "--host.text": ("--env.text", "words"),
    "--host.scene-dataset": ("--env.scene-dataset", "set.json"),
    "--host.scene_dataset": ("--env.scene-dataset", "set.json"),
    "--host.objects": ("--env.objects", "templates"),
    "--host.image-size": ("--env.image-size", "32"),
    "--host.image_size": ("--env.image-size", "32"),
    "--host.horizon": ("--env.horizon", "7"),
    "--habitat-python": ("--host.python", "python3"),
}


@pytest.mark.parametrize("old", OLD_SPELLINGS)
def test_old_spellings_of_options_still_work(old, tmp_path):
    new, value = OLD_SPELLINGS[old]
    assert with_current_names([old, value, "--seed", "1"]) == [new, value, "--seed", "1"]
    env = "gym:CartPole-v1" if new in ("--env.wrappers", "--env.text") else "extobjnav"
    parsed = [
        parse_train(["darkroom-smoke", "--env", env, "--runs", str(tmp_path), *options])[0].config
        for options in ([old, value], [f"{old}={value}"], [new, value])
    ]
    assert parsed[0] == parsed[1] == parsed[2] != parse_train(["darkroom-smoke", "--env", env])[0].config


def test_the_environment_keeps_what_another_one_reads_too():
    preset = presets.get("extobjnav-soft").config
    config = parse_train(["extobjnav-soft", "--env.image-size", "32"])[0].config
    assert config.env == EnvConfig("extobjnav", 200, {"image_size": 32}) and preset.env.horizon == 200
    assert parse_train(["extobjnav-soft", "--env.image-size", "64"])[0].config == preset  # the default
    other = registry.renamed(EnvConfig("extobjnav", 200, {"image_size": 32, "dataset": "d"}), "gym:A-v0")
    assert other == EnvConfig("gym:A-v0", 200, {"dataset": "d"})
    assert registry.renamed(other, "darkroom-dpt") == EnvConfig("darkroom-dpt")


@pytest.mark.parametrize("arguments", [["--env", "gym:CartPole-v1"], ["--env=gym:CartPole-v1"]])
def test_help_lists_the_options_of_the_environment(cli, arguments):
    code, out, _ = cli("train", "darkroom-smoke", *arguments, "--help")
    assert code == 0 and all(f"--env.{name}" in out for name in ("horizon", "dataset", "wrappers", "text"))
    assert "--env.image-size" in cli("train", "extobjnav-soft", "--help")[1]
    assert "--env.horizon" not in cli("train", "darkroom-smoke", "--help")[1]


def test_the_speed_of_object_navigation(tmp_path, monkeypatch, capsys):
    arguments = ["--image-size", "8", "--steps", "25", "--rounds", "1", "--turns", "1", "--workers", "2"]
    arguments += ["--out", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", ["navigation_speed", *arguments])
    navigation_speed.main()
    document = json.loads((tmp_path / "speed.json").read_text())
    assert {"raw", "environment", "slot", "bridge 2", "bridge 2, halves"} <= set(document["rates"])
    assert all(rate > 0 for rates in document["rates"].values() for rate in rates)
    assert {"move", "pose", "copy RGB to shared memory"} <= set(document["microseconds"])
    assert document["straggler"]["2"]["in turn"] > 50 / 25 - 0.5 and "of raw" in capsys.readouterr().out
