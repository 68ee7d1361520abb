"""In-context learning: a policy with frozen weights acts for many episodes of one task in one context.

Actions are sampled, and the context is neither shuffled nor refreshed (the protocol of Elawady et al. 2024,
arXiv 2410.02751).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import jax
import numpy as np

from relic_jax import prng, settings
from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.base import Environment, PyTree, Split, TrialRecord
from relic_jax.environment.trials import Trials
from relic_jax.evaluation import in_jit, on_host
from relic_jax.evaluation.steps import Progress, Steps, first_trial, per_episode
from relic_jax.evaluation.tasks import changed_tasks, check_evaluated, evaluated_tasks, one_task
from relic_jax.models.policy import Policy
from relic_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of one policy on one split. Rows are task-major.

    Attributes:
        returns: float32 [tasks · repeats, episodes].
        successes: bool [tasks · repeats, episodes].
        trial: The first trial of the first task, for rendering.
        metrics: `Environment.metrics` by name, float32 [tasks · repeats, episodes]. Empty without any.
    """

    returns: np.ndarray
    successes: np.ndarray
    trial: TrialRecord
    metrics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Play(Protocol):
    """Acts in one trial per task. Implemented inside jit and for worker processes."""

    def __call__(
        self,
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
        """Act for `config.episodes` episodes in each trial.

        Args:
            policy: The policy.
            params: Its parameters.
            trials: The environment and the options of its trials.
            tasks: Pytree with leading axis B, one task for each trial.
            config: The evaluation.
            key: Typed PRNG key [].
            progress: Called with the fraction that is done.
            changed: The task of each trial from episode `config.change_task_at` on. None: the same.
            devices: Number of devices that share the trials inside jit.

        Yields:
            The steps of successive subsets of the trials, in their order.
        """
        ...


@settings.with_standard
def in_context_curves(
    policy: Policy,
    params: Params,
    env: Environment,
    config: EvalConfig,
    *,
    split: Split = "test",
    task: int | None = None,
    seed: int = 0,
    show_last_reward: bool = False,
    progress: Progress = lambda fraction: None,
    devices: int = 1,
) -> Curves:
    """Evaluate a policy in context: in each task `repeats` trials of `episodes` episodes.

    Random numbers do not depend on the number of devices, and results only by rounding (`evaluation.rows`).

    Args:
        policy: The policy.
        params: Its parameters.
        env: The environment.
        config: The evaluation.
        split: The tasks.
        task: Only the task of this index. None: all tasks of `config`.
        seed: Seed of the random numbers.
        show_last_reward: As in training (`Trials`).
        progress: Called with the fraction that is done.
        devices: Number of this process's devices that share the trials. Worker processes act for one device.

    Raises:
        ConfigError: If the config needs an expert and there is none, the task does not exist, the environment has no
            masks of legal actions but the policy needs them, the context of a memory that does not keep every step is
            limited, the expert of worker processes is to act at random, or the task cannot change (`changed_tasks`).
        PoolError: If worker processes fail too often.
    """
    check_evaluated(policy.config, config, env, split, None if task is None else 1)
    if policy.spaces.masked and not env.masks_actions:
        raise ConfigError(f"env is {env.name!r}, which masks no actions; allowed: one that does, as in training")
    tasks = evaluated_tasks(env, split, config) if task is None else one_task(env, split, task)
    changed = None if config.change_task_at is None else changed_tasks(env, split, config, task)
    repeated, changed = jax.tree.map(lambda x: np.repeat(x, config.repeats, axis=0), (tasks, changed))
    key, trials = jax.random.fold_in(prng.key(seed), 0x5EED), Trials(env, show_last_reward)
    if config.context_limit == 0:
        policy, config = policy.within_episode, dataclasses.replace(config, context_limit=None)
    play: Play = on_host.play if env.on_host else in_jit.play
    parts = list(play(policy, params, trials, repeated, config, key, progress, changed, devices))
    values = [per_episode(steps, config.episodes) for steps in parts]
    returns, successes, metrics = jax.tree.map(lambda *x: np.concatenate(x), *values)
    return Curves(returns, successes, first_trial(parts[0], tasks, config.episodes), metrics)
