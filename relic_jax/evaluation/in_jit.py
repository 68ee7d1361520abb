"""Acting in environments that run inside jit: all trials at once, on one or more devices, in chunks of one horizon."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.sharding import Sharding

from relic_jax.config import EvalConfig
from relic_jax.environment.base import PyTree, num_tasks
from relic_jax.environment.trials import Trials, TrialState, select
from relic_jax.evaluation.rows import Placement, Rows, on_devices
from relic_jax.evaluation.steps import Progress, Steps, map_batched
from relic_jax.horizon import warn_if_cut
from relic_jax.models.memory import Memory
from relic_jax.models.memory import rows as rows_of
from relic_jax.models.policy import Policy
from relic_jax.rl.memory_budget import tree_bytes
from relic_jax.rl.rollout import acting_sizes, buffer_sizes
from relic_jax.rl.state import AXIS, step_input
from relic_jax.shards import WHOLE, Places
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
    devices: int = 1,
) -> Iterator[Steps]:
    """Act in all trials at once (`acting.Play`). When most of many trials have finished, only the others continue."""
    horizon, batch = trials.env.horizon, num_tasks(tasks)
    sizes = context_sizes(policy, batch, config.episodes * horizon, horizon)
    rows = Rows.of(batch, devices)
    at = Placement.of(rows.devices, params)
    reset_key, key = jax.random.split(key)
    with _LOCK:
        reset = compiled_reset(trials)
        chunk = compiled_chunk(policy, trials, acting_options(config), horizon, rows.devices)
        memory = compiled_memory(policy, len(rows.filled), sizes[0], at.rows)()
    start = rows.spread((reset(reset_key, jax.tree.map(jnp.asarray, tasks)), np.zeros(batch, np.int32), changed))
    trial, episode, changed, places = jax.device_put((*start, rows.places()), at.rows)
    del start  # the first device has all of it
    params, key = jax.device_put((params, key), at.copies)
    parts: list[Steps] = []
    for index in range(config.episodes):  # at most: short episodes end the trial sooner
        size = next(size for size in sizes if size >= (index + 1) * horizon)
        if size > memory.capacity:
            memory = jax.device_put(memory.grown(size), at.rows)
        inputs = trial, memory, episode, jax.random.fold_in(key, index), changed, places
        trial, memory, episode, steps = chunk(params, *inputs)
        warn_if_cut(trials.env.name, horizon, steps.cut)
        parts.append(_spread(jax.device_get(steps._replace(cut=None)), rows, batch, horizon))
        finished = np.asarray(episode)
        done = int(finished[rows.filled].min())
        progress(min(done / config.episodes, 1.0))
        if done >= config.episodes:
            break
        left = rows.filled & (finished < config.episodes)
        if MANY <= len(rows.playing) >= 2 * left.sum():
            rows, kept = rows.keep(left)
            kept, places = jax.device_put((kept, rows.places()), at.rows)
            trial, memory, episode, changed = _taker(rows.devices)((trial, episode, changed), memory, kept)
    yield jax.tree.map(lambda *x: np.concatenate(x), *parts)


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
def compiled_memory(policy: Policy, rows: int, size: int, sharding: Sharding | None) -> Callable[[], Memory]:
    """Return the jitted function that makes an empty memory for acting."""
    return jax.jit(lambda: policy.for_acting(policy.initial_memory(rows, size)), out_shardings=sharding)


@functools.lru_cache(maxsize=16)
def compiled_chunk(policy: Policy, trials: Trials, config: EvalConfig, length: int, devices: int) -> Callable[..., Any]:
    """Return the jitted `chunk_function` on a number of devices. It donates its trial and memory.

    The evaluations of one run, and of all runs with the same policy and trials, share it and what it has compiled.
    """
    rows, steps = P(AXIS), Steps._make(P(None, AXIS) for _ in Steps._fields)
    steps = steps._replace(observation=rows, record=rows)  # one after the other along time: first those of device 0
    inputs, outputs = (P(), rows, rows, rows, P(), rows, rows), (rows, rows, rows, steps)
    run = on_devices(chunk_function(policy, trials, config, length), devices, inputs, outputs)
    return jax.jit(run, donate_argnums=(1, 2))


@functools.cache
def _taker(devices: int) -> Callable[..., Any]:
    """Return a function that maps (arrays, memory, index) to the rows `index`, int32 [b], of each device."""

    def take(arrays: tuple[TrialState, jax.Array, PyTree], memory: Memory, index: jax.Array):
        trial, episode, changed = jax.tree.map(lambda x: x[index], arrays)
        return trial, rows_of(memory, index), episode, changed

    return jax.jit(on_devices(take, devices, P(AXIS), P(AXIS)))


def chunk_function(policy: Policy, trials: Trials, config: EvalConfig, length: int) -> Callable[..., Any]:
    """Return a function that acts for `length` steps.

    It maps (params, trial, memory, episode, key, changed, places) to (trial, memory, episode, steps). `episode`, int32
    [B], counts the episodes that each trial has finished. `changed` has the tasks from episode `config.change_task_at`
    on. `places`: those of these B trials, if they are a part of all.
    """

    def chunk(
        params: Params,
        trial: TrialState,
        memory: Memory,
        episode: jax.Array,
        key: jax.Array,
        changed: PyTree = None,
        places: Places | None = None,
    ):
        params, own = policy.cast_weights(params), dataclasses.replace(trials, shard=places or WHOLE)

        def step(carry: tuple[TrialState, Memory, jax.Array], key: jax.Array):
            trial, memory, episode, steps = _act(policy, own, config, params, *carry, key)
            if config.change_task_at is not None:
                due = jnp.asarray(steps.ended) & (episode == config.change_task_at - 1)
                trial = _with_tasks(own, jax.random.fold_in(key, 0x7A5C), trial, due, changed)
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
    action = trials.shard.draw(lambda every: every.sample(action_key), output.distribution)
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
    keys = trials.shard.split(random_key, len(expert))
    random = jax.vmap(trials.env.action_space.sample)(keys, trial.legal)
    drawn = trials.shard.draw(lambda every: jax.random.uniform(choice_key, (len(every),)), expert)
    return select(drawn < quality, expert, random)


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


def _spread(steps: Steps, rows: Rows, batch: int, horizon: int) -> Steps:
    """Put the steps of some trials among those of all, [horizon, batch]. The other trials are zeros."""

    def spread(x: np.ndarray) -> np.ndarray:
        wide = np.zeros((len(x), batch, *x.shape[2:]), x.dtype)
        wide[:, rows.playing] = x[:, rows.filled]
        return wide

    first = jax.tree.map(lambda x: x[:horizon], (steps.observation, steps.record))  # those of the first device
    return map_batched(spread, steps)._replace(observation=first[0], record=first[1])
