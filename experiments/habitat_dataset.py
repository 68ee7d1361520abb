"""`relic-jax habitat-dataset`: which houses, which objects where, in a file that training reads."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from relic_jax.bridge.process import call
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError
from relic_jax.envs.habitat import dataset
from relic_jax.envs.habitat.lab import dataset as lab_dataset
from relic_jax.experiments.arguments import parse
from relic_jax.experiments.folders import check_writable
from relic_jax.files import write_atomically
from relic_jax.validation import require

MOST = 100_000
"""Layouts and episodes of a scene, objects of a layout: a file of them is held in memory."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Make an episode dataset: arrangements of objects in scenes, at places that can be reached."""

    out: Path
    """The file, for --env.dataset; with --format habitat-lab, a folder."""
    format: Literal["relic", "habitat-lab"] = "relic"
    """Ours; or habitat-lab's own: ObjectNav and PointNav with configs for --env habitat-lab:CONFIG (soft only)."""
    backend: Literal["soft", "habitat"] = "soft"
    """What simulates: our software simulator, or habitat-sim."""
    habitat_python: str = sys.executable
    """The interpreter that has habitat_sim."""
    scene_dataset: str = "default"
    """A *.scene_dataset_config.json of habitat's."""
    templates: str = ""
    """Folder with habitat's object templates, whose names contain the categories'."""
    receptacles: Path | None = None
    """JSON file with the surfaces that objects may stand on, scene by scene (docs/habitat.md); default: the tables of
    procedural houses (soft), navigable points of the floor (habitat)."""
    train: tuple[str, ...] = ()
    """Scenes to train in; default: 37 procedural houses (soft)."""
    test: tuple[str, ...] = ()
    """Scenes to be tested in, others; default: 12 procedural houses (soft)."""
    categories: tuple[str, ...] = dataset.CATEGORIES
    """Categories of objects, each of which must be in some scene."""
    layouts: int = 1
    """Arrangements per scene."""
    objects: int = 4
    """Objects per arrangement, at most, each of another category."""
    episodes: int = 20
    """Episodes per scene, with --format habitat-lab."""
    seed: int = 0
    """Of the arrangements and the episodes."""


def main(arguments: Sequence[str]) -> None:
    """Makes the file and says what is in it. Raises ConfigError."""
    command = parse(Command, arguments, "relic-jax habitat-dataset")
    for field in ("layouts", "objects", "episodes"):
        require(1 <= getattr(command, field) <= MOST, field, getattr(command, field), f"1 … {MOST:,}")
    require(0 <= command.seed < 2**32, "seed", command.seed, "0 … 2^32−1")
    scenes = {"train": list(command.train), "test": list(command.test)}
    if command.backend == "soft" and not any(scenes.values()):
        scenes = dataset.soft_scenes()
    for split, names in scenes.items():
        if not names:
            raise ConfigError(f"{split} is empty; allowed: ids or files of scenes")
    if command.format == "habitat-lab" and command.backend != "soft":
        raise ConfigError("format is 'habitat-lab'; allowed with --backend habitat: 'relic'")
    check_writable(command.out / "objectnav.yaml" if command.format == "habitat-lab" else command.out, "out")
    try:
        data = call(
            command.habitat_python,
            "relic_jax.envs.habitat.dataset:make",
            {
                "backend": command.backend,
                "scene_dataset": command.scene_dataset,
                "template_folder": command.templates,
                "scenes": scenes,
                "categories": list(command.categories),
                "layouts": command.layouts,
                "objects": command.objects,
                "seed": command.seed,
                "receptacles": None if command.receptacles is None else str(command.receptacles),
            },
        )
    except SetupError as error:
        raise ConfigError(f"habitat-dataset: {error}") from None
    if command.format == "habitat-lab":
        lab_dataset.write(str(command.out), data, command.episodes, command.seed)
    else:
        write_atomically(command.out, json.dumps(data, indent=1) + "\n")
    counts = ", ".join(f"{len(data[split])} {split} tasks in {len(scenes[split])} scenes" for split in scenes)
    print(f"wrote {command.out}: {counts}, {len(data['categories'])} categories")
