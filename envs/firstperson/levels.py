"""The standard Miniworld levels by name, with the geometry of the package."""

from __future__ import annotations

import math

from relic_jax.envs.firstperson.level import AGENT_RADIUS, BOX_RADIUS, Level
from relic_jax.envs.firstperson.maze import Maze, maze_plan
from relic_jax.envs.firstperson.plan import Door, Plan


def _presets() -> dict[str, Level]:
    # As in the package's sampling, regions exceed its bounds by the radius of the box or of the agent.
    box = BOX_RADIUS
    side_rooms = ((-7.0, -1.0, 1.0, 7.0), (1.0, 7.0, 1.0, 7.0), (1.0, 7.0, -7.0, -1.0), (-7.0, -1.0, -7.0, -1.0))
    four_doors = (
        Door("x", (-1.0, 1.0, 3.0, 5.0), 2.2),
        Door("z", (3.0, 5.0, -1.0, 1.0), 2.2),
        Door("x", (-1.0, 1.0, -5.0, -3.0), 2.2),
        Door("z", (-5.0, -3.0, -1.0, 1.0), 2.2),
    )
    hall, arms = (-1.0, 8.0, -2.0, 2.0), (8.0, 12.0, -8.0, 8.0)
    south, north = (-7.0, 7.0, 0.5, 8.0), (-7.0, 7.0, -8.0, -0.5)
    presets = (
        Level("miniworld-oneroom", Plan(((0.0, 10.0, 0.0, 10.0),)), 180),
        Level(
            "miniworld-hallway",
            Plan(((-1.0, 11.0, -2.0, 2.0),)),
            250,
            box_regions=((9.0 - box, 11.0, -2.0, 2.0),),
            start_regions=((-1.0, 9.0 + AGENT_RADIUS, -2.0, 2.0),),
            start_spread=math.pi / 4,
        ),
        Level(
            "miniworld-tmaze",
            Plan((hall, arms), (Door("x", (8.0, 8.0, -2.0, 2.0)),)),
            280,
            box_regions=((8.0, 12.0, -8.0, -6.0 + box), (8.0, 12.0, 6.0 - box, 8.0)),
            start_regions=(hall,),
            start_spread=math.pi / 4,
        ),
        Level("miniworld-fourrooms", Plan(side_rooms, four_doors), 250),
        Maze("miniworld-maze", maze_plan(8, 8), 8 * 8 * 24, start_regions=maze_plan(8, 8).rooms, tries=16),
        Level(
            "miniworld-wallgap",
            Plan((south, north), (Door("z", (-1.5, 1.5, -0.5, 0.5)),)),
            300,
            box_regions=(north,),
            start_regions=(south,),
            open_sky=True,
        ),
    )
    return {preset.name: preset for preset in presets}


PRESETS = _presets()
