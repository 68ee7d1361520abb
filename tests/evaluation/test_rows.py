"""Evaluations on several devices: the rows of each, and results that do not depend on their number."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import EvalConfig
from relic_jax.environment import num_tasks
from relic_jax.environment.trials import Trials
from relic_jax.envs.darkroom.env import Darkroom
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves, in_jit
from relic_jax.evaluation.rows import Rows
from relic_jax.models.policy import PolicyConfig, policy_for
from relic_jax.models.recurrent import RecurrentConfig
from relic_jax.models.transformer import TransformerConfig
from relic_jax.shards import Places

SMALL = TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=128)
POLICY = PolicyConfig(SMALL)


def test_trials_are_divided_equally_and_rows_can_be_empty():
    assert Rows.of(4, 1).trials.tolist() == [[0, 1, 2, 3]] and Rows.of(4, 1).places() is None
    rows = Rows.of(5, 2)
    assert rows.trials.tolist() == [[0, 1, 2], [3, 4, -1]] and rows.playing.tolist() == [0, 1, 2, 3, 4]
    assert rows.places().index.tolist() == [0, 1, 2, 3, 4, 5] and rows.places().total == 5
    assert rows.spread(np.arange(10, 15)).tolist() == [10, 11, 12, 13, 14, 10]
    assert Rows.of(5, 4).devices == 3  # two rows each, as with 4 devices
    assert Rows.of(2, 8).trials.tolist() == [[0], [1]]


def test_kept_rows_stay_on_their_device():
    rows, former = Rows.of(7, 2).keep(np.array([1, 0, 0, 1, 0, 0, 1, 1], bool))
    assert rows.trials.tolist() == [[0, 3], [6, -1]] and former.tolist() == [0, 3, 2, 0]
    assert rows.places().index.tolist() == [0, 1, 2, 3] and rows.places().total == 3


def test_places_draw_the_numbers_of_their_trials():
    key, places = jax.random.key(0), Places(jnp.array([3, 1, 5]), 5)  # the last row is empty
    keys = jax.random.key_data(jax.random.split(key, (2, 5)))
    assert np.array_equal(jax.random.key_data(places.split(key, 2, 3))[:, :2], keys[:, [3, 1]])
    offset = jnp.array([30.0, 10.0, 70.0])
    drawn = places.draw(lambda x: x + jax.random.uniform(key, x.shape), offset)
    assert np.array_equal(drawn[:2], offset[:2] + jax.random.uniform(key, (5,))[jnp.array([3, 1])])


@pytest.fixture
def evaluated(drawn):
    """Return `evaluated(name, devices, **options)`: curves of a random policy that depends on what it sees."""

    def evaluate(env, devices, policy=POLICY, **options):
        policy = policy_for(env, policy)
        return in_context_curves(policy, drawn(policy), env, EvalConfig(**options), devices=devices)

    return evaluate


def check_equal(one, other):
    parts = [(c.returns, c.successes, c.metrics, dataclasses.astuple(c.trial)) for c in (one, other)]
    chex.assert_trees_all_equal(*parts)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("darkroom-dpt", {"episodes": 2, "tasks": 7}),
        ("darkroom-ad-9-random", {"episodes": 3, "tasks": 3, "repeats": 2, "change_task_at": 2}),
        ("darkroom-ad-9", {"episodes": 3, "tasks": 5, "expert_episodes": 1, "expert_quality": 0.5}),
        ("darkroom-ad-9", {"episodes": 3, "tasks": 5, "context_limit": 0}),
        ("probe-mask", {"episodes": 3}),
    ],
)
def test_results_do_not_depend_on_the_number_of_devices(evaluated, name, options):
    check_equal(evaluated(make(name), 1, **options), evaluated(make(name), 3, **options))


def test_continuous_actions_differ_by_rounding_only(evaluated):
    one, other = (evaluated(make("pointmass-goal"), devices, episodes=2, tasks=3) for devices in (1, 2))
    assert np.allclose(one.trial.action, other.trial.action, atol=1e-4) and one.returns.any()
    assert np.allclose(one.returns, other.returns, rtol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        PolicyConfig(memory="gru", recurrent=RecurrentConfig(width=8)),
        PolicyConfig(dataclasses.replace(SMALL, attention="reference")),  # its buffers grow
        PolicyConfig(dataclasses.replace(SMALL, cache="int8")),
    ],
    ids=["gru", "reference", "int8"],
)
def test_every_memory_is_divided(evaluated, policy):
    options = {"episodes": 5, "tasks": 5, "policy": policy}
    check_equal(*(evaluated(make("darkroom-ad-9"), devices, **options) for devices in (1, 2)))


def test_finished_trials_are_dropped_on_each_device(evaluated, monkeypatch):
    """Episodes of the expert end at the goal, so that trials differ in length; the policy's actions are drawn."""
    batches, act = [], in_jit.Policy.act

    def watched(self, params, memory, inputs, **options):
        batches.append(len(inputs.first))
        return act(self, params, memory, inputs, **options)

    monkeypatch.setattr(in_jit.Policy, "act", watched)
    env = Darkroom("short", 9, 9, 20, end_on_goal=True, train_fraction=0.5)
    count = num_tasks(env.tasks("test"))
    monkeypatch.setattr(in_jit, "MANY", count // 2 + 1)
    one, sizes = evaluated(env, 1, episodes=6, expert_episodes=4), sorted(set(batches))
    assert len(sizes) == 2 and sizes[1] == count
    batches.clear()
    check_equal(one, evaluated(env, 2, episodes=6, expert_episodes=4))
    assert max(batches) == -(-count // 2) and sizes[0] / 2 <= min(batches) < max(batches)


def test_a_program_is_compiled_once_for_all_devices_and_policies(drawn):
    env, config = make("darkroom-ad-9"), EvalConfig(episodes=3, tasks=4)
    policy = policy_for(env, POLICY)
    in_jit.compiled_chunk.cache_clear()
    for scale in (1, 2):
        params = jax.tree.map(lambda x, scale=scale: scale * x, drawn(policy))
        in_context_curves(policy, params, env, config, devices=2)
    chunk = in_jit.compiled_chunk(policy, Trials(env), in_jit.acting_options(config), env.horizon, 2)
    assert in_jit.compiled_chunk.cache_info().currsize == 1
    assert chunk._cache_size() == len(in_jit.context_sizes(policy, 4, 3 * env.horizon, env.horizon))


def test_each_device_has_its_part_of_the_context(drawn, monkeypatch):
    """No device ever has the context of all trials, and all together have no more than one would."""
    seen = []
    make_memory = in_jit.compiled_memory

    def watched(*arguments):
        def made():
            memory = make_memory(*arguments)()
            seen.extend(x.addressable_shards for x in jax.tree.leaves(memory))
            return memory

        return made

    monkeypatch.setattr(in_jit, "compiled_memory", watched)
    env = make("darkroom-ad-9")
    policy = policy_for(env, POLICY)
    in_context_curves(policy, drawn(policy), env, EvalConfig(episodes=1, tasks=6), devices=2)
    assert seen and all([len(part.data) for part in parts] == [3, 3] for parts in seen)
    assert all({part.device for part in parts} == set(jax.local_devices()[:2]) for parts in seen)
