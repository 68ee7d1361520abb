"""Run folders on the command line: names, locks, damage, full disks, extensions, and how a process is stopped."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from relic_jax import checkpoint
from relic_jax.envs.registry import make
from relic_jax.experiments import folders, training
from relic_jax.locks import run_lock
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl.optimizer import learning_rate
from relic_jax.rl.train import prepare, restore, train

pytestmark = pytest.mark.usefixtures("compile_once")

ROOT = Path(__file__).parents[2]
SMALL = ["--total-steps=512", "--trial.environments=2", "--trial.steps=64", "--trial.updates=1", "--eval.episodes=1"]
SMALL += ["--eval.tasks=2", "--policy.transformer.layers=1", "--ppo.minibatches=1", "--ppo.accumulate=1"]
SMALL += ["--checkpoint-minutes=0.00001"]


def start(*arguments):
    command = [sys.executable, "-m", "relic_jax.experiments.cli", "train", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Return (setup, folder) of a run that has finished training but is not evaluated. Tests use copies of it."""
    setup = prepare(tiny("segment"), make("darkroom-ad-9-random"))
    folder = tmp_path_factory.mktemp("runs") / "trained"
    folders.create_folder(folder, setup.config)
    train(setup, folder, lambda env_steps: JsonLines(folder, env_steps), resume=False)
    return setup, folder


@pytest.fixture
def copied(trained, tmp_path):
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


@pytest.fixture
def unfinished(monkeypatch):
    """Skip evaluation: runs are only trained."""
    monkeypatch.setattr(training, "finish", lambda *_: None)


# --- names ---


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/tmp/x", "a/b", "a\\b", "a\0b", "a\nb", "a\x1bb", " a", "x" * 256, "ä" * 128]
)
def test_names_that_are_no_folders_name_are_refused(cli, tmp_path, name):
    code, _, err = cli("train", "darkroom-smoke", "--runs", tmp_path / "runs", f"--name={name}")
    assert code == 2 and err.startswith("relic-jax: name is ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["CON", "nul.txt", "com1", "a:b", "a?", "a."])
def test_names_that_windows_reserves(monkeypatch, name):
    folders.check_name(name)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(folders.ConfigError, match="Windows"):
        folders.check_name(name)


# --- locks ---


@pytest.mark.slow
def test_a_run_that_another_process_works_on_is_refused(cli, copied, tiny, tmp_path):
    holder = "import sys; from pathlib import Path; from relic_jax.locks import run_lock\n"
    holder += "with run_lock(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(copied)]
    before = {path: path.read_bytes() for path in copied.rglob("*.json*")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        for arguments in (("train", "--resume", copied), ("evaluate", copied), ("evaluate", checkpoint.find(copied))):
            code, _, err = cli(*arguments)
            assert code == 2 and err.count("\n") == 1 and f"process {process.pid} on " in err
        process.communicate("")
    assert not list(copied.rglob("evaluate-*"))
    assert {path: path.read_bytes() for path in copied.rglob("*.json*")} == before


@pytest.mark.slow
def test_of_two_new_runs_of_one_name_one_is_made(tmp_path):
    running = [start("darkroom-smoke", *SMALL, "--runs", tmp_path, "--name=one") for _ in range(2)]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in running]
    (loser,) = [end for end in ended if end[2] == 2]
    (winner,) = [end for end in ended if end[2] == 0]
    assert winner[1] == "" and loser[1].count("\n") == 1 and "name is " in loser[1]
    assert len(read_lines(tmp_path / "one" / "metrics.jsonl")) == 4
    assert not [path for path in (tmp_path / "one").iterdir() if "lock" in path.name or path.suffix == ".tmp"]


def test_a_run_whose_first_process_was_killed_before_its_config_can_begin_again(tmp_path, tiny):
    (tmp_path / "run").mkdir()
    with run_lock(tmp_path / "run"):
        shutil.copy(tmp_path / "run" / "lock", tmp_path / "left")
    owner = json.loads((tmp_path / "left").read_text())
    (tmp_path / "run" / "lock").write_text(json.dumps({**owner, "pid": 2**22 + 1}))
    folders.create_folder(tmp_path / "run", tiny())


# --- damage ---


@pytest.mark.slow
def test_resuming_with_a_damaged_first_line_keeps_the_file_and_says_where(cli, copied, unfinished):
    file = copied / "metrics.jsonl"
    damaged = b"\xff" + file.read_bytes()
    file.write_bytes(damaged)
    code, _, err = cli("train", "--resume", copied)
    assert code == 0 and (copied / "metrics.jsonl.damaged-1").read_bytes() == damaged
    assert f"{file}: line 1 cannot be read (not UTF-8); the file is kept as metrics.jsonl.damaged-1" in err


@pytest.mark.slow
def test_resuming_without_metrics_is_reported(cli, copied, unfinished):
    (copied / "metrics.jsonl").unlink()
    code, _, err = cli("train", "--resume", copied)
    assert code == 0 and "metrics.jsonl: is missing" in err and err.count("\n") == 1


# --- full disks ---


LIMITED = """
import resource, signal, sys
from relic_jax.experiments.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv[:2] = ["relic-jax"]
main()
"""
"""Largest size of a file in bytes. Writing more fails, as on a full disk."""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 600, 20_000])
def test_files_that_cannot_grow_end_a_run_in_a_line(copied, limit):
    """The limit stops the lock, the metrics or the arrays of a checkpoint, whose error orbax wraps."""
    before = checkpoint.complete_steps(copied / "checkpoints")
    command = [sys.executable, "-c", LIMITED, limit, "train", "--resume", copied, "--extend-to=1024"]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "File too large" in done.stderr
    assert checkpoint.complete_steps(copied / "checkpoints")[-1] >= before[-1]
    assert not list((copied / "checkpoints").glob("*.tmp"))
    checkpoint.load_meta(checkpoint.find(copied))
    assert read_lines(copied / "metrics.jsonl")[-1]["env_steps"] >= 512


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "stablehlo", "onnx", "orbax"])
def test_an_export_onto_a_full_disk_is_one_line_and_leaves_nothing(copied, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnx")
    command = [sys.executable, "-c", LIMITED, 3000, "export", copied, "--to", tmp_path / "out", "--format", format]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "File too large" in done.stderr and f"to is '{tmp_path / 'out'}'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("file", ["origin.json", "config.json"])
def test_a_new_run_that_cannot_be_written_leaves_its_name_free(cli, tmp_path, tiny, monkeypatch, file):
    write = folders.write_atomically

    def full(path, content):
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_atomically", full)
        with pytest.raises(folders.ConfigError, match="No space left"):
            folders.create_folder(tmp_path / "run", tiny())
    folders.create_folder(tmp_path / "run", tiny())


def test_a_checkpoint_that_fails_leaves_the_older_ones_and_no_part_of_itself(trained, copied, monkeypatch):
    setup, _ = trained
    before = {path: path.read_bytes() for path in (copied / "checkpoints").rglob("*") if path.is_file()}

    def full(*_):
        raise ValueError('RESOURCE_EXHAUSTED: Error writing "/x/y": No space left on device [os_error_code=28]')

    monkeypatch.setattr(checkpoint, "sync", full)
    state, _ = restore(setup, copied / "checkpoints")
    with pytest.raises(ValueError, match="No space left"):
        checkpoint.save(copied / "checkpoints", 1024, state, setup.config, {})
    assert {path: path.read_bytes() for path in (copied / "checkpoints").rglob("*") if path.is_file()} == before


def test_what_drawing_raises_on_a_full_disk_is_a_line(cli, copied, monkeypatch):
    def full(*_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "trial.gif")
        except OSError as error:
            raise ValueError("encoder error -2 when writing image file") from error

    monkeypatch.setattr(training, "finish", full)
    code, _, err = cli("train", "--resume", copied)
    hint = f"resume with: relic-jax train --resume {copied}"
    assert (code, err) == (2, f"relic-jax: [Errno 28] No space left on device: 'trial.gif'; {hint}\n")


# --- extensions ---


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps(cli, copied, trained, unfinished):
    setup, _ = trained
    code, _, err = cli("train", "--resume", copied, "--extend-to=1000")
    assert (code, err) == (0, "")
    records = read_lines(copied / "metrics.jsonl")
    assert [record["env_steps"] for record in records] == list(range(64, 1025, 64))  # whole trials
    assert records[:8] == read_lines(trained[1] / "metrics.jsonl")
    config = json.loads((copied / "config.json").read_text())
    assert config["total_steps"] == 1000
    (entry,) = json.loads((copied / "origin.json").read_text())["extensions"]
    assert (entry["at_step"], entry["from"], entry["to"]) == (512, 512, 1000) and "--extend-to" in entry["command"]
    assert checkpoint.load_meta(checkpoint.find(copied))[0].total_steps == 1000
    for record in records[8:]:
        np.testing.assert_allclose(record["lr"], learning_rate(setup.config.ppo, 1000, record["env_steps"]), rtol=1e-6)
    assert cli("train", "--resume", copied)[0] == 0 and len(read_lines(copied / "metrics.jsonl")) == 16
    assert cli("train", "--resume", copied, "--extend-to=1000")[0] == 0  # the same command again


@pytest.mark.slow
def test_an_extension_that_is_interrupted_ends_as_if_nothing_had_been(cli, copied, trained, unfinished, monkeypatch):
    setup, _ = trained
    other = Path(shutil.copytree(copied, copied.with_name("other")))
    assert cli("train", "--resume", copied, "--extend-to=1024")[0] == 0
    log = JsonLines.log

    def kill(self, record, clock):
        if record["env_steps"] == 512 + 3 * 64:
            raise MemoryError
        log(self, record, clock)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "log", kill)
        with pytest.raises(MemoryError):
            cli("train", "--resume", other, "--extend-to=1024")
    assert cli("train", "--resume", other)[0] == 0
    assert (other / "metrics.jsonl").read_bytes() == (copied / "metrics.jsonl").read_bytes()
    longer = replace(setup, config=replace(setup.config, total_steps=1024))
    ends = [jax.tree.leaves(restore(longer, folder / "checkpoints")[0].params) for folder in (copied, other)]
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_run_before_its_first_checkpoint_can_be_extended(cli, tiny, tmp_path, unfinished):
    folders.create_folder(tmp_path / "run", tiny(devices=1))
    assert cli("train", "--resume", tmp_path / "run", "--extend-to=1024")[0] == 0
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["env_steps"] == 1024


@pytest.mark.parametrize("total", [511, 1, 0, -5])
def test_less_than_was_taken_is_refused(cli, copied, total):
    code, _, err = cli("train", "--resume", copied, f"--extend-to={total}")
    assert code == 2 and f"extend-to is {total}; allowed: more than 512" in err and err.count("\n") == 1
    assert "extensions" not in (copied / "origin.json").read_text()


def test_extending_needs_a_run(cli, tmp_path):
    code, _, err = cli("train", "darkroom-smoke", "--runs", tmp_path, "--extend-to=1000")
    assert code == 2 and err == "relic-jax: extend-to is 1000; allowed: with --resume RUN\n"


def test_a_checkpoint_of_another_run_is_refused_still(cli, copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "total_steps": 4096}))
    code, _, err = cli("train", "--resume", copied)
    assert code == 2 and "total_steps differs" in err


# --- signals, in real processes ---


def wait_until(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_before_training_begins(tmp_path, number, code):
    process = start("darkroom-smoke", *SMALL, "--runs", tmp_path, "--name=one")
    wait_until((tmp_path / "one" / "config.json").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code and err.count("\n") <= 1
    assert f"resume with: relic-jax train --resume {tmp_path / 'one'}" in out + err
    assert not (tmp_path / "one" / "lock").exists()


def test_a_second_signal_ends_a_process_that_is_in_compiled_code():
    """Python's signal handlers wait until compiled code returns."""
    code = "import hashlib; from relic_jax.stopping import interruptible, stop_signals\n"
    code += "with interruptible(), stop_signals():\n    print('ready', flush=True)\n"
    code += "    hashlib.pbkdf2_hmac('sha256', b'password', b'salt', 2**31 - 1)\n"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_while_drawing(cli, copied, monkeypatch, number, code, word):
    monkeypatch.setattr(training, "finish", lambda *_: signal.raise_signal(number))
    found = cli("train", "--resume", copied)
    assert (found[0], found[2]) == (code, f"relic-jax: {word} · resume with: relic-jax train --resume {copied}\n")
