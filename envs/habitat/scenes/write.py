"""Write scenes as files: a scene dataset of habitat-sim, receptacles, episode datasets and scenes of `soft`.

relic.scene_dataset_config.json            for --scene-dataset
stages/NAME.glb, .stage_config.json        a house with its furniture, and its receptacles under user_defined
instances/NAME.scene_instance.json
objects/CATEGORY.glb, .object_config.json  for --templates and --env.objects
receptacles.json                           for --receptacles
soft/NAME.json                             the houses for the software simulator
tasks.json, tasks-soft.json                for --env.dataset: the objects of `house-objnav`, at their places
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from relic_jax.envs.firstperson.house_plan import CATEGORY_COLOUR, CATEGORY_SHAPE, CATEGORY_SIZE
from relic_jax.envs.firstperson.scene import BOX, CYLINDER
from relic_jax.envs.habitat import dataset
from relic_jax.envs.habitat.scenes import meshes
from relic_jax.envs.habitat.scenes.glb import Part, glb
from relic_jax.envs.habitat.scenes.rooms import FurnishedHouse, soft_house
from relic_jax.files import write_atomically

CONFIG = "relic.scene_dataset_config.json"
ABOVE = 0.3  # meters; half the height of receptacles
CATEGORIES = (
    "red_box", "green_panel", "blue_tower", "yellow_crate", "purple_slab", "white_cube", "teal_board",
    "blue_can", "red_post", "green_disc", "orange_pillar", "yellow_barrel", "pink_cup", "black_tub",
    "orange_ball", "green_globe", "red_apple", "purple_sphere", "teal_bowl", "yellow_lemon",
)  # fmt: skip
"""Names of the categories of `house-objnav`, in their order. None is a part of another."""


def write_scene(folder: Path, name: str, house: FurnishedHouse) -> None:
    """Write a house. The scene instance is written last."""
    stage = f"stages/{name}"
    soft = soft_house(house)
    rows = np.concatenate([soft.boxes.low, soft.boxes.high, soft.boxes.color], 1).tolist()
    content = {"size": list(soft.size), "boxes": rows, "tables": list(soft.tables), "roof": soft.roof}
    _write(folder / "soft" / f"{name}.json", json.dumps(content) + "\n")
    _write(folder / f"{stage}.glb", glb(parts_of(house)))
    config = {**_asset(name), "is_collidable": True, "user_defined": receptacles_of(house)}
    _write_json(folder / f"{stage}.stage_config.json", config)
    instance = {"stage_instance": {"template_name": stage}, "default_lighting": "no_lights"}
    _write_json(folder / "instances" / f"{name}.scene_instance.json", instance)


def is_written(folder: Path, name: str) -> bool:
    """Return whether `write_scene` has finished."""
    return (folder / "instances" / f"{name}.scene_instance.json").is_file()


def write_objects(folder: Path) -> None:
    """Write an object template for each category, and the configuration of the scene dataset."""
    for index, category in enumerate(CATEGORIES):
        part = Part(_object(index), CATEGORY_COLOUR[index].astype(np.float64), "speckles")
        _write(folder / "objects" / f"{category}.glb", glb([part]))
        content = {**_asset(category), "mass": 1.0, "COM": [0.0, 0.0, 0.0]}  # the origin is at the bottom
        _write_json(folder / "objects" / f"{category}.object_config.json", content)
    patterns = {"stages": "stage_config", "objects": "object_config", "scene_instances": "scene_instance"}
    folders = {"scene_instances": "instances"}
    paths = {part: [f"{folders.get(part, part)}/*.{suffix}.json"] for part, suffix in patterns.items()}
    _write_json(folder / CONFIG, {part: {"paths": {".json": found}} for part, found in paths.items()})


def write_tasks(folder: Path, houses: dict[str, dict[str, FurnishedHouse]]) -> None:
    """Write receptacles and episode datasets, which contain the absolute path of the folder.

    Args:
        folder: The folder.
        houses: Houses by name, of the splits train and test.
    """
    folder = folder.absolute()
    every = {name: house for split in houses.values() for name, house in split.items()}
    _write_json(folder / "receptacles.json", {name: receptacles_of(house) for name, house in every.items()})
    for file, backend in (("tasks.json", "habitat"), ("tasks-soft.json", "soft")):
        is_soft = backend == "soft"
        config = "default" if is_soft else str(folder / CONFIG)
        data: dict[str, Any] = {"format": dataset.FORMAT, "backend": backend, "scene_dataset": config}
        tasks = {
            split: [
                {"scene": str(folder / "soft" / f"{name}.json") if is_soft else name, "objects": objects_of(house)}
                for name, house in named.items()
            ]
            for split, named in houses.items()
        }
        used = {CATEGORIES[index] for house in every.values() for index, _ in house.objects}
        data |= {"categories": [name for name in CATEGORIES if name in used], **tasks}
        _write_json(folder / file, dataset.check(data))


def parts_of(house: FurnishedHouse) -> list[Part]:
    """Return the mesh of a house with its furniture."""
    parts = [Part(meshes.boxes(box.low[None], box.high[None]), box.color, box.texture) for box in house.boxes]
    for piece, color in house.furniture:
        parts.append(Part(meshes.boxes(piece.low, piece.high), np.asarray(color, np.float64), piece.texture))
    return parts


def receptacles_of(house: FurnishedHouse) -> dict[str, Any]:
    """Return the surfaces of the furniture as AABB receptacles of habitat-lab."""
    found = {}
    for index, (piece, _) in enumerate(house.furniture):
        low, high = piece.surface
        middle, half = (low + high) / 2 + [0, ABOVE, 0], (high - low) / 2 + [0, ABOVE, 0]
        name = f"receptacle_aabb_{piece.kind}_{index}"
        found[name] = {"position": np.round(middle, 4).tolist(), "scale": np.round(half, 4).tolist()}
    return found


def objects_of(house: FurnishedHouse) -> list[dict[str, Any]]:
    """Return the objects of a task of an episode dataset."""
    return [
        {"category": CATEGORIES[index], "position": np.round(position, 4).tolist(), "template": CATEGORIES[index]}
        for index, position in house.objects
    ]


def _object(index: int) -> meshes.Mesh:
    """Return the mesh of a category, which stands on its origin."""
    x, z, height = (float(size) for size in CATEGORY_SIZE[index])
    if CATEGORY_SHAPE[index] == BOX:
        return meshes.boxes(np.array([[-x, 0.0, -z]]), np.array([[x, height, z]]))
    return meshes.cylinder(x, height) if CATEGORY_SHAPE[index] == CYLINDER else meshes.sphere(x)


def _asset(name: str) -> dict[str, Any]:
    """Return the config of an asset with y up. The default of habitat-sim is z up."""
    return {"render_asset": name + ".glb", "up": [0, 1, 0], "front": [0, 0, -1], "requires_lighting": False}


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json.dumps(content, indent=1) + "\n")
