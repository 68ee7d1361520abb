"""Runs of 10¹² steps: state, schedules, records, checkpoints and resuming, over 2³¹, over 2³² and to the end."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import checkpoint
from relic_jax.envs.registry import make
from relic_jax.experiments import folders
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl import runner
from relic_jax.rl.steps import StepCount
from relic_jax.rl.train import Progress, prepare, restore, save, train
from relic_jax.tracking import Console

pytestmark = pytest.mark.slow

PER_UPDATE = 64
TOTAL = 10**12  # a multiple of the steps of a trial, 256


class Stopped(BaseException):
    """Represents the end of a process."""


@pytest.fixture(scope="module")
def setup(tiny):
    return prepare(tiny(total_steps=TOTAL), make("darkroom-ad-9-random"))


@pytest.fixture(autouse=True)
def compile_once(setup, monkeypatch):
    if not hasattr(compile_once, "chunk"):
        compile_once.chunk = runner.compile_chunk(setup)
    monkeypatch.setattr(runner, "compile_chunk", lambda _: compile_once.chunk)


def standing_at(setup, folder, steps):
    """Return a run folder whose checkpoint is an initial state with its step counter at `steps`."""
    folders.create_folder(folder, setup.config)
    state, _ = restore(setup, folder / "checkpoints")
    state = state.replace(env_steps=StepCount.of(steps))
    save(setup, folder / "checkpoints", state, Progress(env_steps=steps))


def go(setup, folder, stop=None):
    class Lines(JsonLines):
        def log(self, record, clock):
            super().log(record, clock)
            if record["env_steps"] == stop:
                raise Stopped

    return train(setup, folder, lambda env_steps: Lines(folder, env_steps), resume=True)


def check(setup, lines, start):
    ppo = setup.config.ppo
    assert [line["env_steps"] for line in lines] == [start + PER_UPDATE * (i + 1) for i in range(len(lines))]
    progress = np.array([line["env_steps"] for line in lines]) / TOTAL
    rates = ppo.lr_final + (ppo.lr - ppo.lr_final) * 0.5 * (1 + np.cos(np.pi * progress))
    np.testing.assert_allclose([line["lr"] for line in lines], rates, rtol=1e-5)
    assert all(np.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("border", [2**31, 2**32])
def test_over_a_border_of_32_bits(setup, tmp_path, border):
    start = border - 2 * PER_UPDATE
    folder = tmp_path / "run"
    standing_at(setup, folder, start)
    with pytest.raises(Stopped):
        go(setup, folder, stop=start + 4 * PER_UPDATE)
    assert checkpoint.complete_steps(folder / "checkpoints")[-1] == start + 3 * PER_UPDATE
    with pytest.raises(Stopped):  # resumed beyond the limit: records after the checkpoint are logged again
        go(setup, folder, stop=start + 5 * PER_UPDATE)
    check(setup, read_lines(folder / "metrics.jsonl"), start)


def test_to_the_end_of_10_to_the_12(setup, tmp_path, cli):
    start = TOTAL - 4 * PER_UPDATE
    folder = tmp_path / "run"
    standing_at(setup, folder, start)
    code, out, error = cli("train", "--resume", folder)
    assert code == 0, error
    lines = read_lines(folder / "metrics.jsonl")
    check(setup, lines, start)
    assert lines[-1]["env_steps"] == TOTAL and f"trained {TOTAL:,} steps" in out
    state, progress = restore(setup, folder / "checkpoints")
    assert int(state.env_steps) == progress.env_steps == TOTAL
    assert state.env_steps.high == TOTAL // 2**32 == 232 and state.env_steps.low.dtype == jnp.uint32
    assert json.loads((checkpoint.find(folder) / "meta.json").read_text())["step"] == TOTAL
    console = Console(TOTAL).line(lines[-1], {"steps_per_second": 1.0, "seconds_left": 0.0})
    assert f"{TOTAL:,}/{TOTAL:,} steps (100%)" in console
