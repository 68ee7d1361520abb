"""The meaning of the observations of MiniGrid and BabyAI, which their spaces do not tell. Python 3.8.

Their `image` is a Box of uint8 with bounds 0 and 255, like a photo, but holds three codes per cell: kind of object,
color and state. Wrappers of MiniGrid can replace it.
"""

from __future__ import annotations

import importlib
from typing import Any

PHOTOS = ("RGBImgObsWrapper", "RGBImgPartialObsWrapper")
"""Wrappers that render an actual image."""
ONE_HOT = "OneHotPartialObsWrapper"
OTHERS = ("SymbolicObsWrapper", "FlatObsWrapper")
"""Wrappers with other observations, which their spaces describe correctly."""
DIRECTIONS = 4
"""If the whole grid is observed, the third code of the agent's cell is its direction."""


def encoder_options(env: Any) -> dict[str, Any]:
    """Return arguments of `Observations`: words, codes, flags. Empty for environments of other packages."""
    names = [base.__name__ for base in type(env.unwrapped).__mro__]
    if "MiniGridEnv" not in names:
        return {}
    constants = importlib.import_module("minigrid.core.constants")
    wrappers = importlib.import_module("minigrid.wrappers")
    arguments: dict[str, Any] = {"words": tuple(wrappers.DictObservationSpaceWrapper.get_minigrid_words())}
    layers = _layers(env)
    if layers & {*PHOTOS, *OTHERS}:
        return arguments
    # ImgObsWrapper returns only the image
    name = "image" if hasattr(env.observation_space, "spaces") else "observation"
    if ONE_HOT in layers:
        return {**arguments, "flags": (name,)}
    tables = (constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX)
    kinds, colours, states = (max(table.values()) + 1 for table in tables)
    return {**arguments, "codes": {name: (kinds, colours, max(states, DIRECTIONS))}}


def time_limit(env: Any) -> int | None:
    """Return the steps after which MiniGrid truncates an episode. BabyAI sets them at the first reset."""
    if not hasattr(env.unwrapped, "max_steps"):
        return None
    if not env.unwrapped.max_steps:
        env.reset(seed=0)
    return int(env.unwrapped.max_steps) or None


def _layers(env: Any) -> set[str]:
    """Return the class names of an environment's wrappers."""
    names = set()
    while env is not env.unwrapped:
        names.add(type(env).__name__)
        env = env.env
    return names
