"""Resumed runs equal uninterrupted ones bit for bit, and non-finite values are never saved."""

import dataclasses
import functools
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from relic_jax import checkpoint
from relic_jax.envs.darkroom.env import Darkroom, DarkroomTask
from relic_jax.envs.registry import make
from relic_jax.experiments import folders, run
from relic_jax.experiments.faults import processes
from relic_jax.experiments.faults.processes import arrays, end, logged, start, wait_until
from relic_jax.experiments.faults.small import PER_UPDATE
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl import train as training
from relic_jax.rl.train import NonFiniteError, prepare, restore, train

pytestmark = pytest.mark.usefixtures("compile_once")


class Killed(BaseException):
    """Represents SIGKILL: no cleanup runs after it."""


class Interrupting(JsonLines):
    """Calls `at(env_steps)` before a record is logged."""

    def __init__(self, folder, env_steps, at):
        super().__init__(folder, env_steps)
        self._at = at

    def log(self, record, clock):
        self._at(record["env_steps"])
        super().log(record, clock)


def go(setup, folder, *, resume, at=lambda env_steps: None):
    folder.mkdir(exist_ok=True)
    return train(setup, folder, lambda env_steps: Interrupting(folder, env_steps, at), resume=resume)


def kill_at(update):
    def at(env_steps):
        if env_steps == update * PER_UPDATE:
            raise Killed

    return at


def outcome(setup, folder):
    """Return what must be equal bit for bit: the newest checkpoint's arrays and the metrics file."""
    return arrays(restore(setup, folder / "checkpoints")[0]), (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module", params=["trial", "segment"])
def whole_run(request, tiny, tmp_path_factory):
    """Return (setup, folder of the uninterrupted run) in both chunk modes."""
    setup = prepare(tiny(request.param), make("darkroom-ad-9-random"))
    folder = tmp_path_factory.mktemp(request.param)
    result = go(setup, folder, resume=False)
    assert result.finished and int(result.state.env_steps) == 512
    return setup, folder


@pytest.fixture(scope="module")
def whole(whole_run):
    """Return (setup, outcome of the uninterrupted run) in both chunk modes."""
    setup, folder = whole_run
    return setup, outcome(setup, folder)


@pytest.mark.slow
def test_metrics_hold_one_record_per_update(whole):
    _, (_, metrics) = whole
    lines = metrics.decode().splitlines()
    assert len(lines) == 8 and len(set(lines)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("update", [1, 8])
def test_killed_between_checkpoint_and_record(whole, tmp_path, update):
    """At the first and the last record; other tests kill the run at other records. The seconds of both parts add up."""
    setup, expected = whole
    with pytest.raises(Killed):
        go(setup, tmp_path, resume=False, at=kill_at(update))
    saved = restore(setup, tmp_path / "checkpoints")[1].seconds if (tmp_path / "checkpoints").exists() else 0.0
    assert (saved > 0) == (update == 8)
    assert go(setup, tmp_path, resume=True).seconds > saved
    assert outcome(setup, tmp_path) == expected


@pytest.mark.slow
def test_killed_again_and_again(whole, tmp_path):
    setup, expected = whole
    for update in (2, 3, 5, 5, 8):
        with pytest.raises(Killed):
            go(setup, tmp_path, resume=True, at=kill_at(update))
    go(setup, tmp_path, resume=True)
    assert outcome(setup, tmp_path) == expected


def test_resumed_in_the_middle_of_a_trial(tiny, whole, tmp_path):
    setup, expected = whole
    if setup.config.chunk == "trial":
        return  # a chunk of a whole trial cannot be interrupted there
    with pytest.raises(Killed):
        go(setup, tmp_path, resume=False, at=kill_at(4))
    state, progress = restore(setup, tmp_path / "checkpoints")
    assert progress.env_steps == 3 * PER_UPDATE and int(state.segment) == 3
    assert int(state.memory.filled) > 0 and np.asarray(state.trajectory.action).any()
    go(setup, tmp_path, resume=True)
    assert outcome(setup, tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_killed_while_a_checkpoint_is_written(whole, tmp_path, monkeypatch, moment):
    setup, expected = whole
    replace_file = os.replace

    def crash(source, target):
        numbered = Path(target).name.isdecimal() and int(Path(target).name) >= 4 * PER_UPDATE
        if not numbered or moment == "after the rename":
            replace_file(source, target)
        if numbered:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Killed):
            go(setup, tmp_path, resume=False)
    assert (str(4 * PER_UPDATE) + ".tmp" in os.listdir(tmp_path / "checkpoints")) == (moment == "before the rename")
    go(setup, tmp_path, resume=True)
    assert outcome(setup, tmp_path) == expected
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_starts_from_the_beginning(whole, tmp_path):
    setup, expected = whole
    with pytest.raises(Killed):
        go(replace(setup, config=replace(setup.config, checkpoint_minutes=1e9)), tmp_path, resume=False, at=kill_at(8))
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 7 and not (tmp_path / "checkpoints").exists()
    go(setup, tmp_path, resume=True)
    assert outcome(setup, tmp_path) == expected


@pytest.mark.slow
def test_stopped_by_a_signal_saves_and_goes_on(whole, tmp_path):
    setup, expected = whole
    number = signal.SIGINT if setup.config.chunk == "trial" else signal.SIGTERM
    before = signal.getsignal(number)
    setup_rare = replace(setup, config=replace(setup.config, checkpoint_minutes=1e9))  # only the signal saves

    def at(env_steps):
        if env_steps == 2 * PER_UPDATE:
            signal.raise_signal(number)

    result = go(setup_rare, tmp_path, resume=False, at=at)
    stopped_at = 4 * PER_UPDATE if setup.config.chunk == "trial" else 2 * PER_UPDATE
    assert not result.finished and checkpoint.complete_steps(tmp_path / "checkpoints") == [stopped_at]
    assert signal.getsignal(number) == before
    result = go(setup, tmp_path, resume=True)
    assert result.finished and outcome(setup, tmp_path) == expected


@pytest.mark.slow
def test_second_signal_is_final_and_still_resumable(whole, tmp_path):
    setup, expected = whole

    def at(env_steps):
        if env_steps == 5 * PER_UPDATE:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go(setup, tmp_path, resume=False, at=at)
    go(setup, tmp_path, resume=True)
    assert outcome(setup, tmp_path) == expected


def test_finished_run_is_left_as_it_is(whole_run, whole, tmp_path):
    setup, expected = whole
    shutil.copytree(whole_run[1], tmp_path, dirs_exist_ok=True)
    before = {p: p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}

    def nothing_may_be_logged(env_steps):
        raise AssertionError

    result = go(setup, tmp_path, resume=True, at=nothing_may_be_logged)
    assert result.finished and outcome(setup, tmp_path) == expected
    assert {p: p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()} == before


# --- on the command line ---


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Return the folder of a run that has finished training but is not evaluated."""
    setup = prepare(tiny("segment"), make("darkroom-ad-9-random"))
    folder = tmp_path_factory.mktemp("runs") / "finished"
    folders.create_folder(folder, setup.config)
    go(setup, folder, resume=False)
    return folder


@pytest.mark.slow
def test_resuming_a_finished_run_evaluates_and_nothing_else(finished, cli):
    kept = [*(finished / "checkpoints").rglob("*"), finished / "metrics.jsonl", finished / "config.json"]
    before = {path: path.read_bytes() for path in kept if path.is_file()}
    code, out, err = cli("train", "--resume", finished)
    assert (code, err) == (0, "")
    assert "episode 1 returns" in out and "next: relic-jax evaluate" in out
    assert {"curve.json", "curve.csv", "curve.png", "trial.gif"} <= {path.name for path in finished.iterdir()}
    assert {path: path.read_bytes() for path in before} == before
    curve = (finished / "curve.csv").read_bytes()
    assert cli("train", "--resume", finished)[0] == 0
    assert (finished / "curve.csv").read_bytes() == curve


@pytest.mark.slow
def test_stopping_the_evaluation_says_how_to_go_on(tmp_path, finished, cli, monkeypatch):
    def evaluate(policies, config, split, progress, *_):
        signal.raise_signal(signal.SIGTERM)
        progress(0.5)

    monkeypatch.setattr(run, "evaluate_policies", evaluate)
    code, out, err = cli("train", "--resume", finished)
    assert (code, err) == (143, "")
    assert f"stopped during evaluation, nothing written; resume with: relic-jax train --resume {finished}" in out


# --- non-finite values ---


@struct.dataclass
class PoisonedTask:
    """Returns NaN rewards from step `reward_at` of an episode on, and NaN observations from `observation_at` on."""

    goal: jax.Array
    reward_at: jax.Array
    observation_at: jax.Array


NEVER = 1000


@dataclasses.dataclass(frozen=True)
class Poisoned(Darkroom):
    def step(self, key, state, action, task):
        state, timestep = super().step(key, state, action, DarkroomTask(task.goal))
        reward = jnp.where(state.step >= task.reward_at, jnp.nan, timestep.reward)
        observation = jnp.where(state.step >= task.observation_at, jnp.nan, timestep.observation)
        return state, timestep.replace(reward=reward, observation=observation)

    def tasks(self, split):
        goal = super().tasks(split).goal
        never = np.full(len(goal), NEVER, np.int32)
        return PoisonedTask(goal, never, never)


POISONED = Poisoned("darkroom-ad-9-random", 9, 9, 64, start="random")
"""Length of an episode, which is that of a trial, so steps 33 … 48 belong to the third update."""


@pytest.fixture(scope="module")
def poisoned(tiny):
    return functools.cache(lambda chunk: prepare(tiny(chunk), POISONED))


@pytest.fixture
def poison(monkeypatch):
    """Return `poison(reward_at=…)`, which sets the running tasks of resumed runs."""

    def set_tasks(**steps):
        def poisoned_restore(setup, checkpoints):
            state, progress = restore(setup, checkpoints)
            task = state.trial.task
            new = {name: jnp.full_like(getattr(task, name), step) for name, step in steps.items()}
            return state.replace(trial=state.trial.replace(task=task.replace(**new))), progress

        monkeypatch.setattr(training, "restore", poisoned_restore)

    return set_tasks


def assert_all_checkpoints_finite(setup, folder):
    for step in checkpoint.complete_steps(folder):
        params = checkpoint.load_params(folder / str(step), jax.eval_shape(setup.policy.init, jax.random.key(0)))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    for leaf in jax.tree.leaves(restore(setup, folder)[0]):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "when", "first_nonfinite"),
    [
        ("reward_at", 40, "reward"),
        ("reward_at", 48, "reward"),  # the segment's last step
        ("observation_at", 40, "observation"),
        ("observation_at", 48, "observation"),  # read in this segment by the bootstrap value only
    ],
)
def test_nan_from_the_environment_stops_the_run_and_names_step_array_and_checkpoint(
    poisoned, poison, tmp_path, what, when, first_nonfinite
):
    setup = poisoned("segment")
    poison(**{what: when})
    with pytest.raises(NonFiniteError) as error:
        go(setup, tmp_path, resume=True)
    message = str(error.value)
    assert "\n" not in message and f"environment step {3 * PER_UPDATE}: " in message
    step = when if what == "observation_at" else when - 1  # an observation belongs to the step that acts on it
    assert f"; darkroom-ad-9-random, environment 0, step {step} of its trial); " in message
    assert f": {first_nonfinite} (" in message
    assert message.endswith(f"last good checkpoint: {tmp_path / 'checkpoints' / str(2 * PER_UPDATE)}")
    assert checkpoint.complete_steps(tmp_path / "checkpoints")[-1] == 2 * PER_UPDATE
    assert [line["env_steps"] for line in read_lines(tmp_path / "metrics.jsonl")] == [PER_UPDATE, 2 * PER_UPDATE]
    assert_all_checkpoints_finite(setup, tmp_path / "checkpoints")


@pytest.mark.slow
def test_nan_in_one_environment_names_it_and_its_task(tiny, tmp_path, monkeypatch):
    setup = prepare(tiny("segment", devices=2), POISONED)
    tasks = dataclasses.replace(setup.tasks, reward_at=setup.tasks.reward_at.copy())
    tasks.reward_at[7] = 20

    def poisoned_restore(setup, checkpoints):
        state, progress = restore(setup, checkpoints)
        task = jax.tree.map(lambda own, every: own.at[3].set(every[7]), state.trial.task, tasks)
        return state.replace(trial=state.trial.replace(task=task)), progress

    monkeypatch.setattr(training, "restore", poisoned_restore)
    with pytest.raises(NonFiniteError, match=r"environment 3, step 19 of its trial, training task 7\)"):
        go(dataclasses.replace(setup, tasks=tasks), tmp_path, resume=True)


def test_seeds_are_named_where_tasks_are_seeds():
    assert training.task_text(np.array([11, 12, 13]), 1) == " (12)"
    assert training.task_text({"a": np.zeros(3), "b": np.zeros(3)}, 1) == training.task_text(np.zeros((3, 2)), 1) == ""


@pytest.mark.slow
def test_nan_within_a_trial_chunk_names_its_update_and_saves_nothing_of_the_chunk(poisoned, poison, tmp_path):
    poison(reward_at=40)
    with pytest.raises(NonFiniteError) as error:
        go(poisoned("trial"), tmp_path, resume=True)
    assert f"environment step {3 * PER_UPDATE}: reward" in str(error.value)
    assert str(error.value).endswith("last good checkpoint: none yet")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_nan_on_the_command_line_is_one_line_and_exit_code_1(poisoned, poison, tmp_path, cli, monkeypatch):
    setup = poisoned("segment")
    monkeypatch.setattr(run, "make_env", lambda *_: POISONED)
    folders.create_folder(tmp_path / "run", setup.config)
    poison(reward_at=20)
    code, _, err = cli("train", "--resume", tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / str(PER_UPDATE)
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"relic-jax: not finite at environment step {2 * PER_UPDATE}: reward (")
    assert err.endswith(f"; last good checkpoint: {last}\n")


@pytest.mark.slow
def test_poisoned_parameters_stop_the_run_and_leave_the_checkpoint_intact(whole, tmp_path, monkeypatch):
    setup, _ = whole
    with pytest.raises(Killed):
        go(setup, tmp_path, resume=False, at=kill_at(5))
    before = outcome(setup, tmp_path)[0]

    def with_a_nan(setup, checkpoints):
        state, progress = restore(setup, checkpoints)
        bias = state.params["actor"]["bias"]
        return state.replace(
            params=state.params | {"actor": {**state.params["actor"], "bias": bias * jnp.nan}}
        ), progress

    with monkeypatch.context() as patch:
        patch.setattr(training, "restore", with_a_nan)
        with pytest.raises(NonFiniteError, match=f"step {5 * PER_UPDATE}: log_prob .* checkpoint: .*{4 * PER_UPDATE}$"):
            go(setup, tmp_path, resume=True)
    assert outcome(setup, tmp_path)[0] == before
    assert_all_checkpoints_finite(setup, tmp_path / "checkpoints")


# --- real processes ---

OPTIONS = ["--total-steps=32000", "--policy.transformer.layers=1", "--eval.tasks=2", *processes.OPTIONS]


@pytest.mark.slow
def test_killed_terminated_and_interrupted_processes_end_as_if_nothing_had_been(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start("darkroom-smoke", *OPTIONS, "--runs", tmp_path, "--name", "whole")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), err
    total = logged(whole)
    assert total == 32 and "trained 32,000 steps" in out

    process = start("darkroom-smoke", *OPTIONS, "--runs", tmp_path, "--name", "cut")
    wait_until((cut / "config.json").exists, process)
    end(process, signal.SIGKILL, -signal.SIGKILL)
    assert checkpoint.complete_steps(cut / "checkpoints") == []

    process = start("--resume", cut)
    wait_until(lambda: logged(cut) >= 3 and any((cut / "checkpoints").glob("*.tmp")), process)
    end(process, signal.SIGKILL, -signal.SIGKILL)
    assert logged(cut) < total

    process, here = start("--resume", cut), logged(cut)
    wait_until(lambda: logged(cut) > here + 1, process)
    time.sleep(random.uniform(0, 0.5))
    end(process, signal.SIGKILL, -signal.SIGKILL)
    assert logged(cut) < total

    for number in (signal.SIGTERM, signal.SIGINT):
        process, here = start("--resume", cut), logged(cut)
        wait_until(lambda here=here: logged(cut) > here, process)
        out, err = end(process, number, 128 + number)
        assert err == "" and out.splitlines()[-1].startswith("stopped at ")
        assert out.splitlines()[-1].endswith(f"saved; resume with: relic-jax train --resume {cut}")
        assert logged(cut) < total

    process = start("--resume", cut)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), err
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    config = checkpoint.load_meta(checkpoint.find(whole))[0]
    assert config == checkpoint.load_meta(checkpoint.find(cut))[0]
    setup = prepare(replace(config, devices=1), make(config.env))
    final = [restore(setup, folder / "checkpoints")[0] for folder in (whole, cut)]
    assert arrays(final[0]) == arrays(final[1])
    assert (cut / "curve.csv").read_bytes() == (whole / "curve.csv").read_bytes()
