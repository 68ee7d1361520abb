"""Scripted agents with a memory, which bound what in-context learning is worth on `GridObj`.

Both walk to the nearest cell that they have not seen, until they know where the target object lies; then they walk
straight to it. The *forgetful* one starts every episode from nothing; the *remembering* one keeps what it has seen for
the whole trial. Their difference is what a policy can gain by recalling earlier episodes.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.envs.darkroom.env import MOVES, towards
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
        seen, cost = self._look(memory, state, first), self._offsets(state.position).sum(axis=0)
        cost = cost + jax.random.uniform(key, seen.cells.shape)  # the noise is below one step
        nearest = jnp.argmin(jnp.where(seen.cells, jnp.inf, cost))
        unseen = jnp.stack([nearest // self.env.size, nearest % self.env.size]).astype(jnp.int32)
        goal = jnp.where(seen.kinds[state.target], state.objects[state.target], unseen)
        return seen, towards(state.position, goal)

    def action_probabilities(
        self, memory: Seen, state: GridObjState, first: jax.Array, task: GridObjTask | None
    ) -> tuple[Seen, jax.Array]:
        """Return equal probabilities for all actions that start a shortest path to a goal, float32 [5].

        The goal is the target object if it has been seen, otherwise any of the nearest unseen cells.

        Args:
            memory: The memory before this step.
            state: The state of the environment, of which only what observations reveal is used.
            first: bool []; whether the state is the first of an episode.
            task: Not used.

        Returns:
            (memory, probabilities).
        """
        del task
        seen = self._look(memory, state, first)
        place = state.objects[state.target]
        there = jnp.zeros_like(seen.cells).at[place[0], place[1]].set(True)
        goals = jnp.where(seen.kinds[state.target], there, ~seen.cells)
        following = jnp.clip(state.position + jnp.asarray(MOVES), 0, self.env.size - 1)
        distances = jax.vmap(self._offsets)(following).sum(axis=1)
        left = jnp.where(goals, distances, 2 * self.env.size).min((1, 2))
        best = (left == left.min()).astype(jnp.float32)
        return seen, best / best.sum()

    def _look(self, memory: Seen, state: GridObjState, first: jax.Array) -> Seen:
        """Return the memory after adding the cells and kinds in view."""
        if self.memory == "episode":
            memory = jax.tree.map(lambda new, old: jnp.where(first, new, old), self.initial_memory(), memory)
        cells = self._offsets(state.position).max(axis=0) <= RADIUS
        return Seen(memory.cells | cells, memory.kinds | in_view(state))

    def _offsets(self, position: jax.Array) -> jax.Array:
        """Return the distances of all cells from a position along x and along y, int32 [2, N, N]."""
        x, y = jnp.ogrid[: self.env.size, : self.env.size]
        return jnp.stack(jnp.broadcast_arrays(jnp.abs(x - position[0]), jnp.abs(y - position[1])))
