"""Checkpoints store the attention kernels of a run, and resuming with other kernels logs a line."""

import dataclasses
import json

import jax
import pytest

from relic_jax import checkpoint
from relic_jax.config import PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.envs.registry import make
from relic_jax.files import write_checksums
from relic_jax.models.attention import cpu
from relic_jax.models.policy import Policy
from relic_jax.rl import train as training
from relic_jax.rl.attention_kernels import used_kernels
from relic_jax.rl.train import prepare, restore
from relic_jax.spaces import vector_spaces

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not cpu.available(8), reason="needs a CPU and a C++ compiler"
)


def policy_of(**fields):
    return Policy(PolicyConfig(**fields), vector_spaces((0.0,), (1.0,), Discrete(3)))


@pytest.fixture
def without_a_compiler(monkeypatch, tmp_path):
    """Simulate a process that starts without a compiler and without a cached kernel."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu.available.cache_clear()
    yield
    cpu.available.cache_clear()


def test_used_kernels():
    """With int8, the memory for acting is a float32 copy, which the compiled kernel supports."""
    int8 = TransformerConfig(cache="int8")
    assert used_kernels(policy_of()) == {"block": "cpu", "decode": "cpu", "peek": "cpu"}
    assert used_kernels(policy_of(transformer=int8)) == {"block": "tiled", "decode": "cpu", "peek": "cpu"}
    assert used_kernels(policy_of(memory="gru")) == {}


@pytest.fixture
def saved(tiny, tmp_path):
    """Return (setup, checkpoint folder) with one checkpoint."""
    transformer = TransformerConfig(layers=1, heads=2, width=16, mlp_width=16, max_positions=64)
    config = dataclasses.replace(tiny(), policy=PolicyConfig(transformer))
    setup = prepare(config, make(config.env))
    training.save(setup, tmp_path / "checkpoints", *restore(setup, tmp_path / "checkpoints"))
    return setup, tmp_path / "checkpoints"


def test_resuming_with_the_same_kernels_logs_nothing(saved, caplog):
    setup, folder = saved
    assert checkpoint.load_kernels(folder / "0") == {"block": "cpu", "decode": "cpu", "peek": "cpu"}
    restore(setup, folder)
    assert not caplog.records


def test_resuming_without_a_compiler_logs_one_line(saved, caplog, without_a_compiler):
    setup, folder = saved
    restore(setup, folder)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "attention kernels differ from those of the checkpoint (block: 'cpu' → 'tiled', decode: 'cpu' → 'reference', "
        "peek: 'cpu' → 'tiled'): training continues, but not bit for bit"
    )


@pytest.mark.parametrize("stored", [None, 3, {}, {"block": 3}, {"other": "cpu"}])
def test_a_checkpoint_that_names_no_kernels_is_restored(saved, caplog, stored):
    """Checkpoints of version 0.1 have no such field."""
    setup, folder = saved
    meta = json.loads((folder / "0" / "meta.json").read_text())
    del meta["kernels"]
    meta |= {} if stored is None else {"kernels": stored}
    (folder / "0" / "meta.json").write_text(json.dumps(meta))
    write_checksums(folder / "0")
    restore(setup, folder)
    assert not caplog.records
