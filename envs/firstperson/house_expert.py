"""The scripted expert of the houses: descend a field of distances, turn to the object, look at it and stop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from relic_jax.envs.firstperson.geodesic import distance_at
from relic_jax.envs.firstperson.house_plan import CATEGORY_SIZE, CELL
from relic_jax.envs.firstperson.house_state import HouseState, facing
from relic_jax.envs.firstperson.house_walk import (
    BORDER,
    DOWN,
    EYE,
    FORWARD,
    LEFT,
    RIGHT,
    STOP,
    SUCCESS_PIXELS,
    TURN,
    UP,
    clear_way,
    slide,
)

if TYPE_CHECKING:
    from relic_jax.envs.firstperson.house import HouseNav


def approach(env: HouseNav, state: HouseState, distance: jax.Array, objects: jax.Array) -> jax.Array:
    """Return the action that leads to an object of the target category.

    It descends the distances along the best of the twelve headings. Near an object, it turns to it, looks at it, and
    stops when this is a success.

    Args:
        env: The environment.
        state: Its state.
        distance: Float32 [n, n]; meters from the center of each cell to the destination.
        objects: Bool [I]; the objects of the target category to turn to.

    Returns:
        Int32 [].
    """
    house = state.house
    ways = jnp.arange(12) - 5
    angles = state.heading + (state.turns + ways) * TURN
    ahead = jax.vmap(lambda a: slide(house.free, state.position, jnp.stack([jnp.cos(a), -jnp.sin(a)])))(angles)
    left = jax.vmap(lambda place: distance_at(distance, place, CELL))(ahead)
    way = ways[jnp.argmin(left + 1e-4 * jnp.abs(ways))]  # of equal headings, the one with the fewest turns
    go = jnp.where(way == 0, FORWARD, jnp.where(way > 0, LEFT, RIGHT))
    near, look = _look_at_nearest(env, state, objects)
    act = jnp.where(near, look, go)
    return jnp.where(state.pixels >= SUCCESS_PIXELS, STOP, act).astype(jnp.int32)


def _look_at_nearest(env: HouseNav, state: HouseState, objects: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return whether to look at the one of the objects at the smallest straight distance, and the action to do so."""
    places = state.house.place[env.of_target(state)]
    aside = places - state.position
    distances = jnp.where(objects, jnp.linalg.norm(aside, axis=-1), jnp.inf)
    nearest = jnp.argmin(distances)
    x, z = aside[nearest]
    cos, sin = facing(state)[0], -facing(state)[1]
    bearing = jnp.arctan2(-x * sin - z * cos, x * cos - z * sin)
    turn = jnp.where(bearing > 0, LEFT, RIGHT)
    near = (distances[nearest] < 1.5) & clear_way(state.house.free, state.position, places[nearest])
    vertical = FORWARD if env.view == "symbols" else _look_up_or_down(env, state, distances[nearest])
    return near, jnp.where(jnp.abs(bearing) > TURN / 2, turn, vertical)


def _look_up_or_down(env: HouseNav, state: HouseState, distance: jax.Array) -> jax.Array:
    """Return the action that brings an object of the target category at a distance into the image's rows."""
    height = jnp.asarray(CATEGORY_SIZE)[state.house.categories[state.target], 2]
    slope = (height / 2 - EYE) / distance - jnp.tan(state.pitch * TURN)
    half = math.tan(math.radians(env.lens.field_of_view) / 2) * (1 - 2 * BORDER / env.lens.height)
    return jnp.where(slope < -half, DOWN, jnp.where(slope > half, UP, FORWARD))
