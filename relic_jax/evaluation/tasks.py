"""The tasks of an evaluation, and whether it fits into memory."""

from __future__ import annotations

import jax
import numpy as np

from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.base import Environment, PyTree, Split, num_tasks
from relic_jax.models.policy import PolicyConfig
from relic_jax.rl.memory_budget import check_evaluation


def evaluated_tasks(env: Environment, split: Split, config: EvalConfig) -> PyTree:
    """Return the tasks of a split, or only the first `config.tasks` of them."""
    return jax.tree.map(lambda x: x[: config.tasks], env.tasks(split))


def one_task(env: Environment, split: Split, index: int) -> PyTree:
    """Return a task set that holds one task of a split.

    Raises:
        ConfigError: If the split has no task of that index.
    """
    tasks = env.tasks(split)
    if not 0 <= index < num_tasks(tasks):
        raise ConfigError(f"task is {index}; allowed: 0 … {num_tasks(tasks) - 1} ({env.name}, split {split})")
    return jax.tree.map(lambda x: x[index : index + 1], tasks)


def changed_tasks(env: Environment, split: Split, config: EvalConfig, task: int | None = None) -> PyTree:
    """Return the task that follows each evaluated one from episode `eval.change_task_at` on.

    It is the task half a split away, because neighbours in a split can be alike.

    Args:
        env: The environment.
        split: The split.
        config: The evaluation.
        task: Index of the only evaluated task. None: those of `evaluated_tasks`.

    Raises:
        ConfigError: If the environment runs in worker processes, or the split has only one task.
    """
    field = f"eval.change_task_at is {config.change_task_at}"
    if env.on_host:
        raise ConfigError(f"{field}; allowed: None, {env.name} runs in worker processes, which keep their task")
    tasks = env.tasks(split)
    count = num_tasks(tasks)
    if count < 2:
        raise ConfigError(f"{field}; allowed: None, {env.name} has one {split} task")
    index = np.arange(count if config.tasks is None else min(config.tasks, count)) if task is None else np.array([task])
    return jax.tree.map(lambda x: np.asarray(x)[(index + count // 2) % count], tasks)


def check_evaluated(
    policy: PolicyConfig, config: EvalConfig, env: Environment, split: Split, tasks: int | None = None
) -> None:
    """Check that a policy can be evaluated in an environment, and that the evaluation fits into memory.

    Args:
        policy: The policy's config.
        config: The evaluation.
        env: The environment.
        split: The split whose tasks are evaluated.
        tasks: Number of tasks. None: as many as `config` says.

    Raises:
        ConfigError: If the config needs an expert and there is none, the expert of worker processes is to act at
            random, the context of a memory that does not keep every step is limited, or the evaluation cannot fit.
    """
    if config.expert_episodes and not env.has_expert:
        raise ConfigError(f"eval.expert_episodes is {config.expert_episodes}; allowed: 0, {env.name} has no expert")
    if config.expert_quality != 1 and env.on_host:
        allowed = f"1.0, {env.name} runs in worker processes, which act for their expert"
        raise ConfigError(f"eval.expert_quality is {config.expert_quality}; allowed: {allowed}")
    if config.context_limit is not None and not policy.traits.keeps_steps:
        allowed = f"None with policy.memory {policy.memory!r}"
        raise ConfigError(f"eval.context_limit is {config.context_limit}; allowed: {allowed}")
    tasks = num_tasks(evaluated_tasks(env, split, config)) if tasks is None else tasks
    trials = env.concurrent_trials(tasks * config.repeats)
    check_evaluation(policy, config, horizon=env.horizon, trials=trials)
