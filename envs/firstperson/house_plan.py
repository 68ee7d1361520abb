"""Procedural houses: rooms by binary space partition on a grid, doors, furniture, and objects of 20 categories.

Houses are drawn inside jit from one key, with static shapes: walls, furniture and objects without a place have size 0.
Walls, furniture and objects occupy whole cells, so free space and distances on the grid are exact.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.envs.firstperson.geodesic import distances
from relic_jax.envs.firstperson.scene import (
    BOX,
    CYLINDER,
    SPHERE,
    RoomTooSmallError,
    TooManyObjectsError,
    rectangle_walls,
)

CELL = 0.25  # meters
LEAST_ROOM = 8  # cells; minimum side of a room
DOOR = 4  # cells; width of a door
OBJECT = 2  # cells; side of the square that an object occupies
FURNITURE = ((4, 2), (2, 4), (3, 3), (4, 3))  # cells along x and z, used in turn

# One row per category: shape, (half extents along x and z, height) in meters, color.
_TABLE: tuple[tuple[int, tuple[float, float, float], tuple[float, float, float]], ...] = (
    (BOX, (0.20, 0.20, 0.40), (0.85, 0.10, 0.10)),
    (BOX, (0.24, 0.10, 0.60), (0.10, 0.55, 0.15)),
    (BOX, (0.12, 0.12, 0.80), (0.10, 0.20, 0.85)),
    (BOX, (0.24, 0.24, 0.25), (0.95, 0.80, 0.10)),
    (BOX, (0.10, 0.24, 0.35), (0.60, 0.15, 0.75)),
    (BOX, (0.15, 0.15, 0.15), (0.95, 0.95, 0.95)),
    (BOX, (0.22, 0.16, 1.00), (0.15, 0.75, 0.75)),
    (CYLINDER, (0.20, 0.20, 0.40), (0.10, 0.20, 0.85)),
    (CYLINDER, (0.10, 0.10, 0.70), (0.85, 0.10, 0.10)),
    (CYLINDER, (0.24, 0.24, 0.20), (0.10, 0.55, 0.15)),
    (CYLINDER, (0.15, 0.15, 0.90), (0.95, 0.50, 0.10)),
    (CYLINDER, (0.22, 0.22, 0.60), (0.95, 0.80, 0.10)),
    (CYLINDER, (0.08, 0.08, 0.30), (0.95, 0.40, 0.65)),
    (CYLINDER, (0.18, 0.18, 0.25), (0.15, 0.15, 0.18)),
    (SPHERE, (0.24, 0.24, 0.48), (0.95, 0.50, 0.10)),
    (SPHERE, (0.20, 0.20, 0.40), (0.10, 0.55, 0.15)),
    (SPHERE, (0.16, 0.16, 0.32), (0.85, 0.10, 0.10)),
    (SPHERE, (0.22, 0.22, 0.44), (0.60, 0.15, 0.75)),
    (SPHERE, (0.18, 0.18, 0.36), (0.15, 0.75, 0.75)),
    (SPHERE, (0.12, 0.12, 0.24), (0.95, 0.80, 0.10)),
)
CATEGORIES = len(_TABLE)
CATEGORY_SHAPE = np.array([row[0] for row in _TABLE], np.int32)
CATEGORY_SIZE = np.array([row[1] for row in _TABLE], np.float32)
CATEGORY_COLOUR = np.array([row[2] for row in _TABLE], np.float32)


@dataclasses.dataclass(frozen=True)
class HouseConfig:
    """Size and contents of houses.

    Attributes:
        cells: Cells of the grid along x and along z.
        splits: Number of times that rooms are halved. There are at most 2**splits rooms.
        furniture: Pieces of furniture.
        categories: Number of categories in a house, of 20.
        instances: Objects of each category.
        slots: Maximum number of objects in a house.
    """

    cells: int = 32
    splits: int = 2
    furniture: int = 5
    categories: int = 6
    instances: int = 2
    slots: int = 40

    def __post_init__(self) -> None:
        """Raise SceneError if the rooms or the objects do not fit."""
        least = (LEAST_ROOM + 1) * 2 ** -(-self.splits // 2) - 1
        if self.cells < least:
            raise RoomTooSmallError(f"cells is {self.cells}; allowed: {least} or more, for {2**self.splits} rooms")
        if not 1 <= self.categories <= CATEGORIES:
            raise TooManyObjectsError(f"categories is {self.categories}; allowed: 1 to {CATEGORIES}")
        if self.categories * self.instances > self.slots:
            asked = f"{self.categories} categories × {self.instances} instances"
            raise TooManyObjectsError(f"{asked} are requested; allowed: at most slots = {self.slots} objects")
        needed = (OBJECT + 1) ** 2 * self.categories * self.instances + 20 * self.furniture
        if needed > self.cells**2 // 2:
            raise RoomTooSmallError(f"cells is {self.cells}; allowed: room for {needed} cells of objects in half of it")

    @property
    def objects(self) -> int:
        """Number of objects."""
        return self.categories * self.instances

    @property
    def side(self) -> float:
        """Side of the house in meters."""
        return self.cells * CELL


@struct.dataclass
class House:
    """A house of n × n cells with W inner walls, F pieces of furniture and C · I objects, object k of category k // I.

    Attributes:
        free: Bool [n, n]; free cells, with axes x and z.
        walls: Float32 [6·W + 4, 2, 2]; both ends of every piece of wall, (x, z) in meters.
        wall_colour: Float32 [6·W + 4, 3].
        floor: Float32 [3]; color of the floor.
        furniture: Float32 [F, 5]; center (x, z), half extents along x and z, height. Height 0: no piece.
        furniture_colour: Float32 [F, 3].
        categories: Int32 [C]; indices of the categories, of 20.
        place: Float32 [C·I, 2]; centers of the objects.
        present: Bool [C·I]; whether the object has a place.
        yaw: Float32 [C·I]; headings of the objects, in radians.
        distance: Float32 [C, n, n]; meters from the center of a cell to the nearest object of the category, infinite if
            there is no path.
        starts: Int32 [n·n]; cells x·n + z. The first `start_count` can reach all reachable categories.
        start_count: Int32 [].
        reachable: Bool [C]; whether an object of the category can be reached.
    """

    free: jax.Array
    walls: jax.Array
    wall_colour: jax.Array
    floor: jax.Array
    furniture: jax.Array
    furniture_colour: jax.Array
    categories: jax.Array
    place: jax.Array
    present: jax.Array
    yaw: jax.Array
    distance: jax.Array
    starts: jax.Array
    start_count: jax.Array
    reachable: jax.Array


def build_house(key: jax.Array, config: HouseConfig) -> House:
    """Draw a house from a typed PRNG key []."""
    keys = jax.random.split(key, 7)
    walls, is_split, along_x = _partition(keys[0], config)
    solid = _cells_in(walls, is_split, config.cells).any(0)
    doors = _doors(keys[1], walls, is_split, along_x, solid, config)
    in_door = _cells_in(doors, is_split, config.cells).any(0)
    solid = solid & ~in_door
    furniture, solid, forbidden = _furnish(keys[2], solid, _widened(in_door, 2), config)
    place, present, solid = _place_objects(keys[3], solid, forbidden, config)
    order = jax.random.permutation(keys[4], CATEGORIES)[: config.categories].astype(jnp.int32)
    sources = sources_of(place, present, config.cells)
    sources = sources.reshape(config.categories, config.instances, config.cells, config.cells).min(1)
    distance = distances(~solid, sources, CELL)
    reachable = jnp.isfinite(distance).any((1, 2))
    is_start = ~solid & (jnp.isfinite(distance) | ~reachable[:, None, None]).all(0) & reachable.any()
    pieces = _wall_pieces(walls, doors, is_split, along_x, config)
    paint = jax.random.uniform(keys[5], (pieces.shape[0] // 6 + 5 + config.furniture, 3), minval=0.45, maxval=0.95)
    inner = pieces.shape[0] // 6
    return House(
        free=~solid,
        walls=pieces,
        wall_colour=jnp.concatenate([jnp.repeat(paint[:inner], 6, axis=0), paint[inner : inner + 4]]),
        floor=paint[inner + 4],
        furniture=furniture,
        furniture_colour=paint[inner + 5 :] * jnp.array([0.75, 0.55, 0.4]),
        categories=order,
        place=place,
        present=present,
        yaw=jax.random.uniform(keys[6], (config.objects,), minval=0.0, maxval=np.pi / 2),
        distance=distance,
        starts=jnp.argsort(~is_start.reshape(-1), stable=True).astype(jnp.int32),
        start_count=is_start.sum().astype(jnp.int32),
        reachable=reachable,
    )


def _partition(key: jax.Array, config: HouseConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Halve rooms repeatedly.

    Returns:
        walls: Int32 [W, 4]; (x0, x1, z0, z1) in cells, one cell thick.
        is_split: Bool [W]; whether there is a wall.
        along_x: Bool [W]; whether the wall has constant x, so that its door leads along x.
    """
    rooms = jnp.array([[0, config.cells, 0, config.cells]], jnp.int32)
    walls, is_split, along_x = [], [], []
    for level in range(config.splits):
        axis_key, place_key = jax.random.split(jax.random.fold_in(key, level))
        x0, x1, z0, z1 = rooms.T
        width, depth = x1 - x0, z1 - z0
        longer = width + jax.random.uniform(axis_key, width.shape, minval=-2.0, maxval=2.0) >= depth
        low, high = jnp.where(longer, x0, z0), jnp.where(longer, x1, z1)
        possible = high - low >= 2 * LEAST_ROOM + 1
        share = jax.random.uniform(place_key, low.shape, minval=0.35, maxval=0.65)
        cut = jnp.clip(low + (share * (high - low)).astype(jnp.int32), low + LEAST_ROOM, high - LEAST_ROOM - 1)
        wall = jnp.where(longer, jnp.stack([cut, cut + 1, z0, z1]), jnp.stack([x0, x1, cut, cut + 1])).T
        first = jnp.where(longer, jnp.stack([x0, cut, z0, z1]), jnp.stack([x0, x1, z0, cut])).T
        second = jnp.where(longer, jnp.stack([cut + 1, x1, z0, z1]), jnp.stack([x0, x1, cut + 1, z1])).T
        nowhere = jnp.zeros_like(second)
        first = jnp.where(possible[:, None], first, rooms)
        second = jnp.where(possible[:, None], second, nowhere)
        rooms = jnp.concatenate([first, second])
        walls.append(wall)
        is_split.append(possible)
        along_x.append(longer)
    return jnp.concatenate(walls), jnp.concatenate(is_split), jnp.concatenate(along_x)


def _cells_in(rectangles: jax.Array, present: jax.Array, cells: int) -> jax.Array:
    """Return the cells of each rectangle, bool [R, n, n]; none if `present`, bool [R], is false."""
    index = jnp.arange(cells)
    x0, x1, z0, z1 = (side[:, None] for side in rectangles.T)
    in_x, in_z = (index >= x0) & (index < x1), (index >= z0) & (index < z1)
    return in_x[:, :, None] & in_z[:, None, :] & present[:, None, None]


def _doors(
    key: jax.Array, walls: jax.Array, is_split: jax.Array, along_x: jax.Array, solid: jax.Array, config: HouseConfig
) -> jax.Array:
    """Return one door in every wall, at a position without adjoining walls, int32 [W, 4] as for walls."""
    positions = jnp.arange(config.cells)
    grid = jnp.pad(solid, 1, constant_values=True)

    def door(key: jax.Array, wall: jax.Array, along_x: jax.Array) -> jax.Array:
        x0, _, z0, z1 = wall
        plane, low, high = jnp.where(along_x, x0, z0), jnp.where(along_x, z0, x0), jnp.where(along_x, z1, wall[1])
        across = jnp.where(along_x, grid, grid.T)
        beside = (across[plane] | across[plane + 2])[1:-1]  # neighbors of each cell of the wall, on both sides
        blocked = jax.lax.associative_scan(
            jnp.add, jnp.concatenate([jnp.zeros(1, jnp.int32), beside.astype(jnp.int32)])
        )
        ends = jnp.minimum(positions + DOOR, config.cells)
        fits = (positions >= low) & (positions + DOOR <= high) & (blocked[ends] == blocked[positions])
        start = jnp.argmax(jnp.where(fits, 1.0 + jax.random.uniform(key, positions.shape), 0.0))
        stop = jnp.where(fits.any(), start + DOOR, start)
        return jnp.where(
            along_x, jnp.stack([plane, plane + 1, start, stop]), jnp.stack([start, stop, plane, plane + 1])
        )

    return jax.vmap(door)(jax.random.split(key, walls.shape[0]), walls, along_x)


def _slid(mask: jax.Array, axis: int, offsets: range) -> jax.Array:
    """Shift the mask back by each offset along an axis, bool [offsets, n, n], padded with False."""
    before, after = max(-offsets[0], 0), max(offsets[-1], 0)
    padded = jnp.pad(mask, [(before, after) if a == axis else (0, 0) for a in (0, 1)])
    size = mask.shape[axis]
    parts = [jax.lax.slice_in_dim(padded, before + k, before + k + size, axis=axis) for k in offsets]
    return jnp.stack(parts)


def _widened(mask: jax.Array, by: int) -> jax.Array:
    """Dilate the mask by `by` cells in all eight directions, bool [n, n]."""
    for axis in (0, 1):
        mask = _slid(mask, axis, range(-by, by + 1)).any(0)
    return mask


def _fits(open_cells: jax.Array, width: int, depth: int) -> jax.Array:
    """Return the cells that are the first corner of a width × depth block of open cells, bool [n, n]."""
    for axis, extent in ((0, width), (1, depth)):
        open_cells = _slid(open_cells, axis, range(extent)).all(0)
    return open_cells


def _put(
    key: jax.Array, solid: jax.Array, forbidden: jax.Array, width: int, depth: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Put a block at a random position.

    A ring of cells around it is forbidden for other blocks, and no room is narrow enough for a block to span it, so the
    free cells remain connected.

    Returns:
        (corner, int32 [2]; whether there was a position; solid; forbidden).
    """
    cells = solid.shape[0]
    possible = _fits(~solid & ~forbidden, width, depth)
    best = jnp.argmax(jnp.where(possible, 1.0 + jax.random.uniform(key, possible.shape), 0.0).reshape(-1))
    corner, fits = jnp.stack([best // cells, best % cells]).astype(jnp.int32), possible.any()
    rectangle = jnp.stack([corner[0], corner[0] + width, corner[1], corner[1] + depth])
    block = _cells_in(rectangle[None], fits[None], cells)[0]
    ring = _cells_in((rectangle + jnp.array([-1, 1, -1, 1]))[None], fits[None], cells)[0]
    return corner, fits, solid | block, forbidden | ring


def _furnish(
    key: jax.Array, solid: jax.Array, forbidden: jax.Array, config: HouseConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Place furniture. Return it, float32 [F, 5], and the updated solid and forbidden cells."""
    rows = []
    heights = jax.random.uniform(jax.random.fold_in(key, config.furniture), (config.furniture,), minval=0.4, maxval=1.1)
    for index in range(config.furniture):
        width, depth = FURNITURE[index % len(FURNITURE)]
        corner, fits, solid, forbidden = _put(jax.random.fold_in(key, index), solid, forbidden, width, depth)
        half = jnp.array([width, depth]) * CELL / 2
        rows.append(jnp.concatenate([corner * CELL + half, half, jnp.where(fits, heights[index], 0.0)[None]]))
    return jnp.array(rows).reshape(config.furniture, 5), solid, forbidden


def _place_objects(
    key: jax.Array, solid: jax.Array, forbidden: jax.Array, config: HouseConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Place objects. Return their centers, float32 [C·I, 2], whether each has a place, and the solid cells."""

    def place(carry: tuple[jax.Array, jax.Array], key: jax.Array):
        corner, fits, solid, forbidden = _put(key, *carry, OBJECT, OBJECT)
        return (solid, forbidden), ((corner + OBJECT / 2) * CELL, fits)

    (solid, _), (centre, fits) = jax.lax.scan(place, (solid, forbidden), jax.random.split(key, config.objects))
    return centre.astype(jnp.float32), fits, solid


def sources_of(place: jax.Array, present: jax.Array, cells: int) -> jax.Array:
    """Return the sources of each object, float32 [K, n, n]: cells around it, with the distance to the center.

    Args:
        place: Float32 [K, 2]; centers of the objects.
        present: Bool [K]; objects that are there. Others have no sources.
        cells: n, cells along each side of the house.
    """
    centres = (jnp.arange(cells) + 0.5) * CELL
    x, z = jnp.abs(centres - place[:, :1]), jnp.abs(centres - place[:, 1:])
    reach = (OBJECT / 2 + 1) * CELL
    near = (x < reach)[:, :, None] & (z < reach)[:, None, :] & present[:, None, None]
    left = jnp.hypot(x[:, :, None], z[:, None, :])
    return jnp.where(near, left, jnp.inf)


def _wall_pieces(
    walls: jax.Array, doors: jax.Array, is_split: jax.Array, along_x: jax.Array, config: HouseConfig
) -> jax.Array:
    """Return all faces of walls beside doors, jambs of doors, and outer walls, [6·W + 4, 2, 2] in meters."""

    def pieces(wall: jax.Array, door: jax.Array, along_x: jax.Array) -> jax.Array:
        wall, door = (jnp.where(along_x, r, r[jnp.array([2, 3, 0, 1])]) for r in (wall, door))
        p0, p1, low, high = wall
        start, stop = door[2], door[3]
        faces = [((p, a), (p, b)) for p in (p0, p1) for a, b in ((low, start), (stop, high))]
        faces += [((p0, s), (p1, s)) for s in (start, stop)]
        ends = jnp.array(faces)
        return jnp.where(along_x, ends, ends[..., ::-1])

    inner = jax.vmap(pieces)(walls, doors, along_x) * is_split[:, None, None, None]
    outer = jnp.asarray(rectangle_walls(0, config.cells, 0, config.cells))
    return jnp.concatenate([inner.reshape(-1, 2, 2).astype(jnp.float32), outer]) * CELL
