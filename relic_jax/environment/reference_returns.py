"""The lines every result is read against: the uniformly random policy and the scripted expert, by simulation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import prng, settings
from relic_jax.environment.base import Environment, PyTree, Split, num_tasks
from relic_jax.environment.host import HostEnvironment, mean_line

# (environment, key, state, task, legal actions or None) -> action
ScriptedPolicy = Callable[[Environment, jax.Array, PyTree, PyTree, jax.Array | None], jax.Array]


@dataclasses.dataclass(frozen=True)
class ReferenceReturn:
    """mean_return: undiscounted, per episode. success_rate: share of episodes, 0 to 1. Tasks weigh equally."""

    mean_return: float
    success_rate: float


@dataclasses.dataclass(frozen=True)
class ReferenceReturns:
    """random: the uniform policy's line. optimal: the scripted expert's, None where there is no expert."""

    random: ReferenceReturn
    optimal: ReferenceReturn | None


@settings.with_standard
def reference_returns(
    env: Environment, split: Split, episodes: int | None = None, seed: int = 0, limit: int | None = None
) -> ReferenceReturns:
    """Plays `episodes` episodes with each policy, the same number in every task of the split (rounded up).

    episodes: None: the environment's `reference_episodes`. Of more tasks than that, evenly spaced ones are used. limit: only
    that many first tasks of the split; None: all.
    """
    tasks = jax.tree.map(lambda x: x[:limit], env.tasks(split))
    episodes = env.reference_episodes if episodes is None else episodes
    count = min(num_tasks(tasks), episodes)
    if count < num_tasks(tasks):
        chosen = np.linspace(0, num_tasks(tasks) - 1, count).round().astype(int)
        tasks = jax.tree.map(lambda x: x[chosen], tasks)
    if isinstance(env, HostEnvironment):
        line = functools.partial(mean_line, env, tasks, math.ceil(episodes / count), seed=seed)
        return ReferenceReturns(
            ReferenceReturn(*line(expert=False)), ReferenceReturn(*line(expert=True)) if env.has_expert else None
        )
    keys = jax.random.split(prng.key(seed), (count, math.ceil(episodes / count)))
    optimal = _line(env, _expert, keys, tasks) if env.has_expert else None
    return ReferenceReturns(random=_line(env, _random, keys, tasks), optimal=optimal)


def _random(env: Environment, key: jax.Array, state: PyTree, task: PyTree, legal: jax.Array | None) -> jax.Array:
    del state, task
    return env.action_space.sample(key, legal)


def _expert(env: Environment, key: jax.Array, state: PyTree, task: PyTree, legal: jax.Array | None) -> jax.Array:
    """The expert's action, or a random one where that is not legal."""
    action = env.optimal_action(state, task)
    if legal is None:
        return action
    return jnp.where(env.action_space.allows(legal, action), action, env.action_space.sample(key, legal))


def _line(env: Environment, policy: ScriptedPolicy, keys: jax.Array, tasks: PyTree) -> ReferenceReturn:
    returns, successes = map(np.asarray, _play(env, policy, keys, tasks))
    # In double precision, so that the expert's mean over a split is exact.
    return ReferenceReturn(float(returns.mean(dtype=np.float64)), float(successes.mean(dtype=np.float64)))


@functools.partial(jax.jit, static_argnames=("env", "policy"))
def _play(env: Environment, policy: ScriptedPolicy, keys: jax.Array, tasks: PyTree) -> tuple[jax.Array, jax.Array]:
    """Plays one episode per key ([N, R]), a task ([N]) per row. Returns (return, success), float32 and bool [N, R]."""
    episode = functools.partial(_episode, env, policy)
    return jax.vmap(jax.vmap(episode, in_axes=(0, None)))(keys, tasks)


def _episode(env: Environment, policy: ScriptedPolicy, key: jax.Array, task: PyTree) -> tuple[jax.Array, jax.Array]:
    """Plays one episode. Returns (undiscounted return, success), float32 [] and bool []."""

    def step(carry: tuple, inputs: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        state, legal, episode_return, success, running = carry
        key, taken = inputs
        action_key, step_key = jax.random.split(key)
        action = policy(env, action_key, state, task, legal)
        if env.ends_in_time:
            state, timestep = env.step(step_key, state, action, task)
        else:
            state, timestep, _ = env.step_within(step_key, state, action, task, taken)
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
