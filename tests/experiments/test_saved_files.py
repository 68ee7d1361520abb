"""Files of earlier versions: run folders are evaluated and resumed, exports act.

`tests/data/format-1` and `format-2` are runs that were interrupted in their second trial. `expected.jsonl`
holds the metrics of the same runs without interruption. `exports-2` holds three exports of one policy, contexts that
were saved after 15 steps, and the actions and outputs of 30 steps.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from relic_jax import checkpoint, config, prng, runtime
from relic_jax.envs.registry import make
from relic_jax.loading import load_policy
from relic_jax.metrics import read_lines
from relic_jax.rl.train import prepare, restore

DATA = Path(__file__).parents[1] / "data"
EXPORTS = DATA / "exports-2"
STEPS = 320


@pytest.fixture(params=["format-1", "format-2"])
def old(request, tmp_path):
    return Path(shutil.copytree(DATA / request.param, tmp_path / "old"))


def test_every_number_of_the_state_is_restored(old):
    path = checkpoint.find(old)
    config, counters = checkpoint.load_meta(path)
    assert counters["env_steps"] == STEPS and checkpoint.load_prng(path) == prng.ORIGINAL
    state, progress = restore(prepare(config, make(config.env), resume=True), old / "checkpoints")
    assert int(state.env_steps) == progress.env_steps == STEPS
    stored = ocp.load_checkpointables(path / "arrays")
    stored = {"params": stored["params"], **{name: x for name, x in stored["rest"].items() if name != "params"}}
    counter = stored.pop("env_steps")  # format 1: one number
    assert (counter["low"] if isinstance(counter, dict) else counter) == STEPS
    found = state.replace(key=jax.random.key_data(state.key), env_steps={})
    kept = dict(jax.tree_util.tree_leaves_with_path(stored))
    assert len(jax.tree.leaves(found)) == len(kept) > 30
    names = {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in kept.items()}
    for path, value in jax.tree_util.tree_leaves_with_path(found):
        same = names[jax.tree_util.keystr(path, simple=True, separator=".")]
        assert value.dtype == same.dtype
        np.testing.assert_array_equal(value, same)


@pytest.mark.slow
def test_a_run_is_resumed_to_the_end_and_evaluated(old, cli, capsys):
    code, out, error = cli("train", "--resume", old)
    assert code == 0, error
    assert "trained 512 steps" in out
    lines, expected = (read_lines(old / name) for name in ("metrics.jsonl", "expected.jsonl"))
    assert lines[:5] == expected[:5] and len(lines) == 8
    for line, same in zip(lines, expected, strict=True):
        assert line.keys() == same.keys()
        np.testing.assert_allclose(list(line.values()), list(same.values()), rtol=1e-4, atol=1e-6)
    assert json.loads((checkpoint.find(old) / "meta.json").read_text())["format"] == checkpoint.FORMAT
    assert {path.name for path in (old / "checkpoints").iterdir()} == {"448", "512"}


def test_its_policy_is_evaluated(old, cli):
    assert load_policy(old).training["env_steps"] == STEPS
    code, out, error = cli("evaluate", old, "--limit", 2, "--episodes", 2)
    assert code == 0 and "episode 1 returns" in out, error


@pytest.mark.parametrize("name", ["gym", "habitat", "habitat-lab", "suite"])
def test_configs_of_every_family_load(name):
    assert config.from_json((DATA / "configs-2" / f"{name}.json").read_text()).total_steps == 512


def _check_steps(agent, expected, start, stop):
    for t in range(start, stop):
        observation = np.random.default_rng(t).integers(0, 9, 2).astype(np.float32)
        action = agent.step(observation, reward=float(t % 3 == 0), terminated=t > 0 and t % 10 == 0)
        assert action == expected[t]["action"]
        for name in ("value", "logits"):
            np.testing.assert_allclose(agent.outputs[name][0], expected[t][name], rtol=1e-5, atol=1e-6)


def _agent(format):
    if format == "safetensors":
        return load_policy(EXPORTS / format).agent(capacity=128, seed=3)
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    return runtime.load(EXPORTS / format, seed=3)


@pytest.mark.parametrize("format", ["safetensors", "stablehlo", "onnx"])
def test_an_export_acts_and_goes_on_with_a_saved_context(format):
    expected = json.loads(
        (EXPORTS / f"{'safetensors' if format == 'safetensors' else 'run'}-expected.json").read_text()
    )
    _check_steps(_agent(format), expected, 0, 30)
    agent = _agent(format)
    agent.restore(EXPORTS / f"{format}-context.safetensors")
    assert agent.steps == 15
    _check_steps(agent, expected, 15, 30)
    assert load_policy(EXPORTS / format).training["env_steps"] == 512


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_the_run_py_of_an_earlier_export_still_runs(format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    command = [sys.executable, EXPORTS / format / "run.py"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "ms a step" in done.stdout, done.stderr
