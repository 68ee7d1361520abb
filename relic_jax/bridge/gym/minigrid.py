"""What a MiniGrid or BabyAI environment's observations mean, which their spaces do not say. Python 3.8 and numpy.

Their `image` is a Box of uint8 with bounds 0 and 255, as a photo's, but holds three codes a cell: kind of object,
colour, state. Wrappers of MiniGrid's may put something else in its place.
"""

from __future__ import annotations

import importlib
from typing import Any

PHOTOS = ("RGBImgObsWrapper", "RGBImgPartialObsWrapper")
"""Wrappers after which the image is one."""
ONE_HOT = "OneHotPartialObsWrapper"
OTHERS = ("SymbolicObsWrapper", "FlatObsWrapper")
"""Wrappers after which it is something else, whose space says what."""
DIRECTIONS = 4
"""The third code of the cell with the agent is its direction, where the whole grid is shown."""


def meaning(env: Any) -> dict[str, Any]:
    """Arguments of `Observations`: words, codes, flags. Empty where the environment is none of MiniGrid's."""
    names = [base.__name__ for base in type(env.unwrapped).__mro__]
    if "MiniGridEnv" not in names:
        return {}
    constants = importlib.import_module("minigrid.core.constants")
    wrappers = importlib.import_module("minigrid.wrappers")
    found: dict[str, Any] = {"words": tuple(wrappers.DictObservationSpaceWrapper.get_minigrid_words())}
    layers = _layers(env)
    if layers & {*PHOTOS, *OTHERS}:
        return found
    # ImgObsWrapper shows the image alone
    name = "image" if hasattr(env.observation_space, "spaces") else "observation"
    if ONE_HOT in layers:
        return {**found, "flags": (name,)}
    tables = (constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX)
    kinds, colours, states = (max(table.values()) + 1 for table in tables)
    return {**found, "codes": {name: (kinds, colours, max(states, DIRECTIONS))}}


def time_limit(env: Any) -> int | None:
    """Steps after which one of MiniGrid's truncates an episode by itself; BabyAI's say so once an episode has begun."""
    if not hasattr(env.unwrapped, "max_steps"):
        return None
    if not env.unwrapped.max_steps:
        env.reset(seed=0)
    return int(env.unwrapped.max_steps) or None


def _layers(env: Any) -> set[str]:
    """Names of the classes of an environment's wrappers."""
    found = set()
    while env is not env.unwrapped:
        found.add(type(env).__name__)
        env = env.env
    return found
