"""Export of the software simulator's scenes for habitat-sim: textured GLB meshes and their JSON. Needs only numpy.

`write_set` creates a complete scene dataset, which lets tests run the same houses in both simulators:

    set.scene_dataset_config.json       for `Settings.scene_dataset`
    stages/NAME.glb, .stage_config.json, scene_instances/NAME.scene_instance.json
    objects/CATEGORY.glb, .object_config.json
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from relic_jax.envs.habitat.scenes import meshes
from relic_jax.envs.habitat.scenes.glb import framed
from relic_jax.envs.habitat.scenes.textures import png
from relic_jax.envs.habitat.soft.camera import FLOOR, SKY
from relic_jax.envs.habitat.soft.house import WALL_HEIGHT, Boxes, House
from relic_jax.envs.habitat.soft.objects import OBJECT_SIZE, object_color

THICK = 0.1  # meters; thickness of floor and ceiling


def write_set(folder: str, houses: dict[str, House], categories: tuple[str, ...] = ()) -> str:
    """Write the scenes and a box for each category. Return the config file of the dataset."""
    for name, house in houses.items():
        mesh = os.path.join(folder, "stages", name + ".glb")
        _write(mesh, box_glb(closed(house)))
        _write_json(mesh.replace(".glb", ".stage_config.json"), {**_asset(name), "is_collidable": True})
        instance = {"stage_instance": {"template_name": f"stages/{name}"}, "default_lighting": "no_lights"}
        _write_json(os.path.join(folder, "scene_instances", name + ".scene_instance.json"), instance)
    half = OBJECT_SIZE / 2
    low, high = np.array([[-half, 0.0, -half]]), np.array([[half, OBJECT_SIZE, half]])
    for category in categories:
        mesh = os.path.join(folder, "objects", category + ".glb")
        _write(mesh, box_glb(Boxes(low, high, np.array([object_color(category)], np.uint8))))
        content = {**_asset(category), "mass": 1.0, "COM": [0.0, 0.0, 0.0]}  # the origin is at its bottom
        _write_json(mesh.replace(".glb", ".object_config.json"), content)
    paths = {"stages": "stage", "objects": "object", "scene_instances": "scene"}
    suffixes = {"stage": "stage_config", "object": "object_config", "scene": "scene_instance"}
    content = {part: {"paths": {".json": [f"{part}/*.{suffixes[kind]}.json"]}} for part, kind in paths.items()}
    config = os.path.join(folder, "set.scene_dataset_config.json")
    _write_json(config, content)
    return config


def _asset(name: str) -> dict[str, Any]:
    """Return the config of an asset with y up. The default of habitat-sim is z up."""
    return {"render_asset": name + ".glb", "up": [0, 1, 0], "front": [0, 0, -1], "requires_lighting": False}


def closed(house: House) -> Boxes:
    """Return the boxes of a house with outer walls, floor and ceiling."""
    x, z = house.size
    t, h = THICK, WALL_HEIGHT
    walls = [[-t, 0, -t, 0, h, z + t], [x, 0, -t, x + t, h, z + t], [0, 0, -t, x, h, 0], [0, 0, z, x, h, z + t]]
    rows = np.array([*walls, [-t, -t, -t, x + t, 0, z + t], [-t, h, -t, x + t, h + t, z + t]], np.float64)
    colors = np.stack([*[SKY] * 4, FLOOR, SKY]).astype(np.uint8)
    low, high = np.concatenate([house.boxes.low, rows[:, :3]]), np.concatenate([house.boxes.high, rows[:, 3:]])
    return Boxes(low, high, np.concatenate([house.boxes.color, colors]))


def box_glb(boxes: Boxes) -> bytes:
    """Return a binary glTF 2.0 file of boxes with separate colors and one checkered texture."""
    positions, normals, places, indices = meshes.boxes(boxes.low, boxes.high)
    arrays = [positions, normals, places, indices[:36]]
    image, count = chequers(), len(boxes.low)
    data = [array.tobytes() for array in arrays] + [image]
    offsets = np.cumsum([0, *(-(-len(part) // 4) * 4 for part in data)]).tolist()
    views: list[dict[str, Any]] = [
        {"buffer": 0, "byteOffset": offset, "byteLength": len(part)}
        for offset, part in zip(offsets, data)  # noqa: B905 (Python 3.8)
    ]
    accessors: list[dict[str, Any]] = []
    for index in range(count):
        bounds = {"min": boxes.low[index].tolist(), "max": boxes.high[index].tolist()}
        for view, kind, width, extra in ((0, "VEC3", 12, bounds), (1, "VEC3", 12, {}), (2, "VEC2", 8, {})):
            place = {"bufferView": view, "byteOffset": index * 24 * width, "componentType": 5126}
            accessors.append({**place, "count": 24, "type": kind, **extra})
    accessors.append({"bufferView": 3, "componentType": 5123, "count": 36, "type": "SCALAR"})
    content = {
        "asset": {"version": "2.0", "generator": "relic-jax"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [_primitive(index, 3 * count) for index in range(count)]}],
        "materials": [_material(color) for color in boxes.color],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": 9728, "minFilter": 9728, "wrapS": 10497, "wrapT": 10497}],
        "images": [{"bufferView": 4, "mimeType": "image/png"}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offsets[-1]}],
    }
    return framed(content, b"".join(part + b"\0" * (-len(part) % 4) for part in data))


def _primitive(index: int, indices: int) -> dict[str, Any]:
    first = 3 * index
    attributes = {"POSITION": first, "NORMAL": first + 1, "TEXCOORD_0": first + 2}
    return {"attributes": attributes, "indices": indices, "material": index}


def _material(color: np.ndarray) -> dict[str, Any]:
    rough = {"metallicFactor": 0.0, "roughnessFactor": 1.0, "baseColorTexture": {"index": 0}}
    return {"pbrMetallicRoughness": {**rough, "baseColorFactor": [*(color / 255).tolist(), 1.0]}}


def chequers(size: int = 8) -> bytes:
    """Return a PNG of 2×2 gray fields of `size` pixels. The texture repeats every meter."""
    odd = (np.indices((2 * size, 2 * size)) // size).sum(0) % 2
    grey = np.where(odd, 255, 215).astype(np.uint8)
    return png(grey)


def _write(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".part", "wb") as file:
        file.write(content)
    os.replace(path + ".part", path)


def _write_json(path: str, content: dict[str, Any]) -> None:
    _write(path, (json.dumps(content, indent=1) + "\n").encode())
