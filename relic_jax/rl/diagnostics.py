"""Metrics of a segment: finished episodes, mean reward, and where the numbers stopped being finite."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.environment.base import ActionSpace, num_tasks
from relic_jax.rl.masked import mean_count, mean_of_valid
from relic_jax.rl.rollout import Collected
from relic_jax.rl.state import Metrics, Setup
from relic_jax.types import Params


class NonFiniteError(RuntimeError):
    """A NaN or infinity appeared. The message names the step, the first bad quantity and the last good checkpoint."""


SOURCES = ("observation", "legal", "reward", "log_prob", "value", "loss", "gradient", "params")
"""Quantities that can stop being finite, in causal order. `legal` counts masks without a legal action."""


def mean_reward(setup: Setup, collected: Collected) -> jax.Array:
    """Return the mean reward of the valid steps, float32 [], to be averaged over devices (see `masked`)."""
    valid = collected.steps.valid
    if valid is None:
        return collected.results.reward.mean()
    return mean_of_valid(collected.results.reward, valid.T, mean_count(setup, valid))


def ended_episodes(collected: Collected) -> jax.Array:
    """Return whether an episode ended at each step, and not with a lost one: bool [K, B]."""
    ended, valid = collected.results.terminated | collected.results.truncated, collected.steps.valid
    return ended if valid is None else ended & valid.T


def episode_sums(collected: Collected) -> Metrics:
    """Return sums over the episodes that ended in the segment.

    The host divides them by the number of episodes, which can be 0. If steps can be lost, the lost steps are counted,
    and episodes that ended with a lost step are excluded. If episodes can outlast the horizon of their environment, the
    episodes that were truncated for this reason are counted.
    """
    results, valid, ended = collected.results, collected.steps.valid, ended_episodes(collected)
    counts = {} if valid is None else {"lost_steps": (~valid).sum(dtype=jnp.float32)}
    if results.cut is not None:
        counts["cut_episodes"] = results.cut.sum(dtype=jnp.float32)
    metrics = {f"episode/{name}": jnp.where(ended, value, 0.0).sum() for name, value in results.metrics.items()}
    return {
        **counts,
        **metrics,
        "episodes": ended.sum(dtype=jnp.float32),
        "return_sum": jnp.where(ended, results.episode_return, 0.0).sum(),
        "success_sum": (ended & results.success).sum(dtype=jnp.float32),
    }


def count_nonfinite(actions: ActionSpace, collected: Collected, metrics: Metrics, params: Params) -> Metrics:
    """Count the non-finite numbers in each of `SOURCES`.

    Args:
        actions: action space of the policy.
        collected: the segment.
        metrics: metrics of the update, with `loss` and `grad_norm`.
        params: parameters after the update.

    Returns:
        float32 [] for each `nonfinite/SOURCE`.
    """

    def count(tree: Any) -> jax.Array:
        leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum((~jnp.isfinite(x)).sum(dtype=jnp.float32) for x in leaves) + jnp.zeros(())

    steps = collected.steps
    masks = [mask for mask in (steps.inputs.legal, collected.trial.legal) if mask is not None]
    parts = {
        "observation": (steps.inputs.observation, collected.trial.observation),
        "legal": [jnp.where(actions.playable(mask), 0.0, jnp.nan) for mask in masks],
        "reward": steps.reward,
        "log_prob": steps.log_prob,
        "value": steps.value,
        "loss": metrics["loss"],
        "gradient": metrics["grad_norm"],
        "params": params,
    }
    return {f"nonfinite/{source}": count(parts[source]) for source in SOURCES}


def first_nonfinite(setup: Setup, collected: Collected, start: jax.Array) -> Metrics:
    """Locate the first step of the segment whose observation, reward or mask of legal actions is bad.

    An observation belongs to the step in which the policy acts on it. The earliest step counts as first, and among its
    environments the one with the smallest number.

    Args:
        setup: the training setup.
        collected: the segment.
        start: int32 [], the segment's first step in the trial.

    Returns:
        int32 [] for `nonfinite/environment`, `nonfinite/step` (in the trial) and `nonfinite/task` (in the training
        split, −1 if the task is not part of it). All are −1 if everything is finite.
    """
    environments, segment = setup.local_environments, setup.config.trial.segment
    total = setup.config.trial.environments
    bad = _bad_steps(setup.policy.action_space, collected)
    # The order is earliest step first, then environment, as one number, so the devices can agree on the smallest one.
    device = 0 if setup.axis is None else lax.axis_index(setup.axis)
    place = jnp.argmax(bad.T)  # of the first True
    step, row = place // environments, place % environments
    order = jnp.where(bad.any(), step * total + device * environments + row, total * (segment + 1))
    first = order if setup.axis is None else lax.pmin(order, setup.axis)

    def task_index() -> jax.Array:
        same = jnp.ones((num_tasks(setup.tasks),), bool)
        for tasks, task in zip(jax.tree.leaves(setup.tasks), jax.tree.leaves(collected.trial.task), strict=True):
            same &= (jnp.asarray(tasks) == task[row]).reshape(len(same), -1).all(1)
        return jnp.where(same.any(), jnp.argmax(same), -1)

    is_here = bad.any() & (order == first)
    task = setup.total(lax.cond(is_here, task_index, lambda: jnp.zeros((), jnp.int32)))
    exists = first < total * (segment + 1)
    values = {"environment": first % total, "step": start + first // total, "task": task}
    return {f"nonfinite/{name}": jnp.where(exists, value, -1) for name, value in values.items()}


def _bad_steps(actions: ActionSpace, collected: Collected) -> jax.Array:
    """Return which of the segment's K steps, and of the step after them, are bad: bool [B, K + 1]."""

    def bad(tree: Any, leading: int) -> jax.Array:
        leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        none = jnp.zeros(jax.tree.leaves(tree)[0].shape[:leading], bool)
        return functools.reduce(jnp.logical_or, ((~jnp.isfinite(x)).any(range(leading, x.ndim)) for x in leaves), none)

    steps = collected.steps
    acted, following = bad(steps.inputs.observation, 2) | bad(steps.reward, 2), bad(collected.trial.observation, 1)
    if steps.inputs.legal is not None and collected.trial.legal is not None:
        acted |= ~actions.playable(steps.inputs.legal)
        following |= ~actions.playable(collected.trial.legal)
    return jnp.concatenate([acted, following[:, None]], axis=1)
