"""The scene of a house, for the renderer."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from relic_jax.envs.firstperson.house_plan import (
    CATEGORY_COLOUR,
    CATEGORY_SHAPE,
    CATEGORY_SIZE,
    House,
    HouseConfig,
)
from relic_jax.envs.firstperson.scene import BOX, CYLINDER, SPHERE, WHITE, Scene, Solids, Walls


def scene(house: House, config: HouseConfig, *, textured: bool) -> Scene:
    """Return the scene. Its solids are the furniture, then the objects, from index `config.furniture` on.

    Args:
        house: The house.
        config: Its parameters.
        textured: Draw floor tiles and wall boards instead of flat colors.
    """
    kind = jnp.repeat(house.categories, config.instances)
    size, pieces = jnp.asarray(CATEGORY_SIZE)[kind], config.furniture
    solids = Solids(
        centre=jnp.concatenate([house.furniture[:, :2], house.place]),
        yaw=jnp.concatenate([jnp.zeros(pieces), house.yaw]),
        half=jnp.concatenate([house.furniture[:, 2:4], size[:, :2]]),
        bottom=jnp.zeros(pieces + config.objects),
        top=jnp.concatenate([house.furniture[:, 4], jnp.where(house.present, size[:, 2], 0.0)]),
        colour=jnp.concatenate([house.furniture_colour, jnp.asarray(CATEGORY_COLOUR)[kind]]),
        shape=jnp.concatenate([jnp.full(pieces, BOX, jnp.int32), jnp.asarray(CATEGORY_SHAPE)[kind]]),
        shapes=(BOX, CYLINDER, SPHERE),
    )
    ceiling = np.asarray(WHITE, np.float32)
    return Scene(Walls(house.walls, house.wall_colour), solids, house.floor, ceiling, textured=textured)
