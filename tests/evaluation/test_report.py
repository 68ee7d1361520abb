"""The report of a curve: its numbers, its files, and files of earlier versions."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError, EvalConfig, Options
from relic_jax.environment import split_hash
from relic_jax.envs.registry import make
from relic_jax.evaluation import (
    Curve,
    Curves,
    Report,
    evaluated_tasks,
    one_task,
    percentile_over_tasks,
    summarise,
    to_csv,
)
from relic_jax.evaluation.statistics import shortest
from relic_jax.experiments.run import as_json
from relic_jax.loading import pretrained


def first(run, episodes):
    """The curves of the first episodes alone."""
    returns, successes, metrics = jax.tree.map(lambda x: x[:, :episodes], (run.returns, run.successes, run.metrics))
    return replace(run, returns=returns, successes=successes, metrics=metrics)


@pytest.fixture
def summary():
    env, config = make("darkroom-ad-9"), EvalConfig(episodes=3, expert_episodes=0)
    rng = np.random.default_rng(0)
    runs = [
        Curves(returns := rng.random((9, 3), np.float32), returns > 0.5, trial=None, metrics={"spl": returns / 2})
        for _ in range(2)
    ]
    return runs, summarise(env, "test", config, runs, {"random": 0.5, "optimal": 16.5}, {"commit": "abc"})


def test_summary_says_everything_needed_to_judge_the_curve(summary):
    runs, found = summary
    returns = np.stack([run.returns for run in runs])
    assert found.env == "darkroom-ad-9" and found.split == "test" and found.tasks == 9 and found.seeds == 2
    assert found.split_hash == split_hash(make("darkroom-ad-9").tasks("test"))
    assert (found.episodes, found.repeats, found.expert_episodes, found.context_limit) == (3, 1, 0, None)
    assert found.reference_returns == {"random": 0.5, "optimal": 16.5} and found.provenance == {"commit": "abc"}
    np.testing.assert_allclose(found.returns.mean, returns.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.success.mean, (returns > 0.5).mean((0, 1)))
    np.testing.assert_allclose(found.metrics["spl"].mean, returns.mean((0, 1)) / 2, rtol=1e-6)
    for curve in (found.returns, found.success, found.metrics["spl"]):
        low, mean, high = (np.array(part) for part in (curve.low, curve.mean, curve.high))
        assert low.shape == (3,) and (low < mean).all() and (mean < high).all()
    assert np.array_equal(np.array(found.raw_returns, np.float32), returns)
    assert np.array_equal(np.array(found.raw_successes, bool), returns > 0.5)
    assert np.array_equal(np.array(found.raw_metrics["spl"], np.float32), returns / 2)
    for seed, run in zip(found.per_seed, runs, strict=True):
        assert seed["first"] == pytest.approx(run.returns[:, 0].mean())
        assert seed["later"] == pytest.approx(run.returns[:, 1:].mean())


def test_summary_survives_json_in_which_every_trial_is_a_line(summary):
    runs, found = summary
    found.provenance["command"] = 'evaluate [ 1,  2 ] "quoted [\n3]"'
    text = as_json(found.to_json())
    assert json.loads(text) == found.to_json() and Report.from_json(json.loads(text)) == found
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    assert all(json.dumps(row) in lines for run in runs for row in shortest(run.returns))


def test_options_of_the_environment_are_kept_and_can_be_unknown(summary):
    _, found = summary
    assert found.env_options is None and "env_options" not in found.to_json() and found.env_text == "darkroom-ad-9"
    for options, text in ((Options(), ""), (Options(pose="dock", asked=(1, 2)), ", asked (1, 2), pose dock")):
        known = replace(found, env_options=options)
        assert Report.from_json(json.loads(as_json(known.to_json()))) == known
        assert known.env_text == f"darkroom-ad-9{text}"


def test_numbers_are_written_with_as_many_digits_as_float32_needs():
    values = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32) * np.float32([1e-6, 1e6])
    written = shortest(values)
    assert np.array_equal(np.array(written, np.float32), values)
    digits = [json.dumps(x).lstrip("-").split("e")[0].replace(".", "").lstrip("0") for row in written for x in row]
    assert max(map(len, digits)) <= 9
    assert shortest(np.float32([0.1, 2.0])) == [0.1, 2.0]


def test_a_metric_that_is_called_success_does_not_take_its_place(summary):
    runs, found = summary
    called = [replace(run, metrics={"success": run.returns * 7}) for run in runs]
    references = {"random": 0.5, "optimal": 16.5}
    other = summarise(make("darkroom-ad-9"), "test", EvalConfig(episodes=3), called, references, {})
    assert other.success == found.success and other.later_gain["success"] == found.later_gain["success"]
    column = [row["success_mean"] for row in csv.DictReader(io.StringIO(to_csv(found)))]
    assert [row["success_mean"] for row in csv.DictReader(io.StringIO(to_csv(other)))] == column
    np.testing.assert_allclose(other.metrics["success"].mean, 7 * np.array(found.returns.mean), rtol=1e-5)


def test_nothing_later_than_the_only_episode(summary):
    runs, _ = summary
    short = [first(run, 1) for run in runs]
    references = {"random": 0.5, "optimal": None}
    found = summarise(make("darkroom-ad-9"), "test", EvalConfig(episodes=1), short, references, {})
    assert [seed["later"] for seed in found.per_seed] == [None, None]


def test_csv_has_one_line_per_episode_with_the_same_numbers(summary):
    _, found = summary
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [row["episode"] for row in rows] == ["1", "2", "3"]
    for kind, curve in (("return", found.returns), ("success", found.success), ("spl", found.metrics["spl"])):
        for part in ("mean", "low", "high"):
            np.testing.assert_allclose([float(row[f"{kind}_{part}"]) for row in rows], getattr(curve, part), rtol=1e-5)
    np.testing.assert_allclose([float(row["return_p20"]) for row in rows], found.returns.p20, rtol=1e-5)
    assert len(rows[0]) == 11 and jnp.isfinite(jnp.array([float(x) for x in rows[0].values()])).all()


def test_the_twentieth_percentile_is_over_tasks_and_not_over_their_repeats():
    task = np.arange(11.0)  # the percentile of 0 … 10 is 2
    repeats = np.stack([task + 100, task - 100], axis=1).reshape(-1, 1)  # task-major, each task's mean is its number
    runs = [repeats, repeats + 4]
    np.testing.assert_allclose(percentile_over_tasks(runs, 11, 20.0), [4.0])


def test_curves_of_earlier_versions_have_no_percentile(summary):
    _, found = summary
    old = replace(found, returns=replace(found.returns, p20=None), metrics={})
    assert to_csv(old).splitlines()[0].split(",")[1:] == [
        f"{kind}_{part}" for kind in ("return", "success") for part in ("mean", "low", "high")
    ]


def test_gain_is_of_the_last_episode_over_the_first_of_the_same_trial(summary):
    runs, found = summary
    by_hand = [run.returns[:, 2] - run.returns[:, 0] for run in runs]
    assert found.gain.mean == [pytest.approx(np.mean(by_hand), rel=1e-5)]
    paired = [
        np.arange(9.0)[:, None] + np.array([0.0, 7.0, 5.0]) for _ in range(2)
    ]  # the tasks differ, the gain does not
    runs = [Curves(returns, returns > 0, trial=None) for returns in paired]
    found = summarise(make("darkroom-ad-9"), "test", EvalConfig(episodes=3), runs, {"random": 0, "optimal": None}, {})
    assert found.gain == Curve([5.0], [5.0], [5.0])


def test_later_gain_is_of_the_third_and_later_episodes_over_the_first(summary):
    runs, found = summary
    kinds = {
        "return": [r.returns for r in runs],
        "success": [r.successes for r in runs],
        "spl": [r.metrics["spl"] for r in runs],
    }
    assert set(found.later_gain) == set(kinds)
    for kind, values in kinds.items():
        by_hand = [np.mean(v[:, 2:], 1) - v[:, 0] for v in values]
        assert found.later_gain[kind].mean == [pytest.approx(np.mean(by_hand), rel=1e-5)]
    cut = [first(run, 2) for run in runs]
    references = {"random": 0.5, "optimal": None}
    found = summarise(make("darkroom-ad-9"), "test", EvalConfig(episodes=2), cut, references, {})
    assert found.later_gain == {"return": None, "success": None, "spl": None}


def test_a_part_of_the_tasks_are_the_first_ones_and_any_one_can_be_asked_for():
    env, few = make("darkroom-dpt"), EvalConfig(episodes=2, tasks=3)
    goals = env.tasks("test").goal
    assert np.array_equal(evaluated_tasks(env, "test", EvalConfig()).goal, goals)
    assert np.array_equal(evaluated_tasks(env, "test", few).goal, goals[:3])
    assert np.array_equal(one_task(env, "test", 5).goal, goals[5:6])
    with pytest.raises(ConfigError, match=r"task is 20; allowed: 0 … 19"):
        one_task(env, "test", 20)
    runs = [Curves(np.ones((3, 2), np.float32), np.ones((3, 2), bool), trial=None)]
    found = summarise(env, "test", few, runs, {"random": 0, "optimal": None}, {})
    assert found.tasks == 3 and found.split_hash == split_hash(env.tasks("test"))


# --- files of earlier versions ---

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
OLD = ["darkroom-dpt/seed0", "darkroom-dpt/pooled", "xland-trivial/relic-seed0", "halfcheetah-vel-small/relic"]


@pytest.mark.parametrize("name", OLD)
def test_files_of_earlier_versions_are_read(name):
    """They call the reference returns `lines`; the oldest ones have neither gains nor percentiles."""
    old = json.loads((RESULTS / f"{name}.json").read_text())
    report = Report.from_json(old)
    assert "lines" in old and report.reference_returns == old["lines"]
    new = report.to_json()
    assert Report.from_json(new) == report and "lines" not in new
    assert {key: new[key] for key in old if key != "lines"} == {key: x for key, x in old.items() if key != "lines"}
    assert len(to_csv(report).splitlines()) == 1 + len(old["return"]["mean"])


def test_plot_draws_files_of_earlier_versions(cli, tmp_path):
    files = [RESULTS / f"{name}.json" for name in OLD[:2]]
    code, out, err = cli("plot", *files, "--out", tmp_path / "figure.png")
    assert (code, err) == (0, "") and "wrote" in out and (tmp_path / "figure.png").is_file()


def test_the_shipped_policys_evaluation_is_read():
    report = pretrained("darkroom-dpt").evaluation
    assert report.reference_returns["optimal"] == 90.9 and len(report.returns.mean) == report.episodes == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lines": 3}, "evaluation.lines is 3; allowed: an object of numbers and null"),
        ({"return": {}}, "evaluation.return.mean is None"),
        ({"success": {"mean": [1.0], "low": [1.0], "high": [1.0]}}, "evaluation.success.mean is .*as many numbers"),
        ({"tasks": -1}, "evaluation.tasks is -1; allowed: a whole number, 0 or more"),
        ({"env": None}, "evaluation.env is None; allowed: text"),
        ({"env_options": 3}, "evaluation.env_options is 3; allowed: an object"),
        ({"gain": {"mean": ["x"]}}, "evaluation.gain.mean is"),
        ({"metrics": []}, "evaluation.metrics is"),
    ],
)
def test_the_first_field_that_does_not_fit_is_named(changes, message):
    old = json.loads((RESULTS / "darkroom-dpt/pooled.json").read_text())
    with pytest.raises(ConfigError, match=message):
        Report.from_json(old | changes)
