"""Acting in environments that run inside jit: all trials at once, in chunks of one horizon."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import EvalConfig
from relic_jax.environment.base import PyTree, num_tasks
from relic_jax.environment.trials import Trials, TrialState, select
from relic_jax.evaluation.steps import Progress, Steps, map_batched
from relic_jax.horizon import warn_if_cut
from relic_jax.models.memory import Memory, rows
from relic_jax.models.policy import Policy
from relic_jax.rl.memory_budget import tree_bytes
from relic_jax.rl.rollout import acting_sizes, buffer_sizes
from relic_jax.rl.state import step_input
from relic_jax.types import Params

SIZES = 4
"""Number of sizes of the context's buffer during an evaluation. Each costs a compilation. See `context_sizes`."""
LARGE = 2**30
"""Bytes of a context above which an evaluation always uses all `SIZES`: short episodes fill only the first."""
MANY = 256
"""Number of trials from which on finished trials are dropped: one more compilation, half the work."""
_LOCK = threading.Lock()
"""Guards the compiled functions, which evaluations in several threads share."""


def play(
    policy: Policy,
    params: Params,
    trials: Trials,
    tasks: PyTree,
    config: EvalConfig,
    key: jax.Array,
    progress: Progress,
    changed: PyTree = None,
) -> Iterator[Steps]:
    """Act in all trials at once (`acting.Play`). When most of many trials have finished, only the others continue."""
    horizon, batch = trials.env.horizon, num_tasks(tasks)
    sizes = context_sizes(policy, batch, config.episodes * horizon, horizon)
    reset_key, key = jax.random.split(key)
    with _LOCK:
        reset = compiled_reset(trials)
        chunk = compiled_chunk(policy, trials, acting_options(config), horizon)
    trial = reset(reset_key, jax.tree.map(jnp.asarray, tasks))
    memory = policy.for_acting(policy.initial_memory(batch, sizes[0]))
    episode = jnp.zeros((batch,), jnp.int32)
    start = trial, memory, episode, key, jax.tree.map(jnp.asarray, changed)
    trial, memory, episode, key, changed = _placed_like(params, start)
    parts: list[Steps] = []
    playing = np.arange(batch)
    for index in range(config.episodes):  # at most: short episodes end the trial sooner
        size = next(size for size in sizes if size >= (index + 1) * horizon)
        if size > memory.capacity:
            memory = memory.grown(size)
        trial, memory, episode, steps = chunk(params, trial, memory, episode, jax.random.fold_in(key, index), changed)
        warn_if_cut(trials.env.name, horizon, steps.cut)
        parts.append(_spread(jax.device_get(steps._replace(cut=None)), playing, batch))
        done = int(episode.min())
        progress(min(done / config.episodes, 1.0))
        if done >= config.episodes:
            break
        unfinished = np.flatnonzero(np.asarray(episode) < config.episodes)
        if MANY <= len(playing) >= 2 * len(unfinished):
            trial, episode, changed = jax.tree.map(itemgetter(unfinished), (trial, episode, changed))
            memory, playing = rows(memory, jnp.asarray(unfinished)), playing[unfinished]
    yield jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _placed_like(params: Params, start: PyTree) -> PyTree:
    """Put the inputs of the first chunk on the device of the parameters, like the inputs of all later chunks.

    Otherwise the chunk is compiled twice: for arrays without a fixed device, and for arrays on the parameters' device.
    """
    devices = {device for x in jax.tree.leaves(params) if isinstance(x, jax.Array) for device in x.devices()}
    return jax.device_put(start, devices.pop()) if len(devices) == 1 else start


def context_sizes(policy: Policy, batch: int, steps: int, horizon: int) -> list[int]:
    """Return the sizes of the context's buffer during an evaluation, ascending: multiples of the horizon up to `steps`.

    A kernel that reads the whole buffer needs several sizes (`rl.rollout`), and a large context gets as many.

    Args:
        policy: The policy.
        batch: Number of trials.
        steps: Largest number of steps of a trial.
        horizon: Steps that are acted before the buffer can grow.
    """
    context = tree_bytes(jax.eval_shape(lambda: policy.for_acting(policy.initial_memory(batch, steps))))
    return buffer_sizes(steps, horizon, SIZES if context > LARGE else acting_sizes(policy, SIZES))


def acting_options(config: EvalConfig) -> EvalConfig:
    """Return the settings that `chunk_function` reads, with defaults for all others."""
    return EvalConfig(
        expert_episodes=config.expert_episodes,
        expert_quality=config.expert_quality,
        context_limit=config.context_limit,
        change_task_at=config.change_task_at,
    )


@functools.lru_cache(maxsize=16)
def compiled_reset(trials: Trials) -> Callable[..., Any]:
    """Return the jitted `Trials.reset`."""
    return jax.jit(trials.reset)


@functools.lru_cache(maxsize=16)
def compiled_chunk(policy: Policy, trials: Trials, config: EvalConfig, length: int) -> Callable[..., Any]:
    """Return the jitted `chunk_function`, which donates its trial and memory.

    The evaluations of one run, and of all runs with the same policy and trials, share it and what it has compiled.
    """
    return jax.jit(chunk_function(policy, trials, config, length), donate_argnums=(1, 2))


def chunk_function(policy: Policy, trials: Trials, config: EvalConfig, length: int) -> Callable[..., Any]:
    """Return a function that acts for `length` steps.

    It maps (params, trial, memory, episode, key, changed) to (trial, memory, episode, steps). `episode`, int32 [B],
    counts the episodes that each trial has finished. `changed` has the tasks from episode `config.change_task_at` on.
    """

    def chunk(
        params: Params, trial: TrialState, memory: Memory, episode: jax.Array, key: jax.Array, changed: PyTree = None
    ):
        params = policy.cast_weights(params)

        def step(carry: tuple[TrialState, Memory, jax.Array], key: jax.Array):
            trial, memory, episode, steps = _act(policy, trials, config, params, *carry, key)
            if config.change_task_at is not None:
                due = jnp.asarray(steps.ended) & (episode == config.change_task_at - 1)
                trial = _with_tasks(trials, jax.random.fold_in(key, 0x7A5C), trial, due, changed)
            return (trial, memory, episode), steps

        carry, steps = jax.lax.scan(step, (trial, memory, episode), jax.random.split(key, length))
        return *carry, steps

    return chunk


def _act(
    policy: Policy,
    trials: Trials,
    config: EvalConfig,
    params: Params,
    trial: TrialState,
    memory: Memory,
    episode: jax.Array,
    key: jax.Array,
) -> tuple[TrialState, Memory, jax.Array, Steps]:
    """Take one step. In the first `config.expert_episodes` episodes, the expert acts where its action is legal."""
    window = None if config.context_limit is None else jnp.asarray(config.context_limit, jnp.int32)
    actions = trials.env.action_space
    action_key, env_key = jax.random.split(key)
    output, memory = policy.act(params, memory, step_input(trial), window=window)
    action = output.distribution.sample(action_key)
    if config.expert_episodes:
        expert = jax.vmap(trials.env.optimal_action)(trial.env, trial.task)
        if config.expert_quality < 1:
            expert = _degraded(trials, trial, expert, config.expert_quality, jax.random.fold_in(action_key, 0xBAD))
        by_expert = episode < config.expert_episodes
        if trial.legal is not None:
            by_expert &= actions.allows(trial.legal, expert)
        action = select(by_expert, actions.from_env(expert), action)
    next_trial, result = trials.step(env_key, trial, action)
    ended = result.terminated | result.truncated
    observation, state = jax.tree.map(lambda x: x[0], (trial.observation, trial.env))
    steps = Steps(
        action=actions.to_env(action),
        reward=result.reward,
        first=trial.first,
        ended=ended,
        episode_return=result.episode_return,
        success=result.success,
        metrics=result.metrics,
        observation=observation,
        record=trials.env.record(state),
        cut=result.cut,
    )
    return next_trial, memory, episode + ended, steps


def _degraded(trials: Trials, trial: TrialState, expert: jax.Array, quality: float, key: jax.Array) -> jax.Array:
    """Replace a share 1 − `quality` of the expert's actions, [B, ...], by uniformly random legal ones."""
    choice_key, random_key = jax.random.split(key)
    keys = jax.random.split(random_key, len(expert))
    random = jax.vmap(trials.env.action_space.sample)(keys, trial.legal)
    return select(jax.random.uniform(choice_key, (len(expert),)) < quality, expert, random)


def _with_tasks(trials: Trials, key: jax.Array, trial: TrialState, due: jax.Array, tasks: PyTree) -> TrialState:
    """Start the next episode of some trials in other tasks. What the policy has seen stays as it is.

    Args:
        trials: The environment.
        key: Typed PRNG key [].
        trial: The trials, at the start of an episode where `due`.
        due: bool [B]. The trials whose task changes.
        tasks: Their new tasks, a pytree with leading axis B.
    """

    def change() -> TrialState:
        new = select(due, trials.reset(key, tasks), trial)
        return dataclasses.replace(new, previous_action=trial.previous_action, previous_reward=trial.previous_reward)

    return jax.lax.cond(due.any(), change, lambda: trial)


def _spread(steps: Steps, playing: np.ndarray, batch: int) -> Steps:
    """Put the steps of the trials `playing` (int [b]) among those of all, [T, batch]. Other rows are zeros."""

    def spread(x: np.ndarray) -> np.ndarray:
        wide = np.zeros((len(x), batch, *x.shape[2:]), x.dtype)
        wide[:, playing] = x
        return wide

    return map_batched(spread, steps)
