"""Reference returns for every result: uniformly random actions and the scripted expert, estimated by simulation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import prng, settings
from relic_jax.environment.base import Environment, PyTree, Split, num_tasks
from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.host_trials import EpisodeCount, waves
from relic_jax.environment.trials import TrialState

ScriptedPolicy = Callable[[Environment, jax.Array, PyTree, PyTree, jax.Array | None], jax.Array]
"""(environment, key, state, task, legal actions or None) -> action."""


@dataclasses.dataclass(frozen=True)
class ReferenceReturn:
    """The result of a scripted policy. All tasks have the same weight.

    Attributes:
        mean_return: Undiscounted return per episode.
        success_rate: Share of successful episodes, 0 to 1.
    """

    mean_return: float
    success_rate: float


@dataclasses.dataclass(frozen=True)
class ReferenceReturns:
    """The results of both scripted policies.

    Attributes:
        random: Uniformly random (legal) actions.
        optimal: The scripted expert. None without one.
    """

    random: ReferenceReturn
    optimal: ReferenceReturn | None

    def means(self) -> dict[str, float | None]:
        """Return the mean returns by name, in the form of `Report.reference_returns`."""
        optimal = None if self.optimal is None else self.optimal.mean_return
        return {"random": self.random.mean_return, "optimal": optimal}


@settings.with_standard
def reference_returns(
    env: Environment, split: Split, episodes: int | None = None, seed: int = 0, limit: int | None = None
) -> ReferenceReturns:
    """Play episodes with each scripted policy, the same number in every task.

    Args:
        env: The environment.
        split: The tasks to play.
        episodes: Episodes of each policy, rounded up to a multiple of the tasks. If there are more tasks than episodes,
            evenly spaced tasks are played. None: `Environment.reference_episodes`.
        seed: Seed of the random numbers.
        limit: Only the first `limit` tasks of the split. None: all.

    Raises:
        ConfigError: If worker processes cannot start.
        PoolError: If worker processes fail too often.
    """
    tasks = jax.tree.map(lambda x: x[:limit], env.tasks(split))
    episodes = env.reference_episodes if episodes is None else episodes
    count = min(num_tasks(tasks), episodes)
    if count < num_tasks(tasks):
        spaced = np.linspace(0, num_tasks(tasks) - 1, count).round().astype(int)
        tasks = jax.tree.map(lambda x: x[spaced], tasks)
    play = _play_on_host if env.on_host else _play_in_jit

    def mean(expert: bool) -> ReferenceReturn:
        returns, successes = play(env, tasks, math.ceil(episodes / count), expert, seed)
        # The mean in double precision makes the expert's mean over a split exact.
        return ReferenceReturn(float(returns.mean(dtype=np.float64)), float(successes.mean(dtype=np.float64)))

    return ReferenceReturns(random=mean(expert=False), optimal=mean(expert=True) if env.has_expert else None)


def _play_in_jit(
    env: Environment, tasks: PyTree, episodes: int, expert: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return returns and successes, float32 and bool [tasks, episodes]."""
    keys = jax.random.split(prng.key(seed), (num_tasks(tasks), episodes))
    returns, successes = _episodes(env, _expert_action if expert else _random_action, keys, tasks)
    return np.asarray(returns), np.asarray(successes)


def _play_on_host(
    env: Environment, tasks: np.ndarray, episodes: int, expert: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return returns and successes, float64 and bool [tasks, episodes]. Tasks are fingerprints, uint8 [n, 16]."""
    random = np.random.default_rng(seed)
    returns = np.zeros((len(tasks), episodes))
    successes = np.zeros((len(tasks), episodes), bool)

    def act(group: int, index: int, trial: TrialState) -> np.ndarray:
        count, actions = len(trial.first), env.action_space
        if expert:
            return np.full((count, *actions.shape), actions.expert_mark)
        return actions.draw(random, count, None if trial.legal is None else np.asarray(trial.legal))

    for trials, numbers in waves(cast(HostEnvironment, env), len(tasks)):
        count = EpisodeCount(trials, episodes)
        trials.reset(tasks[numbers], random.integers(2**31, size=len(numbers)))
        for step in trials.run(act, enough=count.enough):
            rows = trials.rows[step.group]
            for row in np.flatnonzero(count.add(step)):
                episode = count.ended[rows][row] - 1
                if episode < episodes:
                    returns[numbers[rows][row], episode] = step.step.episode_return[row]
                    successes[numbers[rows][row], episode] = step.step.success[row]
    return returns, successes


def _random_action(env: Environment, key: jax.Array, state: PyTree, task: PyTree, legal: jax.Array | None) -> jax.Array:
    del state, task
    return env.action_space.sample(key, legal)


def _expert_action(env: Environment, key: jax.Array, state: PyTree, task: PyTree, legal: jax.Array | None) -> jax.Array:
    """Return the expert's action, or a random one if that is not legal."""
    action = env.optimal_action(state, task)
    if legal is None:
        return action
    return jnp.where(env.action_space.allows(legal, action), action, env.action_space.sample(key, legal))


@functools.partial(jax.jit, static_argnames=("env", "policy"))
def _episodes(env: Environment, policy: ScriptedPolicy, keys: jax.Array, tasks: PyTree) -> tuple[jax.Array, jax.Array]:
    """Play one episode per key ([N, R]), with one task ([N]) per row. Returns float32 and bool [N, R]."""
    episode = functools.partial(_episode, env, policy)
    return jax.vmap(jax.vmap(episode, in_axes=(0, None)))(keys, tasks)


def _episode(env: Environment, policy: ScriptedPolicy, key: jax.Array, task: PyTree) -> tuple[jax.Array, jax.Array]:
    """Play one episode. Returns its undiscounted return, float32 [], and its success, bool []."""

    def step(carry: tuple[Any, ...], inputs: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, ...], None]:
        state, legal, episode_return, success, running = carry
        key, elapsed = inputs
        action_key, step_key = jax.random.split(key)
        action = policy(env, action_key, state, task, legal)
        if env.ends_in_time:
            state, timestep = env.step(step_key, state, action, task)
        else:
            state, timestep, _ = env.step_within(step_key, state, action, task, elapsed)
        episode_return += jnp.where(running, timestep.reward, 0.0)
        ended = timestep.terminated | timestep.truncated
        success = jnp.where(running & ended, env.success(timestep, episode_return), success)
        return (state, timestep.legal, episode_return, success, running & ~ended), None

    reset_key, steps_key = jax.random.split(key)
    state, first = env.reset(reset_key, task)
    start = (state, first.legal, jnp.zeros((), jnp.float32), jnp.zeros((), bool), jnp.ones((), bool))
    steps = (jax.random.split(steps_key, env.horizon), jnp.arange(env.horizon))
    (*_, episode_return, success, _), _ = jax.lax.scan(step, start, steps)
    return episode_return, success
