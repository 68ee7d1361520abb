"""Where an update's numbers stop being finite."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.environment.base import ActionSpace, num_tasks
from relic_jax.rl.rollout import Collected
from relic_jax.rl.state import Setup
from relic_jax.types import Params

Metrics = dict[str, jax.Array]
SOURCES = ("observation", "legal", "reward", "log_prob", "value", "loss", "gradient", "params")
"""Where a number can stop being finite, in causal order; `legal`: masks that leave no action."""


def finiteness(actions: ActionSpace, collected: Collected, metrics: Metrics, params: Params) -> Metrics:
    """Counts of non-finite numbers in each of `SOURCES`."""

    def bad(tree: Any) -> jax.Array:
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
    return {f"nonfinite/{source}": bad(parts[source]) for source in SOURCES}


def first_nonfinite(setup: Setup, collected: Collected, start: jax.Array) -> Metrics:
    """Where the segment's first observation or reward that is not finite came up: environment, step of its trial and
    index of its task in the training split (−1: it is not in there), int32 []; all −1 where everything is finite.
    start: the segment's first step.

    An observation counts for the step that is taken on it.
    """
    environments, segment = setup.local_environments, setup.config.trial.segment

    def bad(tree: Any, leading: int) -> jax.Array:
        leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        found = jnp.zeros(jax.tree.leaves(tree)[0].shape[:leading], bool)
        return functools.reduce(jnp.logical_or, ((~jnp.isfinite(x)).any(range(leading, x.ndim)) for x in leaves), found)

    steps = collected.steps
    acted, next_seen = bad(steps.inputs.observation, 2) | bad(steps.reward, 2), bad(collected.trial.observation, 1)
    if steps.inputs.legal is not None and collected.trial.legal is not None:
        acted |= ~setup.policy.action_space.playable(steps.inputs.legal)
        next_seen |= ~setup.policy.action_space.playable(collected.trial.legal)
    found = jnp.concatenate([acted, next_seen[:, None]], axis=1)  # [B, K + 1]
    # earliest step first, then environment: one number, so that devices can agree on the smallest
    device = 0 if setup.axis is None else lax.axis_index(setup.axis)
    place = jnp.argmax(found.T)  # of the first True
    step, row = place // environments, place % environments
    total = setup.config.trial.environments
    order = jnp.where(found.any(), step * total + device * environments + row, total * (segment + 1))
    first = order if setup.axis is None else lax.pmin(order, setup.axis)

    def task_index() -> jax.Array:
        same = jnp.ones((num_tasks(setup.tasks),), bool)
        for every, own in zip(jax.tree.leaves(setup.tasks), jax.tree.leaves(collected.trial.task), strict=True):
            same &= (jnp.asarray(every) == own[row]).reshape(len(same), -1).all(1)
        return jnp.where(same.any(), jnp.argmax(same), -1)

    is_own = found.any() & (order == first)
    task = setup.total(lax.cond(is_own, task_index, lambda: jnp.zeros((), jnp.int32)))
    there = first < total * (segment + 1)
    where = {"environment": first % total, "step": start + first // total, "task": task}
    return {f"nonfinite/{name}": jnp.where(there, value, -1) for name, value in where.items()}
