"""Evaluations in which the task changes in mid-trial (`eval.change_task_at`)."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from relic_jax.config import ConfigError, EvalConfig
from relic_jax.distributions import Categorical
from relic_jax.environment.base import Discrete, Environment, TimeStep, first_timestep
from relic_jax.evaluation import in_context_curves, in_jit
from relic_jax.evaluation.tasks import changed_tasks
from relic_jax.models.policy import PolicyConfig, PolicyOutput
from relic_jax.spaces import spaces_of


@dataclasses.dataclass(frozen=True)
class Paying(Environment):
    """Each of two steps pays 100 times the task, and the action. An episode starts where its task says."""

    name: str = "paying"
    horizon: int = 2
    count: int = 4
    lasting: int = 2  # steps of an episode
    action_space = Discrete(10)
    observation_spec = jax.ShapeDtypeStruct((1,), jnp.float32)
    ends_in_time = True

    def tasks(self, split):
        return np.arange(1.0, 1.0 + self.count, dtype=np.float32)

    def reset(self, key, task):
        return jnp.zeros((), jnp.int32), first_timestep(task[None])

    def step(self, key, state, action, task):
        reward, no = 100 * task + action, jnp.zeros((), bool)
        return state + 1, TimeStep(jnp.zeros((1,)), reward, no, state + 1 == self.lasting)


class Counted(struct.PyTreeNode):
    steps: jax.Array
    capacity: int = struct.field(pytree_node=False, default=1000)


class Counting:
    """The action is the number of steps in the context; at the first step of an episode, plus 4 in tasks above 2."""

    config, is_recurrent, reads_filled_steps = PolicyConfig(), False, False
    spaces = spaces_of(Paying())

    def initial_memory(self, batch, capacity):
        return Counted(jnp.zeros((batch,), jnp.int32))

    def for_acting(self, memory):
        return memory

    def cast_weights(self, params):
        return params

    def act(self, params, memory, inputs, *, window):
        action = memory.steps + jnp.where(inputs.observation[:, 0] > 2, 2, 0)
        return PolicyOutput(Categorical(1000.0 * jax.nn.one_hot(action, 10)), memory), Counted(memory.steps + 1)


def returns(env=None, **options):
    return in_context_curves(Counting(), {}, env or Paying(), EvalConfig(**options)).returns.tolist()


def test_the_task_changes_at_its_episode_and_the_context_is_kept():
    found = returns(episodes=4, change_task_at=3)
    first = [[200 * task + 1 + bonus, 200 * task + 5 + bonus] for task, bonus in ((1, 0), (2, 0), (3, 2), (4, 2))]
    later = [[200 * task + 9 + bonus, 200 * task + 13 + bonus] for task, bonus in ((3, 2), (4, 2), (1, 0), (2, 0))]
    assert found == [a + b for a, b in zip(first, later, strict=True)]
    assert returns(episodes=4)[0] == [*first[0], 209, 213]  # without a change


def test_repeats_and_limited_tasks_change_alike():
    assert returns(episodes=2, change_task_at=2, repeats=2, tasks=2) == [[201, 607], [201, 607], [401, 807], [401, 807]]


def test_one_task_changes_to_another():
    env, config = Paying(), EvalConfig(episodes=2, change_task_at=2)
    assert in_context_curves(Counting(), {}, env, config, task=3).returns.tolist() == [[803, 405]]


def test_trials_that_are_dropped_early_keep_their_own_new_task(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Uneven(Paying):
        """Episodes of tasks above 2 last one step."""

        def step(self, key, state, action, task):
            state, step = super().step(key, state, action, task)
            return state, dataclasses.replace(step, truncated=step.truncated | (task > 2))

    whole = returns(Uneven(), episodes=4, change_task_at=4)
    monkeypatch.setattr(in_jit, "MANY", 2)
    assert returns(Uneven(), episodes=4, change_task_at=4) == whole
    assert [row[-1] // 100 for row in whole] == [3, 4, 2, 4]


@pytest.mark.parametrize("episode", [0, 1, 5])
def test_the_episode_lies_within_the_trial(episode):
    with pytest.raises(ConfigError, match=rf"eval.change_task_at is {episode}; allowed: 2 … eval.episodes \(4\)"):
        EvalConfig(episodes=4, change_task_at=episode).validate()


def test_refusals():
    config = EvalConfig(episodes=4, change_task_at=2)
    with pytest.raises(ConfigError, match=r"eval.change_task_at is 2; allowed: None, paying has one test task"):
        changed_tasks(Paying(count=1), "test", config)
    host = types.SimpleNamespace(on_host=True, name="gym:X")
    with pytest.raises(ConfigError, match=r"eval.change_task_at is 2; allowed: None, gym:X runs in worker processes"):
        changed_tasks(host, "test", config)
