"""The houses by name, and the options of their environments."""

from __future__ import annotations

import dataclasses

from relic_jax.config import EnvConfig, WorkerConfig
from relic_jax.envs.asked import read_asked
from relic_jax.envs.firstperson.house import HouseNav, Pose, RewardTo, View
from relic_jax.envs.firstperson.house_plan import HouseConfig


@dataclasses.dataclass(frozen=True)
class HouseOptions:
    """Options of `house-objnav-…`."""

    pose: Pose = "episode"
    """Where episodes start, and the frame of the observed position. episode: a random place and heading each time, seen
    relative to them, as in the paper; dock: the same place and heading in all episodes of a trial; house: random, but
    position and heading are observed in the frame of the house."""
    view: View = "image"
    """Observation of objects and walls. image: 64×64 pixels; symbols: distance and bearing of each category in view,
    and free distances around the agent, without looking up and down."""
    reward_to: RewardTo = "object"
    """Distance whose decrease is rewarded. object: the distance to the object, as in the paper; reach: the same, but
    moving closer than 2 m, where a stop can already succeed, is not rewarded."""
    asked: int | str | None = None
    """Number of categories that a trial asks for; None: all in the house. Several numbers, such as 1,2,3: each is used
    by an equal share of the tasks."""


PRESETS = {
    preset.name: preset
    for preset in (
        HouseNav("house-objnav-small"),
        HouseNav("house-objnav-medium", HouseConfig(48, 3, furniture=10, categories=12)),
        HouseNav("house-objnav-large", HouseConfig(64, 4, furniture=16, categories=20)),
    )
}


def make(env: EnvConfig, workers: WorkerConfig) -> HouseNav:
    """Return the environment of a name in `PRESETS`. Raises ConfigError if `asked` is out of range."""
    del workers
    preset, options = PRESETS[env.name], env.typed(HouseOptions)
    asked = read_asked(env.name, options.asked, preset.config.categories)
    house = dataclasses.replace(preset, pose=options.pose, view=options.view)
    return dataclasses.replace(house, reward_to=options.reward_to, asked=asked)
