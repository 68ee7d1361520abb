"""A run folder that was written with checkpoints of format 1 can be loaded, evaluated and resumed.

`tests/data/format-1` was stopped in the middle of its second trial; `expected.jsonl` is what it would have written.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from relic_jax import checkpoint, prng
from relic_jax.envs.registry import make
from relic_jax.loading import load_policy
from relic_jax.metrics import read_lines
from relic_jax.rl.train import prepare, restore

DATA = Path(__file__).parents[1] / "data" / "format-1"
STEPS = 320


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(DATA, tmp_path / "old"))


def test_every_number_of_the_state_is_as_it_was(old):
    path = checkpoint.find(old)
    config, counters = checkpoint.load_meta(path)
    assert counters["env_steps"] == STEPS and checkpoint.load_prng(path) == prng.ORIGINAL
    state, progress = restore(prepare(config, make(config.env), resume=True), old / "checkpoints")
    assert int(state.env_steps) == progress.env_steps == STEPS
    stored = ocp.load_checkpointables(path / "arrays")
    stored = {"params": stored["params"], **{name: x for name, x in stored["rest"].items() if name != "params"}}
    assert stored.pop("env_steps") == STEPS
    found = state.replace(key=jax.random.key_data(state.key), env_steps={})
    kept = dict(jax.tree_util.tree_leaves_with_path(stored))
    assert len(jax.tree.leaves(found)) == len(kept) > 30
    names = {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in kept.items()}
    for path, value in jax.tree_util.tree_leaves_with_path(found):
        same = names[jax.tree_util.keystr(path, simple=True, separator=".")]
        assert value.dtype == same.dtype
        np.testing.assert_array_equal(value, same)


def test_it_is_resumed_to_the_end_and_evaluated(old, cli, capsys):
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
