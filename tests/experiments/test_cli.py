"""The command line: bad input is a one-line error with exit code 2, before anything is compiled or overwritten."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from relic_jax.config import ConfigError
from relic_jax.envs.registry import make
from relic_jax.evaluation import Curve, Report, in_jit
from relic_jax.experiments import folders, presets, run
from relic_jax.rl import runner
from relic_jax.rl import train as training
from relic_jax.rl.train import prepare, restore

ROOT = Path(__file__).parents[2]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(cli, monkeypatch):
    """Return `refused(arguments, *parts)`, which checks for a one-line error with these parts and no compilation."""

    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    def check(arguments, *parts):
        with monkeypatch.context() as patch:
            for module, name in ((runner, "compile_chunk"), (in_jit, "chunk_function"), (run, "reference_means")):
                patch.setattr(module, name, compiled)
            code, out, err = cli(*arguments)
        assert code == 2, err
        assert out == "" and err.startswith("relic-jax: ") and err.count("\n") == 1, err
        for text in parts:
            assert str(text) in err
        return err

    return check


@pytest.fixture(scope="module")
def untrained(tiny, tmp_path_factory):
    """Return `untrained(name, **config)`: a run folder with one checkpoint, from before the first update."""
    runs = tmp_path_factory.mktemp("runs")

    def make_run(name, **changes):
        folder = runs / name
        if not folder.exists():
            config = tiny(**changes)
            setup = prepare(config, make(config.env))
            folders.create_folder(folder, setup.config)
            state, progress = restore(setup, folder / "checkpoints")
            training.save(setup, folder / "checkpoints", state, progress)
        return folder

    return make_run


# --- bad values ---

BAD_OPTIONS = [
    (["--env", "darkrom-dpt"], ["env is 'darkrom-dpt'", "allowed", "did you mean darkroom-dpt"]),
    (
        ["--policy.transformer.heads", "5"],
        ["policy.transformer.heads is 5", "a divisor of policy.transformer.width (32)"],
    ),
    (["--policy.transformer.heads", "32"], ["policy.transformer.heads is 32", "an even width per head"]),
    (["--trial.steps", "251"], ["trial.steps is 251", "a multiple of trial.updates (2)"]),
    (["--ppo.minibatches", "3"], ["ppo.minibatches is 3", "a divisor of trial.environments (8)"]),
    (["--ppo.accumulate", "3"], ["ppo.accumulate is 3", "a divisor of ppo.minibatches (4)"]),
    (["--policy.transformer.max-positions", "100"], ["policy.transformer.max_positions is 100", "at least 102"]),
    (["--policy.transformer.depth-dropout", "1.5"], ["policy.transformer.depth_dropout is 1.5", "less than 1"]),
    (["--ppo.gamma", "1.5"], ["ppo.gamma is 1.5", "0 … 1"]),
    (["--ppo.gae-lambda", "-0.5"], ["ppo.gae_lambda is -0.5", "0 … 1"]),
    (["--ppo.lr", "nan"], ["ppo.lr is nan", "a finite number"]),
    (["--ppo.lr", "inf"], ["ppo.lr is inf", "a finite number"]),
    (["--ppo.gamma", "nan"], ["ppo.gamma is nan", "a finite number"]),
    (["--ppo.clip", "-0.1"], ["ppo.clip is -0.1", "more than 0"]),
    (["--checkpoint-minutes", "nan"], ["checkpoint_minutes is nan", "a finite number"]),
    (["--total-steps", "-1"], ["total_steps is -1", "more than 0"]),
    (["--seed", "-1"], ["seed is -1", "0 … 2^32−1"]),
    (["--trial.environments", "-8"], ["trial.environments is -8", "more than 0"]),
    (["--eval.episodes", "0"], ["eval.episodes is 0", "more than 0"]),
    (["--devices", "3"], ["devices is 3", "a divisor of"]),
]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS, ids=[" ".join(options) for options, _ in BAD_OPTIONS])
def test_bad_option(refused, tmp_path, options, said):
    refused(["train", "darkroom-smoke", "--runs", tmp_path / "runs", *options], *said)
    assert not (tmp_path / "runs").exists()


def test_unknown_preset_gets_the_nearest_names(refused, tmp_path):
    said = "preset is 'darkroom-smok'; allowed: a name that relic-jax presets lists; did you mean darkroom-smoke"
    refused(["train", "darkroom-smok", "--runs", tmp_path / "runs"], said)
    refused(["presets", "darkroom-smok"], said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--memory", "gru"], "Unrecognized options: --memory, gru; did you mean --policy.memory? (options: "),
        (["--ppo.lrr=3"], "Unrecognized options: --ppo.lrr=3; did you mean --ppo.lr? (options: "),
        (["--policy.memory", "gated-dleta"], "'gated-delta', 'lru'); did you mean 'gated-delta'? (options: "),
    ],
)
def test_the_nearest_option_or_choice_is_offered_without_its_help(refused, tmp_path, options, said):
    refused(["train", "darkroom-smoke", "--runs", tmp_path / "runs", *options], said)


def test_missing_preset_and_unknown_command(refused):
    refused(["train"], "preset is missing; allowed: a name that relic-jax presets lists, or --resume RUN")
    refused(["trian"], "command is 'trian'; allowed: train, sweep, evaluate, plot", "did you mean train?")
    refused(["envs", "darkrom-dpt"], "env is 'darkrom-dpt'", "darkroom-dpt")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "darkroom-smoke", "--nonsense"],
        ["train", "darkroom-smoke", "--ppo.lr", "fast"],
        ["train", "darkroom-smoke", "--chunk", "epoch"],
        ["evaluate", "--nonsense"],
        ["plot", "--out"],
    ],
)
def test_what_the_parser_refuses_is_exit_code_2_too(cli, arguments):
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and "Traceback" not in err and err


def test_newlines_in_a_value_do_not_make_it_two_lines(refused):
    refused(["train", "dark\nroom"], "preset is 'dark")
    refused(["evaluate", "no\nwhere"], "no where", "no such folder")


@pytest.mark.parametrize("extra", ["wandb", "tensorboard"])
def test_missing_extra_is_reported_before_the_run_folder_is_made(refused, tmp_path, monkeypatch, extra):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    arguments = ["train", "darkroom-smoke", "--runs", tmp_path / "runs", "--track", extra]
    refused(arguments, f"track is '{extra}'", f"pip install 'relic-jax[{extra}]'")
    assert not (tmp_path / "runs").exists()


# --- bad folders ---


def test_runs_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    for runs in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        refused(
            ["train", "darkroom-smoke", "--runs", runs], f"runs is '{runs}'", "allowed: a folder that can be written"
        )
    assert (tmp_path / "file").read_text() == "mine"


def test_existing_run_is_not_touched(refused, untrained):
    folder = untrained("existing")
    before = files(folder)
    arguments = ["train", "darkroom-smoke", "--runs", folder.parent, "--name", "existing"]
    refused(arguments, "name is 'existing'", "already there", "another --name", f"--resume {folder}")
    assert files(folder) == before


def test_existing_file_of_the_runs_name_is_not_touched(refused, tmp_path):
    (tmp_path / "mine").write_text("mine")
    refused(["train", "darkroom-smoke", "--runs", tmp_path, "--name", "mine"], "name is 'mine'", "already there")
    assert (tmp_path / "mine").read_text() == "mine"


def test_resuming_with_another_config_names_the_field_and_both_values(refused, untrained):
    folder = untrained("existing")
    before = files(folder)
    refused(["train", "--resume", folder, "--ppo.lr", "0.5"], "ppo.lr is 0.5", "allowed: 0.001", folder)
    refused(["train", f"--resume={folder}", "--trial.steps", "128"], "trial.steps is 128", "allowed: 64")
    refused(["train", "darkroom-smoke", "--resume", folder], "env is 'darkroom-dpt'", "allowed: 'darkroom-ad-9-random'")
    assert files(folder) == before


@pytest.mark.parametrize("config", [None, "", "garbage", "[]", '{"ppo": 3}', '{"nonsense": 1}', "\x00"])
def test_resuming_what_is_not_a_run(refused, tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    refused(["train", "--resume", tmp_path], f"resume is '{tmp_path}'", "config.json")
    refused(["train", "--resume", tmp_path / "nowhere"], "resume is", "allowed: a run folder")
    refused(["train", "--resume", ROOT / "README.md"], "resume is", "allowed: a run folder")


@pytest.fixture
def broken(untrained, tmp_path):
    """Return a copy of a run that a test can damage: (run folder, its checkpoint)."""
    shutil.copytree(untrained("existing"), tmp_path / "broken")
    return tmp_path / "broken", tmp_path / "broken" / "checkpoints" / "0"


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_checkpoint_with_damaged_arrays(cli, refused, broken, damage):
    folder, path = broken
    for file in (path / "arrays").rglob("d/*"):
        if damage == "deleted":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size // 2)
    before = files(folder)
    refused(["evaluate", folder], path, "truncated")
    code, out, err = cli("train", "--resume", folder)
    assert code == 2 and err.count("\n") == 1 and str(path) in err and "truncated" in err
    assert out == ""
    assert files(folder) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"format": "rel', "readable meta.json"), ("", "readable meta.json"), ('{"format": "other-1"}', "'other-1'")],
)
def test_checkpoint_with_a_truncated_or_foreign_meta(refused, broken, content, said):
    folder, path = broken
    (path / "meta.json").write_text(content)
    before = files(folder)
    for arguments in (["train", "--resume", folder], ["evaluate", folder], ["evaluate", path]):
        refused(arguments, path, "allowed", said)
    assert files(folder) == before


def test_checkpoint_of_another_run(refused, broken, untrained):
    folder, path = broken
    shutil.rmtree(path)
    shutil.copytree(untrained("other", seed=7) / "checkpoints" / "0", path)
    refused(["train", "--resume", folder], path, "seed differs from its config.json")


def test_foreign_folders(refused, tmp_path):
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    (tmp_path / "checkpoints" / "100" / "model.pt").write_text("x")
    for path in (tmp_path, tmp_path / "checkpoints" / "100"):
        refused(
            ["evaluate", path],
            f"checkpoint is '{tmp_path / 'checkpoints' / '100'}'",
            "a readable meta.json of relic",
        )
        refused(["train", "--resume", path], f"resume is '{path}'")
    refused(["evaluate", tmp_path / "checkpoints"], "no complete checkpoint in it")


# --- evaluate and plot ---


def test_results_are_reported_with_the_environments_metrics():
    def constant(*mean):
        return Curve(list(mean), list(mean), list(mean))

    report = Report(
        *("e", "test", "h", 7, 1, {"random": 0.5, "optimal": 5.0}),
        returns=constant(1.0, 2.0, 3.0),
        success=constant(0.25, 0.3, 0.5),
        episodes=3,
        metrics={"spl": constant(0.125, 0.3, 0.75)},
        gain=Curve([2.0], [1.5], [2.5]),
    )
    assert run.describe_result(report) == [
        "7 held-out tasks (e, split h): "
        "episode 1 returns 1.00, episodes 2–3 return 2.50 = 50.0% of optimal 5.00, random 0.50",
        "success: 25% in episode 1, 50% in episode 3",
        "spl: 0.12 in episode 1, 0.75 in episode 3",
        "gain from episode 1 to 3: +2.00, 95% [1.50, 2.50]",
    ]
    large = replace(report, reference_returns={"random": 0.5, "optimal": 50.0})
    assert "episode 1 returns 1.0, episodes 2–3 return 2.5 = 5.0% of optimal 50.0" in run.describe_result(large)[0]
    only = replace(report, returns=constant(0.5), success=constant(0.5), episodes=1, metrics={"spl": constant(0.25)})
    assert run.describe_result(only)[1:] == ["success: 50%", "spl: 0.25"]
    assert run.describe_result(replace(report, metrics={}))[-1] == "gain from episode 1 to 3: +2.00, 95% [1.50, 2.50]"


def test_evaluate_refuses_bad_paths(refused, untrained):
    refused(["evaluate"], "paths is empty", "allowed")
    refused(["evaluate", "/proc/nowhere"], "'/proc/nowhere'", "no such folder")
    refused(["evaluate", untrained("existing"), "/proc/nowhere"], "'/proc/nowhere'", "no such folder")


def test_evaluate_refuses_to_pool_different_environments(refused, untrained):
    a, b = untrained("existing"), untrained("centre", env="darkroom-ad-9")
    refused(["evaluate", a, b], b, "'darkroom-ad-9'", "allowed to pool with: 'darkroom-ad-9-random'")


def test_evaluate_refuses_bad_numbers(refused, untrained):
    folder = untrained("existing")
    before = files(folder)
    refused(["evaluate", folder, "--episodes", "0"], "eval.episodes is 0", "more than 0")
    refused(["evaluate", folder, "--repeats", "-1"], "eval.repeats is -1", "more than 0")
    refused(["evaluate", folder, "--expert-episodes", "2"], "eval.expert_episodes is 2", "0 … eval.episodes − 1")
    refused(["evaluate", folder, "--context-limit", "-1"], "eval.context_limit is -1", "more than 0")
    assert files(folder) == before


def test_evaluate_refuses_an_expert_that_does_not_exist(refused, untrained):
    folder = untrained("probe", env="probe-value")
    refused(["evaluate", folder, "--expert-episodes", "1"], "expert_episodes is 1", "probe-value has no expert")


def test_evaluate_to_a_place_that_cannot_be_written(refused, untrained, tmp_path):
    folder = untrained("existing")
    refused(["evaluate", folder, "--out", "/proc/nowhere/curve"], "out is '/proc/nowhere/curve.json'", "can be written")
    (tmp_path / "curve.png").mkdir()
    refused(["evaluate", folder, "--out", tmp_path / "curve"], "out is", "curve.png", "it is a folder")


@pytest.mark.slow
def test_evaluate_and_plot(cli, untrained, tmp_path):
    folder = untrained("existing")
    before = files(folder)
    out_file = tmp_path / "new" / "result.json"
    other = untrained("seed-1", seed=1)
    code, out, err = cli("evaluate", folder, other, "--episodes", "2", "--out", out_file)
    assert (code, err) == (0, "") and "episode 1 returns" in out
    assert sorted(path.name for path in out_file.parent.iterdir()) == ["result.csv", "result.json", "result.png"]
    summary = json.loads(out_file.read_text())
    assert summary["seeds"] == 2 and summary["episodes"] == 2 and summary["training_seeds"] == [0, 1]
    assert summary["command"].startswith("relic-jax evaluate ") and summary["jax"] == jax.__version__
    assert files(folder) == before
    code, out, err = cli("plot", out_file, out_file, "--out", tmp_path / "figures" / "both.png")
    assert (code, err) == (0, "") and (tmp_path / "figures" / "both.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_in_another_environment(cli, refused, untrained):
    """The other environment has the same spaces."""
    a, b = untrained("existing"), untrained("seed-1", seed=1)
    code, out, err = cli("evaluate", a, b, "--env", "darkroom-ad-9", "--episodes", "2", "--limit", "3")
    assert (code, err) == (0, "") and "darkroom-ad-9" in out
    summary = json.loads((Path(a) / "evaluate-darkroom-ad-9-test-2-episodes-first-3-tasks-2-runs.json").read_text())
    assert (summary["env"], summary["seeds"], summary["tasks"]) == ("darkroom-ad-9", 2, 3)
    refused(["evaluate", a, "--env", "miniworld-open"], "env is 'miniworld-open', whose spaces are", "allowed")
    refused(["evaluate", a, "--env", "darkrom"], "env is 'darkrom'", "did you mean")


NO_CURVES = [
    "",
    "text",
    "[]",
    "3",
    "{}",
    '{"return": 1, "success": 1, "reference_returns": 1, "env": 1}',
    "null",
    '["return"]',
]


@pytest.mark.parametrize("content", NO_CURVES)
def test_plot_refuses_what_is_no_curve(refused, tmp_path, content):
    (tmp_path / "curve.json").write_text(content)
    for path in (tmp_path, tmp_path / "curve.json", tmp_path / "nowhere"):
        refused(["plot", path, "--out", tmp_path / "figure.png"], f"'{path}' holds no curve", "allowed: a curve.json")
    refused(["plot"], "paths is empty")
    assert not (tmp_path / "figure.png").exists()


def test_plot_to_a_place_that_cannot_be_written(refused, tmp_path):
    curve = {"mean": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5]}
    about = {
        "env": "darkroom-dpt",
        "split": "test",
        "split_hash": "0",
        "tasks": 20,
        "seeds": 1,
        "reference_returns": {},
    }
    (tmp_path / "curve.json").write_text(json.dumps(about | {"return": curve, "success": curve}))
    for out in ("/proc/nowhere/figure.png", tmp_path / "curve.json" / "figure.png", tmp_path):
        refused(
            ["plot", tmp_path / "curve.json", "--out", out], f"out is '{out}'", "allowed: a file that can be written"
        )


# --- help ---


def test_help_and_lists(cli):
    for arguments in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["plot", "--help"]):
        code, out, err = cli(*arguments)
        assert (code, err) == (0, "") and out
    assert "relic-jax train PRESET" in cli()[1] and cli()[0] == 2
    _, listed, _ = cli("presets")
    assert all(name in listed for name in presets.PRESETS)
    untested = [name for name, preset in presets.PRESETS.items() if preset.expected is None]
    assert listed.count("    expected  untested\n") == len(untested) > 0
    _, config, _ = cli("presets", "darkroom-smoke")
    assert json.loads(config)["env"]["name"] == presets.get("darkroom-smoke").config.env.name
    assert "darkroom-dpt" in cli("envs")[1]


def test_a_full_disk_is_one_line(cli, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("relic_jax.experiments.training.train", full)
    code, _, err = cli("train", "darkroom-smoke", "--runs", tmp_path)
    hint = f"resume with: relic-jax train --resume {tmp_path / 'darkroom-smoke-seed0'}"
    assert (code, err) == (2, f"relic-jax: [Errno 28] No space left on device: 'metrics.jsonl'; {hint}\n")


# --- in a separate process ---


def process(*arguments):
    command = [sys.executable, "-m", "relic_jax.experiments.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_real_process_prints_nothing_else(tmp_path, broken):
    folder, path = broken
    for file in (path / "arrays").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    done = process("train", "darkroom-smoke", "--ppo.lr", "nan", "--runs", tmp_path / "runs")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "relic-jax: ppo.lr is nan; allowed: a finite number\n"
    done = process("train", "--resume", folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"'{path}' is truncated" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [("presets",), ("train", "--help")])
def test_a_closed_pipe_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "relic_jax.experiments.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert done.stderr == ""


def test_a_valid_config_is_not_refused(tiny):
    prepare(replace(tiny(), seed=2**32 - 1), make("darkroom-ad-9-random"))


def test_curves_of_the_same_file_name_are_called_by_their_folders(tmp_path):
    from relic_jax.experiments.plots import labels

    (tmp_path / "run").mkdir()
    paths = [tmp_path / "a" / "pooled.json", tmp_path / "b" / "pooled.json", tmp_path / "c.json", tmp_path / "run"]
    assert labels(paths) == ["a", "b", "c", "run"]


def test_cores_are_offered_as_devices_before_an_environment_can_touch_one(cli, monkeypatch):
    """Importing XLand-MiniGrid initializes JAX, after which the number of CPU devices is fixed at one."""
    offered = []

    def env_of(config):
        assert offered == [2]
        raise ConfigError("here it ends")

    monkeypatch.setattr("relic_jax.experiments.training.offer_cores", offered.append)
    monkeypatch.setattr("relic_jax.experiments.run.env_of", env_of)
    code, _, err = cli("train", "darkroom-smoke", "--devices", "2")
    assert code == 2
    assert "here it ends" in err


# --- every command checks all of its arguments ---

STRICT = [
    ["envs", "darkroom-dpt", "--nonsense"],
    ["envs", "darkroom-dpt", "darkroom-ad-9"],
    ["envs", "darkroom-dpt", "--host.horizn", "5"],
    ["envs", "--nonsense"],
    ["presets", "darkroom-smoke", "--nonsense"],
    ["presets", "darkroom-smoke", "darkroom-dpt"],
    ["presets", "--nonsense"],
    ["plot", "--nonsense"],
    ["play", "--nonsense"],
    ["export", "--nonsense"],
    ["habitat-dataset", "--nonsense"],
    ["import-llamarl", "file.pt", "--to", "new", "--nonsense"],
]


@pytest.mark.parametrize("arguments", STRICT, ids=" ".join)
def test_what_is_not_an_option_is_refused(cli, monkeypatch, arguments):
    monkeypatch.setattr(run, "reference_means", None)  # a computation would raise an error
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and arguments[-1] in err and "Traceback" not in err


def test_nearest_names_are_offered(cli, refused):
    refused(["trian"], "did you mean train?")
    assert "--host.ray" in cli("envs", "darkroom-dpt", "--host.rai", "5")[2]
    refused(["envs", "gym:CartPole-v1", "--env.horizn", "5"], "did you mean --env.horizon?")


def test_options_that_an_environment_does_not_read_are_refused(refused, tmp_path):
    refused(
        ["envs", "darkroom-dpt", "--host.horizon", "5"],
        "env.horizon is '5'",
        "with env 'darkroom-dpt': no --env options",
    )
    refused(["envs", "gymnax:CartPole-v1", "--host.workers", "5"], "host.workers is 5", "has no worker processes")
    refused(["envs", "gym:CartPole-v1", "--host.workers", "0"], "host.workers is 0", "more than 0")
    refused(["envs", "--host.workers", "3"], "name is missing")
    refused(["envs", "--no-reference-returns"], "name is missing")
    refused(["envs", "darkrom-dpt", "--host.horizon", "5"], "did you mean darkroom-dpt")
    arguments = ["train", "darkroom-smoke", "--runs", tmp_path / "runs", "--host.horizon", "5"]
    refused(arguments, "env.horizon is '5'", ": no --env options")
    refused(["envs", "metaworld:ml1", "--env.text", "words"], "env.text is 'words'", ": --env.horizon")


def test_envs_takes_the_options_of_hosted_environments(cli, monkeypatch):
    made = []

    def make_env(env, host):
        made.append((env.name, env.horizon, host.python, dict(env.options)))
        return make("darkroom-ad-9")

    monkeypatch.setattr(run, "make_env", make_env)
    monkeypatch.setattr(run, "reference_means", lambda env, split: {"random": 1.5, "optimal": None})
    options = ["--host.horizon", 7, "--habitat-python", "python3.9", "--backend", "habitat"]
    code, out, err = cli("envs", "extobjnav", *options)
    assert (code, err, made) == (0, "", [("extobjnav", 7, "python3.9", {"backend": "habitat"})])
    assert "test: no expert, random 1.5" in out
    code, out, _ = cli("envs", "darkroom-ad-9", "--json")
    found = json.loads(out)
    assert (
        code == 0 and found["actions"] == 5 and found["reference_returns"]["test"] == {"random": 1.5, "optimal": None}
    )
    assert "reference_returns" not in json.loads(cli("envs", "--json")[1])[0]


def test_options_of_wandb_are_read_with_it_alone(refused, tmp_path):
    arguments = ["train", "darkroom-smoke", "--runs", tmp_path / "runs"]
    refused([*arguments, "--wandb.project", "mine"], "wandb.project is 'mine'", "without --track wandb")
    refused([*arguments, "--track", "tensorboard", "--wandb.tags", "a", "b"], "wandb.tags is ('a', 'b')")
    refused([*arguments, "--track", "wandb", "--wandb.project", ""], "wandb.project is ''", "a text that is not empty")
    assert not (tmp_path / "runs").exists()


def test_envs_shows_the_names_of_actions_and_observations(cli):
    code, out, _ = cli("envs", "darkroom-dpt", "--no-reference-returns")
    assert code == 0 and "actions: 0 right, 1 left, 2 up, 3 down, 4 stay\nobservation: x, y\n" in out
    assert "actions: " not in cli("envs", "probe-bandit", "--no-reference-returns")[1]
    assert json.loads(cli("envs", "darkroom-dpt", "--json", "--no-reference-returns")[1])["action_names"][0] == "right"
