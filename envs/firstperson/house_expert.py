"""The scripted expert of the houses: descend a field of distances, turn to the object, look at it and stop."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from relic_jax.envs.firstperson.geodesic import interpolated
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

LOOKAHEAD = 4
"""Steps ahead over which headings are compared, 1 m. After one step, the distances differ too little."""
TURN_COST = 0.01
"""Cost of each turn of 30° towards a heading, in meters."""
TIE = 0.01
"""Tolerance in meters within which headings count as equally good."""


def approach(env: HouseNav, state: HouseState, distance: jax.Array, objects: jax.Array) -> jax.Array:
    """Return the probabilities of the actions that lead to an object of the target category.

    It takes the best of the twelve headings: the one with the smallest mean distance over the next four steps. Near an
    object, it turns to it, looks at it, and stops when this is a success. Headings that are equally good up to `TIE`
    have equal probability, so what a policy learns from the agent does not depend on rounding.

    Args:
        env: The environment.
        state: Its state.
        distance: Float32 [n, n]; meters from the center of each cell to the destination.
        objects: Bool [I]; the objects of the target category to turn to.

    Returns:
        Float32 [actions].
    """
    house, actions = state.house, env.action_space.n
    ways = jnp.arange(12) - 5
    angles = state.heading + (state.turns + ways) * TURN
    directions = jnp.stack([jnp.cos(angles), -jnp.sin(angles)], axis=-1)
    place, left = jnp.broadcast_to(state.position, directions.shape), jnp.zeros(12)
    for _ in range(LOOKAHEAD):
        place = jax.vmap(functools.partial(slide, house.free))(place, directions)
        left += jax.vmap(lambda at: interpolated(distance, at, CELL))(place) / LOOKAHEAD
    cost = left + TURN_COST * jnp.abs(ways)
    best = cost <= cost.min() + TIE
    go = (
        jnp.zeros(actions)
        .at[jnp.where(ways == 0, FORWARD, jnp.where(ways > 0, LEFT, RIGHT))]
        .max(best.astype(jnp.float32))
    )
    near, look = _look_at_nearest(env, state, objects)
    act = jnp.where(near, jax.nn.one_hot(look, actions), go / go.sum())
    return jnp.where(state.pixels >= SUCCESS_PIXELS, jax.nn.one_hot(STOP, actions), act)


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
