"""`relic-jax habitat-dataset`: episode datasets for object navigation."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from relic_jax.bridge.process import call
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError
from relic_jax.envs.habitat import dataset
from relic_jax.envs.habitat.configuration import ON_SOFT
from relic_jax.envs.habitat.lab import dataset as lab_dataset
from relic_jax.experiments.arguments import ALIASES, parse
from relic_jax.experiments.folders import check_writable
from relic_jax.files import write_atomically
from relic_jax.progress import Activity
from relic_jax.validation import require

MOST = 100_000
"""Largest number of layouts, episodes and objects: the dataset is held in memory."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Make an episode dataset: arrangements of objects in scenes, at places that the agent can reach."""

    out: Path
    """File to write, for --env.dataset; with --format habitat-lab, a folder."""
    format: Literal["relic", "habitat-lab"] = "relic"
    """relic: for --env extobjnav; habitat-lab: ObjectNav and PointNav of habitat-lab, with configs for
    --env habitat-lab:CONFIG (soft only)."""
    backend: Literal["soft", "habitat"] = "soft"
    """Simulator: our software simulator (soft), or habitat-sim (habitat)."""
    habitat_python: str = sys.executable
    """Path of the Python interpreter with habitat_sim."""
    scene_dataset: str = "default"
    """Scene dataset configuration of habitat-sim, *.scene_dataset_config.json."""
    templates: str = ""
    """Folder with the object templates of habitat-sim: CATEGORY.object_config.json for each category."""
    receptacles: Path | None = None
    """JSON file with the surfaces for objects by scene (docs/habitat.md). Default: the tables of procedural houses
    (soft), navigable points of the floor (habitat)."""
    train: tuple[str, ...] = ()
    """Training scenes. Default: 37 procedural houses (soft)."""
    test: tuple[str, ...] = ()
    """Test scenes, which must not be training scenes. Default: 12 procedural houses (soft)."""
    categories: tuple[str, ...] = dataset.CATEGORIES
    """Categories of objects. Each must occur in a scene."""
    layouts: int = 1
    """Arrangements per scene."""
    min_area: float = dataset.MIN_AREA
    """Minimum walkable area of a scene in square meters, on the island on which episodes take place."""
    objects: int = 4
    """Maximum number of objects per arrangement, all of different categories."""
    episodes: int = 20
    """Episodes per scene, with --format habitat-lab."""
    seed: int = 0
    """Seed of the arrangements and the episodes."""


def main(arguments: Sequence[str]) -> None:
    """Write the dataset and print its sizes. Raises ConfigError."""
    command = parse(Command, arguments, "relic-jax habitat-dataset")
    for field in ("layouts", "objects", "episodes"):
        require(1 <= getattr(command, field) <= MOST, field, getattr(command, field), f"1 … {MOST:,}")
    require(0 <= command.min_area < math.inf, "min_area", command.min_area, "0 or more")
    require(0 <= command.seed < 2**32, "seed", command.seed, "0 … 2^32−1")
    scenes = {"train": list(command.train), "test": list(command.test)}
    if command.backend == "soft" and not any(scenes.values()):
        scenes = dataset.soft_scenes()
    for split, names in scenes.items():
        if not names:
            raise ConfigError(f"{split} is empty; allowed: ids or files of scenes")
    if command.backend == "soft":
        require(command.scene_dataset == "default", "scene_dataset", command.scene_dataset, f"'default' with {ON_SOFT}")
        require(not command.templates, "templates", command.templates, f"'' with {ON_SOFT}")
    if command.format == "habitat-lab" and command.backend != "soft":
        raise ConfigError("format is 'habitat-lab'; allowed with --backend habitat: 'relic'")
    check_writable(command.out / "objectnav.yaml" if command.format == "habitat-lab" else command.out, "out")
    try:
        with Activity("starting the simulator") as activity:
            made = call(
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
                    "min_area": command.min_area,
                },
                activity.show,
            )
    except SetupError as error:
        raise ConfigError(f"habitat-dataset: {with_own_options(str(error))}") from None
    data = made["data"]
    for summary in made["report"]:
        print(describe(summary))
    if command.format == "habitat-lab":
        with Activity("writing episodes") as activity:
            lab_dataset.write(str(command.out), data, command.episodes, command.seed, activity.show)
    else:
        write_atomically(command.out, json.dumps(data, indent=1) + "\n")
    counts = ", ".join(f"{len(data[split])} {split} tasks in {len(scenes[split])} scenes" for split in scenes)
    print(f"wrote {command.out}: {counts}, {len(data['categories'])} categories")


def with_own_options(error: str) -> str:
    """Return a worker's error, which names options of `relic-jax train`, with the options of this command."""
    for own in ("--habitat-python", "--backend"):
        error = error.replace(ALIASES[own], own)
    return error


def describe(summary: dict[str, Any]) -> str:
    """Return the lines about one scene of `dataset.generate`'s report."""
    islands = {island["number"]: island for island in summary["islands"]}
    chosen = islands.pop(summary["island"])
    lines = [
        f"{summary['scene']} ({summary['split']}): {_island(chosen)}; {summary['objects']} objects "
        f"of at most {summary['requested']}, which {summary['starts']} of {summary['tried']} random starts reach"
    ]
    if chosen["indoors"] <= 0.5:
        lines.append("  warning: no island lies under a ceiling; this is the largest one")
    lines += [f"  not used: {_island(island)}" for island in islands.values()]
    return "\n".join([*lines, *(f"  warning: {warning}" for warning in summary["warnings"])])


def _island(island: dict[str, Any]) -> str:
    low, high = island["low"] + 0.0, island["high"] + 0.0  # 0.0 instead of -0.0
    height = f"{low:.1f}" if high - low < 0.1 else f"{low:.1f} to {high:.1f}"
    return f"island {island['number']}, {island['area']:.1f} m² at y = {height} m, {island['indoors']:.0%} indoors"
