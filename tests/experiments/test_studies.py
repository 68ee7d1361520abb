"""The committed studies: their grids, their cost, the runs that they share, and the command that runs them."""

import csv
import json
import types
from dataclasses import replace
from pathlib import Path

import pytest

from relic_jax.config import ConfigError, to_json
from relic_jax.experiments import run, studies
from relic_jax.experiments.studies import FOLDER, LONG, NIGHT
from relic_jax.experiments.studies import __main__ as command
from relic_jax.experiments.sweep import evaluator
from relic_jax.experiments.sweep.folder import StudyFolder
from relic_jax.experiments.sweep.grid import members, programs
from relic_jax.experiments.sweep.report import write_report
from relic_jax.experiments.sweep.reuse import COPY, reuse_runs, take_recorded
from relic_jax.experiments.sweep.study import read_study, resolved, study_of
from relic_jax.rl.train import total_env_steps

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
ATTENTION = {"window", "transformer-xl", "memo"}
STATES = {"gru", "lstm", "gated-delta", "lru"}
VARIANTS = {
    "memories-darkroom": {"relic", "single-episode", "multi-episode", *ATTENTION, *STATES},
    "memories-gridobj": {"relic", "single-episode", "multi-episode", *ATTENTION, *STATES},
    "memories-gridobj-three": {"relic", "multi-episode", *ATTENTION, "gru"},
    "partial-updates": {"partial", "partial-4", "whole", "whole-2x-epochs"},
    "sinks": {f"sink-{sink}" for sink in ("kv", "kv0", "k0v0", "token", "none")},
    "context-gradient": {"context-gradient-stopped", "context-gradient-full"},
    "imitation": {"relic", "gru"},
    "attention": {f"sink-{sink}" for sink in ("kv", "token", "none")},
    "length": {"relic", "partial", "no-shuffle", "window", "memo", "gru", "gated-delta"},
    "stale-keys-full": {"all", "all, no shuffle", "newest two", "every second update", "never"},
}
EVALUATIONS = {"imitation": 1 + 4 * 4, "length": 2 + 4 + 1}
"""Numbers of evaluations of the first run."""
SEEDS = 5
CORES = 2
SPEED = 8500
"""Environment steps per second and core, without evaluations, for which an hour remains of the 12."""


@pytest.fixture(scope="module")
def grids():
    return {name: members(read_study(FOLDER / f"{name}.toml")) for name in (*NIGHT, *LONG)}


def test_every_study_file_is_run_by_the_command():
    assert sorted(path.stem for path in FOLDER.glob("*.toml")) == sorted([*NIGHT, *LONG]) == sorted(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_grid_of_a_study(grids, name):
    study, runs = read_study(FOLDER / f"{name}.toml"), grids[name]
    assert study.name == name and study.seeds == tuple(range(SEEDS))
    assert {member.variant for member in runs} == VARIANTS[name] and len(runs) == SEEDS * len(VARIANTS[name])
    assert all(member.config.eval.every for member in runs)  # learning speed is a result
    assert len(evaluator.evaluations_of(study, runs[0])) == EVALUATIONS.get(name, 0)
    assert (evaluator.attention_of(study, runs[0]) is not None) == (name == "attention")
    budgets = {(total_env_steps(member.config), member.config.env) for member in runs}
    assert len({env for _, env in budgets}) == 1
    steps = [count for count, _ in budgets]
    assert max(steps) - min(steps) < 0.02 * max(steps)  # the same up to the rounding to whole trials
    env = run.env_of(runs[0].config)
    setups = {member.name: types.SimpleNamespace(trials=types.SimpleNamespace(env=env)) for member in runs}
    evaluator.check(study, runs, setups)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_resolved_study_is_the_same(name):
    import tomllib

    study = read_study(FOLDER / f"{name}.toml")
    assert study_of(tomllib.loads(resolved(study)), FOLDER / "x.toml") == study


def test_a_night_is_enough_because_studies_share_runs(grids):
    trained, seconds = set(), 0.0
    for name in NIGHT:
        new = [member for member in grids[name] if member.config not in trained]
        trained |= {member.config for member in new}
        for group in programs(new):  # a core trains one run at a time
            seconds += -(-len(group) // CORES) * total_env_steps(group[0].config) / SPEED
    assert seconds <= 11 * 3600
    whole, partial = (
        next(member.config for member in grids["partial-updates"] if member.variant == name)
        for name in ("whole", "partial")
    )
    assert {grids[name][0].config for name in ("memories-gridobj", "imitation", "length")} == {whole}
    assert {grids[name][0].config for name in ("sinks", "context-gradient", "attention")} == {partial}
    assert {member.config for member in grids["imitation"]} <= {member.config for member in grids["memories-gridobj"]}
    assert {member.config for member in grids["attention"]} <= {member.config for member in grids["sinks"]}


def test_methods_that_are_compared_on_two_tasks_are_the_same(grids):
    def common(policy):  # the window is about one episode long, and recall is learned without rotary angles
        return replace(policy, transformer=replace(policy.transformer, window=64, episode_rope=False))

    for one, other in zip(grids["memories-darkroom"], grids["memories-gridobj"], strict=True):
        assert one.variant == other.variant and common(one.config.policy) == common(other.config.policy)


def finish(folder, config):
    """Write the files of a finished run."""
    (folder / "checkpoints" / "100").mkdir(parents=True)
    (folder / "checkpoints" / "100" / "state").write_text("weights")
    (folder / "config.json").write_text(to_json(config))
    (folder / "origin.json").write_text(json.dumps({"command": "relic-jax sweep a.toml"}))
    for name in ("curve.png", "evaluate-long.json", "attention.json", "attention.png", "lock"):
        (folder / name).write_text("")


def test_runs_of_other_studies_are_copied_once_and_only_if_they_are_finished(tmp_path, grids):
    runs = grids["partial-updates"][: SEEDS + 1]  # the baseline and one run of another method
    finish(tmp_path / "sinks" / "sink-kv_seed0", runs[0].config)
    finish(tmp_path / "sinks" / "sink-kv_seed1", runs[1].config)
    (tmp_path / "sinks" / "sink-kv_seed1" / "curve.png").unlink()
    finish(tmp_path / "sinks" / "sink-none_seed0", grids["sinks"][-1].config)
    folder = StudyFolder(tmp_path / "partial-updates")
    (folder.path / COPY / runs[2].name).mkdir(parents=True)  # a killed process left it
    copied = reuse_runs(folder, runs)
    assert [(member.name, source.name) for member, source in copied] == [("partial_seed0", "sink-kv_seed0")]
    target = folder.run(runs[0])
    assert sorted(path.name for path in folder.path.iterdir()) == ["partial_seed0"]
    assert sorted(path.name for path in target.iterdir()) == ["checkpoints", "config.json", "curve.png", "origin.json"]
    assert (target / "checkpoints" / "100" / "state").read_text() == "weights"
    origin = json.loads((target / "origin.json").read_text())
    assert origin == {"command": "relic-jax sweep a.toml", "copied_from": "sinks/sink-kv_seed0"}
    assert folder.is_finished(runs[0]) and reuse_runs(folder, runs) == []


def test_recorded_runs_are_taken_unless_weights_are_needed(tmp_path, grids):
    study, runs = read_study(FOLDER / "sinks.toml"), grids["sinks"][: SEEDS + 1]
    folder = StudyFolder(tmp_path / "sinks")
    finish(folder.run(runs[1]), runs[1].config)  # is trained, and stays as it is
    taken = take_recorded(folder, study, runs, RESULTS)
    assert [member for member, _ in taken] == [runs[0], *runs[2:]]
    assert taken[0][1] == "partial-updates/partial_seed0"  # of the other study with this configuration
    assert all(folder.is_finished(run) for run in runs) and not (folder.run(runs[1]) / "record.json").exists()
    origin = json.loads((folder.run(runs[0]) / "origin.json").read_text())
    assert origin.keys() == {"command", "commit", "jax", "device", "copied_from"}
    assert json.loads((folder.run(runs[0]) / "record.json").read_text())["copied_from"] == taken[0][1]
    assert take_recorded(folder, study, runs, RESULTS) == []
    with_evaluations = read_study(FOLDER / "imitation.toml")
    assert take_recorded(StudyFolder(tmp_path / "imitation"), with_evaluations, grids["imitation"], RESULTS) == []


def test_the_record_of_the_own_study_comes_first(tmp_path, grids):
    for name, mark in (("a", "other"), ("sinks", "own")):
        (tmp_path / "results" / name).mkdir(parents=True)
        text = (RESULTS / "sinks" / "study.toml").read_text()
        (tmp_path / "results" / name / "study.toml").write_text(text)
        line = json.loads((RESULTS / "sinks" / "runs.jsonl").read_text().splitlines()[-1])
        line = {key: x for key, x in line.items() if key != "copied_from"} | {"run": "sink-kv_seed0", "commit": mark}
        (tmp_path / "results" / name / "runs.jsonl").write_text(json.dumps(line) + "\n")
    folder = StudyFolder(tmp_path / "sinks")
    taken = take_recorded(folder, read_study(FOLDER / "sinks.toml"), grids["sinks"][:1], tmp_path / "results")
    assert [name for _, name in taken] == ["sinks/sink-kv_seed0"]
    assert json.loads((folder.path / "sink-kv_seed0" / "record.json").read_text()) == line


def test_a_damaged_line_of_results_is_named(tmp_path, grids):
    results = tmp_path / "results" / "sinks"
    results.mkdir(parents=True)
    (results / "study.toml").write_text((RESULTS / "sinks" / "study.toml").read_text())
    (results / "runs.jsonl").write_text('{"run": "sink-kv_seed9"}\n')
    study = read_study(FOLDER / "sinks.toml")
    with pytest.raises(ConfigError, match=r"recorded: line 1 of '.*runs.jsonl' is no run of its study"):
        take_recorded(StudyFolder(tmp_path / "sinks"), study, grids["sinks"], tmp_path / "results")


def test_a_record_is_checked_before_training(tmp_path, grids):
    results, study = tmp_path / "results" / "sinks", read_study(FOLDER / "sinks.toml")
    with pytest.raises(ConfigError, match=r"recorded is '.*results'; allowed: a folder with files RESULT/runs.jsonl"):
        take_recorded(StudyFolder(tmp_path / "sinks"), study, grids["sinks"], tmp_path / "results")
    results.mkdir(parents=True)
    (results / "study.toml").write_text((RESULTS / "sinks" / "study.toml").read_text())
    (results / "runs.jsonl").write_text('{"run": "sink-kv_seed0", "return": [1]}\n')
    with pytest.raises(ConfigError, match=r"recorded: 'sinks/sink-kv_seed0' in '.*' is no record of a run"):
        take_recorded(StudyFolder(tmp_path / "sinks"), study, grids["sinks"], tmp_path / "results")
    assert not list((tmp_path / "sinks").glob("*"))


RECORDED = sorted(file.parent.name for file in RESULTS.glob("*/runs.jsonl"))


@pytest.mark.parametrize("name", RECORDED)
def test_committed_tables_are_those_of_the_committed_runs(tmp_path, grids, name):
    """The numbers of runs are rounded to four digits, so the ends of intervals can differ in the last printed one.

    The probability of improvement can differ more: numbers that are equal after rounding are a tie.
    """
    study, runs = read_study(FOLDER / f"{name}.toml"), grids[name]
    if study.evaluate or study.attention is not None:
        pytest.skip("recorded runs have no evaluations")
    folder = StudyFolder(tmp_path / name)
    take_recorded(folder, study, runs, RESULTS)
    write_report(folder, study, runs)
    tables = [list(csv.DictReader(path.open())) for path in (folder.path / "table.csv", RESULTS / name / "table.csv")]
    for own, committed in zip(*tables, strict=True):
        assert (own["method"], own["seeds"], own["runs"]) == (
            committed["method"],
            committed["seeds"],
            committed["runs"],
        )
        for column in own.keys() - {"method", "runs"}:
            values = [[float(x) for x in row[column].split()] for row in (own, committed)]
            size = 6e-3 if column.startswith("probability") else 2e-3
            assert values[0] == pytest.approx(values[1], rel=2e-3, abs=size), column


@pytest.fixture
def sweeps(monkeypatch):
    """Return the arguments of the sweeps that a command starts, and the exit codes to answer with."""
    calls, codes = [], []

    def run_sweep(arguments):
        calls.append(list(arguments))
        return codes.pop(0) if codes else 0

    monkeypatch.setattr(command, "run_sweep", run_sweep)
    return calls, codes


def test_the_command_starts_each_study_and_continues_those_that_exist(sweeps, tmp_path):
    calls, _ = sweeps
    (tmp_path / "sinks").mkdir()
    (tmp_path / "sinks" / "study.toml").write_text("")
    assert command.start(command.Command(runs=tmp_path, out=tmp_path / "out")) == 0
    assert [call[1] for call in calls] == [str(FOLDER / f"{name}.toml") for name in NIGHT]
    assert all("--reuse" in call for call in calls)
    assert [name for name, call in zip(NIGHT, calls, strict=True) if "--resume" in call] == ["sinks"]
    assert not (tmp_path / "out").exists()


def test_a_stopped_study_ends_the_command_and_a_failed_run_does_not(sweeps, tmp_path):
    calls, codes = sweeps
    codes[:] = [1, 0, 143]
    assert command.start(command.Command(runs=tmp_path, out=tmp_path / "out")) == 143
    assert len(calls) == 3


def test_an_unknown_study_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match=r"studies is 'sink'; allowed: .*; did you mean sinks"):
        command.main(["sink"])


def test_the_command_runs_in_a_child_process(capfd):
    assert command.run_sweep(["sweep", str(FOLDER / "sinks.toml"), "--dry-run", "--seeds", "2"]) == 0
    assert "sweep sinks: 10 runs (5 variants × 2 seeds)" in capfd.readouterr().out


def test_the_studies_are_a_package():
    assert studies.__name__ == "relic_jax.experiments.studies"
