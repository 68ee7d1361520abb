"""Scripted agents with a memory, played for whole trials on the tasks of an evaluation.

They measure what a policy can gain from its context. `reference_returns` has the constant references: random actions
and the scripted expert, neither of which remembers anything.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import prng, settings
from relic_jax.environment.base import Environment, PyTree, num_tasks
from relic_jax.environment.trials import Trials, TrialState, select

FORGETFUL, REMEMBERING = "forgetful searcher", "remembering searcher"
"""Names of two agents that differ only in their memory: of the current episode, and of the whole trial."""


class ScriptedAgent(Protocol):
    """A scripted agent for one environment. Hashable; all methods are pure functions of ONE environment."""

    def initial_memory(self) -> PyTree:
        """Return the memory at the start of a trial, a pytree of arrays."""
        ...

    def act(
        self, key: jax.Array, memory: PyTree, state: PyTree, first: jax.Array, task: PyTree
    ) -> tuple[PyTree, jax.Array]:
        """Choose an action.

        Args:
            key: Typed PRNG key [].
            memory: The memory before this step.
            state: The state of the environment.
            first: bool []. Whether the state is the first of an episode.
            task: The task, without a leading axis.

        Returns:
            The memory after this step, and an element of `Environment.action_space`.
        """
        ...


@runtime_checkable
class Teacher(ScriptedAgent, Protocol):
    """A scripted agent that gives a distribution over actions, for a cross-entropy loss. The actions are `Discrete`."""

    def action_probabilities(
        self, memory: PyTree, state: PyTree, first: jax.Array, task: PyTree
    ) -> tuple[PyTree, jax.Array]:
        """Return the probabilities of the actions.

        All best actions have the same probability and all others have probability 0, so a loss does not depend on how
        `act` breaks ties.

        Args:
            memory: The memory before this step.
            state: The state of the environment.
            first: bool []. Whether the state is the first of an episode.
            task: The task, without a leading axis.

        Returns:
            The memory after this step, which equals that of `act`, and the probabilities, float32 [n].
        """
        ...


def batch_memory(agent: ScriptedAgent, batch: int) -> PyTree:
    """Return the memories of a batch of trials at their start, with leading axis [B]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *jnp.shape(x))), agent.initial_memory())


def batch_probabilities(agent: Teacher, memory: PyTree, trial: TrialState) -> tuple[PyTree, jax.Array]:
    """Return the memories after a step and the probabilities of the legal actions, float32 [B, n].

    The probabilities of a step are all 0 if none of the agent's actions is legal.

    Args:
        agent: The agent.
        memory: The memories before the step, with leading axis [B].
        trial: The trials.
    """
    memory, chosen = jax.vmap(agent.action_probabilities)(memory, trial.env, trial.first, trial.task)
    if trial.legal is None:
        return memory, chosen
    allowed = jnp.where(trial.legal, chosen, 0.0)
    total = allowed.sum(-1, keepdims=True)
    return memory, jnp.where(total > 0, allowed / jnp.where(total > 0, total, 1.0), 0.0)


@dataclasses.dataclass(frozen=True)
class AgentEpisodes:
    """The episodes of an agent, one row per trial.

    Attributes:
        returns: float32 [B, E]; undiscounted return.
        successes: bool [B, E].
        metrics: `Environment.metrics` by name, float32 [B, E].
    """

    returns: np.ndarray
    successes: np.ndarray
    metrics: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _WithoutMemory:
    """An agent whose action depends on the current step only."""

    env: Environment

    def initial_memory(self) -> PyTree:
        """Return an empty memory."""
        return ()


class RandomAgent(_WithoutMemory):
    """Takes uniformly random actions."""

    def act(
        self, key: jax.Array, memory: PyTree, state: PyTree, first: jax.Array, task: PyTree
    ) -> tuple[PyTree, jax.Array]:
        """Draw an action; if it is not legal, `play_agents` replaces it."""
        del state, first, task
        return memory, self.env.action_space.sample(key)


class Expert(_WithoutMemory):
    """Takes the actions of `Environment.optimal_action`."""

    def act(
        self, key: jax.Array, memory: PyTree, state: PyTree, first: jax.Array, task: PyTree
    ) -> tuple[PyTree, jax.Array]:
        """Return the expert's action."""
        del key, first
        return memory, self.env.optimal_action(state, task)


def play_reference_agents(env: Environment, tasks: PyTree, episodes: int, seed: int = 0) -> dict[str, AgentEpisodes]:
    """Play whole trials with each of `Environment.reference_agents`, see `play_agents`."""
    return play_agents(env, env.reference_agents, tasks, episodes, seed)


@settings.with_standard
def play_agents(
    env: Environment, agents: Mapping[str, ScriptedAgent], tasks: PyTree, episodes: int, seed: int = 0
) -> dict[str, AgentEpisodes]:
    """Play whole trials with scripted agents.

    Args:
        env: The environment. Must not run in worker processes.
        agents: The agents by name.
        tasks: Pytree with leading axis B, one task for each trial.
        episodes: E, episodes per trial.
        seed: Seed of the random numbers.

    Returns:
        The episodes of each agent by name.
    """
    return {
        name: AgentEpisodes(*jax.device_get(_trials(env, agent, tasks, episodes, prng.key(seed))))
        for name, agent in agents.items()
    }


class _Carry(NamedTuple):
    """Loop state: steps taken, trials, the agents' memories, finished episodes int32 [B], and results [B, E]."""

    steps: jax.Array
    trial: TrialState
    memory: PyTree
    episode: jax.Array
    results: tuple[jax.Array, jax.Array, dict[str, jax.Array]]


@functools.partial(jax.jit, static_argnames=("env", "agent", "episodes"))
def _trials(env: Environment, agent: ScriptedAgent, tasks: PyTree, episodes: int, key: jax.Array) -> Any:
    """Return (returns, successes, metrics), see `AgentEpisodes`."""
    batch, actions, trials = num_tasks(tasks), env.action_space, Trials(env)
    reset_key, key = jax.random.split(key)

    def step(carry: _Carry) -> _Carry:
        act_key, legal_key, step_key = jax.random.split(jax.random.fold_in(key, carry.steps), 3)
        trial = carry.trial
        act_keys = jax.random.split(act_key, batch)
        memory, action = jax.vmap(agent.act)(act_keys, carry.memory, trial.env, trial.first, trial.task)
        if trial.legal is not None:
            other = jax.vmap(actions.sample)(jax.random.split(legal_key, batch), trial.legal)
            action = select(actions.allows(trial.legal, action), action, other)
        trial, result = trials.step(step_key, trial, actions.from_env(action))
        ended = result.terminated | result.truncated
        column = jnp.where(ended, carry.episode, episodes)  # writes beyond the last column are dropped
        new = result.episode_return, result.success, result.metrics
        results = jax.tree.map(
            lambda x, value: x.at[jnp.arange(batch), column].set(value, mode="drop"), carry.results, new
        )
        return _Carry(carry.steps + 1, trial, memory, carry.episode + ended, results)

    trial = trials.reset(reset_key, jax.tree.map(jnp.asarray, tasks))
    memory = batch_memory(agent, batch)
    names = jax.eval_shape(jax.vmap(env.metrics), trial.env)
    zeros = jnp.zeros((batch, episodes), jnp.float32)
    results = zeros, jnp.zeros((batch, episodes), bool), dict.fromkeys(names, zeros)
    start = _Carry(jnp.zeros((), jnp.int32), trial, memory, jnp.zeros((batch,), jnp.int32), results)
    return jax.lax.while_loop(lambda carry: (carry.episode < episodes).any(), step, start).results
