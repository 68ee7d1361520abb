"""The state of an episode in a house."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.envs.firstperson.house_plan import House
from relic_jax.envs.firstperson.house_walk import TURN


@struct.dataclass
class HouseState:
    """The state of an episode.

    Attributes:
        house: House of the trial.
        target: Int32 []; index into the categories of the house.
        position: Float32 [2]; (x, z).
        heading: Float32 []; heading at the start of the episode, in radians.
        turns: Int32 []; turns of 30° to the left since then.
        pitch: Int32 []; elevation of the view in steps of 30°.
        step: Int32 []; steps taken.
        start: Float32 [2]; position at the start of the episode.
        start_distance: Float32 []; meters from the start to the nearest object of the target category.
        distance: Float32 []; meters from `position` to it.
        path: Float32 []; meters traveled.
        pixels: Int32 []; number of pixels, inside the border, of the most visible target object within 2 m. With the
            view "symbols": 10 if such an object is in view, else 0.
        success: Bool []; whether the episode ended with a successful stop.
    """

    house: House
    target: jax.Array
    position: jax.Array
    heading: jax.Array
    turns: jax.Array
    pitch: jax.Array
    step: jax.Array
    start: jax.Array
    start_distance: jax.Array
    distance: jax.Array
    path: jax.Array
    pixels: jax.Array
    success: jax.Array


@struct.dataclass
class HouseRecord:
    """The part of a `HouseState` that rendering needs. The house follows from the task."""

    target: jax.Array
    position: jax.Array
    heading: jax.Array
    turns: jax.Array
    pitch: jax.Array


def facing(state: HouseState) -> jax.Array:
    """Return the unit vector (x, z) of the heading, float32 [2]."""
    angle = state.heading + state.turns * TURN
    return jnp.stack([jnp.cos(angle), -jnp.sin(angle)])
