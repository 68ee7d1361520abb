"""Results do not depend on JAX's global settings, or a one-line error refuses the setting."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import relic_jax
from relic_jax import checkpoint, prng, settings
from relic_jax.config import EvalConfig
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl import runner
from relic_jax.rl.train import prepare, restore, train

pytestmark = pytest.mark.usefixtures("compile_once")

DATA = Path(__file__).parents[1] / "data" / "format-1"
SET = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
}


@pytest.mark.slow
def test_a_run_is_resumed_evaluated_and_exported_under_every_setting(tmp_path):
    """The run started with threefry and 32 bits, and continues with the results of these settings."""
    run = shutil.copytree(DATA, tmp_path / "run")
    code = (
        "import sys\nfrom relic_jax.experiments.cli import main\n"
        "for line in ('train --resume run', 'export run --to exported'):\n"
        "    sys.argv = ['relic-jax', *line.split()]\n    main()\n"
    )
    command, everything = [sys.executable, "-c", code], {**os.environ, **SET}
    done = subprocess.run(command, cwd=tmp_path, env=everything, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    lines, expected = (read_lines(run / name) for name in ("metrics.jsonl", "expected.jsonl"))
    assert len(lines) == len(expected)
    for line, same in zip(lines, expected, strict=True):
        np.testing.assert_allclose(list(line.values()), list(same.values()), rtol=1e-4, atol=1e-6)
    assert checkpoint.load_prng(checkpoint.find(run)) == prng.ORIGINAL
    assert (run / "curve.json").is_file() and relic_jax.load_policy(tmp_path / "exported").training["env_steps"] == 512


class Killed(BaseException):
    """Represents SIGKILL."""


def go(setup, folder, *, resume=False, at=None):
    class Lines(JsonLines):
        def log(self, record, clock):
            if record["env_steps"] == at:
                raise Killed
            super().log(record, clock)

    folder.mkdir(exist_ok=True)
    return train(setup, folder, lambda env_steps: Lines(folder, env_steps), resume=resume)


@pytest.mark.slow
def test_a_run_goes_on_with_the_generator_that_it_began_with(tiny, tmp_path):
    setup = prepare(tiny(), make("darkroom-ad-9-random"))
    with jax.default_prng_impl("rbg"):
        whole = go(setup, tmp_path / "whole")
        with pytest.raises(Killed):
            go(setup, tmp_path / "cut", at=192)
    assert str(jax.config.jax_default_prng_impl) == "threefry2x32"
    cut = go(setup, tmp_path / "cut", resume=True)
    assert whole.state.key.dtype == cut.state.key.dtype != jax.random.key(0).dtype
    for one, other in zip(jax.tree.leaves(whole.state), jax.tree.leaves(cut.state), strict=True):
        one, other = (jax.random.key_data(x) if "key" in str(x.dtype) else x for x in (one, other))
        np.testing.assert_array_equal(one, other)
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    assert checkpoint.load_prng(checkpoint.find(tmp_path / "cut"))["implementation"] == "rbg"
    with jax.default_prng_impl("unsafe_rbg"):
        assert restore(setup, tmp_path / "cut" / "checkpoints")[0].key.dtype == whole.state.key.dtype


def test_evaluations_agents_and_tasks_are_the_same_under_every_setting(begun_run):
    loaded = relic_jax.load_policy(begun_run)
    env, config = make("darkroom-ad-9"), EvalConfig(episodes=2, tasks=3)

    def results():
        curves = in_context_curves(loaded.policy, loaded.params, env, config)
        agent = loaded.agent(capacity=8)
        return curves.returns, [agent.step(np.zeros(2, np.float32)) for _ in range(4)]

    returns, actions = results()
    with jax.default_prng_impl("rbg"), jax.enable_x64(True), jax.threefry_partitionable(False):
        house = make("house-objnav-small")
        other = jax.random.key_data(prng.key(7))
        same_returns, same_actions = results()
    np.testing.assert_array_equal(returns, same_returns)
    assert actions == same_actions and house.horizon > 0
    np.testing.assert_array_equal(other, jax.random.key_data(jax.random.key(7)))


def test_what_cannot_work_is_refused_by_name(begun_run, cli, monkeypatch):
    monkeypatch.setattr(runner, "compile_chunk", None)  # no computation runs
    with jax.disable_jit():
        for arguments in (("train", "darkroom-smoke"), ("train", "--resume", begun_run), ("evaluate", begun_run)):
            code, _, error = cli(*arguments)
            assert code == 2 and error.count("\n") == 1 and "JAX_DISABLE_JIT" in error


def test_settings_are_set_aside_and_put_back():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        with settings.standard():
            assert not jax.config.jax_enable_x64 and jax.config.jax_numpy_dtype_promotion == "standard"
            assert jax.numpy.zeros(()).dtype == np.float32
        assert jax.config.jax_enable_x64 and jax.config.jax_numpy_dtype_promotion == "strict"


def test_a_number_that_jax_finds_is_one_line(begun_run, cli, monkeypatch):
    def found(_):
        raise FloatingPointError("invalid value (nan) encountered in jit(step)")

    monkeypatch.setattr("relic_jax.experiments.evaluation.evaluate_main", found)
    code, _, error = cli("evaluate", begun_run)
    assert code == 1 and error.startswith("relic-jax: invalid value (nan)") and error.count("\n") == 1
