"""The tasks of an evaluation, and whether it fits into memory."""

from __future__ import annotations

import jax

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


def check_evaluated(
    policy: PolicyConfig, config: EvalConfig, env: Environment, split: Split, tasks: int | None = None
) -> None:
    """Check that an evaluation fits into memory.

    Args:
        policy: The policy's config.
        config: The evaluation.
        env: The environment.
        split: The split whose tasks are evaluated.
        tasks: Number of tasks. None: as many as `config` says.

    Raises:
        ConfigError: If it cannot fit.
    """
    tasks = num_tasks(evaluated_tasks(env, split, config)) if tasks is None else tasks
    trials = env.concurrent_trials(tasks * config.repeats)
    check_evaluation(policy, config, horizon=env.horizon, trials=trials)
