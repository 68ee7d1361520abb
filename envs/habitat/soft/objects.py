"""Rigid objects: boxes of one size, whose colors follow from their names.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import colorsys
import os
from typing import Any, NamedTuple

import numpy as np

from relic_jax.envs.habitat.soft.config import MotionType

OBJECT_SIZE = 0.3  # meters


class Range3D(NamedTuple):
    """A box given by its corners, float32 [3]."""

    min: np.ndarray
    max: np.ndarray


class RigidObject:
    """A cube with sides of `OBJECT_SIZE` that stands on `translation`.

    Attributes:
        aabb: Its bounding box, relative to `translation`.
    """

    aabb = Range3D(
        np.array([-OBJECT_SIZE / 2, 0.0, -OBJECT_SIZE / 2], np.float32),
        np.array([OBJECT_SIZE / 2, OBJECT_SIZE, OBJECT_SIZE / 2], np.float32),
    )

    def __init__(self, object_id: int, handle: str) -> None:
        self.object_id, self.handle, self.creation_attributes = object_id, f"{handle}_:{object_id:04d}", None
        self.template = handle
        self.translation = np.zeros(3, np.float32)
        self.rotation: Any = None
        self.motion_type, self.semantic_id = MotionType.DYNAMIC, 0

    @property
    def transformation(self) -> np.ndarray:
        """From the frame of the object to scene coordinates, float64 [4, 4]."""
        matrix = np.eye(4)
        matrix[:3, 3] = self.translation
        return matrix


class RigidObjectManager:
    """The objects of a scene."""

    def __init__(self) -> None:
        self.objects: dict[int, RigidObject] = {}
        self._next = 0

    def add_object_by_template_handle(self, object_lib_handle: str) -> RigidObject:
        """Create an object. The caller sets its position."""
        item = RigidObject(self._next, object_lib_handle)
        self.objects[self._next] = item
        self._next += 1
        return item

    def get_objects_by_handle_substring(self, search_str: str = "") -> dict[str, RigidObject]:
        """Return the objects whose handles contain a text, by handle."""
        return {item.handle: item for item in self.objects.values() if search_str in item.handle}

    def remove_object_by_id(
        self, object_id: int, delete_object_node: bool = True, delete_visual_node: bool = True
    ) -> None:
        """Remove one object."""
        del self.objects[object_id]

    def remove_all_objects(self) -> None:
        """Remove all objects."""
        self.objects.clear()


class ObjectTemplateManager:
    """Templates of objects: cubes whose color follows from the name. Files are not needed, and only listed."""

    def __init__(self) -> None:
        self._handles: list[str] = []

    def get_template_handles(self, search_str: str = "", contains: bool = True) -> list[str]:
        """Return the handles, paths of loaded files, that contain `search_str` in any case."""
        return [handle for handle in self._handles if search_str.lower() in handle.lower()]

    def load_configs(self, path: str, save_as_defaults: bool = False) -> list[int]:
        """Add the templates of a folder. Return their indices."""
        files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".object_config.json"))
        self._handles += [file for file in files if file not in self._handles]
        return [self._handles.index(file) for file in files]


def object_color(handle: str) -> tuple[int, int, int]:
    """Return a bright RGB color derived from a name, or from that of a template's file."""
    name = os.path.basename(handle).partition(".")[0]
    code = sum((index + 1) * 131 * byte for index, byte in enumerate(name.encode())) % 997
    r, g, b = colorsys.hsv_to_rgb((code * 0.61803) % 1.0, 1.0, 1.0)
    return int(255 * r), int(255 * g), int(255 * b)
