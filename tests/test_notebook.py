"""Training and loading inside another program do not change its event loop, threads and process-wide settings."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import pytest

from relic_jax import checkpoint, load_policy
from relic_jax.envs.registry import make
from relic_jax.process import is_own, own_process
from relic_jax.rl.train import prepare, restore, save, train
from relic_jax.stopping import stop_signals
from relic_jax.tracking import Console

ROOT = Path(__file__).parents[1]


def process_state():
    """Return the state of the process that this library must not change."""
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "levels": [logging.getLogger(name).level for name in ("", "absl", "jax", "relic_jax")],
        "handlers": list(logging.getLogger().handlers),
        "warnings": list(warnings.filters),
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook],
        "streams": [sys.stdout, sys.stderr, os.fstat(2).st_ino],
        "path": list(sys.path),
        "environment": dict(os.environ),
        "jax": {name: getattr(jax.config, name) for name in ("jax_num_cpu_devices", "jax_enable_x64")},
    }


@pytest.fixture(scope="module")
def setup(tiny):
    return prepare(tiny(total_steps=128), make("darkroom-ad-9-random"))


def go(setup, folder, **options):
    result = train(setup, folder, lambda _: Console(256), resume=False, **options)
    assert load_policy(folder).config.env.name == "darkroom-ad-9-random"
    return result


@pytest.mark.slow
def test_in_a_running_loop_and_in_a_thread_beside_it(setup, tmp_path, capsys):
    """A notebook runs cells in the main thread, inside a running event loop. Cells can start threads."""
    before = process_state()
    results = []

    async def cell():
        results.append(go(setup, tmp_path / "in the loop"))
        results.append(await asyncio.to_thread(go, setup, tmp_path / "in a thread"))

    asyncio.run(cell())
    assert [result.finished for result in results] == [True, True]
    assert process_state() == before
    metrics = capsys.readouterr()
    assert metrics.err == "" and "256/256" in metrics.out


@pytest.mark.slow
def test_a_thread_is_stopped_by_its_event_and_saves(setup, tmp_path):
    stop, results = threading.Event(), []

    class Stopping:
        def log(self, record, clock):
            stop.set()

        def close(self):
            pass

    def cell():
        results.append(train(setup, tmp_path, lambda _: Stopping(), resume=False, stop=stop))

    thread = threading.Thread(target=cell)
    thread.start()
    thread.join()
    assert not results[0].finished and checkpoint.complete_steps(tmp_path / "checkpoints") == [64]


@pytest.mark.slow
def test_an_interrupt_of_the_cell_stops_after_the_chunk_and_saves(setup, tmp_path):
    class Interrupted:
        def log(self, record, clock):
            signal.raise_signal(signal.SIGINT)  # the signal of a notebook's stop button

        def close(self):
            pass

    async def cell():
        return train(setup, tmp_path, lambda _: Interrupted(), resume=False)

    before = process_state()
    assert not asyncio.run(cell()).finished
    assert checkpoint.complete_steps(tmp_path / "checkpoints") == [64] and process_state() == before


def test_a_root_logger_without_handlers_stays_so(setup, tmp_path, monkeypatch):
    """absl's functions configure it, and orbax logs with them. pytest's handlers hide this from `process_state`."""
    monkeypatch.setattr(logging.root, "handlers", [])
    checkpoints = tmp_path / "checkpoints"
    save(setup, checkpoints, *restore(setup, checkpoints))
    load_policy(tmp_path)
    assert logging.root.handlers == []


def test_an_event_that_was_set_does_not_make_the_first_signal_final():
    event = threading.Event()
    with stop_signals(event) as stopping:
        event.set()
        signal.raise_signal(signal.SIGTERM)
        assert stopping.is_set() and stopping.number == signal.SIGTERM


@pytest.mark.slow
def test_loading_touches_no_stream_nor_hook_of_another_program(setup, tmp_path, monkeypatch):
    go(setup, tmp_path)
    before, seen, load = process_state(), [], checkpoint.orbax().load_checkpointables

    def spy(*arguments):
        seen.append(process_state() | {"own": is_own()})
        return load(*arguments)

    monkeypatch.setattr(checkpoint.orbax(), "load_checkpointables", spy)
    load_policy(tmp_path)
    assert seen == [before | {"own": False}]
    with own_process():
        load_policy(tmp_path)
    assert seen[1]["own"] and seen[1]["streams"] == before["streams"] and process_state() == before


def test_a_custom_environment_leaves_the_search_path(tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text(
        "from relic_jax.envs.darkroom.env import PRESETS\nENV = PRESETS['darkroom-ad-9']\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    before = list(sys.path)
    make("python:mine_here:ENV")
    assert sys.path == before
    with own_process():
        make("python:mine_here:ENV")
    assert sys.path == [str(tmp_path), *before]


def test_importing_and_preparing_touches_nothing():
    code = """
import logging, os, signal, sys, warnings
import jax, orbax.checkpoint, matplotlib, tyro  # what these do is theirs
sys.path.insert(0, "tests")
from test_notebook import process_state
from relic_jax.experiments.faults.small import small_config
jax.config.update("jax_num_cpu_devices", 3)
before = process_state()
import relic_jax.experiments.cli, experiments.play, relic_jax.agent, relic_jax.export, relic_jax.plotting
from dataclasses import replace
from relic_jax.envs.registry import make
from relic_jax.rl.train import prepare
prepare(replace(small_config(), devices=None), make("darkroom-ad-9-random"))
after = process_state()
assert after == before, {name: (before[name], after[name]) for name in before if before[name] != after[name]}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
