"""Trials of the remembering searcher on gridobj, with the answer that a policy should recall at every step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.environment.base import PyTree
from relic_jax.environment.trials import Trials
from relic_jax.envs.gridobj.env import GridObj, in_view
from relic_jax.envs.gridobj.searcher import Searcher
from relic_jax.rl.state import step_input
from relic_jax.types import StepInput


@struct.dataclass
class Recordings:
    """Steps of trials, with leading axes [B, T].

    Attributes:
        inputs: What the policy reads.
        cell: int32 [B, T, 2]; the cell (x, y) of the kind that the episode asks for.
        age: int32 [B, T]; steps since an object of this kind was last in view, −1 if it was not yet in this trial.
        between: int32 [B, T]; number of other kinds in view since then.
    """

    inputs: StepInput
    cell: jax.Array
    age: jax.Array
    between: jax.Array


@functools.partial(jax.jit, static_argnames=("env", "steps", "noise"))
def record(env: GridObj, key: jax.Array, tasks: PyTree, steps: int, noise: float) -> Recordings:
    """Record one trial of the remembering searcher per task.

    Args:
        env: The environment.
        key: Typed PRNG key [].
        tasks: Tasks with leading axis [B].
        steps: T, steps of a trial.
        noise: Share of the actions that are drawn uniformly, so that objects are seen from many cells.
    """
    searcher, trials = Searcher(env, "trial"), Trials(env)
    batch = jax.tree.leaves(tasks)[0].shape[0]
    reset_key, steps_key = jax.random.split(key)
    seen = jax.tree.map(lambda x: jnp.zeros((batch, *x.shape), x.dtype), searcher.initial_memory())

    def step(carry, inputs):
        trial, seen, last = carry
        key, number = inputs
        search_key, noise_key, random_key, env_key = jax.random.split(key, 4)
        keys = jax.random.split(search_key, batch)
        seen, action = jax.vmap(searcher.act)(keys, seen, trial.env, trial.first, trial.task)
        at_random = jax.random.bernoulli(noise_key, noise, (batch,))
        action = jnp.where(at_random, jax.random.randint(random_key, (batch,), 0, env.action_space.n), action)
        last = jnp.where(jax.vmap(in_view)(trial.env), number, last)
        target = trial.env.target[:, None]
        asked = jnp.take_along_axis(last, target, 1)
        output = (
            step_input(trial),
            jnp.take_along_axis(trial.env.objects, target[..., None], 1)[:, 0],
            jnp.where(asked >= 0, number - asked, -1)[:, 0],
            (last > asked).sum(1),
        )
        trial, _ = trials.step(env_key, trial, action)
        return (trial, seen, last), output

    start = (trials.reset(reset_key, tasks), seen, jnp.full((batch, env.kinds), -1))
    _, outputs = jax.lax.scan(step, start, (jax.random.split(steps_key, steps), jnp.arange(steps)))
    return Recordings(*jax.tree.map(lambda x: x.swapaxes(0, 1), outputs))
