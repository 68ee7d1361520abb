"""`relic_jax.train` and the run that it returns, in a script, an event loop and a thread."""

import asyncio
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import relic_jax
from relic_jax.config import PPOConfig, TrainConfig, from_json, to_json
from relic_jax.experiments import presets, training
from relic_jax.experiments.api import override

pytestmark = pytest.mark.usefixtures("compile_once")

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the run that the README's code trains, with a small preset."""
    (code,) = re.findall(r"^```python\n(import relic_jax\n.*?)^```$", README.read_text(), flags=re.M | re.S)
    assert len(code.strip().splitlines()) < 10
    names = {"observation": np.zeros(2, np.float32), "reward": 0.0, "terminated": False, "truncated": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        exec(code.replace("darkroom-dpt", "darkroom-smoke"), names)
        assert 0 <= names["action"] < 5
        return dataclasses.replace(names["run"], path=names["run"].path.resolve())


@pytest.mark.slow
def test_the_folder_is_what_the_command_line_writes(run, cli, tmp_path):
    code, _, err = cli("train", "darkroom-smoke", "--runs", tmp_path)
    assert code == 0, err
    other = tmp_path / "darkroom-smoke-seed0"
    assert run.path.name == other.name
    assert {file.name for file in run.path.iterdir()} >= {file.name for file in other.iterdir()}
    for name in ("config.json", "metrics.jsonl", "curve.csv"):
        assert (run.path / name).read_bytes() == (other / name).read_bytes(), name
    curves = [json.loads((path / "curve.json").read_text()) for path in (run.path, other)]
    assert curves[0]["return"] == curves[1]["return"]


@pytest.mark.slow
def test_evaluating_returns_the_report_and_writes_it(run):
    report = run.evaluate("train", episodes=3, limit=20)
    assert report.tasks == 20 and report.split == "train" and len(report.returns.mean) == 3
    file = run.path / "evaluate-train-3-episodes-first-20-tasks.json"
    assert json.loads(file.read_text()) == report.to_json()


def test_plotting_returns_the_figure_and_leaves_the_backend(run, tmp_path):
    import matplotlib

    before = matplotlib.rcParams._get("backend"), "matplotlib.pyplot" in sys.modules
    figure = run.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "episode in context" in figure.axes[0].get_xlabel()
    assert "environment steps" in run.plot(training=True).axes[0].get_xlabel()
    assert before == (matplotlib.rcParams._get("backend"), "matplotlib.pyplot" in sys.modules)


def test_the_agent_is_that_of_the_folder(run):
    policy = relic_jax.load_policy(run.path)
    observation = np.zeros(2, np.float32)
    agents = run.agent(seed=3), policy.agent(seed=3)
    assert agents[0].step(observation) == agents[1].step(observation)
    assert agents[0].last.value == agents[1].last.value and agents[0].last.value.shape == ()
    assert agents[0].last.logits.shape == (5,) and isinstance(agents[0].last.logits, np.ndarray)
    batch = run.agent(batch=2)
    batch.step(np.zeros((2, 2), np.float32))
    assert batch.last.value.shape == (2,) and batch.last.logits.shape == (2, 5)


def test_training_in_a_thread_beside_a_running_loop_stops_by_its_event(tmp_path, monkeypatch):
    stop, runs = threading.Event(), []
    make_trackers = training.make_trackers

    def stopping(*arguments):
        tracker = make_trackers(*arguments)
        log = tracker.log
        tracker.log = lambda *record: (log(*record), stop.set())
        return tracker

    monkeypatch.setattr(training, "make_trackers", stopping)

    async def cell():
        runs.append(await asyncio.to_thread(relic_jax.train, "darkroom-smoke", runs=tmp_path, stop=stop))

    asyncio.run(cell())
    assert not (runs[0].path / "curve.json").exists() and (runs[0].path / "checkpoints").is_dir()
    assert "training" in runs[0].plot()._suptitle.get_text()
    assert runs[0].agent().steps == 0


@pytest.mark.slow
def test_an_interrupt_saves_and_raises_and_the_run_is_resumed(run, tmp_path, monkeypatch):
    make_trackers, left = training.make_trackers, [signal.SIGINT]

    def interrupting(*arguments):
        tracker = make_trackers(*arguments)
        log = tracker.log
        tracker.log = lambda *record: (log(*record), left and signal.raise_signal(left.pop()))
        return tracker

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(training, "make_trackers", interrupting)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at 2,000 steps, saved; resume with: "):
        relic_jax.train("darkroom-smoke", runs=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    stopped = relic_jax.load_run(tmp_path / "darkroom-smoke-seed0")
    assert stopped.resume() == dataclasses.replace(stopped, trust=True)
    assert (stopped.path / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(relic_jax.ConfigError, match=r"^extend-to is 4000; allowed: more than 8000"):
        stopped.resume(extend_to=4000)


@pytest.mark.parametrize(
    "arguments, fields, message",
    [
        (["darkroom-dtp"], {}, "preset is 'darkroom-dtp'; allowed: "),
        ([7], {}, "preset is 7; allowed: the name of a preset or a TrainConfig"),
        (["darkroom-smoke"], {"total_step": 1}, "total_step is unknown; allowed: "),
        (["darkroom-smoke"], {"total_steps": "many"}, "total_steps is 'many'; allowed: int"),
        (["darkroom-smoke"], {"ppo.lrr": 1.0}, "ppo.lrr is unknown; allowed: "),
        (["darkroom-smoke"], {"ppo": {"lr": -1.0}}, "ppo.lr is -1.0; allowed: "),
        (["darkroom-smoke"], {"env": "no-such"}, "env is 'no-such'; allowed: "),
        (["darkroom-smoke"], {"seed": object()}, "config is not JSON"),
        (["darkroom-smoke"], {"name": "a/b"}, "name is 'a/b'; allowed: "),
        (["darkroom-smoke"], {"track": ["paper"]}, "track is 'paper'; allowed: 'tensorboard', 'wandb'"),
    ],
)
def test_errors_are_one_line(arguments, fields, message, tmp_path):
    with pytest.raises(relic_jax.ConfigError) as caught:
        relic_jax.train(*arguments, runs=tmp_path, **fields)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_errors_of_a_run_are_one_line(run, tmp_path):
    with pytest.raises(relic_jax.ConfigError, match="already there"):
        relic_jax.train("darkroom-smoke", runs=run.path.parent)
    with pytest.raises(relic_jax.ConfigError, match="allowed: a run folder"):
        relic_jax.load_run(tmp_path)
    with pytest.raises(relic_jax.ConfigError, match=r"^tasks is 'all'; allowed: 'test', 'train'"):
        run.evaluate("all")
    with pytest.raises(relic_jax.ConfigError, match=r"^out is "):
        run.plot(tmp_path / "figure.gif")


def test_fields_are_set_by_dotted_names_mappings_and_configs():
    config = presets.get("darkroom-smoke").config
    by_name = override(config, {"ppo.lr": 0.5, "policy.transformer.layers": np.int64(3), "start_from": Path("a")})
    by_group = override(config, {"ppo": {"lr": 0.5}, "policy": {"transformer": {"layers": 3}}, "start_from": "a"})
    assert by_name == by_group and by_name.ppo.lr == 0.5 and by_name.policy.transformer.layers == 3
    assert override(config, {"ppo": PPOConfig()}).ppo == PPOConfig()
    assert override(config, {}) == config == from_json(to_json(config))
    assert not {"name", "runs", "track", "wandb", "stop", "preset"} & set(TrainConfig.__dataclass_fields__)


def test_environments_by_name():
    assert relic_jax.make_env("darkroom-dpt").horizon == 100
    assert relic_jax.make_env("darkroom-dpt", action_repeat=2).horizon == 50
    with pytest.raises(relic_jax.ConfigError, match=r"^env is 'no-such'; allowed: "):
        relic_jax.make_env("no-such")
    with pytest.raises(relic_jax.ConfigError, match=r"^host.workers is 3; allowed: "):
        relic_jax.make_env("darkroom-dpt", workers=3)


def test_names_are_lazy():
    code = (
        "import relic_jax, sys; dir(relic_jax); print([m for m in sys.modules if m.startswith(('jax', 'relic_jax.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout == "[]\n", done.stderr
    assert set(relic_jax.__all__) <= set(dir(relic_jax))
    for name in relic_jax.__all__:
        assert getattr(relic_jax, name).__name__ == name
