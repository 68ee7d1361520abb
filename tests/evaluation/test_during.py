"""Evaluation during training: which evaluations a run makes, and that training does not depend on them."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from relic_jax.config import ConfigError, EvalConfig, validate
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves, in_jit
from relic_jax.evaluation.during import Evaluations, summary
from relic_jax.experiments.faults.processes import arrays
from relic_jax.metrics import JsonLines, read_evaluations
from relic_jax.rl.train import prepare, restore, train

pytestmark = pytest.mark.usefixtures("compile_once")

EVERY = EvalConfig(episodes=3, every=100, every_tasks=3, every_episodes=2)


class Killed(BaseException):
    """Represents SIGKILL: no cleanup runs after it."""


class Killing(JsonLines):
    """Kills the run before a record is logged, or after an evaluation."""

    def __init__(self, folder, env_steps, log=None, evaluated=None):
        super().__init__(folder, env_steps)
        self._log, self._evaluated = log, evaluated

    def log(self, record, clock):
        if record["env_steps"] == self._log:
            raise Killed
        super().log(record, clock)

    def evaluated(self, evaluation):
        if evaluation["env_steps"] == self._evaluated:
            raise Killed


@pytest.fixture(scope="module")
def setup(tiny):
    """64 steps per update, 512 in all."""
    return prepare(tiny(eval=EVERY), make("darkroom-ad-9-random"))


def go(setup, folder, *, resume=False, **kills):
    folder.mkdir(exist_ok=True)
    return train(setup, folder, lambda env_steps: Killing(folder, env_steps, **kills), resume=resume)


def outcome(setup, folder):
    return arrays(restore(setup, folder / "checkpoints")[0]), (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(setup, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert go(setup, folder).finished
    return folder


@pytest.mark.slow
def test_a_run_evaluates_at_the_start_after_each_multiple_and_at_the_end(whole):
    found = read_evaluations(whole / "evaluations.jsonl")
    assert [x["env_steps"] for x in found] == [0, 128, 256, 320, 448, 512]  # chunks of 64 at or after 100, 200, …
    for record in found:
        assert (record["tasks"], record["episodes"]) == (3, 2)
        assert len(record["return"]) == len(record["success"]) == 2
        assert len(record["first_by_task"]) == len(record["later_by_task"]) == len(record["success_by_task"]) == 3
        assert record["first"] == pytest.approx(np.mean(record["first_by_task"]), abs=1e-6)
        assert record["reference_returns"] == found[0]["reference_returns"]
    assert (whole / "evaluations.jsonl").stat().st_size < 600 * len(found)


@pytest.mark.slow
def test_an_evaluation_is_that_of_the_parameters_at_its_step(setup, whole):
    state, progress = restore(setup, whole / "checkpoints")
    curves = in_context_curves(setup.policy, state.params, setup.trials.env, EVERY.during_training, seed=0)
    last = read_evaluations(whole / "evaluations.jsonl")[-1]
    assert last["env_steps"] == progress.env_steps
    assert {name: last[name] for name in summary(curves, 3)} == summary(curves, 3)


@pytest.mark.slow
def test_training_is_bit_for_bit_the_same_without_evaluation(setup, whole, tmp_path):
    config = dataclasses.replace(setup.config, eval=dataclasses.replace(EVERY, every=None))
    without = dataclasses.replace(setup, config=config)
    go(without, tmp_path)
    assert not (tmp_path / "evaluations.jsonl").exists()
    for ours, theirs in zip(outcome(without, tmp_path), outcome(setup, whole), strict=True):
        chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [{"log": 320}, {"evaluated": 256}, {"evaluated": 0}, {"evaluated": 512}],
    ids=["before an evaluation", "after an evaluation", "after the first", "after the last"],
)
def test_a_resumed_run_makes_the_evaluations_of_an_uninterrupted_one(setup, whole, tmp_path, kills):
    with pytest.raises(Killed):
        go(setup, tmp_path, **kills)
    go(setup, tmp_path, resume=True)
    assert (tmp_path / "evaluations.jsonl").read_bytes() == (whole / "evaluations.jsonl").read_bytes()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_an_evaluation_that_was_stopped_is_made_after_resuming(setup, whole, tmp_path):
    class Stop:
        def is_set(self):
            return True

    params = restore(setup, whole / "checkpoints")[0].params
    stopped = Evaluations(setup, tmp_path, 512)
    assert stopped(params, 512, Stop()) is None
    stopped.close()
    resumed = Evaluations(setup, tmp_path, 512)
    assert resumed(params, 512)["env_steps"] == 512
    assert resumed(params, 512) is None  # once
    resumed.close()


def test_a_damaged_line_is_kept_aside(setup, whole, tmp_path, capsys):
    lines = (whole / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "evaluations.jsonl").write_bytes(lines[0] + b"garbage\n" + lines[2])
    Evaluations(setup, tmp_path, 512).close()
    assert (tmp_path / "evaluations.jsonl").read_bytes() == lines[0]
    assert "line 2 cannot be read" in capsys.readouterr().err
    assert (tmp_path / "evaluations.jsonl.damaged-1").exists()


def test_a_second_evaluation_compiles_nothing(setup, whole, tmp_path):
    params = restore(setup, whole / "checkpoints")[0].params
    in_jit.compiled_chunk.cache_clear()
    evaluate = Evaluations(setup, tmp_path, 0)
    evaluate(params, 0)
    chunk = in_jit.compiled_chunk(setup.policy, setup.trials, in_jit.acting_options(EVERY), setup.trials.env.horizon, 1)
    compiled = chunk._cache_size()
    evaluate(jax.tree.map(lambda x: x + 1, params), 128)
    evaluate.close()
    assert chunk._cache_size() == compiled > 0
    assert in_jit.compiled_chunk.cache_info().misses == 1


@pytest.mark.parametrize("field", ["every", "every_tasks", "every_episodes"])
def test_fields_are_more_than_0(tiny, field):
    config = tiny(eval=EvalConfig(**{field: 0}))
    with pytest.raises(ConfigError, match=f"eval.{field} is 0; allowed: more than 0"):
        validate(config, horizon=10)


def test_evaluations_during_training_are_cheap_by_default():
    assert EvalConfig(episodes=40, repeats=5).during_training == EvalConfig(episodes=10, tasks=20)
    assert EvalConfig(episodes=4, tasks=7).during_training == EvalConfig(episodes=4, tasks=7)
    assert EvalConfig(every_episodes=30, every_tasks=2, tasks=7).during_training == EvalConfig(episodes=30, tasks=2)


@pytest.mark.slow
def test_the_command_line_writes_evaluations(cli, tmp_path):
    options = ["--total-steps=1000", "--trial.environments=4", "--eval.every=500", "--eval.every-tasks=2"]
    code, out, err = cli("train", "darkroom-smoke", "--runs", tmp_path, "--name=r", "--devices=1", *options)
    assert code == 0, err
    found = [json.loads(line) for line in (tmp_path / "r" / "evaluations.jsonl").read_text().splitlines()]
    assert [x["env_steps"] for x in found] == [0, 1000]
    assert out.count("held-out tasks: first episode") == 2
