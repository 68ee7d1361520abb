"""Runs of one program: each gives what it gives alone up to rounding, and bit for bit the same after a kill."""

import dataclasses
import functools
import threading

import jax
import numpy as np
import pytest

from relic_jax.envs.registry import make
from relic_jax.experiments.faults.processes import arrays
from relic_jax.metrics import JsonLines
from relic_jax.rl import runner
from relic_jax.rl.population import Population
from relic_jax.rl.train import prepare, restore, train
from relic_jax.rl.train_runs import Run, batches, train_runs
from relic_jax.stopping import Stop

SEEDS = 3


class Killed(BaseException):
    """Represents SIGKILL: no cleanup runs after it."""


@pytest.fixture(scope="module")
def setup(tiny):
    return prepare(dataclasses.replace(tiny(), devices=1), make("darkroom-ad-9"))


@pytest.fixture(scope="module")
def setups(setup):
    return [changed(setup, seed) for seed in range(SEEDS)]


def changed(setup, seed, **ppo):
    config = dataclasses.replace(setup.config, seed=seed, ppo=dataclasses.replace(setup.config.ppo, **ppo))
    return dataclasses.replace(setup, config=config)


@pytest.fixture(scope="module")
def population(setups):
    """Return the program of three seeds on two devices, one run each."""
    return Population(setups, 2)


@pytest.fixture(scope="module")
def chunk(setup):
    """Return the compiled chunk of `train`, which does not read the seed."""
    return runner.compile_chunk(setup)


@pytest.fixture(scope="module")
def alone(setups, chunk, tmp_path_factory):
    """Return (state, metrics) of each seed, trained alone by `train`."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "compile_chunk", lambda _: chunk)
        for one in setups:
            folder = tmp_path_factory.mktemp("alone")
            assert train(one, folder, functools.partial(JsonLines, folder), resume=False).finished
            found.append((restore(one, folder / "checkpoints")[0], (folder / "metrics.jsonl").read_bytes()))
    return found


def outcome(setup, folder):
    return arrays(restore(setup, folder / "checkpoints")[0]), (folder / "metrics.jsonl").read_bytes()


def new_runs(setups, folder):
    runs = [Run(setup, folder / f"run{index}") for index, setup in enumerate(setups)]
    for run in runs:
        run.folder.mkdir(exist_ok=True)
    return runs


def logs(run):
    return JsonLines(run.folder, run.progress.env_steps)


def check_close(runs, alone):
    """Compare with runs alone. The compiler fuses the axis over runs into other loops, so sums round differently."""
    for run, (state, _) in zip(runs, alone, strict=True):
        found = restore(run.setup, run.checkpoints)[0]
        for x, y in zip(jax.tree.leaves(found.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5, rtol=0)
        np.testing.assert_array_equal(found.trajectory.action, state.trajectory.action)
        assert len((run.folder / "metrics.jsonl").read_bytes().splitlines()) == 8


@pytest.fixture(scope="module")
def together(setups, population, tmp_path_factory):
    """Return the runs, trained by the program without interruption."""
    runs = new_runs(setups, tmp_path_factory.mktemp("together"))
    divided = batches(runs, population.slots)
    assert [len(batch) for batch in divided] == [2, 1]  # the last batch leaves a slot empty
    for batch in divided:
        assert train_runs(population, batch, logs, Stop())
    assert all(run.is_trained for run in runs)
    return runs


def check_equal(runs, others):
    for run, other in zip(runs, others, strict=True):
        assert outcome(run.setup, run.folder) == outcome(other.setup, other.folder)


@pytest.mark.slow
def test_seeds_on_two_devices_equal_the_runs_alone(together, alone):
    check_close(together, alone)


@pytest.mark.slow
def test_a_killed_batch_continues_bit_for_bit(setups, population, together, tmp_path):
    runs = new_runs(setups[:2], tmp_path)
    stop = threading.Event()

    class Stopping(JsonLines):
        def log(self, record, clock):
            super().log(record, clock)
            stop.set()

    class Dying(JsonLines):
        def log(self, record, clock):
            raise Killed

    assert not train_runs(population, runs, lambda run: Stopping(run.folder, 0), Stop(stop))
    assert [run.saved_steps for run in runs] == [64, 64]
    again = new_runs(setups[:2], tmp_path)
    with pytest.raises(Killed):
        train_runs(population, again, lambda run: Dying(run.folder, run.progress.env_steps), Stop())
    again = new_runs(setups[:2], tmp_path)
    assert train_runs(population, again, logs, Stop())
    check_equal(again, together[:2])


@pytest.mark.slow
def test_a_run_of_a_batch_can_be_resumed_alone(setup, setups, population, alone, chunk, tmp_path, monkeypatch):
    runs = new_runs(setups[:2], tmp_path)
    stop = threading.Event()
    stop.set()
    assert not train_runs(population, runs, logs, Stop(stop))  # saves the state before the first step
    monkeypatch.setattr(runner, "compile_chunk", lambda _: chunk)
    one = runs[1]
    assert train(one.setup, one.folder, functools.partial(JsonLines, one.folder), resume=True).finished
    check_close([one], alone[1:2])


@pytest.mark.slow
def test_scalars_that_differ_are_traced(setup, setups, alone, tmp_path):
    other = changed(setup, 0, lr=10 * setup.config.ppo.lr, value_coef=0.3)
    both = [setups[0], other]
    population = Population(both, 1)
    assert population.scalars == ("lr", "value_coef")
    runs = new_runs(both, tmp_path)
    for batch in batches(runs, population.slots):
        assert train_runs(population, batch, logs, Stop())
    check_close(runs[:1], alone[:1])
    with pytest.raises(AssertionError):
        check_close(runs[1:], alone[:1])


@pytest.mark.slow
def test_runs_under_vmap_equal_the_runs_alone_up_to_rounding(setups, alone, tmp_path):
    population = Population(setups, 1, per_device=SEEDS)
    runs = new_runs(setups, tmp_path)
    (batch,) = batches(runs, population.slots)
    assert train_runs(population, batch, logs, Stop())
    check_close(runs, alone)


@pytest.mark.slow
def test_a_run_that_is_not_finite_ends_and_the_others_continue(setups, population, together, tmp_path, monkeypatch):
    step = population.step

    def broken(*arguments):
        states, metrics = step(*arguments)
        bad = np.array(metrics["nonfinite/loss"])
        bad[0] = 1.0
        return states, {**metrics, "nonfinite/loss": bad}

    monkeypatch.setattr(population, "step", broken)
    runs = new_runs(setups[:2], tmp_path)
    assert train_runs(population, runs, logs, Stop())
    assert "not finite" in str(runs[0].error) and runs[1].error is None
    assert not runs[0].is_trained
    check_equal(runs[1:], together[1:2])
