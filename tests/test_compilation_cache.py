"""The cache of compiled programs: its folder, its bound, what has precedence over it, and runs that load from it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import compilation_cache
from relic_jax.loading import load_policy
from relic_jax.private_folder import is_safe

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners of files")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return the cache folder of a user who has set nothing. It does not exist yet."""
    for folder in (tmp_path, *tmp_path.parents):
        if not is_safe(os.lstat(folder)):
            pytest.skip(f"others can write to {folder}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.jax_cache.reset_cache()
    yield tmp_path / "cache" / "relic-jax"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.jax_cache.reset_cache()


def programs(folder):
    return sorted(folder.rglob("*-cache"))


def compile_something(number=1.0):
    return jax.jit(lambda x: x * number)(jnp.ones(3)).block_until_ready()


def test_programs_are_stored_in_a_private_folder_and_loaded_again(home):
    with compilation_cache.used():
        compile_something()
    stored = programs(home)
    assert stored
    for folder in (home, home / "programs", stored[0].parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    times = [path.stat().st_mtime_ns for path in stored]
    jax.clear_caches()
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
    with compilation_cache.used():
        compile_something()
    assert hits.count("/jax/compilation_cache/cache_hits") == len(stored)
    assert programs(home) == stored and [path.stat().st_mtime_ns for path in stored] == times


def test_settings_are_restored(home):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = [getattr(jax.config, name) for name in names]
    for enabled in (True, False):
        with compilation_cache.used(enabled):
            assert [getattr(jax.config, name) for name in names] != before
        assert [getattr(jax.config, name) for name in names] == before
    compile_something(2.0)
    assert not programs(home)


@pytest.mark.parametrize("setting", ["folder", "disabled", "variable"])
def test_the_users_settings_have_precedence(home, setting, tmp_path, monkeypatch):
    own = tmp_path / "own"
    if setting == "folder":
        jax.config.update("jax_compilation_cache_dir", str(own))
    elif setting == "disabled":
        jax.config.update("jax_enable_compilation_cache", False)
    else:
        monkeypatch.setenv(compilation_cache.VARIABLE, "0")
    try:
        with compilation_cache.used():
            compile_something(3.0)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not home.exists() and bool(programs(own)) == (setting == "folder")


def test_disabled_it_writes_nothing_even_into_the_users_folder(home, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with compilation_cache.used(False):
        compile_something(4.0)
    assert not programs(tmp_path)


def test_an_unwritable_folder_is_one_line(home, capsys):
    home.parent.write_text("a file")
    with compilation_cache.used():
        compile_something(5.0)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "not cached" in error


def test_the_folder_is_bounded_and_keeps_what_was_used_last(tmp_path):
    for index in range(10):
        path = tmp_path / "here" / f"{index}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (index, index))
    os.utime(tmp_path / "here" / "0-cache", (99, 0))  # written first, read last
    compilation_cache.prune(tmp_path, limit=1000)
    assert len(programs(tmp_path)) == 10
    compilation_cache.prune(tmp_path, limit=999)
    assert [path.name[0] for path in programs(tmp_path)] == list("0456789")
    assert sum(path.stat().st_size for path in programs(tmp_path)) <= 800


def test_damaged_programs_are_compiled_again(home):
    with compilation_cache.used():
        compile_something(6.0)
    contents = {path: path.read_bytes() for path in programs(home)}
    for path, content in contents.items():
        path.write_bytes(content[: len(content) // 2])
    jax.clear_caches()
    with compilation_cache.used():
        assert not programs(home)
        compile_something(6.0)
    assert set(programs(home)) >= set(contents)


@pytest.mark.slow
def test_a_run_is_the_same_bit_for_bit_with_loaded_programs(home, tmp_path):
    """Three processes: one that stores programs, one that loads them, one without the cache."""
    script = "import sys; from relic_jax.experiments.cli import main; main()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "RELIC_JAX"))}
    options = ["darkroom-smoke", "--total-steps", "1024", "--eval.tasks", "2", "--eval.episodes", "2"]
    options += ["--policy.transformer.layers=1", "--trial.environments=4", "--trial.steps=128", "--trial.updates=2"]
    options += ["--ppo.minibatches=2", "--ppo.accumulate=1"]

    def run(name, *more):
        command = [sys.executable, "-c", script, "train", *options, "--name", name, "--runs", str(tmp_path), *more]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        parameters = [np.asarray(x).tobytes() for x in jax.tree.leaves(load_policy(tmp_path / name).params)]
        files = [(tmp_path / name / file).read_bytes() for file in ("metrics.jsonl", "curve.csv")]
        return parameters, files

    without = run("without", "--no-compilation-cache")
    assert not programs(home)
    assert run("stored") == without
    stored = programs(home)
    assert stored
    assert run("loaded") == without
    assert programs(home) == stored
