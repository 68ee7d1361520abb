"""In-context curves on situations with known answers, intervals, and the files that hold them."""

import csv
import dataclasses
import functools
import io
import json
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from relic_jax import evaluate
from relic_jax.config import ConfigError, EvalConfig
from relic_jax.distributions import Categorical
from relic_jax.environment.base import num_tasks, split_hash
from relic_jax.envs.darkroom.env import Darkroom, DarkroomTask
from relic_jax.envs.registry import make
from relic_jax.evaluate import (
    Curves,
    bootstrap_interval,
    in_context_curves,
    percentile_over_tasks,
    shortest,
    summarise,
    to_csv,
)
from relic_jax.experiments.run import as_json
from relic_jax.models.policy import Policy, PolicyConfig, PolicyOutput, policy_for
from relic_jax.models.transformer import TransformerConfig

POLICY = PolicyConfig(
    TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=128, attention="reference")
)


@functools.cache
def curves(name, **options):
    return play(make(name), **options)


def play(env, seed=0, split="test", **options):
    policy = policy_for(env, POLICY)
    # a policy that reads its context and acts on it, with probabilities far from uniform
    params = jax.tree.map(lambda x: 3 * x, policy.init(jax.random.key(1)))
    params["actor"]["kernel"] *= 20
    return in_context_curves(policy, params, env, EvalConfig(**options), split=split, seed=seed)


def same(a, b):
    return np.array_equal(a.returns, b.returns) and np.array_equal(a.trial.action, b.trial.action)


def test_shapes_dtypes_and_the_first_trial():
    found = curves("darkroom-dpt", episodes=2)
    assert found.returns.shape == found.successes.shape == (20, 2)
    assert found.returns.dtype == np.float32 and found.successes.dtype == bool
    trial = found.trial
    assert trial.action.shape == trial.reward.shape == trial.first.shape == (200,)
    assert trial.observation.shape == (200, 2)
    assert np.flatnonzero(trial.first).tolist() == [0, 100]
    assert np.array_equal(trial.task.goal, make("darkroom-dpt").tasks("test").goal[0])
    assert trial.reward.reshape(2, 100).sum(1).tolist() == found.returns[0].tolist()


def test_success_is_the_environments_own():
    found = curves("darkroom-dpt", episodes=3, expert_episodes=2)
    assert found.successes[:, :2].all()
    assert found.successes[0, 2] == (found.trial.reward[-1] > 0)


def test_the_expert_earns_exactly_its_return_in_its_episodes():
    found = curves("darkroom-dpt", episodes=3, expert_episodes=2)
    distance = make("darkroom-dpt").tasks("test").goal.sum(1)
    expected = np.where(distance == 0, 100, 101 - distance)  # the step that reaches the goal is the first rewarded
    assert np.array_equal(found.returns[:, :2], np.stack([expected, expected], 1))
    assert not np.array_equal(found.returns[:, 2], expected)


def test_episodes_that_end_early_leave_exactly_the_first_ones():
    """The expert reaches every goal within 20 steps; its episodes are as long as the goal is far."""
    found = curves("darkroom-hard-17", episodes=4, expert_episodes=3)
    distance = make("darkroom-hard-17").tasks("test").goal.sum(1)
    reachable = (distance <= 20).astype(np.float32)
    assert found.returns.shape == (29, 4)
    assert np.array_equal(found.returns[:, :3], np.stack([reachable] * 3, 1))
    assert np.array_equal(found.successes[:, :3], found.returns[:, :3] > 0)
    length = min(max(int(distance[0]), 1), 20)
    assert np.flatnonzero(found.trial.first)[:4].tolist() == [0, length, 2 * length, 3 * length]
    assert found.trial.first.sum() == 4


@dataclasses.dataclass(frozen=True)
class Measured(Darkroom):
    """Says where an episode ends."""

    def metrics(self, state):
        return {"x": state.position[0].astype(jnp.float32), "z": state.position[1].astype(jnp.float32)}


def test_the_environments_metrics_are_those_at_the_ends_of_episodes():
    env = Measured("measured", 9, 9, 20, end_on_goal=True, train_fraction=0.5)
    found, goal = play(env, episodes=4, expert_episodes=3), env.tasks("test").goal
    assert set(found.metrics) == {"x", "z"} and found.metrics["x"].dtype == np.float32
    for axis, name in enumerate(("x", "z")):  # the expert ends on the goal
        assert np.array_equal(found.metrics[name][:, :3], np.repeat(goal[:, axis, None], 3, axis=1))
    last = np.stack([found.metrics[name][:, 3] for name in ("x", "z")], axis=1)
    assert np.array_equal((last == goal).all(1), found.successes[:, 3]) and not found.successes[:, 3].all()
    assert curves("darkroom-dpt", episodes=2).metrics == {}


def test_finished_trials_are_left_behind_and_the_others_go_on_as_before(monkeypatch):
    """With the likeliest actions, so that chance does not depend on who else is played; lengths differ by the goal."""
    sizes, act, actions, per_episode = [], Policy.act, [], evaluate._per_episode

    def watched(self, params, memory, inputs, **options):
        sizes.append(len(inputs.first))
        return act(self, params, memory, inputs, **options)

    def kept(steps, episodes):
        finished = np.cumsum(steps.ended, axis=0) - steps.ended >= episodes
        actions.append(np.where(finished, -1, steps.action))
        return per_episode(steps, episodes)

    monkeypatch.setattr(evaluate, "_per_episode", kept)
    monkeypatch.setattr(Policy, "act", watched)
    monkeypatch.setattr(Categorical, "sample", lambda self, key: self.mode())
    env = Measured("short", 9, 9, 20, end_on_goal=True, train_fraction=0.5)
    together = play(env, episodes=6, expert_episodes=4)
    assert set(sizes) == {num_tasks(env.tasks("test"))}
    monkeypatch.setattr(evaluate, "MANY", max(sizes) // 2 + 1)
    apart = play(env, episodes=6, expert_episodes=4)
    assert 0 < min(sizes) <= max(sizes) // 2 and len(set(sizes)) == 2  # so few are not halved again
    assert same(together, apart) and np.array_equal(together.successes, apart.successes)
    assert np.array_equal(together.trial.observation, apart.trial.observation)
    chex.assert_trees_all_equal(together.metrics, apart.metrics)
    assert np.array_equal(*actions)


def test_repeats_are_task_major():
    found = curves("darkroom-dpt", episodes=2, expert_episodes=1, repeats=2)
    distance = make("darkroom-dpt").tasks("test").goal.sum(1)
    assert np.array_equal(found.returns[:, 0], np.repeat(np.where(distance == 0, 100, 101 - distance), 2))
    assert not np.array_equal(found.returns[::2, 1], found.returns[1::2, 1])


def test_the_seed_decides():
    once = curves("darkroom-dpt", episodes=2)
    curves.cache_clear()
    assert same(once, curves("darkroom-dpt", episodes=2))
    assert not same(once, curves("darkroom-dpt", episodes=2, seed=1))


def test_a_context_limit_beyond_everything_changes_nothing_and_a_small_one_does():
    free = curves("darkroom-dpt", episodes=2)
    assert same(free, curves("darkroom-dpt", episodes=2, context_limit=200))
    assert same(free, curves("darkroom-dpt", episodes=2, context_limit=10_000))
    limited = curves("darkroom-dpt", episodes=2, context_limit=1)
    assert not same(free, limited)
    assert np.array_equal(free.trial.action[0], limited.trial.action[0])  # the first step sees the same


def test_a_chunk_is_traced_once_for_each_size_of_the_buffer_and_progress_reaches_one(monkeypatch):
    make_chunk = evaluate._chunk_function

    def counted(*arguments):
        return chex.assert_max_traces(make_chunk(*arguments), n=evaluate.SIZES)

    chex.clear_trace_counter()
    monkeypatch.setattr(evaluate, "_chunk_function", counted)
    env, seen = make("darkroom-ad-9"), []
    policy = policy_for(env, POLICY)
    params = policy.init(jax.random.key(0))
    in_context_curves(policy, params, env, EvalConfig(episodes=8), progress=seen.append)
    assert seen == [i / 8 for i in range(1, 9)]


def test_parameters_are_not_touched():
    env = make("darkroom-ad-9")
    policy = policy_for(env, POLICY)
    params = policy.init(jax.random.key(0))
    before = jax.tree.map(np.array, params)
    in_context_curves(policy, params, env, EvalConfig(episodes=1))
    chex.assert_trees_all_equal(before, params)


def test_an_expert_that_does_not_exist_is_refused():
    env = make("probe-value")
    policy = policy_for(env, POLICY)
    with pytest.raises(ConfigError) as error:
        in_context_curves(policy, {}, env, EvalConfig(episodes=2, expert_episodes=1))
    assert str(error.value) == "eval.expert_episodes is 1; allowed: 0, probe-value has no expert"


@dataclasses.dataclass(frozen=True)
class Corridor(Darkroom):
    """Three cells in a row; the goal is the middle one."""

    def tasks(self, split):
        return DarkroomTask(np.array([[1, 0]], np.int32))


@struct.dataclass
class NoMemory:
    capacity: int = struct.field(pytree_node=False, default=1000)


class Scripted:
    """Moves on, but stays after a step that was rewarded as far as it can see."""

    config, masked = PolicyConfig(), False

    def initial_memory(self, batch, capacity):
        return NoMemory()

    def for_acting(self, memory):
        return memory

    def for_steps(self, params):
        return params

    def act(self, params, memory, inputs, *, window):
        action = jnp.where(inputs.previous_reward > 0, 4, 0)
        return PolicyOutput(Categorical(1000.0 * jax.nn.one_hot(action, 5)), memory), memory


@pytest.mark.parametrize(("show", "actions"), [(False, [0, 0, 0]), (True, [0, 4, 0, 4, 0])])
def test_the_last_reward_is_seen_only_where_it_is_to_be_shown(show, actions):
    env = Corridor("corridor", 3, 1, 3, end_on_goal=True)
    found = in_context_curves(Scripted(), {}, env, EvalConfig(episodes=3), show_last_reward=show)
    assert found.trial.action.tolist() == actions and found.returns.tolist() == [[1.0, 1.0, 1.0]]


# --- intervals ---


def test_no_variance_no_width():
    low, high = bootstrap_interval([np.full((4, 3), 7.0), np.full((4, 3), 7.0)], tasks=4)
    assert low.tolist() == high.tolist() == [7.0, 7.0, 7.0]


def test_repeats_are_averaged_within_their_task_before_anything_is_drawn():
    task_major = np.array([[0.0], [10.0], [4.0], [6.0]])  # two tasks of two repeats, both of mean 5
    low, high = bootstrap_interval([task_major], tasks=2)
    assert (low.tolist(), high.tolist()) == ([5.0], [5.0])
    low, high = bootstrap_interval([task_major], tasks=4)
    assert low[0] < 5.0 < high[0]


def test_two_tasks_by_hand():
    """Means of two draws from {0, 1}: 0, ½, 1 with probabilities ¼, ½, ¼, so the 95% interval is everything."""
    low, high = bootstrap_interval([np.array([[0.0], [1.0]])], tasks=2)
    assert (low.tolist(), high.tolist()) == ([0.0], [1.0])


def test_two_seeds_by_hand():
    """Seeds are drawn too: with all tasks alike, the mean is that of two draws from the seeds."""
    low, high = bootstrap_interval([np.full((50, 1), 0.0), np.full((50, 1), 1.0)], tasks=50)
    assert (low.tolist(), high.tolist()) == ([0.0], [1.0])


def test_interval_has_the_closed_form_width_for_many_tasks():
    values = np.random.default_rng(0).normal(3.0, 2.0, (400, 1))
    low, high = bootstrap_interval([values], tasks=400, resamples=8000)
    error = 1.96 * values.std() / np.sqrt(400)
    assert low[0] == pytest.approx(values.mean() - error, abs=0.02)
    assert high[0] == pytest.approx(values.mean() + error, abs=0.02)


def test_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    low, high = bootstrap_interval([rng.normal(size=(60, 500))], tasks=60, resamples=1000)  # 500 independent columns
    assert 0.91 <= np.mean((low <= 0) & (high >= 0)) <= 0.98


def test_interval_is_deterministic_in_its_seed():
    values = [np.random.default_rng(0).normal(size=(10, 2))]
    once, again, other = (bootstrap_interval(values, tasks=10, resamples=200, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


# --- files ---


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
    assert found["env"] == "darkroom-ad-9" and found["split"] == "test" and found["tasks"] == 9 and found["seeds"] == 2
    assert found["split_hash"] == split_hash(make("darkroom-ad-9").tasks("test"))
    assert (found["episodes"], found["repeats"], found["expert_episodes"], found["context_limit"]) == (3, 1, 0, None)
    assert found["lines"] == {"random": 0.5, "optimal": 16.5} and found["commit"] == "abc"
    np.testing.assert_allclose(found["return"]["mean"], returns.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found["success"]["mean"], (returns > 0.5).mean((0, 1)))
    np.testing.assert_allclose(found["metrics"]["spl"]["mean"], returns.mean((0, 1)) / 2, rtol=1e-6)
    for curve in (found["return"], found["success"], found["metrics"]["spl"]):
        low, mean, high = (np.array(curve[part]) for part in ("low", "mean", "high"))
        assert low.shape == (3,) and (low < mean).all() and (mean < high).all()
    assert np.array_equal(np.array(found["raw_returns"], np.float32), returns)
    assert np.array_equal(np.array(found["raw_successes"], bool), returns > 0.5)
    assert np.array_equal(np.array(found["raw_metrics"]["spl"], np.float32), returns / 2)
    for seed, run in zip(found["per_seed"], runs, strict=True):
        assert seed["first"] == pytest.approx(run.returns[:, 0].mean())
        assert seed["later"] == pytest.approx(run.returns[:, 1:].mean())


def test_summary_survives_json_in_which_every_trial_is_a_line(summary):
    runs, found = summary
    found["command"] = 'evaluate [ 1,  2 ] "quoted [\n3]"'
    text = as_json(found)
    assert json.loads(json.dumps(found)) == json.loads(text) == found
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    assert all(json.dumps(row) in lines for run in runs for row in shortest(run.returns))


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
    lines = {"random": 0.5, "optimal": 16.5}
    other = summarise(make("darkroom-ad-9"), "test", EvalConfig(episodes=3), called, lines, {})
    assert other["success"] == found["success"] and other["later_gain"]["success"] == found["later_gain"]["success"]
    column = [row["success_mean"] for row in csv.DictReader(io.StringIO(to_csv(found)))]
    assert [row["success_mean"] for row in csv.DictReader(io.StringIO(to_csv(other)))] == column
    np.testing.assert_allclose(other["metrics"]["success"]["mean"], 7 * np.array(found["return"]["mean"]), rtol=1e-5)


def test_nothing_later_than_the_only_episode(summary):
    runs, _ = summary
    short = [first(run, 1) for run in runs]
    lines = {"random": 0.5, "optimal": None}
    found = summarise(make("darkroom-ad-9"), "test", EvalConfig(episodes=1), short, lines, {})
    assert [seed["later"] for seed in found["per_seed"]] == [None, None]


def test_csv_has_one_line_per_episode_with_the_same_numbers(summary):
    _, found = summary
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [row["episode"] for row in rows] == ["1", "2", "3"]
    for kind, curve in (("return", found["return"]), ("success", found["success"]), ("spl", found["metrics"]["spl"])):
        for part in ("mean", "low", "high"):
            np.testing.assert_allclose([float(row[f"{kind}_{part}"]) for row in rows], curve[part], rtol=1e-5)
    np.testing.assert_allclose([float(row["return_p20"]) for row in rows], found["return"]["p20"], rtol=1e-5)
    assert len(rows[0]) == 11 and jnp.isfinite(jnp.array([float(x) for x in rows[0].values()])).all()


def test_the_twentieth_percentile_is_over_tasks_and_not_over_their_repeats():
    task = np.arange(11.0)  # the percentile of 0 … 10 is 2
    repeats = np.stack([task + 100, task - 100], axis=1).reshape(-1, 1)  # task-major, each task's mean is its number
    runs = [repeats, repeats + 4]
    np.testing.assert_allclose(percentile_over_tasks(runs, 11, 20.0), [4.0])


def test_curves_of_earlier_versions_have_no_percentile(summary):
    _, found = summary
    old = found | {"return": {part: found["return"][part] for part in ("mean", "low", "high")}}
    del old["metrics"]
    assert to_csv(old).splitlines()[0].split(",")[1:] == [
        f"{kind}_{part}" for kind in ("return", "success") for part in ("mean", "low", "high")
    ]


def test_gain_is_of_the_last_episode_over_the_first_of_the_same_trial(summary):
    runs, found = summary
    by_hand = [run.returns[:, 2] - run.returns[:, 0] for run in runs]
    assert found["gain"]["mean"] == [pytest.approx(np.mean(by_hand), rel=1e-5)]
    paired = [
        np.arange(9.0)[:, None] + np.array([0.0, 7.0, 5.0]) for _ in range(2)
    ]  # the tasks differ, the gain does not
    runs = [Curves(returns, returns > 0, trial=None) for returns in paired]
    found = summarise(make("darkroom-ad-9"), "test", EvalConfig(episodes=3), runs, {"random": 0, "optimal": None}, {})
    assert [found["gain"][part] for part in ("low", "mean", "high")] == [[5.0], [5.0], [5.0]]


def test_later_gain_is_of_the_third_and_later_episodes_over_the_first(summary):
    runs, found = summary
    kinds = {
        "return": [r.returns for r in runs],
        "success": [r.successes for r in runs],
        "spl": [r.metrics["spl"] for r in runs],
    }
    assert set(found["later_gain"]) == set(kinds)
    for kind, values in kinds.items():
        by_hand = [np.mean(v[:, 2:], 1) - v[:, 0] for v in values]
        assert found["later_gain"][kind]["mean"] == [pytest.approx(np.mean(by_hand), rel=1e-5)]
    cut = [first(run, 2) for run in runs]
    lines = {"random": 0.5, "optimal": None}
    found = summarise(make("darkroom-ad-9"), "test", EvalConfig(episodes=2), cut, lines, {})
    assert found["later_gain"] == {"return": None, "success": None, "spl": None}


def test_a_part_of_the_tasks_are_the_first_ones_and_any_one_can_be_asked_for():
    env, few = make("darkroom-dpt"), EvalConfig(episodes=2, tasks=3)
    goals = env.tasks("test").goal
    assert np.array_equal(evaluate.evaluated_tasks(env, "test", EvalConfig()).goal, goals)
    assert np.array_equal(evaluate.evaluated_tasks(env, "test", few).goal, goals[:3])
    assert np.array_equal(evaluate.one_task(env, "test", 5).goal, goals[5:6])
    with pytest.raises(ConfigError, match=r"task is 20; allowed: 0 … 19"):
        evaluate.one_task(env, "test", 20)
    runs = [Curves(np.ones((3, 2), np.float32), np.ones((3, 2), bool), trial=None)]
    found = summarise(env, "test", few, runs, {"random": 0, "optimal": None}, {})
    assert found["tasks"] == 3 and found["split_hash"] == split_hash(env.tasks("test"))
