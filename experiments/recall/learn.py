"""Pretrain one seed and evaluate it on held-out layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import prng
from relic_jax.envs.gridobj.env import GridObj
from relic_jax.experiments.recall.measures import shares, sightings
from relic_jax.rl.pretraining import Pretraining, pretraining_key
from relic_jax.types import Params


def train(
    pretraining: Pretraining, seed: int, held_out: int, every: int, report: Callable[[dict[str, Any]], None]
) -> tuple[Params, list[dict[str, Any]]]:
    """Pretrain one seed as `relic-jax train` does, and call `report` with each row.

    Args:
        pretraining: The pretraining of a policy in `GridObj`.
        seed: The seed of the run.
        held_out: Number of held-out layouts of the evaluation.
        every: Optimizer steps between evaluations.
        report: Receives each row.

    Returns:
        The parameters, and the rows: optimizer steps, loss, shares of right answers (`measures.shares`).
    """
    env = pretraining.trials.env
    assert isinstance(env, GridObj)
    tasks = jax.tree.map(lambda x: jnp.asarray(x[:held_out]), env.tasks("test"))
    test = pretraining.record(prng.key(2**31 - 1), tasks)
    seen = sightings(env, test.inputs.observation)
    params = pretraining.policy.init(jax.random.split(prng.key(seed))[0])
    rows = []
    for params, record in pretraining.learn(params, pretraining_key(seed), env.tasks("train")):  # noqa: B020
        done = int(record["optimizer_steps"])
        if done % every == 0:
            right = np.asarray(pretraining.right(params, test))
            rows.append({"seed": seed, "optimizer_steps": done, "loss": record["loss"], **shares(right, seen)})
            report(rows[-1])
    return params, rows
