"""The geometry of a furnished house, from a plan of `house-objnav`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from relic_jax.envs.firstperson.house_plan import House, HouseConfig
from relic_jax.envs.firstperson.scene import WALL_HEIGHT
from relic_jax.envs.habitat.scenes import furniture
from relic_jax.envs.habitat.scenes.furniture import KINDS, Piece
from relic_jax.envs.habitat.scenes.textures import FLOORS, WALLS
from relic_jax.envs.habitat.soft.house import Boxes, FreeSpace
from relic_jax.envs.habitat.soft.house import House as SoftHouse
from relic_jax.envs.habitat.soft.islands import Parts

DOOR_TOP = 2.1  # meters
THICK = 0.1  # meters; thickness of outer walls, floor and ceiling
GAPS = (
    0.04,
    0.125,
)  # meters between furniture and the border of its cells; with the second, two pieces are 0.5 m apart
CLEARANCE = 0.25  # meters; radius of the agent that has to pass, with the cells of a navmesh
CONNECTED = 0.97  # share of the floor that the agent must be able to reach


class Box(NamedTuple):
    """A part of the house, except furniture.

    Attributes:
        kind: wall, outer wall, lintel, floor or ceiling.
        low: Lower corner, float64 [3].
        high: Upper corner, float64 [3].
        color: Float [3], 0 to 1.
        texture: Name of its texture.
    """

    kind: str
    low: np.ndarray
    high: np.ndarray
    color: np.ndarray
    texture: str


class FurnishedHouse(NamedTuple):
    """A house.

    Attributes:
        side: Extent along x and z, in meters.
        boxes: Walls, lintels, floor and ceiling.
        furniture: The pieces, and a color [3] for each.
        objects: (index of the category, of 20; position, float64 [3]) of each object of the plan.
        area: Square meters of the largest connected part of the floor on which an agent can walk.
        share: Its share of the area of all such parts.
    """

    side: float
    boxes: list[Box]
    furniture: list[tuple[Piece, np.ndarray]]
    objects: list[tuple[int, np.ndarray]]
    area: float
    share: float


def furnish(plan: House, config: HouseConfig, seed: int) -> FurnishedHouse:
    """Return the house of a plan.

    Args:
        plan: The plan, with arrays of numpy.
        config: The parameters of the plan.
        seed: Determines textures and kinds of furniture.
    """
    random = np.random.RandomState(seed)
    boxes = _shell(plan, config, random)
    kinds = [KINDS[index] for index in random.randint(len(KINDS), size=config.furniture)]
    for gap in GAPS:
        pieces = _pieces(plan, kinds, gap)
        area, share = _reachable(boxes, pieces, config)
        if share >= CONNECTED:
            break
    category = np.repeat(plan.categories, config.instances)
    objects = [
        (int(category[index]), np.array([place[0], 0.0, place[1]], np.float64))
        for index, place in enumerate(plan.place)
        if plan.present[index]
    ]
    return FurnishedHouse(config.side, boxes, pieces, objects, area, share)


def _pieces(plan: House, kinds: list[str], gap: float) -> list[tuple[Piece, np.ndarray]]:
    rows = [(kind, row, color) for kind, row, color in zip(kinds, plan.furniture, plan.furniture_colour, strict=True)]
    return [
        (furniture.build(kind, row[:2].astype(np.float64), row[2:4].astype(np.float64) - gap, row[4]), color)
        for kind, row, color in rows
        if row[4] > 0
    ]


def _shell(plan: House, config: HouseConfig, random: np.random.RandomState) -> list[Box]:
    """Return walls, lintels, floor and ceiling."""
    side, top, t = config.side, WALL_HEIGHT, THICK
    wallpaper = [WALLS[index] for index in random.randint(len(WALLS), size=len(plan.walls) // 6 + 1)]
    boxes = []
    for index, (pieces, color) in enumerate(
        zip(_by_wall(np.asarray(plan.walls)), plan.wall_colour[:-4:6], strict=True)
    ):
        if not pieces.any():  # the room was not halved
            continue
        (low, start), (stop, high) = pieces[0], pieces[1]  # on one side of the wall: before and after the door
        across = pieces[2, 0] - low  # to the other side
        for kind, first, last in (("wall", low, start), ("lintel", start, stop), ("wall", stop, high)):
            if np.abs(last - first).max() > 1e-6:
                heights = (DOOR_TOP if kind == "lintel" else 0.0, top)
                boxes.append(_box(kind, (*first, *(last + across)), heights, color, wallpaper[index]))
    around = [(-t, -t, 0, side + t), (side, -t, side + t, side + t), (0, -t, side, 0), (0, side, side, side + t)]
    for area, color in zip(around, plan.wall_colour[-4:], strict=True):
        boxes.append(_box("outer wall", area, (0.0, top), color, wallpaper[-1]))
    whole = (-t, -t, side + t, side + t)
    boxes.append(_box("floor", whole, (-t, 0.0), np.asarray(plan.floor), FLOORS[random.randint(len(FLOORS))]))
    boxes.append(_box("ceiling", whole, (top, top + t), np.ones(3), "plaster"))
    return boxes


def _by_wall(walls: np.ndarray) -> np.ndarray:
    """Return the four faces beside the door of each inner wall, [W, 4, 2, 2], see `house_plan._wall_pieces`."""
    return walls[:-4].reshape(-1, 6, 2, 2)[:, :4]


def _box(kind: str, area: tuple[Any, ...], heights: tuple[float, float], color: np.ndarray, texture: str) -> Box:
    """Return the box over an area (x0, z0, x1, z1), whose corners can be in any order."""
    x, z = sorted((float(area[0]), float(area[2]))), sorted((float(area[1]), float(area[3])))
    low, high = (np.array([x[i], heights[i], z[i]]) for i in (0, 1))
    return Box(kind, low, high, np.asarray(color, np.float64), texture)


def soft_house(house: FurnishedHouse) -> SoftHouse:
    """Return the house for the software simulator: inner walls, and one box for each piece of furniture."""
    inner = [box for box in house.boxes if box.kind in ("wall", "lintel")]
    extents = [piece.extent for piece, _ in house.furniture]
    low = np.array([box.low for box in inner] + [low for low, _ in extents]).reshape(-1, 3)
    high = np.array([box.high for box in inner] + [high for _, high in extents]).reshape(-1, 3)
    color = np.array([box.color for box in inner] + [color for _, color in house.furniture]).reshape(-1, 3)
    boxes = Boxes(low, high, np.round(255 * color).astype(np.uint8))
    tables = tuple(range(len(inner), len(low)))
    return SoftHouse((house.side, house.side), boxes, tables, roof=True)


def _reachable(boxes: list[Box], pieces: list[tuple[Piece, np.ndarray]], config: HouseConfig) -> tuple[float, float]:
    """Return the area of the largest part of the floor, in square meters, and its share of the free floor."""
    house = soft_house(FurnishedHouse(config.side, boxes, pieces, [], 0.0, 0.0))
    areas = Parts(FreeSpace(house, CLEARANCE)).areas
    return float(areas.max(initial=0.0)), float(areas.max(initial=0.0) / max(areas.sum(), 1e-9))
