"""What `relic-jax sweep` refuses, and what it prints before it trains. Nothing is trained here."""

import dataclasses
from pathlib import Path

import pytest
from small_study import GRID, RUNS

from relic_jax.experiments import folders, presets
from relic_jax.experiments.sweep import evaluator
from relic_jax.experiments.sweep.command import parse_sweep
from relic_jax.experiments.sweep.evaluations import Table
from relic_jax.experiments.sweep.grid import members
from relic_jax.experiments.sweep.study import Method, Study, resolved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*GRID, "--max-runs", "3"), "this grid has 4 runs; allowed: at most --max-runs (3)"),
        ((*GRID, "--vary", "ppo.lr"), "vary is 'ppo.lr'; allowed: FIELD=VALUE,VALUE"),
        ((*GRID, "--vary", "policy.transfomer.sink=kv"), "did you mean policy.transformer.sink?"),
        ((*GRID, "--seeds", "two"), "seeds is 'two'; allowed: a number"),
        (("darkroom-smok",), "preset is 'darkroom-smok'; allowed: a name that relic-jax presets lists; did you mean"),
        (("memories-gridobj",), f"a preset; did you mean {Path('experiments', 'studies', 'memories-gridobj.toml')}?"),
        ((*GRID, "--seed", "5"), "seed is 5; allowed: --seeds instead"),
        ((*GRID, "--vary", "ppo.lr=1e-4"), "vary is 'ppo.lr=1e-4', the second of ppo.lr; allowed: one --vary for each"),
        ((*GRID, "--ppo.lr", "0.5"), "ppo.lr is 0.5; allowed: no such option, because the study varies the field"),
        ((*GRID, "--recorded", "nope"), "recorded is 'nope'; allowed: a folder with files RESULT/runs.jsonl"),
        (
            ("FILE", '[[method]]\nname = "a"\n[[method]]\nname = "b"\neval.episodes = 9'),
            "eval.episodes of b is 9; allowed: 3 as in a",
        ),
        (
            ("FILE", '[[method]]\nname = "a"\n[[method]]\nname = "b"\nenv.name = "darkroom-ad-9"'),
            "env of b is 'darkroom-ad-9'; allowed: 'darkroom-dpt' as in a (the runs of a study are compared)",
        ),
        (
            ("FILE", '[[method]]\nname = "a"\n[[method]]\nname = "b"\nenv.horizon = 50'),
            "env.horizon is 50; allowed: None, 'darkroom-dpt' has a fixed time limit",
        ),
        (
            ("FILE", '[[evaluate]]\nname = "late"\nepisodes = 3\nchange_task_at = 100\n[set]'),
            "eval.change_task_at is 100; allowed: 2 … eval.episodes (3), or None (in the evaluation 'late')",
        ),
        (
            ("FILE", '[[evaluate]]\nname = "last"\ncontext_limit = -1\n[set]'),
            "eval.context_limit is -1; allowed: 0 (the current episode), more than 0, or None (in the evaluation",
        ),
        (
            ("FILE", '[attention]\n[set]\npolicy.memory = "gru"'),
            "policy.memory is 'gru'; allowed: 'transformer' in the",
        ),
        (
            (
                "FILE",
                '[[method]]\nname = "one"\nenv.name = "gridobj-9"\nenv.asked = 1\n[[method]]\nname = "two"\nenv = '
                '{ name = "gridobj-9", asked = 2 }',
            ),
            "as in one (the runs of a study are compared)",
        ),
        (
            ("FILE", '[[method]]\nname = "all"\neval.context_limit = 50\n[[method]]\nname = "last"'),
            "eval.context_limit of last is None; allowed: 50 as in all",
        ),
        (
            ("FILE", '[[evaluate]]\nname = "short"\ncontext_limit = 9\n[[method]]\nname = "g"\npolicy.memory = "gru"'),
            "eval.context_limit is 9; allowed: None if policy.memory is 'gru' (a state cannot forget single steps) (in "
            "the evaluation 'short') (in g)",
        ),
        (
            ("FILE", '[[evaluate]]\nname = "experts"\nexpert_episodes = 2\n[set]\nenv.name = "probe-value"'),
            "eval.expert_episodes is 2; allowed: 0, probe-value has no expert (in the evaluation 'experts')",
        ),
        ((), "study is missing; allowed: a file STUDY.toml, a preset, or --resume FOLDER"),
        ((*GRID, "--vary", "env=darkroom-ad-9,darkroom-dpt", "--eval.every", "64"), "allowed: 'darkroom-ad-9' as in"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_by_a_dry_run_too(cli, tmp_path, arguments, message):
    if arguments[:1] == ("FILE",):
        file = tmp_path / "study.toml"
        tail = "\nppo.last_update = 'partial'\nppo.shuffle = false\nppo.context_gradient = 'stopped'\n"
        tail += "ppo.refresh_every = 'None'\n"
        file.write_text('preset = "darkroom-smoke"\n' + arguments[1] + tail)
        arguments = (file,)
    code, out, error = cli("sweep", *arguments, "--runs", tmp_path / "runs", "--dry-run")
    assert code == 2 and message in error and (out, error.count("\n")) == ("", 1), error
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_the_grid_and_writes_nothing(cli, tmp_path):
    code, out, _ = cli("sweep", *GRID, "--runs", tmp_path, "--dry-run")
    assert code == 0 and "ppo.lr: 0.001, 0.01" in out and "1 program to compile" in out
    assert "of training, without compilation and evaluations, as relic-jax cost predicts" in out
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_runs_that_nothing_is_known_of_can_be_measured(cli, tmp_path):
    arguments = ("--runs", tmp_path, "--dry-run", "--total-steps", "9000000")
    code, out, _ = cli("sweep", "darkroom-rl2", *arguments)
    measured = f"no run like darkroom-rl2 was trained in {tmp_path}; to measure it, train with --seeds 1 --total-steps "
    assert code == 0 and measured + "128000 --name speed\n" in out
    config = dataclasses.replace(presets.get("darkroom-rl2").config, total_steps=128_000)
    folders.create_folder(tmp_path / "speed" / "seed0", config)
    (tmp_path / "speed" / "seed0" / "timing.jsonl").write_text('{"env_steps": 32000, "steps_per_second": 1000.0}\n')
    assert "about 2:30:24 of training, without compilation" in cli("sweep", "darkroom-rl2", *arguments)[1]


def test_finished_and_recorded_runs_cost_nothing(cli, tmp_path):
    arguments = ("sweep", *GRID, "--runs", tmp_path, "--dry-run")
    assert "left to train" not in cli(*arguments)[1]
    path = tmp_path / "rates"
    path.mkdir()
    (path / "study.toml").write_text(resolved(parse_sweep(list(GRID))[1]))
    for name in RUNS[:3]:
        (path / name).mkdir()
        (path / name / "record.json").touch()
    resumed = ("sweep", "--resume", path, "--trust", "--dry-run")
    assert "  left to train: 1 run of 4\n  1 program to compile; 1 run at a time" in cli(*resumed)[1]
    (path / RUNS[3]).mkdir()
    (path / RUNS[3] / "failed.txt").touch()
    assert "estimated time: 0:00 of training, no run is left to train" in cli(*resumed)[1]


def test_the_evaluations_are_counted():
    one = Study("s", (0,), (Method("", presets.get("darkroom-smoke").config),), {}, (Table("long"),))
    assert evaluator.describe(one, members(one)) == ["  1 evaluation after training: long"]


def test_the_help_shows_what_a_sweep_takes(cli):
    code, out, _ = cli("sweep", "--help")
    assert code == 0 and "usage: relic-jax sweep STUDY.toml|PRESET" in out
    assert "--seed " not in out and "each of which trains its share of the runs" in " ".join(out.split())
