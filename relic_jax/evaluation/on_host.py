"""Acting in environments in worker processes: as many trials at a time as the workers hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import jax
import numpy as np

from relic_jax.bridge.pool import PoolError
from relic_jax.config import EvalConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.host_trials import EpisodeCount, HostTrials, per_row, waves
from relic_jax.environment.trials import Trials, TrialState
from relic_jax.evaluation.in_jit import context_sizes
from relic_jax.evaluation.steps import Progress, Steps, map_batched
from relic_jax.models.policy import Policy
from relic_jax.rl.host import Actor, Running
from relic_jax.types import Params

SPARE = 4
"""Episodes beyond those asked for that the context has room for: workers can fail and lose episodes."""


def play(
    policy: Policy,
    params: Params,
    trials: Trials,
    tasks: np.ndarray,
    config: EvalConfig,
    key: jax.Array,
    progress: Progress,
    changed: None = None,
    devices: int = 1,
) -> Iterator[Steps]:
    """Act in one wave of trials after the other (`acting.Play`). Raises PoolError if a trial is lost."""
    del changed, devices  # `in_context_curves` refuses changes of the task on the host; one device acts
    env = cast(HostEnvironment, trials.env)
    seeds = np.asarray(jax.random.randint(key, (len(tasks),), 0, 2**31 - 1))
    for hosted, numbers in waves(env, len(tasks), trials.show_last_reward):
        hosted.reset(tasks[numbers], seeds[numbers])
        wave_key = jax.random.fold_in(key, int(numbers[0]))
        steps = _play_wave(policy, params, hosted, config, wave_key)
        real = len(np.unique(numbers))
        yield map_batched(lambda x, real=real: x[:, :real], steps)
        progress((int(numbers[-1]) + 1) / len(tasks))


def _play_wave(policy: Policy, params: Params, hosted: HostTrials, config: EvalConfig, key: jax.Array) -> Steps:
    """Act until every environment has played its episodes."""
    horizon, actions = hosted.env.horizon, hosted.env.action_space
    sizes = context_sizes(policy, hosted.pool.config.total, (config.episodes + SPARE) * horizon, horizon)
    actor, count = Actor(policy, hosted.pool.config.total, config.context_limit), EpisodeCount(hosted, config.episodes)
    empty = [policy.initial_memory(rows.stop - rows.start, sizes[0]) for rows in hosted.rows]
    running = [Running(policy.for_acting(memory), None) for memory in empty]

    def act(group: int, index: int, trial: TrialState) -> np.ndarray:
        memory, rows = running[group].memory, hosted.rows[group]
        if index == memory.capacity:
            memory = memory.grown(next(size for size in sizes if size > index))
        running[group], action = actor(params, Running(memory, None), trial, key, rows.start, index)
        to_env = actions.to_env(np.asarray(action))
        return per_row(count.ended[rows] < config.expert_episodes, np.full_like(to_env, actions.expert_mark), to_env)

    groups: list[list[Steps]] = [[] for _ in running]
    for group_step in hosted.run(act, sizes[-1], count.enough):
        before, step, ended = group_step.before, group_step.step, count.add(group_step)
        observation = jax.tree.map(lambda x: x[0], before.observation)
        values = (group_step.batch.acted, step.reward, before.first, ended, step.episode_return, step.success)
        groups[group_step.group].append(Steps(*values, metrics=step.metrics, observation=observation, record=None))
    if not count.enough():
        raise PoolError(f"env {hosted.env.name!r}: too many episodes were lost to evaluate {config.episodes}")
    stacked = [jax.tree.map(lambda *x: np.stack(x), *group) for group in groups]
    return map_batched(lambda *x: np.concatenate(x, axis=1), *stacked)
