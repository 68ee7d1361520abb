"""Several processes that train one run."""

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from training_process import config_and_env

from relic_jax import checkpoint, processes
from relic_jax.config import ConfigError, to_json
from relic_jax.experiments import distributed
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl import parallel
from relic_jax.rl.train import prepare, restore, train

DARKROOM = "darkroom-ad-9-random"
SCRIPT = Path(__file__).parents[1] / "support" / "training_process.py"


def free_port():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def started(*jobs):
    """Start two processes with one device each that run jobs, each (folder, environment, steps, checkpoint minutes)."""
    port = free_port()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    texts = [",".join(map(str, job)) for job in jobs]
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), "2", str(index), *texts],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def finished(parts, seconds=900):
    """Wait for processes that must succeed."""
    errors = []
    try:
        for part in parts:
            errors.append(part.communicate(timeout=seconds)[1])
        assert [part.returncode for part in parts] == [0, 0], "\n".join(errors)
    finally:
        for part in parts:
            part.kill()


def trained(folder, env, steps, stop_at=None):
    """Train in this process on one device, and return the parameters. stop_at: number of updates."""
    stop, config_env = threading.Event(), config_and_env(env, steps, devices=1)

    class Tracker(JsonLines):
        def log(self, record, clock):
            super().log(record, clock)
            if record["env_steps"] == stop_at:
                stop.set()

    resume = (folder / "checkpoints").exists()
    setup = prepare(*config_env, resume=resume)
    state = train(setup, folder, lambda done: Tracker(folder, done), resume=resume, stop=stop).state
    return jax.device_get(jax.tree.leaves(state.params))


def check_equal(folder, expected, params, rtol=2e-3):
    """Compare the run in a folder with the expected folder and its parameters, up to rounding."""
    with np.load(folder / "params.npz") as arrays:
        for array, leaf in zip(arrays.values(), params, strict=True):
            np.testing.assert_allclose(array, leaf, atol=1e-5)
    lines, same = (read_lines(path / "metrics.jsonl") for path in (folder, expected))
    assert len(lines) == len(same) > 0
    for line, other in zip(lines, same, strict=True):
        assert line.keys() == other.keys()
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=rtol, atol=1e-5)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Return the folder of a run of two trials in one process, and its parameters; "half" is the run after one."""
    folder = tmp_path_factory.mktemp("one")
    trained(folder / "half", DARKROOM, 512, stop_at=256)
    shutil.copytree(folder / "half", folder / "whole")
    return folder, trained(folder / "whole", DARKROOM, 512)


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """Return a folder of runs in two processes: "continued", from "half", and "corridor", from the start."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(one[0] / "half", folder / "continued")
    finished(started((folder / "continued", DARKROOM, 512, 60), (folder / "corridor", "corridor", 256, 60)))
    return folder


@pytest.mark.slow
def test_two_processes_continue_the_run_of_one(one, two):
    """Their checkpoint is restored in one process."""
    folder, params = one
    check_equal(two / "continued", folder / "whole", params)
    setup = prepare(*config_and_env(DARKROOM, 512, devices=1), resume=True)
    (state, progress), (expected, _) = (
        restore(setup, x / "checkpoints") for x in (two / "continued", folder / "whole")
    )
    assert progress.env_steps == int(state.env_steps) == 512
    arrays, others = (jax.device_get((x.params, x.memory, x.opt_state)) for x in (state, expected))
    chex.assert_trees_all_close(arrays, others, atol=1e-5)
    np.testing.assert_array_equal(state.trajectory.action, expected.trajectory.action)


@pytest.mark.slow
def test_workers_of_two_processes_give_the_run_of_one_with_lost_steps(two, tmp_path):
    params = trained(tmp_path, "corridor", 256)
    check_equal(two / "corridor", tmp_path, params)
    assert sum(line["lost_steps"] for line in read_lines(tmp_path / "metrics.jsonl")) > 0


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_the_run_continues_bit_for_bit(one, two, tmp_path):
    """First process 1 is killed, then, after the run has resumed, process 0."""
    whole, checkpoints = two / "continued", tmp_path / "checkpoints"
    shutil.copytree(one[0] / "half", tmp_path, dirs_exist_ok=True)
    for lost, least in ((1, 320), (0, 384)):
        parts = started((tmp_path, DARKROOM, 512, 1e-9))
        end = time.monotonic() + 600
        while checkpoint.complete_steps(checkpoints)[-1] < least:
            assert parts[0].poll() is None and time.monotonic() < end
            time.sleep(0.02)
        parts[lost].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        try:
            _, error = parts[1 - lost].communicate(timeout=60)
        finally:
            parts[1 - lost].kill()
        assert time.monotonic() - killed < 60 and parts[1 - lost].returncode
        steps = checkpoint.complete_steps(checkpoints)
        named = re.findall(rf"last checkpoint: {checkpoints}/(\d+); resume with: .* --resume {tmp_path}", error)
        assert [int(step) for step in named] in ([steps[-1]], [steps[-2]]), error
        for step in steps:
            checkpoint.verify(checkpoints / str(step))
    finished(started((tmp_path, DARKROOM, 512, 60)))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    with np.load(tmp_path / "params.npz") as arrays, np.load(whole / "params.npz") as expected:
        for name in expected:
            np.testing.assert_array_equal(arrays[name], expected[name])


def command(arguments, count=2, port=None):
    """Return (exit codes, standard errors) of `relic-jax train` in several processes."""
    port = port or free_port()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    shared = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(count)]
    parts = [
        subprocess.Popen(
            [sys.executable, "-m", "relic_jax.experiments.cli", "train", *options, *shared, "--process-id", str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, options in enumerate(arguments)
    ]
    errors = [part.communicate(timeout=180)[1] for part in parts]
    return [part.returncode for part in parts], errors


@pytest.mark.slow
def test_processes_that_disagree_end_with_one_line(tmp_path):
    options = ["darkroom-smoke", "--runs", str(tmp_path)]
    codes, errors = command([options, [*options, "--ppo.lr", "0.5"]])
    assert codes == [2, 2] and not list(tmp_path.iterdir())
    lines = [line for line in errors[0].splitlines() if line.startswith("relic-jax: ")]
    assert len(lines) == 1 and "ppo.lr is 0.5 on process 1; allowed: " in lines[0] and "as on process 0" in lines[0]
    assert "relic-jax: " not in errors[1]


@pytest.mark.parametrize(
    ("coordinator", "count", "index", "message"),
    [
        ("localhost", 2, 0, "coordinator is 'localhost'; allowed: HOST:PORT"),
        ("localhost:99999", 2, 0, "coordinator is 'localhost:99999'; allowed: HOST:PORT"),
        ("localhost:1", None, 0, "num-processes is None; allowed: 1 or more"),
        ("localhost:1", 2, None, "process-id is None; allowed: 0 … 1"),
        ("localhost:1", 2, 2, "process-id is 2; allowed: 0 … 1"),
    ],
)
def test_wrong_options_are_named(coordinator, count, index, message):
    with pytest.raises(ConfigError, match=message):
        processes.join(coordinator, count, index)


def test_options_of_processes():
    assert distributed.process_options(["darkroom-dpt"]) is None
    assert distributed.process_options(["darkroom-dpt", "--distributed"]) == distributed.ProcessOptions()
    words = ["--coordinator", "host:1", "--num-processes=2", "--process-id", "1"]
    assert distributed.process_options(words) == distributed.ProcessOptions("host:1", 2, 1)
    with pytest.raises(ConfigError, match="process-id is 1; allowed: with --coordinator HOST:PORT"):
        distributed.process_options(["--process-id", "1"])
    with pytest.raises(ConfigError, match="num-processes is 'two'; allowed: a whole number"):
        distributed.process_options(["--coordinator", "host:1", "--num-processes", "two"])


def test_processes_compare_what_they_will_do(tiny):
    config, folder = tiny(), Path("runs/a")
    first = distributed.facts_of(config, folder, False)
    distributed.check_agreement([first, dict(first)])
    changed = [
        ("config", to_json(dataclasses.replace(config, seed=7)), "seed is 7 on process 1; allowed: 0, as on process 0"),
        ("folder", "runs/b", "folder is 'runs/b' on process 1; allowed: 'runs/a'"),
        ("jax", "0.1", "jax is '0.1' on process 1"),
        ("checkpoint", 64, "checkpoint is 64 on process 1; allowed: None, as on process 0"),  # folders are not shared
    ]
    for name, value, message in changed:
        with pytest.raises(ConfigError, match=message):
            distributed.check_agreement([first, {**first, name: value}])


def test_devices_are_a_multiple_of_the_processes(tiny, monkeypatch):
    config = tiny()  # 4 environments in 2 minibatches
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    devices = [type("Device", (), {"process_index": index // 2})() for index in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert parallel.configure_devices(dataclasses.replace(config, devices=None)).devices == 2
    with pytest.raises(ConfigError, match="devices is 3; allowed: a multiple of the 2 processes"):
        parallel.configure_devices(dataclasses.replace(config, devices=3))
    odd = dataclasses.replace(config, devices=None, trial=dataclasses.replace(config.trial, environments=6))
    with pytest.raises(ConfigError, match=r"num-processes is 2; allowed: a divisor of .* \(3\)"):
        parallel.configure_devices(odd)


def test_an_error_of_one_process_is_raised_in_all(monkeypatch, tiny):
    facts = {"config": to_json(tiny())}

    def fail():
        raise ConfigError("devices is 3; allowed: 2")

    others = [{"step": "setup", "error": "devices is 3; allowed: 2"}]
    monkeypatch.setattr(processes, "exchange", lambda message: [message, *others])
    with pytest.raises(processes.SharedError, match=r"^devices is 3; allowed: 2 \(process 1\)$"):
        distributed.agreed(True, "setup", lambda: (None, facts))
    with pytest.raises(processes.SharedError, match=r"^devices is 3; allowed: 2$"):
        distributed.agreed(True, "setup", fail)
    assert processes.in_all(lambda: 5) == 5  # one process
    monkeypatch.setattr(processes, "are_several", lambda: True)
    with pytest.raises(processes.SharedError, match=r"\(process 1\)$"):
        processes.in_all(lambda: 5)


def test_errors_of_lost_processes_are_recognized():
    lost = jax.errors.JaxRuntimeError("FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer")
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")
    assert processes.is_loss(lost) and not processes.is_loss(full) and not processes.is_loss(OSError("connection"))
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = lost
    assert processes.is_loss(wrapped)


def test_a_loss_notice_prints_its_last_message_if_the_process_ends(capfd):
    for close in (False, True):
        notice = processes.LossNotice()
        notice.update("first")
        notice.update("last checkpoint: here")
        if close:
            notice.close()
        else:
            notice._process.communicate()  # closes the pipe, as the end of the process does
        assert capfd.readouterr().err == ("" if close else "last checkpoint: here\n")
