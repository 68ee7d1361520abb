"""Scripted agents with a memory, which bound what in-context learning is worth on `GridObj`.

Both walk to the nearest cell that they have not seen, until they know where the object asked for lies; then they walk
straight to it. The *forgetful* one starts every episode from nothing; the *remembering* one keeps what it has seen for
the whole trial. Their difference is what a policy can gain by recalling earlier episodes.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.envs.darkroom.env import towards
from relic_jax.envs.gridobj.env import RADIUS, GridObj, GridObjState, GridObjTask, in_view

Memory = Literal["episode", "trial"]


@struct.dataclass
class Seen:
    """What a searcher remembers.

    Attributes:
        cells: bool [N, N], by x and y; cells that have been in view.
        kinds: bool [K]; kinds whose object has been in view.
    """

    cells: jax.Array
    kinds: jax.Array


@dataclasses.dataclass(frozen=True)
class Searcher:
    """A scripted agent for one environment; all methods are pure functions of one environment's state.

    Attributes:
        env: The environment that it searches.
        memory: "episode": forget everything when an episode starts (the forgetful searcher). "trial": never forget
            (the remembering searcher).
    """

    env: GridObj
    memory: Memory

    def initial_memory(self) -> Seen:
        """Return the memory at the start of a trial: nothing seen."""
        return Seen(jnp.zeros((self.env.size, self.env.size), bool), jnp.zeros(self.env.kinds, bool))

    def act(
        self, key: jax.Array, memory: Seen, state: GridObjState, first: jax.Array, task: GridObjTask | None
    ) -> tuple[Seen, jax.Array]:
        """Remember what is in view, then choose an action.

        Args:
            key: Typed PRNG key []; breaks ties between cells that are equally near.
            memory: The memory before this step.
            state: The state of the environment, of which only what observations reveal is used.
            first: bool []; whether the state is the first of an episode.
            task: Not used.

        Returns:
            (memory, action int32 []).
        """
        del task
        if self.memory == "episode":
            memory = jax.tree.map(lambda new, old: jnp.where(first, new, old), self.initial_memory(), memory)
        x, y = jnp.ogrid[: self.env.size, : self.env.size]
        distance = jnp.stack(jnp.broadcast_arrays(jnp.abs(x - state.position[0]), jnp.abs(y - state.position[1])))
        seen = Seen(memory.cells | (distance.max(axis=0) <= RADIUS), memory.kinds | in_view(state))
        cost = distance.sum(axis=0) + jax.random.uniform(key, seen.cells.shape)  # the noise is below one step
        nearest = jnp.argmin(jnp.where(seen.cells, jnp.inf, cost))
        unseen = jnp.stack([nearest // self.env.size, nearest % self.env.size]).astype(jnp.int32)
        goal = jnp.where(seen.kinds[state.target], state.objects[state.target], unseen)
        return seen, towards(state.position, goal)
