"""`relic-jax habitat-scenes`: furnished houses for habitat-sim, from the plans of `house-objnav`."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from relic_jax.config import ConfigError
from relic_jax.environment.base import Split
from relic_jax.envs.firstperson.house import TEST_HOUSES, TRAIN_HOUSES, house_key
from relic_jax.envs.firstperson.house_plan import House, HouseConfig, build_house
from relic_jax.envs.firstperson.houses import PRESETS
from relic_jax.envs.habitat.scenes import write
from relic_jax.envs.habitat.scenes.rooms import CONNECTED, FurnishedHouse, furnish
from relic_jax.experiments.arguments import parse
from relic_jax.experiments.folders import check_writable
from relic_jax.files import write_atomically
from relic_jax.validation import require

SETTINGS = "habitat-scenes.json"
VERSION = 1
"""Version of the generated geometry. A folder is completed only by the version that started it."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Make furnished houses for habitat-sim: a scene dataset, object templates, and the tasks of `house-objnav`.

    The houses are those of house-objnav-SIZE with walls, doors, ceilings, textures and furniture. Training houses have
    the seeds of its training tasks, test houses those of its held-out tasks.
    """

    out: Path
    """Folder to write. If the same command has left it unfinished, it is completed."""
    size: Literal["small", "medium", "large"] = "small"
    """Size of the houses: 8, 12 or 16 meters per side, with at most 4, 8 or 16 rooms."""
    scenes: int = 40
    """Number of training houses."""
    test_scenes: int = 10
    """Number of held-out houses."""
    seed: int = 0
    """Index of the first house among the tasks of house-objnav, in both splits."""


def main(arguments: Sequence[str]) -> None:
    """Write the scenes and print one line for each. Raises ConfigError."""
    command = parse(Command, arguments, "relic-jax habitat-scenes")
    for field, most in (("scenes", TRAIN_HOUSES), ("test_scenes", TEST_HOUSES)):
        require(1 <= getattr(command, field) <= most, field, getattr(command, field), f"1 … {most:,}")
    most = min(TRAIN_HOUSES - command.scenes, TEST_HOUSES - command.test_scenes)
    require(0 <= command.seed <= most, "seed", command.seed, f"0 … {most:,}, for these numbers of scenes")
    check_writable(command.out / SETTINGS, "out")
    _start(command)
    config = PRESETS[f"house-objnav-{command.size}"].config
    houses: dict[str, dict[str, FurnishedHouse]] = {"train": {}, "test": {}}
    total = command.scenes + command.test_scenes
    try:
        write.write_objects(command.out)
        for number, (split, name, house) in enumerate(_houses(command, config), start=1):
            houses[split][name] = house
            done = write.is_written(command.out, name)
            if not done:
                write.write_scene(command.out, name, house)
            counts = f"{len(house.furniture)} pieces of furniture, {len(house.objects)} objects"
            already = " (already there)" if done else ""
            print(f"scene {number} of {total}: {name} ({split}), {house.area:.1f} m², {counts}{already}", flush=True)
        write.write_tasks(command.out, houses)
    except OSError as error:
        reason = f"allowed: a folder that can be written ({error.strerror})"
        raise ConfigError(f"out is '{command.out}'; {reason}") from None
    print(f"wrote {command.out}: {command.scenes} training and {command.test_scenes} held-out scenes")


def _start(command: Command) -> None:
    """Write the settings to a new folder. Raises ConfigError if the folder is that of another command."""
    settings = {**dataclasses.asdict(command), "out": None, "version": VERSION}
    file = command.out / SETTINGS
    try:
        found: Any = json.loads(file.read_text())
    except (OSError, ValueError):
        found = None
    if found is None and any(os.scandir(command.out)):
        raise ConfigError(f"out is '{command.out}'; allowed: a new folder, or one that this command has started")
    if found is not None and found != settings:
        allowed = "another folder, or the options that it was started with"
        raise ConfigError(f"out is '{command.out}'; allowed: {allowed} ({json.dumps(found)})")
    write_atomically(file, json.dumps(settings) + "\n")


def _houses(command: Command, config: HouseConfig) -> Iterator[tuple[str, str, FurnishedHouse]]:
    """Return the split, name and geometry of each house."""
    env = PRESETS[f"house-objnav-{command.size}"]
    splits: tuple[tuple[Split, int], ...] = (("train", command.scenes), ("test", command.test_scenes))
    for split, count in splits:
        for seed in env.tasks(split)[command.seed : command.seed + count]:
            plan: House = jax.tree.map(np.asarray, _plan(seed, config))
            house = furnish(plan, config, int(seed))
            if house.share < CONNECTED:
                raise ConfigError(f"seed is {command.seed}; allowed: other seeds (furniture divides house {seed})")
            yield split, f"objnav-{command.size}-{int(seed):05d}", house


@functools.partial(jax.jit, static_argnums=1)
def _plan(seed: jax.Array, config: HouseConfig) -> House:
    """Return the plan of a task of house-objnav."""
    return build_house(house_key(seed), config)
