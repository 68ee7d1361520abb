"""Scripted agents with a memory, which bound what in-context learning is worth in the houses.

Both go to the nearest part of the house that they have not seen, until the target category is in view; then they go
to the nearest object of it that they have seen. The *forgetful* one starts every episode from nothing; the
*remembering* one keeps what it has seen for the whole trial. Both know walls and furniture from the start, so their
difference is what remembering objects is worth.

A part is a corner of four cells without wall and furniture, where the center of an object can be. It has been seen if
it was in view (`house_symbols`), so an agent that has seen every part has seen every object.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.envs.firstperson import house_expert, house_symbols
from relic_jax.envs.firstperson.geodesic import distances_around
from relic_jax.envs.firstperson.house import HouseNav
from relic_jax.envs.firstperson.house_plan import CELL, OBJECT, House, HouseConfig, sources_of
from relic_jax.envs.firstperson.house_state import HouseState

Memory = Literal["episode", "trial"]
NEAR = OBJECT / 2 * CELL
"""Meters; no object has its center so close to the agent."""


@struct.dataclass
class Seen:
    """What a searcher remembers of a house of n × n cells with K objects.

    Attributes:
        parts: Bool [n − 1, n − 1]; corners of cells that have been in view, by x and z.
        objects: Bool [K]; objects that have been in view.
    """

    parts: jax.Array
    objects: jax.Array


@dataclasses.dataclass(frozen=True)
class HouseSearcher:
    """A scripted agent for one environment; all methods are pure functions of one environment's state.

    Attributes:
        env: The environment that it searches.
        memory: "episode": forget everything when an episode starts (the forgetful searcher). "trial": never forget
            (the remembering searcher).
    """

    env: HouseNav
    memory: Memory

    def initial_memory(self) -> Seen:
        """Return the memory at the start of a trial: nothing seen."""
        corners = self.env.config.cells - 1
        return Seen(jnp.zeros((corners, corners), bool), jnp.zeros(self.env.config.objects, bool))

    def act(
        self, key: jax.Array, memory: Seen, state: HouseState, first: jax.Array, task: jax.Array
    ) -> tuple[Seen, jax.Array]:
        """Remember what is in view, then choose an action. Deterministic.

        Args:
            key: Not used.
            memory: The memory before this step.
            state: The state of the environment.
            first: bool []; whether the state is the first of an episode.
            task: Not used.

        Returns:
            (memory, action int32 []).
        """
        del key
        memory, probabilities = self.action_probabilities(memory, state, first, task)
        return memory, probabilities.argmax().astype(jnp.int32)

    def action_probabilities(
        self, memory: Seen, state: HouseState, first: jax.Array, task: jax.Array
    ) -> tuple[Seen, jax.Array]:
        """Return equal probabilities for all actions that are best, float32 [actions]; `act` chooses one of them.

        Args:
            memory: The memory before this step.
            state: The state of the environment.
            first: bool []; whether the state is the first of an episode.
            task: Not used.

        Returns:
            (memory, probabilities).
        """
        del task
        if self.memory == "episode":
            memory = jax.tree.map(lambda new, old: jnp.where(first, new, old), self.initial_memory(), memory)
        house, config, camera = state.house, self.env.config, self.env.camera(state)
        line = jnp.arange(1, config.cells) * CELL
        corners = jnp.stack(jnp.broadcast_arrays(line[:, None], line[None, :]), axis=-1)
        in_view = house_symbols.points_in_view(corners, house.walls, camera, self.env.lens)
        in_view |= jnp.linalg.norm(corners - state.position, axis=-1) < NEAR
        objects = house_symbols.sightings(house, camera, self.env.lens).visible
        memory = Seen(memory.parts | in_view, memory.objects | objects)
        known = memory.objects[self.env.of_target(state)]
        unseen = parts(house, config) & ~memory.parts
        goal = jnp.where(known.any(), self._to_objects(state, known), _to_parts(unseen))
        distance = distances_around(house.free, goal, CELL, state.position)
        return memory, house_expert.approach(self.env, state, distance, known)

    def _to_objects(self, state: HouseState, known: jax.Array) -> jax.Array:
        """Return the sources of distances to the known objects of the target category, float32 [n, n]."""
        return sources_of(state.house.place[self.env.of_target(state)], known, self.env.config.cells).min(0)


def parts(house: House, config: HouseConfig) -> jax.Array:
    """Return the corners where the center of an object can be, bool [n − 1, n − 1]."""
    centres = (jnp.arange(config.cells) + 0.5) * CELL
    in_x, in_z = (jnp.abs(centres - house.place[:, axis, None]) < NEAR for axis in (0, 1))
    objects = (in_x & house.present[:, None]).astype(jnp.float32).T @ in_z.astype(jnp.float32)
    empty = house.free | (objects > 0)
    return empty[1:, 1:] & empty[1:, :-1] & empty[:-1, 1:] & empty[:-1, :-1]


def _to_parts(unseen: jax.Array) -> jax.Array:
    """Return the sources of distances to unseen corners, float32 [n, n]: cells within a cell of one."""
    beside = _dilated(unseen, 0)
    around = _dilated(unseen, 1)
    offset = jnp.where(around, 1.5 * CELL * math.sqrt(2), jnp.inf)
    return jnp.where(beside, 0.5 * CELL * math.sqrt(2), offset)


def _dilated(corners: jax.Array, by: int) -> jax.Array:
    """Return the cells at most `by` cells from the four of a corner, bool [n, n]. corners: bool [n − 1, n − 1]."""
    for axis in (0, 1):
        size = corners.shape[axis] + 1
        pad = [(by + 1, by + 1) if a == axis else (0, 0) for a in (0, 1)]
        padded = jnp.pad(corners, pad)
        shifts = [jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(2 * by + 2)]
        corners = jnp.stack(shifts).any(0)
    return corners
