"""`relic-jax compare`: methods, numbers, files and refusals, with hand-made run folders."""

import csv
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from relic_jax.config import ConfigError, EnvConfig, TrainConfig, to_json
from relic_jax.evaluation import aggregates
from relic_jax.evaluation.aggregates import interval
from relic_jax.experiments.compare import Method, compare, methods_of, run_folders, write
from relic_jax.experiments.compare.measure import Measure, read_measure
from relic_jax.experiments.compare.results import read_result, record_of
from relic_jax.experiments.plots import learning_curve
from relic_jax.validation import did_you_mean

REFERENCES = {"random": 10.0, "optimal": 110.0}
TASKS, EPISODES = 4, 3
BASE = TrainConfig(env=EnvConfig("darkroom-dpt"))


def with_sink(config, sink):
    return replace(config, policy=replace(config.policy, transformer=replace(config.policy.transformer, sink=sink)))


def report(returns, **about):
    curve = {part: np.mean(returns, 0).tolist() for part in ("mean", "low", "high")}
    found = {"env": "darkroom-dpt", "split": "test", "split_hash": "abc", "tasks": TASKS, "seeds": 1}
    found |= {"episodes": EPISODES, "repeats": 1, "reference_returns": REFERENCES, "return": curve, "success": curve}
    return found | {"raw_returns": [np.asarray(returns).tolist()]} | about


def evaluation(steps, score, **about):
    by_task = [10.0 + 100.0 * score] * TASKS
    found = {"env_steps": steps, "tasks": TASKS, "episodes": EPISODES, "split_hash": "abc"}
    found |= {"reference_returns": REFERENCES, "return": [0.0, 1.0, 2.0], "success": [0.0, 0.5, 1.0]}
    return found | {"first": 20.0, "later": by_task[0], "first_by_task": by_task, "later_by_task": by_task} | about


@pytest.fixture
def make(tmp_path):
    """Return `make(name, config, later, learning)`, a run whose tasks return 20 first and later `later` + task."""

    def made(name, config=BASE, later=100.0, learning=(), **about):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(config))
        if later is not None:
            returns = [[20.0, later + task, later + task] for task in range(TASKS)]
            (folder / "curve.json").write_text(json.dumps(report(returns, **about)))
        lines = [json.dumps(evaluation(steps, score)) + "\n" for steps, score in learning]
        if lines:
            (folder / "evaluations.jsonl").write_text("".join(lines))
        return folder

    return made


def seeds(make, name, config, laters, learning=((0, 0.0), (1000, 1.0)), parent=""):
    return [
        make(f"{parent}{name}-seed{seed}", replace(config, seed=seed), later, learning)
        for seed, later in enumerate(laters)
    ]


def test_runs_are_grouped_by_the_settings_that_differ(make):
    kv, none = with_sink(BASE, "kv"), with_sink(BASE, "none")
    runs = [*seeds(make, "kv", kv, [90.0, 91.0]), *seeds(make, "none", none, [80.0])]
    runs[1].joinpath("config.json").write_text(to_json(replace(kv, seed=1, devices=2, checkpoint_minutes=9.0)))
    methods = methods_of(runs)
    assert [(m.name, len(m.runs)) for m in methods] == [("sink=kv", 2), ("sink=none", 1)]
    assert methods[0].settings == {"policy.transformer.sink": "kv"}


def test_names_have_as_few_settings_as_distinguish_methods(make):
    """A learning rate that was tuned for each memory does not name the methods."""
    a = replace(BASE, ppo=replace(BASE.ppo, lr=1e-3))
    b = replace(BASE, ppo=replace(BASE.ppo, lr=2e-3), policy=replace(BASE.policy, memory="gru"))
    methods = methods_of([make("a", a), make("b", b)])
    assert [m.name for m in methods] == ["memory=transformer", "memory=gru"]
    assert methods[1].settings == {"policy.memory": "gru", "ppo.lr": 2e-3}
    c = replace(a, trial=replace(a.trial, updates=1))
    both = methods_of([make("c", a), make("d", b), make("e", c), make("f", replace(b, trial=c.trial))])
    assert [m.name for m in both] == [
        "memory=transformer, updates=16",
        "memory=gru, updates=16",
        "memory=transformer, updates=1",
        "memory=gru, updates=1",
    ]


def test_numbers_are_those_of_the_definitions(make):
    fast = seeds(make, "fast", with_sink(BASE, "kv"), [100.0, 90.0], ((0, 0.0), (1000, 1.0)))
    slow = seeds(make, "slow", with_sink(BASE, "none"), [60.0, 95.0], ((0, 0.0), (1000, 0.5)))
    found = compare(methods_of([*fast, *slow]))
    one, two = found.rows
    later = np.array([[100.0], [90.0]]) + np.arange(TASKS)
    assert one.first == (20.0, 20.0, 20.0) and one.later == interval(aggregates.mean, later)
    scores, others = (later - 10) / 100, (np.array([[60.0], [95.0]]) + np.arange(TASKS) - 10) / 100
    assert one.iqm == interval(aggregates.iqm, scores) and one.gap == interval(aggregates.optimality_gap, scores)
    assert one.improvement is None
    assert two.improvement == interval(aggregates.probability_of_improvement, others, scores)
    assert two.improvement.value == 0.25  # 95 beats 90 in each task; the other three pairs lose
    assert one.speed.median == (800, 800, 800) and one.speed.reached == 2
    assert two.speed.reached == 0 and str(two.speed) == "> 1k [> 1k, > 1k], 0 of 2 reached it"
    swapped = compare(methods_of([*fast, *slow]), "sink=none")
    assert swapped.rows[0].improvement.value == 0.75 and swapped.rows[1].improvement is None


def test_the_files(make, tmp_path):
    methods = methods_of([*seeds(make, "a", BASE, [100.0, 90.0]), *seeds(make, "b", with_sink(BASE, "none"), [60.0])])
    found = compare(methods)
    files = write(found, tmp_path / "out")
    assert [file.name for file in files] == ["table.md", "table.csv", "figure.png"]
    table = files[0].read_text()
    assert "| sink=none | 1 | 20.0 [20.0, 20.0] | 61.5 [" in table and "random 10.0, optimal 110.0" in table
    assert "One seed, so the interval is over tasks only: sink=none." in table
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [row["method"] for row in rows] == ["sink=kv", "sink=none"] and rows[0]["steps_to_80"] == "800"
    assert float(rows[1]["later"]) == 61.5 and rows[0]["probability_of_improvement"] == ""
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert {axis.get_xlabel().split()[0] for axis in found.figure().axes} == {"episode", "environment", "normalized"}


SEARCHERS = {"forgetful searcher": 20.0, "remembering searcher": 10.0}


def with_steps(make, name, config, steps, searchers=SEARCHERS):
    """Return a run whose tasks take `steps` [episodes] steps, beside searchers that take as many in every episode."""

    def curves(value):
        curve = {part: [value] * EPISODES for part in ("mean", "low", "high")}
        return {"return": curve, "success": curve, "metrics": {"steps": curve}}

    agents = {agent: curves(value) for agent, value in searchers.items()}
    return make(name, config, raw_metrics={"steps": [[steps] * TASKS]}, reference_agents=agents)


def test_steps_are_scored_between_the_searchers_and_fewer_are_better(make):
    short = [with_steps(make, f"a{seed}", replace(BASE, seed=seed), [30.0, 14.0, 12.0]) for seed in range(2)]
    gru = replace(BASE, policy=replace(BASE.policy, memory="gru"))
    long = [with_steps(make, "b0", gru, [30.0, 20.0, 18.0])]
    found = compare(methods_of([*short, *long]), measure=Measure("steps", (3, 3)))
    one, two = found.rows
    assert (one.first.value, one.later.value, two.later.value) == (30, 12, 18)
    assert one.iqm.value == pytest.approx(0.8) and two.gap.value == pytest.approx(0.8)  # (20 − 18) / (20 − 10) = 0.2
    assert two.improvement.value == 0
    table = found.markdown()
    assert "| steps, first episode | steps, episodes 3–3 |" in table
    assert "forgetful searcher 20.0, remembering searcher 10.0." in table
    assert "Scores are 0 for the forgetful searcher and 1 for the remembering searcher" in table
    assert "| `policy.memory` | transformer | gru |" in table
    assert found.figure().axes[0].get_ylabel() == "steps per episode"


def test_steps_without_searchers_are_not_scored(make):
    runs = [with_steps(make, "a0", BASE, [30.0, 14.0, 12.0], searchers={})]
    row = compare(methods_of(runs), measure=Measure("steps")).rows[0]
    assert (row.later.value, row.iqm.value, row.gap) == (13, 13, None)


def test_recorded_and_other_runs_are_compared_by_their_means(make, tmp_path):
    kept = with_steps(make, "study/a_seed0", BASE, [30.0, 14.0, 12.0])
    measure = Measure("steps", (2, 3))
    lines = []
    for name, steps, measured in (("b_seed0", 16.0, None), ("b_seed1", 18.0, True)):
        folder = with_steps(make, name, replace(BASE, seed=7), [30.0, steps, steps])
        record = record_of(read_result(folder), read_result(folder, measure=measure) if measured else None)
        lines.append({"run": name, "metrics": {"steps": [30.0, steps, steps]}} | record)
    path = tmp_path / "study" / "runs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    old, new = (read_result(path.with_name(f"b_seed{seed}"), measure=measure, config=BASE) for seed in (0, 1))
    assert (old.later.tolist(), new.later.tolist()) == ([16.0], [18.0] * TASKS)  # an early record has means only
    methods = [Method("a", (kept,)), Method("b", (old.folder, new.folder), configs=(BASE, replace(BASE, seed=1)))]
    found = compare(methods, measure=measure)
    assert [row.later.value for row in found.rows] == [13, 17]
    assert "over seeds only" in found.markdown()


@pytest.mark.parametrize(
    ("metric", "episodes", "message"),
    [
        ("stps", None, "metric is 'stps'; allowed for 'darkroom-dpt': return, steps"),
        ("steps", "2-9", "episodes is '2-9'; allowed: up to 3, the number of episodes in context"),
        ("steps", "3-2", "episodes is '3-2'; allowed: FIRST-LAST, counted from 1, e.g. 6-20"),
        ("steps", 3, "episodes is 3; allowed: FIRST-LAST, counted from 1, e.g. 6-20"),
        ("", None, "metric is ''; allowed: return, success or a metric, e.g. steps"),
    ],
)
def test_measures_that_do_not_exist_are_refused(make, metric, episodes, message):
    run = with_steps(make, "a0", BASE, [30.0, 14.0, 12.0])
    with pytest.raises(ConfigError) as error:
        compare(methods_of([run]), measure=read_measure(metric, episodes))
    assert message in str(error.value)


def test_without_an_optimal_return_scores_are_returns(make):
    runs = seeds(make, "a", BASE, [100.0, 90.0], ())
    for run in runs:
        content = json.loads((run / "curve.json").read_text()) | {"reference_returns": {"random": 1.0, "optimal": None}}
        (run / "curve.json").write_text(json.dumps(content))
    found = compare(methods_of(runs))
    assert found.rows[0].gap is None and found.rows[0].speed is None and not found.normalized
    assert "IQM of returns" in found.markdown() and found.rows[0].iqm.value == pytest.approx(96.5)
    found.figure()


def test_runs_without_an_evaluation_are_left_out_and_named(make):
    runs = [*seeds(make, "a", BASE, [100.0]), make("unfinished", replace(BASE, seed=1), None)]
    found = compare(methods_of(runs))
    assert found.rows[0].seeds == 1 and found.missing == (runs[1],)
    assert f"Not evaluated, and left out: {runs[1]}." in found.markdown()
    with pytest.raises(ConfigError, match=r"no run has a curve.json \('.*unfinished'\).*relic-jax evaluate"):
        compare(methods_of(runs[1:]))


@pytest.mark.parametrize(
    ("field", "config", "about"),
    [
        ("env 'darkroom-hard-17'", replace(BASE, env=EnvConfig("darkroom-hard-17")), {"env": "darkroom-hard-17"}),
        ("split 'train'", BASE, {"split": "train"}),
        ("split_hash 'other'", BASE, {"split_hash": "other"}),
        ("env_options {'asked': 2}", BASE, {"env_options": {"asked": 2}}),
        ("env.horizon 50", replace(BASE, env=EnvConfig("darkroom-dpt", horizon=50)), {}),
        ("env.asked 2", replace(BASE, env=EnvConfig("darkroom-dpt", options={"asked": 2})), {}),
        ("eval.expert_episodes 1", BASE, {"expert_episodes": 1}),
        ("eval.expert_quality 0.5", BASE, {"expert_quality": 0.5}),
        ("eval.context_limit 5", BASE, {"context_limit": 5}),
        ("trial.action_repeat 2", replace(BASE, trial=replace(BASE.trial, action_repeat=2)), {}),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(make, field, config, about):
    runs = [make("first", env_options={}), make("other", replace(config, seed=1), **about)]
    with pytest.raises(ConfigError, match=rf"other' has {field}; allowed: "):
        compare([Method("a", (runs[0],)), Method("b", (runs[1],))])


def test_options_of_the_environment_are_named_and_can_be_unknown(make):
    options = {"pose": "dock", "asked": 2}
    runs = [make("new", env_options=options), make("old", replace(BASE, seed=1))]
    found = compare(methods_of(runs))
    assert "darkroom-dpt, asked 2, pose dock, 4 test tasks (abc)" in found.markdown()
    record = json.loads(json.dumps(record_of(read_result(runs[0]))))
    assert record["protocol"]["env_options"] == options


def test_other_evaluations_during_training_are_refused(make):
    runs = seeds(make, "a", BASE, [100.0, 90.0])
    lines = [json.dumps(evaluation(steps, 0.5, tasks=2)) + "\n" for steps in (0, 10)]
    (runs[1] / "evaluations.jsonl").write_text("".join(lines))
    with pytest.raises(ConfigError, match=r"eval.every_tasks 2; allowed: 4"):
        compare(methods_of(runs))


def test_other_refusals(make, tmp_path):
    first = make("first")
    with pytest.raises(ConfigError, match="have the same settings and seed 0"):
        methods_of([first, make("second")])
    with pytest.raises(ConfigError, match="is there twice"):
        run_folders([first, first])
    with pytest.raises(ConfigError, match="holds no run"):
        run_folders([tmp_path / "nothing"])
    assert did_you_mean("stoped", ["gradient-stopped", "gradient-full"], separator="-").endswith(" gradient-stopped?")
    with pytest.raises(ConfigError, match=r"baseline is 'first-seed'; allowed: 'first'; did you mean first\?"):
        compare(methods_of([first]), "first-seed")
    (first / "curve.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no evaluation"):
        compare(methods_of([first]))
    (first / "curve.json").write_text(json.dumps(report([[1.0, 2.0, 3.0]] * TASKS, raw_returns=None)))
    with pytest.raises(ConfigError, match="has no raw values"):
        compare(methods_of([first]))


def test_the_command_reads_studies(make, cli, tmp_path):
    seeds(make, "a", BASE, [100.0, 90.0], parent="study/")
    seeds(make, "b", with_sink(BASE, "none"), [60.0, 70.0], parent="study/")
    code, out, err = cli("compare", tmp_path / "study", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "table.md").read_text() in out
    assert sorted(os.listdir(tmp_path / "out")) == ["figure.png", "table.csv", "table.md"]
    code, _, err = cli("compare")
    assert code == 2 and "paths is empty" in err


def test_the_learning_curve_is_drawn(make, cli, tmp_path):
    (run,) = seeds(make, "a", BASE, [100.0])
    curve = learning_curve(run)
    assert (curve.env_steps, curve.returns, curve.successes) == ([0, 1000], [10.0, 110.0], [0.75, 0.75])
    code, _, err = cli("plot", run, "--learning", "--out", tmp_path / "learning.svg")
    assert (code, err) == (0, "") and "held-out tasks" in (tmp_path / "learning.svg").read_text()
    code, _, err = cli("plot", make("without", replace(BASE, seed=2)), "--learning")
    assert code == 2 and "trained with --eval.every" in err
    code, _, err = cli("plot", run, "--learning", "--training")
    assert code == 2 and "learning is True; allowed: False with --training" in err


@pytest.mark.parametrize("learning", [((0, 0.0), (1000, 1.0)), ()])
def test_recorded_runs_give_the_same_table(make, tmp_path, learning):
    runs = [*seeds(make, "kv", with_sink(BASE, "kv"), [90.0, 91.0], learning)]
    runs += seeds(make, "none", with_sink(BASE, "none"), [80.0], learning)
    expected = compare(methods_of(runs))
    for run in runs[1:]:
        (run / "record.json").write_text(json.dumps(record_of(read_result(run))))
        (run / "curve.json").unlink()
        (run / "evaluations.jsonl").unlink(missing_ok=True)
    recorded = compare(methods_of(runs))
    assert (recorded.markdown(), recorded.csv()) == (expected.markdown(), expected.csv())
    files = write(recorded, tmp_path / "out")  # with a figure, although a recorded run has no returns of single tasks
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"return": [1], "first_by_task": ["a"], "later_by_task": []}'])
def test_a_damaged_record_is_refused(make, content):
    run = make("a", later=None)
    (run / "record.json").write_text(content)
    with pytest.raises(ConfigError, match=r"record.json' is no record of a run \(.*\); allowed: one of runs.jsonl"):
        compare(methods_of([run]))
