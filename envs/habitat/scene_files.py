"""Check the files of scene instances before habitat-sim loads them, because it crashes if a stage is missing.

Reads the JSON of scene datasets and resolves names like habitat-sim: a name is part of a file's path, case is ignored,
and the first path in alphabetical order is used. Runs in a worker process: Python 3.8 and its standard library.
"""

from __future__ import annotations

import glob
import json
import os
from typing import Any

from relic_jax.bridge.worker import SetupError

SUFFIXES = {
    "stages": ".stage_config.json",
    "objects": ".object_config.json",
    "articulated_objects": ".ao_config.json",
    "scene_instances": ".scene_instance.json",
}
INSTANCES = {
    "stages": "stage_instance",
    "objects": "object_instances",
    "articulated_objects": "articulated_object_instances",
}
"""Keys of a scene instance, by the part of the scene dataset that contains their templates."""
ASSETS = ("render_asset", "urdf_filepath")
"""Keys of templates whose values are files if they have an extension. Other values are primitives."""


class SceneDataset:
    """The names and files of a scene dataset.

    Args:
        path: A *.scene_dataset_config.json, or "default", the dataset without files.

    Raises:
        SetupError: The file cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path, self.folder = path, os.path.dirname(path)
        self._content = {} if path == "default" else _read(path)
        self._handles: dict[str, list[str]] = {}
        self._stems: dict[str, dict[str, str]] = {}
        self._checked: set[tuple[str, str]] = set()

    def handles(self, part: str) -> list[str]:
        """Return the sorted handles of a part: paths of files, and names that the dataset itself defines."""
        if part not in self._handles:
            self._handles[part] = sorted(self._read_handles(part))
            names = ((os.path.basename(handle), handle) for handle in reversed(self._handles[part]))
            self._stems[part] = {name.partition(".")[0]: handle for name, handle in names}
        return self._handles[part]

    def _read_handles(self, part: str) -> set[str]:
        content = self._content.get(part)
        content = content if isinstance(content, dict) else {}
        found: set[str] = set()
        paths = content.get("paths")
        for extension, patterns in (paths if isinstance(paths, dict) else {}).items():
            suffix = SUFFIXES[part] if extension == ".json" else extension
            for pattern in patterns if isinstance(patterns, list) else []:
                found.update(_expand(os.path.join(self.folder, str(pattern)), suffix))
        configs = content.get("configs")
        for config in configs if isinstance(configs, list) else []:
            if isinstance(config, dict) and isinstance(config.get("template_handle"), str):
                found.add(config["template_handle"])
        return found

    def find(self, part: str, name: str) -> str | None:
        """Return the handle or the file that habitat-sim uses for a name, or None if there is none."""
        handles = self.handles(part)
        if name in self._stems[part]:  # datasets with ten thousands of objects name them by their stems
            return self._stems[part][name]
        for handle in handles:
            if name.lower() in handle.lower():
                return handle
        files = (name, name + SUFFIXES[part], os.path.splitext(name)[0] + SUFFIXES[part])
        return next((file for file in files if os.path.isfile(file)), None)

    def handle(self, scene: str) -> str:
        """Return the handle of the scene instance, or else the stage, that is named `scene`.

        habitat-sim takes the first scene instance whose PATH contains a name, so a scene "b" could be any scene in a
        folder "habitat". Handles are not ambiguous. A name that is only part of a handle is returned unchanged.
        """
        for part in ("scene_instances", "stages"):
            self.handles(part)
            if scene in self._stems[part]:
                return self._stems[part][scene]
        return scene

    def check(self, scene: str) -> list[str]:
        """Check the files of a scene, and return the names of its articulated objects.

        Raises:
            SetupError: A template of the scene instance, or a file of a template, is missing.
        """
        instance = self.find("scene_instances", self.handle(scene))
        if instance is None or not instance.endswith(SUFFIXES["scene_instances"]) or not os.path.isfile(instance):
            return []
        content = _read(instance)
        articulated: list[str] = []
        for part, key in INSTANCES.items():
            items = content.get(key)
            for item in items if isinstance(items, list) else [items]:
                name = item.get("template_name") if isinstance(item, dict) else None
                if isinstance(name, str):
                    self._check_template(scene, instance, part, name)
                    articulated += [name] if part == "articulated_objects" else []
        return articulated

    def _check_template(self, scene: str, instance: str, part: str, name: str) -> None:
        if name.lower() == "none" or (part, name) in self._checked:  # NONE: the empty stage
            return
        kind = part[:-1].replace("_", " ")
        handle = self.find(part, name)
        if handle is None:
            raise SetupError(
                f"scene {scene!r} has {kind} {name!r} ({instance}), which is not in scene dataset {self.path!r}"
            )
        template = _read(handle) if handle.endswith(".json") and os.path.isfile(handle) else {}
        for key in ASSETS:
            asset = template.get(key)
            if not isinstance(asset, str) or not os.path.splitext(asset)[1] or "%%" in asset:  # %%: a placeholder
                continue
            path = os.path.join(os.path.dirname(handle), asset)
            if not (os.path.exists(path) or os.path.exists(asset)):
                raise SetupError(f"scene {scene!r} has {kind} {name!r} ({handle}), whose {key} {path!r} does not exist")
        self._checked.add((part, name))


def _expand(pattern: str, suffix: str) -> list[str]:
    """Return the files with a suffix for a pattern: those in matched folders, and those next to matched files."""
    files: list[str] = []
    for path in glob.glob(pattern):
        if os.path.isdir(path):
            files += [os.path.join(path, name) for name in os.listdir(path) if name.endswith(suffix)]
        else:
            beside = path if path.endswith(suffix) else os.path.splitext(path)[0] + suffix
            files += [beside] if os.path.isfile(beside) else []
    return files


def _read(path: str) -> dict[str, Any]:
    """Read a JSON object. Raises SetupError if the file cannot be read or contains something else."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{path!r} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise SetupError(f"{path!r} is not a JSON object")
    return content


def resolved(simulator: Any, scene: str) -> str:
    """Return the file that habitat-sim has found for the loaded scene: its scene instance, or else its stage.

    `scene` is a handle, or part of one; the first in alphabetical order is used.
    """
    instances = sorted(simulator.metadata_mediator.get_scene_handles())
    files = [path for path in instances if scene.lower() in path.lower() and os.path.isfile(path)]
    return os.path.realpath(files[0] if files else simulator.get_stage_initialization_template().render_asset_handle)
