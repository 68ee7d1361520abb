"""In-context curves on situations with known answers."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from relic_jax.config import ConfigError, EvalConfig
from relic_jax.distributions import Categorical
from relic_jax.environment import num_tasks
from relic_jax.envs.darkroom.env import Darkroom, DarkroomTask
from relic_jax.envs.registry import make
from relic_jax.evaluation import acting, in_context_curves, in_jit
from relic_jax.models.policy import Policy, PolicyConfig, PolicyOutput, policy_for
from relic_jax.models.transformer import TransformerConfig
from relic_jax.spaces import spaces_of

POLICY = PolicyConfig(
    TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=128, attention="reference")
)


@functools.cache
def curves(name, **options):
    return play(make(name), **options)


def play(env, seed=0, split="test", config=POLICY, **options):
    policy = policy_for(env, config)
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


@pytest.mark.slow
def test_a_worse_expert_takes_its_share_of_random_actions():
    env = make("darkroom-dpt")
    returns = {
        quality: curves("darkroom-dpt", episodes=3, expert_episodes=2, expert_quality=quality, repeats=5).returns[:, :2]
        for quality in (0.0, 0.5, 1.0)
    }
    optimal = np.where((distance := env.tasks("test").goal.sum(1)) == 0, 100, 101 - distance).mean()
    assert returns[1.0].mean() == pytest.approx(optimal)
    assert returns[0.0].mean() == pytest.approx(0.73, abs=0.4)  # the random policy's return on this split
    # at the goal, a random action leaves it with probability 4/5, and the expert then needs a few steps to return
    assert 0.3 * optimal < returns[0.5].mean() < 0.7 * optimal


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
    sizes, act, actions, per_episode = [], Policy.act, [], acting.per_episode

    def watched(self, params, memory, inputs, **options):
        sizes.append(len(inputs.first))
        return act(self, params, memory, inputs, **options)

    def kept(steps, episodes):
        finished = np.cumsum(steps.ended, axis=0) - steps.ended >= episodes
        actions.append(np.where(finished, -1, steps.action))
        return per_episode(steps, episodes)

    monkeypatch.setattr(acting, "per_episode", kept)
    monkeypatch.setattr(Policy, "act", watched)
    monkeypatch.setattr(Categorical, "sample", lambda self, key: self.mode())
    env = Measured("short", 9, 9, 20, end_on_goal=True, train_fraction=0.5)
    together = play(env, episodes=6, expert_episodes=4)
    assert set(sizes) == {num_tasks(env.tasks("test"))}
    monkeypatch.setattr(in_jit, "MANY", max(sizes) // 2 + 1)
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


def test_a_context_limit_of_zero_hides_earlier_episodes():
    free, limited = curves("darkroom-dpt", episodes=3), curves("darkroom-dpt", episodes=3, context_limit=0)
    steps = make("darkroom-dpt").horizon
    assert np.array_equal(free.trial.action[:steps], limited.trial.action[:steps])
    assert not np.array_equal(free.trial.action[steps:], limited.trial.action[steps:])
    own = dataclasses.replace(POLICY, transformer=dataclasses.replace(POLICY.transformer, inter_episode=False))
    assert same(limited, curves("darkroom-dpt", episodes=3, config=own))


def test_evaluations_of_the_current_episode_only_share_what_is_traced(monkeypatch):
    make_chunk, env = in_jit.chunk_function, make("darkroom-ad-9")
    policy = policy_for(env, POLICY)
    params, config = policy.init(jax.random.key(0)), EvalConfig(episodes=1, tasks=2, context_limit=0)
    made = []
    monkeypatch.setattr(
        in_jit, "chunk_function", lambda *x: made.append(x) or chex.assert_max_traces(make_chunk(*x), n=1)
    )
    chex.clear_trace_counter()
    for seed in (0, 1):
        in_context_curves(policy, params, env, config, seed=seed)
    assert len(made) == 1


@pytest.mark.parametrize(("attention", "sizes"), [("reference", in_jit.SIZES), ("auto", 1)])
def test_a_chunk_is_traced_once_for_each_size_of_the_buffer_and_progress_reaches_one(monkeypatch, attention, sizes):
    """The compiled kernel for CPUs needs one size, since it reads the filled steps only."""
    config = dataclasses.replace(POLICY, transformer=dataclasses.replace(POLICY.transformer, attention=attention))
    env, seen = make("darkroom-ad-9"), []
    policy = policy_for(env, config)
    if sizes == 1 and not policy.reads_filled_steps:
        pytest.skip("no compiled kernel")
    make_chunk = in_jit.chunk_function

    def counted(*arguments):
        return chex.assert_max_traces(make_chunk(*arguments), n=sizes)

    chex.clear_trace_counter()
    monkeypatch.setattr(in_jit, "chunk_function", counted)
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

    config, is_recurrent, reads_filled_steps = PolicyConfig(), False, False
    spaces = spaces_of(Corridor("corridor", 3, 1, 3))

    def initial_memory(self, batch, capacity):
        return NoMemory()

    def for_acting(self, memory):
        return memory

    def cast_weights(self, params):
        return params

    def act(self, params, memory, inputs, *, window):
        action = jnp.where(inputs.previous_reward > 0, 4, 0)
        return PolicyOutput(Categorical(1000.0 * jax.nn.one_hot(action, 5)), memory), memory


@pytest.mark.parametrize(("show", "actions"), [(False, [0, 0, 0]), (True, [0, 4, 0, 4, 0])])
def test_the_last_reward_is_seen_only_where_it_is_to_be_shown(show, actions):
    env = Corridor("corridor", 3, 1, 3, end_on_goal=True)
    found = in_context_curves(Scripted(), {}, env, EvalConfig(episodes=3), show_last_reward=show)
    assert found.trial.action.tolist() == actions and found.returns.tolist() == [[1.0, 1.0, 1.0]]
