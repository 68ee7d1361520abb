"""Episode datasets: houses and positions of objects, in a JSON file, or generated for `soft`. Needs only numpy.

    {"format": "relic-extobjnav-1", "backend": "soft", "scene_dataset": "default", "categories": [...],
     "train": [task, ...], "test": [task, ...]}

`worker` documents tasks. The splits must not share scenes: test houses are held out.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from relic_jax.bridge.worker import SetupError, activity
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.configuration import Settings
from relic_jax.envs.habitat.placement import arrange
from relic_jax.envs.habitat.receptacles import Receptacle
from relic_jax.envs.habitat.receptacles import read as read_receptacles

FORMAT = "relic-extobjnav-1"
SPLITS = ("train", "test")
MIN_AREA = 4.0  # square meters
CATEGORIES = (
    "cracker_box", "sugar_box", "tomato_soup_can", "mustard_bottle", "tuna_fish_can", "pudding_box", "gelatin_box",
    "potted_meat_can", "banana", "bleach_cleanser", "bowl", "mug", "plate", "apple", "orange", "pitcher", "scissors",
    "sponge", "toy_airplane", "rubiks_cube",
)  # fmt: skip
"""Twenty everyday objects, with the names of the YCB set."""


def generate(
    settings: Settings,
    scenes: dict[str, list[str]],
    *,
    layouts: int = 1,
    objects: int = 4,
    seed: int = 0,
    categories: tuple[str, ...] = CATEGORIES,
    templates: dict[str, str] | None = None,
    surfaces: dict[str, list[Receptacle]] | None = None,
    min_area: float = MIN_AREA,
    report: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Generate a dataset with random arrangements of objects in every scene.

    Args:
        settings: Settings of the simulation.
        scenes: {"train": ids, "test": ids}.
        layouts: Arrangements per scene.
        objects: Maximum number of objects in an arrangement, all of different categories.
        seed: Seed of the arrangements.
        categories: Names of the categories.
        templates: Object template of each category; default: the name of the category.
        surfaces: Receptacles of each scene; default: tables in `soft`, otherwise the floor.
        min_area: Minimum walkable area of a scene, in square meters.
        report: List to which the summaries of the scenes are appended: islands, counts of objects and starts, warnings.

    Raises:
        SetupError: A scene has no navmesh, too little area, no receptacles or no reachable position, a category has no
            object template, or the splits overlap.
    """
    if both := set(scenes["train"]) & set(scenes["test"]):
        raise SetupError(f"scene {min(both)!r} is in both splits; allowed: held-out test scenes")
    for scene in [*scenes["train"], *scenes["test"]]:
        if surfaces is not None and not surfaces.get(scene):
            raise SetupError(f"scene {scene!r} has no receptacles; there are some of: {', '.join(sorted(surfaces))}")
    simulation = Simulation(settings)
    data: dict[str, Any] = {"format": FORMAT, "backend": settings.backend, "scene_dataset": settings.scene_dataset}
    data.update(categories=list(categories), train=[], test=[])
    handles: dict[str, str] = {}  # of training scenes
    todo = [(part, split, index) for part, split in enumerate(SPLITS) for index in range(len(scenes[split]))]
    try:
        for number, (part, split, index) in enumerate(todo, start=1):
            scene = scenes[split][index]
            with activity(f"arranging objects in scene {number} of {len(todo)}"):
                simulation.load(scene)
                for name in categories:
                    simulation.template((templates or {}).get(name, name))
                _check_held_out(simulation, split, handles)
                summary = _summary(simulation, split, min_area)
                for layout in range(layouts):
                    random = np.random.RandomState([seed, part, index, layout])
                    on = None if surfaces is None else surfaces[scene]
                    things = arrange(simulation, random, objects, categories, templates or {}, on, summary)
                    data[split].append({"scene": scene, "objects": things})
            if report is not None:
                report.append(summary)
    finally:
        simulation.close()
    return check(data)


def _check_held_out(simulation: Simulation, split: str, handles: dict[str, str]) -> None:
    """Raise SetupError if a test scene is a training scene under another name. Adds training scenes to `handles`."""
    handle, scene = simulation.handle(), str(simulation.scene)
    if split == "train":
        handles.setdefault(handle, scene)
    elif handle in handles:
        raise SetupError(
            f"scene {scene!r} of the test split is the training scene {handles[handle]!r} ({handle}); "
            "allowed: held-out test scenes"
        )


def _summary(simulation: Simulation, split: str, min_area: float) -> dict[str, Any]:
    """Return the start of a scene's summary. Raises SetupError if its island is smaller than `min_area`."""
    island = simulation.island
    area = 0.0 if island is None else island.area
    if island is None or area < min_area:
        where = "" if island is None else f" on island {island.number}"
        raise SetupError(
            f"min_area is {min_area} m²; allowed: at most {area:.2f} m², which scene {simulation.scene!r} has to walk "
            f"on{where}"
        )
    return {
        "scene": simulation.scene,
        "split": split,
        "islands": [other._asdict() for other in simulation.islands],
        "island": island.number,
        "objects": 0,
        "requested": 0,
        "starts": 0,
        "tried": 0,
        "warnings": [],
    }


def make(
    backend: str,
    scene_dataset: str,
    template_folder: str,
    scenes: dict[str, list[str]],
    categories: list[str],
    layouts: int,
    objects: int,
    seed: int,
    receptacles: str | None = None,
    min_area: float = MIN_AREA,
) -> dict[str, Any]:
    """Call `generate` with JSON arguments, for another interpreter.

    Args:
        backend: soft or habitat.
        scene_dataset: See `Settings`.
        template_folder: Folder of object templates.
        scenes: {"train": ids, "test": ids}.
        categories: Names of the categories.
        layouts: Arrangements per scene.
        objects: Maximum number of objects in an arrangement.
        seed: Seed of the arrangements.
        receptacles: Path of a file with receptacles, or None.
        min_area: Minimum walkable area of a scene, in square meters.

    Returns:
        {"data": the dataset, "report": the scenes' summaries}.

    Raises:
        SetupError: See `generate`.
    """
    settings = Settings(backend=backend, scene_dataset=scene_dataset, objects=template_folder)
    surfaces = None if receptacles is None else read_receptacles(receptacles)
    sizes: dict[str, Any] = {"layouts": layouts, "objects": objects, "seed": seed}
    report: list[dict[str, Any]] = []
    more: dict[str, Any] = {"surfaces": surfaces, "min_area": min_area, "report": report}
    return {"data": generate(settings, scenes, categories=tuple(categories), **more, **sizes), "report": report}


def soft_scenes(train: int = 37, test: int = 12) -> dict[str, list[str]]:
    """Return procedural houses, by default as many as the paper uses of HSSD."""
    names = [f"house-{seed}" for seed in range(train + test)]
    return {"train": names[:train], "test": names[train:]}


def check(data: dict[str, Any]) -> dict[str, Any]:
    """Return the dataset. Raises SetupError if it is malformed or a category is in no scene."""
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise SetupError(f"dataset has format {str(version)[:60]!r}; allowed: {FORMAT!r}")
    for field in ("backend", "scene_dataset"):
        if not isinstance(data.get(field), str):
            raise SetupError(f"dataset has {field} {str(data.get(field))[:60]!r}; allowed: text")
    try:
        used = {o["category"] for split in ("train", "test") for task in data[split] for o in task["objects"]}
        scenes = [{task["scene"] for task in data[split]} for split in ("train", "test")]
        categories = list(data["categories"])
        places = [o["position"] for split in ("train", "test") for task in data[split] for o in task["objects"]]
        wrong = [place for place in places if len(place) != 3 or not all(map(_in_float32, place))]
        things = [o for split in ("train", "test") for task in data[split] for o in task["objects"]]
        names = [*scenes[0], *scenes[1], *categories, *used, *(o.get("template", "") for o in things)]
        if not all(isinstance(name, str) and name.isprintable() for name in names):
            raise TypeError("names of scenes, categories and templates are text")
        if not all(isinstance(data[split], list) and isinstance(data["categories"], list) for split in SPLITS):
            raise TypeError("train, test and categories are lists")
        if len(set(categories)) < len(categories):
            raise TypeError("categories are different names")
    except (AttributeError, LookupError, TypeError) as error:
        raise SetupError(f"dataset is malformed: {type(error).__name__} {error}") from None
    if wrong:
        raise SetupError(f"dataset has the position {wrong[0]!r}; allowed: three numbers, finite in float32")
    if not scenes[0] or not scenes[1]:
        raise SetupError("dataset has an empty split; allowed: tasks in both train and test")
    if both := scenes[0] & scenes[1]:
        raise SetupError(f"scene {min(both)!r} is in both splits; allowed: held-out test scenes")
    if absent := [name for name in categories if name not in used]:
        raise SetupError(f"category {absent[0]!r} is in no scene of the dataset; it has: {', '.join(sorted(used))}")
    if unknown := used - set(categories):
        raise SetupError(f"category {min(unknown)!r} is not among the dataset's categories")
    return data


def templates(data: dict[str, Any]) -> set[str]:
    """Return the names of the object templates that a dataset uses."""
    tasks = [task for split in SPLITS for task in data[split]]
    return {item.get("template", item["category"]) for task in tasks for item in task["objects"]}


def _in_float32(value: Any) -> bool:
    """Return whether a value is a number that is finite in float32."""
    return type(value) in (int, float) and abs(value) <= float(np.finfo(np.float32).max)


def read(path: str) -> dict[str, Any]:
    """Read a dataset file. Raises SetupError if it is malformed."""
    try:
        if not os.path.isfile(path):  # opening a named pipe would block forever
            raise FileNotFoundError("it is not a file")
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"dataset {path!r} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise SetupError(f"dataset {path!r} is not a JSON object")
    return check(data)
