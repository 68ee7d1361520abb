"""Datasets of the software simulator's houses in the formats of habitat-lab (ObjectNav-v1, PointNav-v1).

Needs only numpy. `write` creates a folder that habitat-lab reads without any download:

    objectnav.yaml, pointnav.yaml          configs, for `--env habitat-lab:FOLDER/objectnav.yaml`
    scenes/NAME.json                       the houses, with the objects in them as boxes
    objectnav/SPLIT/SPLIT.json.gz          episodes; SPLIT is habitat's: train, val
    pointnav/SPLIT/SPLIT.json.gz
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from relic_jax.bridge.worker import SetupError
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.configuration import Settings
from relic_jax.envs.habitat.lab.worker import SOFT, SPLITS
from relic_jax.envs.habitat.soft.house import load_scene
from relic_jax.envs.habitat.soft.objects import OBJECT_SIZE, object_color

CONFIG = """# @package _global_
defaults:
  - /benchmark/nav/{task}: {base}
  - _self_
habitat:{actions}
  environment:
    max_episode_steps: 200
  simulator:
    type: {simulator}
    turn_angle: 30
    agents:
      main_agent:
        height: 1.5
        radius: 0.18
  dataset:
    data_path: {data}
    scenes_dir: {scenes}
"""
LOOKING = """
  task:
    actions:
      look_up:
        type: RelicLookUp
      look_down:
        type: RelicLookDown"""
BASES = {"objectnav": "objectnav_hssd-hab", "pointnav": "pointnav_habitat_test"}
NEAR = 1.0  # meters; distance of the view points of an object


def write(
    folder: str,
    data: dict[str, Any],
    episodes: int = 20,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the folder.

    Args:
        folder: The folder.
        data: A dataset of `habitat.dataset.generate` for `soft`.
        episodes: Episodes per scene.
        seed: Seed of the episodes.
        progress: Called with what it does, before each task.

    Raises:
        SetupError: A scene has no start from which a goal can be reached.
        OSError: The folder cannot be written.
    """
    folder = os.path.abspath(folder)
    scenes = os.path.join(folder, "scenes")
    os.makedirs(scenes, exist_ok=True)
    numbers = {category: number for number, category in enumerate(data["categories"])}
    simulation = Simulation(Settings(size=8))
    for part, (name_of_split, split) in enumerate(SPLITS.items()):
        episodes_of: dict[str, list[Any]] = {"objectnav": [], "pointnav": []}
        goals: dict[str, list[Any]] = {}
        for index, task in enumerate(data[name_of_split]):
            number, total = part * len(data["train"]) + index + 1, len(data["train"]) + len(data["test"])
            progress(f"writing episodes of task {number} of {total}")
            name = f"{split}-{index}.json"
            _write_json(os.path.join(scenes, name), furnished(task))
            random = np.random.RandomState([seed, part, index])
            of_scene = _goals(simulation, task)
            goals.update({f"{name}_{category}": places for category, places in of_scene.items()})
            for _ in range(episodes):
                episodes_of["objectnav"].append(_to_object(simulation, random, name, of_scene))
                episodes_of["pointnav"].append(_to_point(simulation, random, name))
        for kind, listed in episodes_of.items():
            content: dict[str, Any] = {"episodes": [{**e, "episode_id": str(n)} for n, e in enumerate(listed)]}
            if kind == "objectnav":
                ids = {"category_to_task_category_id": numbers, "category_to_scene_annotation_category_id": numbers}
                content.update(goals_by_category=goals, **ids)
            _write_json(os.path.join(folder, kind, split, split + ".json.gz"), content)
    for kind, base in BASES.items():
        path = os.path.join(folder, kind, "{split}", "{split}.json.gz")
        with open(os.path.join(folder, kind + ".yaml"), "w", encoding="utf-8") as file:
            paths = {"data": json.dumps(path), "scenes": json.dumps(scenes)}
            actions = LOOKING if kind == "objectnav" else ""
            file.write(CONFIG.format(task=kind, base=base, actions=actions, simulator=SOFT, **paths))


def furnished(task: dict[str, Any]) -> dict[str, Any]:
    """Return the house of a task as a scene of `soft`, with its objects as boxes."""
    house, half = load_scene(task["scene"]), OBJECT_SIZE / 2
    rows = [[*low, *high, *color] for low, high, color in zip(*(part.tolist() for part in house.boxes))]  # noqa: B905
    for item in task["objects"]:
        x, y, z = item["position"]
        box = [x - half, y, z - half, x + half, y + OBJECT_SIZE, z + half]
        rows.append([*box, *object_color(item.get("template", item["category"]))])
    roof = {"roof": True} if house.roof else {}
    return {"size": list(house.size), "boxes": rows, "tables": list(house.tables), **roof}


def _goals(simulation: Simulation, task: dict[str, Any]) -> dict[str, list[Any]]:
    """Return goals by category in the format of ObjectNav, with view points around each object."""
    simulation.load(task["scene"])
    goals: dict[str, list[Any]] = {}
    for number, item in enumerate(task["objects"]):
        position = np.array(item["position"], np.float32)
        ring = [position + NEAR * np.array([math.sin(a), 0, math.cos(a)]) for a in np.linspace(0, 2 * math.pi, 13)[:-1]]
        places: list[np.ndarray] = [*ring, position]
        views = [simulation.snap(point * np.array([1, 0, 1])) for point in places]
        goal = {
            "position": position.tolist(),
            "object_id": number,
            "object_name": "{}_{}".format(item["category"], number),
            "object_category": item["category"],
            "view_points": [
                {"agent_state": {"position": view.tolist(), "rotation": [0.0, 0.0, 0.0, 1.0]}, "iou": 0.0}
                for view in views
                if view is not None and np.linalg.norm((view - position)[[0, 2]]) <= NEAR + 1e-3
            ],
        }
        goals.setdefault(item["category"], []).append(goal)
    return goals


def _start(simulation: Simulation, random: np.random.RandomState, ends: list[np.ndarray]) -> dict[str, Any]:
    """Return a random start of an episode from which one of the ends can be reached."""
    simulation.seed(int(random.randint(2**31 - 1)))
    half = random.uniform(-math.pi, math.pi) / 2
    for _ in range(100):
        point = simulation.random_point()
        distance = math.inf if point is None else simulation.distance(point, ends)
        if point is not None and math.isfinite(distance):
            rotation = [0.0, math.sin(half), 0.0, math.cos(half)]
            info = {"geodesic_distance": distance}
            return {"start_position": point.tolist(), "start_rotation": rotation, "info": info}
    raise SetupError(f"no start in scene {simulation.scene!r} from which a goal can be reached")


def _to_object(simulation: Simulation, random: np.random.RandomState, scene: str, goals: dict[str, Any]) -> Any:
    category = sorted(goals)[random.randint(len(goals))]
    views = [view["agent_state"]["position"] for goal in goals[category] for view in goal["view_points"]]
    start = _start(simulation, random, [np.array(view) for view in views])
    return {"scene_id": scene, "object_category": category, "goals": [], **start}


def _to_point(simulation: Simulation, random: np.random.RandomState, scene: str) -> Any:
    simulation.seed(int(random.randint(2**31 - 1)))
    end = simulation.random_point()
    if end is None:
        raise SetupError(f"scene {simulation.scene!r} has no navigable point")
    return {"scene_id": scene, "goals": [{"position": end.tolist()}], **_start(simulation, random, [end])}


def _write_json(path: str, content: Any) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    opened: Any = gzip.open if path.endswith(".gz") else open
    with opened(path + ".part", "wt") as file:
        json.dump(content, file)
    os.replace(path + ".part", path)
