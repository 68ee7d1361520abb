"""What ends an episode, read from the program of a step."""

from __future__ import annotations

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from relic_jax.environment.base import Environment, PyTree


def has_fixed_length(env: Environment) -> bool:
    """Return whether only the number of steps ends an episode: no action, no random number and no task.

    The environment is traced, not compiled. False also stands for programs whose inputs cannot be told apart.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    task = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), env.tasks("train"))
    action = jax.ShapeDtypeStruct(env.action_space.shape, env.action_space.dtype)

    def reset(key: jax.Array, task: PyTree) -> PyTree:
        return env.reset(key, task)[0]

    def step(state: PyTree, key: jax.Array, action: jax.Array, task: PyTree) -> tuple[PyTree, jax.Array]:
        state, timestep = env.step(key, state, action, task)
        return state, timestep.terminated | timestep.truncated

    state = jax.eval_shape(reset, key, task)
    first, program = jax.make_jaxpr(reset)(key, task).jaxpr, jax.make_jaxpr(step)(state, key, action, task).jaxpr
    needed = [False] * len(jax.tree.leaves(state))  # arrays of the state on which the end depends
    while True:
        _, read = dce_jaxpr(program, [*needed, True])
        more = [old or new for old, new in zip(needed, read, strict=False)]
        if more == needed:
            break
        needed = more  # what they depend on, too
    return not any(read[len(needed) :]) and not any(dce_jaxpr(first, needed)[1])
