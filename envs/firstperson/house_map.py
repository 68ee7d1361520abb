"""The map of a trial in a house, with the categories in view at each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from relic_jax.environment.base import TrialMap, TrialRecord
from relic_jax.envs.firstperson.house_plan import build_house

if TYPE_CHECKING:
    from relic_jax.envs.firstperson.house import HouseNav

UP = np.array([1.0, -1.0])
"""In maps of houses, as in `draw`, z points down. Figures draw y upwards, so y = −z."""


def trial_map(env: HouseNav, trial: TrialRecord, key: jax.Array) -> TrialMap:
    """Return the map of a trial with the view "symbols". Kinds are the 20 categories.

    Args:
        env: The environment.
        trial: The trial.
        key: Typed PRNG key [] of the house.
    """
    house = jax.device_get(jax.jit(build_house, static_argnums=1)(key, env.config))
    kinds = np.repeat(house.categories, env.config.instances)
    side = env.config.side
    return TrialMap(
        position=np.asarray(trial.record.position) * UP,
        asked=house.categories[np.asarray(trial.record.target)],
        in_view=np.asarray(trial.observation["in_view"]) > 0,
        objects=house.place[house.present] * UP,
        kinds=kinds[house.present],
        low=np.array([0.0, -side]),
        high=np.array([side, 0.0]),
        walls=house.walls * UP,
    )
