"""Checksums: one wrong byte in any file of a checkpoint or an export is an error that names the file."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from relic_jax import checkpoint, export, runtime
from relic_jax.config import ConfigError
from relic_jax.envs.registry import make
from relic_jax.experiments import folders, import_llamarl
from relic_jax.export import export_policy, verify
from relic_jax.files import write_checksums
from relic_jax.loading import load_policy, pretrained_path
from relic_jax.rl import runner
from relic_jax.rl.train import prepare, restore, save
from relic_jax.runtime import CHECKSUMS, checksums_text, parse_json, verify_files

pytestmark = pytest.mark.slow


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def positions(size):
    return sorted({0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size)))


def assert_every_byte_counts(folder, load, but=("README.md",)):
    """Flip bits of, truncate, empty, extend and delete every file. `load` must name the file in its error."""
    load()
    count = 0
    for path, data in content(folder).items():
        if path.name in but:
            continue
        flipped = [
            data[:i] + bytes([data[i] ^ bit]) + data[i + 1 :] for i in positions(len(data)) for bit in (1, 8, 128)
        ]
        for broken in [*flipped, data[:-1], data[: len(data) // 2], b"", data + b"\n", None]:
            if broken == data:
                continue
            path.unlink() if broken is None else path.write_bytes(broken)
            with pytest.raises(ConfigError) as error:
                load()
            message = str(error.value)
            assert path.name in message and str(folder) in message and "\n" not in message, message
            path.write_bytes(data)
            count += 1
    load()
    return count


@pytest.fixture
def folder(begun_run, tmp_path):
    """Return a copy of a checkpoint outside of a run folder."""
    return shutil.copytree(checkpoint.find(begun_run), tmp_path / "copy")


def test_every_byte_of_a_checkpoint(folder):
    assert assert_every_byte_counts(folder, lambda: checkpoint.verify(folder)) > 100
    with pytest.raises(ConfigError, match=r"meta\.json has sha256:"):
        text = (folder / "meta.json").read_text()
        (folder / "meta.json").write_text(text.replace('"seed": 0', '"seed": 1'))
        load_policy(folder)


@pytest.fixture(scope="module")
def exported(begun_run, tmp_path_factory):
    """Return `exported(format)`: an export to damage. tests/test_export.py tests the verification."""
    policy = load_policy(begun_run)

    def export_once(format):
        to = tmp_path_factory.mktemp("exports") / "out"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verify, "STEPS", 2)
            patch.setattr(export.verify, "compare", lambda *_, **__: dict(NOTHING_COMPARED))
            export_policy(policy, to, format=format)
        return to

    return export_once


NOTHING_COMPARED = {
    "steps": 0,
    "batch": 1,
    "episode_ends": 0,
    "largest_difference": 0.0,
    "largest_scaled_difference": 0.0,
}


@pytest.mark.parametrize("format", ["safetensors", "orbax", "stablehlo", "onnx"])
def test_every_byte_of_an_export(exported, format):
    for package in {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}.get(format, ()):
        pytest.importorskip(package)
    out = exported(format)
    listed = set(json.loads((out / CHECKSUMS).read_text())["files"])
    assert listed == {p.relative_to(out).as_posix() for p in content(out)} - {CHECKSUMS, "README.md"}
    assert assert_every_byte_counts(out, lambda: runtime.open_export(out)) > 50
    loaders = [load_policy] + [runtime.load] * (format in ("stablehlo", "onnx"))
    for file in {"config.json", "verification.json", export.ARTEFACTS[format]} & set(listed):
        data = (out / file).read_bytes()
        (out / file).write_bytes(data + b" ")
        for load in loaders:
            with pytest.raises(ConfigError, match=f"{file} has sha256:"):
                load(out)
        (out / file).write_bytes(data)
    (out / "README.md").write_text("edited by hand")
    for load in loaders:
        load(out)


def test_the_stand_alone_runner_needs_only_numpy_to_see_it(exported):
    pytest.importorskip("flatbuffers")
    out = exported("stablehlo")
    program = out / "policy.stablehlo"
    program.write_bytes(program.read_bytes()[:-1] + b"?")
    hidden = "sys.modules.update(jax=None, safetensors=None); import run; run.main()"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(out)!r}); {hidden}", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "policy.stablehlo has sha256:" in done.stderr and "Traceback" not in done.stderr


def test_the_shipped_policy_has_checksums(tmp_path):
    folder = shutil.copytree(pretrained_path("darkroom-dpt"), tmp_path / "copy")
    assert "model.safetensors" in json.loads((folder / CHECKSUMS).read_text())["files"]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ConfigError, match=r"model\.safetensors has sha256:"):
        load_policy(folder)


def test_what_was_written_before_checksums_still_loads(exported, folder):
    out = exported("safetensors")
    about = json.loads((out / "config.json").read_text())
    del about["checksums"]
    (out / "config.json").write_text(json.dumps(about))
    (out / CHECKSUMS).unlink()
    load_policy(out)
    meta = json.loads((folder / "meta.json").read_text()) | {"format": "relic-jax-checkpoint-1"}
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / CHECKSUMS).unlink()
    load_policy(folder)
    meta["format"] = checkpoint.FORMAT
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match=f"file {CHECKSUMS} is missing"):
        load_policy(folder)


@pytest.mark.parametrize(
    "files",
    [
        {"../secret": "sha256:0"}, {"/etc/passwd": "sha256:0"}, {"": "sha256:0"}, {"a": 1}, {"a": None}, "text", 3,
        {"a/../../b": "x"}, {"nowhere": "sha256:0"},
    ],
)  # fmt: skip
def test_bad_checksum_lists_are_refused_and_read_no_other_file(tmp_path, monkeypatch, files):
    (tmp_path / "folder" / "a").mkdir(parents=True)
    try:
        text = checksums_text(files)
    except (TypeError, ValueError, LookupError):
        text = json.dumps({"files": files})
    (tmp_path / "folder" / CHECKSUMS).write_text(text)
    monkeypatch.setattr(runtime.files, "checksum", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ConfigError, match="is truncated or damaged"):
        verify_files(tmp_path / "folder", "export")


@pytest.mark.parametrize("name", ["config.json", CHECKSUMS, "meta.json"])
def test_a_named_pipe_is_no_file_and_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    start = time.monotonic()
    if name == "config.json":
        load_policy(folder)  # not a file of a checkpoint
    else:
        with pytest.raises(ConfigError):
            load_policy(folder)
    assert time.monotonic() - start < 240


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NaN", "not a finite number"), ("[1e400]", "not a finite number"), ("-Infinity", "not a finite number"),
        ('{"a": 1, "b": 2, "a": 1}', "'a' occurs twice"), ("[" * 100_000, "too deep"), ("1" * 5000, "digits"),
    ],
)  # fmt: skip
def test_json_is_read_strictly(text, said):
    with pytest.raises(ValueError, match=said):
        parse_json(text)


# --- a run of several checkpoints ---


@pytest.fixture
def run_folder(tiny, tmp_path):
    """Return a run with checkpoints 0 and 64, both untrained."""
    config = tiny(env="darkroom-ad-9")
    setup = prepare(config, make(config.env))
    run = tmp_path / "run"
    folders.create_folder(run, setup.config)
    state, progress = restore(setup, run / "checkpoints")
    for step in (0, 64):
        save(setup, run / "checkpoints", state, dataclasses.replace(progress, env_steps=step))
    return run


@pytest.fixture
def refused(cli, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    def check(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "compile_chunk", compiled)
            code, out, err = cli(*arguments)
        assert (code, out) == (2, "") and err.count("\n") == 1, (code, out, err)
        return err

    return check


def break_one_byte(path):
    file = max((path / "arrays").rglob("d/*"), key=lambda file: file.stat().st_size)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return file.name


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"]])
def test_a_damaged_newest_checkpoint_names_the_good_one_before_it(refused, run_folder, command):
    name = break_one_byte(run_folder / "checkpoints" / "64")
    err = refused(*command, run_folder)
    assert name in err and f"the newest good checkpoint is '{run_folder / 'checkpoints' / '0'}'" in err
    break_one_byte(run_folder / "checkpoints" / "0")
    before = content(run_folder)
    assert "newest good" not in refused(*command, run_folder)
    assert content(run_folder) == before


@pytest.mark.parametrize("damage", ["missing", "{}", "", "[]", "null"])
def test_without_its_meta_a_checkpoint_is_an_error_and_no_fresh_start(refused, run_folder, damage):
    shutil.rmtree(run_folder / "checkpoints" / "0")
    meta = run_folder / "checkpoints" / "64" / "meta.json"
    meta.unlink() if damage == "missing" else meta.write_text(damage)
    before = content(run_folder)
    for arguments in (["train", "--resume", run_folder], ["evaluate", run_folder], ["evaluate", meta.parent]):
        err = refused(*arguments)
        assert f"checkpoint is '{meta.parent}'" in err and "meta.json" in err
    assert content(run_folder) == before


def resumed_from(cli, monkeypatch, path):
    """Run `train --resume path` up to the start of training. Return (output, steps taken before)."""
    steps = []

    def train(setup, folder, make_tracker, *, resume, **_):
        steps.append(restore(setup, folder / "checkpoints")[1].env_steps)
        raise ConfigError("stop here")

    monkeypatch.setattr("relic_jax.experiments.training.train", train)
    code, out, err = cli("train", "--resume", path)
    assert code == 2 and "stop here" in err, err
    return out, steps[0]


def test_the_good_checkpoint_is_gone_on_from_by_its_path_and_the_newer_is_kept_aside(cli, monkeypatch, run_folder):
    newer = run_folder / "checkpoints" / "64"
    break_one_byte(newer)
    data = {path.relative_to(newer): x for path, x in content(newer).items()}
    out, steps = resumed_from(cli, monkeypatch, run_folder / "checkpoints" / "0")
    assert steps == 0 and f"set aside: {newer}.aside" in out
    aside = newer.with_name("64.aside")
    assert {path.relative_to(aside): x for path, x in content(aside).items()} == data
    assert checkpoint.complete_steps(run_folder / "checkpoints") == [0]


def test_or_after_the_damaged_one_was_moved_away(cli, monkeypatch, run_folder, tmp_path):
    break_one_byte(run_folder / "checkpoints" / "64")
    shutil.move(run_folder / "checkpoints" / "64", tmp_path / "away")
    assert resumed_from(cli, monkeypatch, run_folder)[1] == 0


def test_resuming_from_the_newest_by_its_path_sets_nothing_aside(cli, monkeypatch, run_folder):
    out, steps = resumed_from(cli, monkeypatch, run_folder / "checkpoints" / "64")
    assert steps == 64 and "aside" not in out and not list((run_folder / "checkpoints").glob("*.aside"))


def test_unfinished_checkpoints_are_ignored(cli, monkeypatch, run_folder):
    (run_folder / "checkpoints" / "128.tmp" / "arrays").mkdir(parents=True)
    assert resumed_from(cli, monkeypatch, run_folder)[1] == 64


def test_start_from_and_export_refuse_damage_too(refused, run_folder, tmp_path):
    name = break_one_byte(run_folder / "checkpoints" / "64")
    for arguments in (
        ["train", "darkroom-smoke", "--runs", tmp_path / "runs", "--start-from", run_folder],
        ["export", run_folder, "--to", tmp_path / "out"],
        ["import-llamarl", run_folder, "--to", tmp_path / "back.safetensors", "--reverse"],
    ):
        assert name in refused(*arguments)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_what_an_import_kept_is_compared_too(tmp_path):
    from relic_jax.interop import files

    kept = tmp_path / import_llamarl.KEPT
    files.write(kept, {"x": np.zeros(3, np.float32)}, {"dtypes": {}, "config": {}})
    import_llamarl.read_kept(kept)  # from before checksums existed
    write_checksums(tmp_path, [kept.name])
    import_llamarl.read_kept(kept)
    data = kept.read_bytes()
    kept.write_bytes(data[:-1] + b"?")
    with pytest.raises(ConfigError, match=r"llamarl.safetensors has sha256:"):
        import_llamarl.read_kept(kept)


def test_pruning_leaves_no_half_of_a_checkpoint(run_folder, monkeypatch, tiny):
    """A process that is killed while it removes an old checkpoint leaves a folder that is ignored."""
    setup = prepare(tiny(env="darkroom-ad-9"), make("darkroom-ad-9"))
    state, progress = restore(setup, run_folder / "checkpoints")
    remove = shutil.rmtree

    def killed(path, *rest, **options):
        if Path(path).name.split(".")[0] == "0":
            (Path(path) / "meta.json").unlink()
            raise KeyboardInterrupt
        remove(path, *rest, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(setup, run_folder / "checkpoints", state, dataclasses.replace(progress, env_steps=128))
    assert checkpoint.complete_steps(run_folder / "checkpoints") == [64, 128]
    checkpoint.verify(run_folder / "checkpoints" / "128")
