"""Find objects that stand inside furniture or inside each other.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

MARGIN = 0.02  # meters; objects can sink in by this much
LIFT = 0.05  # meters above its lowest point at which an object is tested


class Box(NamedTuple):
    """A bounding box.

    Attributes:
        name: Name of the object.
        number: Id of the object; −1: a part of the house.
        low: Lower corner in the frame of the object, float64 [3].
        high: Upper corner in the frame of the object, float64 [3].
        to_object: From scene coordinates to the frame of the object, float64 [4, 4].
    """

    name: str
    number: int
    low: np.ndarray
    high: np.ndarray
    to_object: np.ndarray

    def contains(self, point: np.ndarray) -> bool:
        """Return whether a point in scene coordinates is inside, more than `MARGIN` from the sides."""
        at = (self.to_object @ np.append(point, 1.0))[:3]
        return bool((at > self.low + MARGIN).all() and (at < self.high - MARGIN).all())


def bounds(item: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of an object's bounding box in its own frame, float64 [3] each."""
    box = item.aabb if hasattr(item, "aabb") else item.root_scene_node.cumulative_bb  # before 0.3.2
    low, high = box.min, box.max
    return np.array([low[0], low[1], low[2]], np.float64), np.array([high[0], high[1], high[2]], np.float64)


def boxes_of(simulator: Any) -> list[Box]:
    """Return the boxes of all rigid objects, and for `soft` of walls and furniture."""
    boxes = []
    for handle, item in simulator.get_rigid_object_manager().get_objects_by_handle_substring("").items():
        inverse = np.linalg.inv(np.array(item.transformation, np.float64))
        boxes.append(Box(str(handle), int(item.object_id), *bounds(item), inverse))
    house = getattr(simulator, "house", None)
    if house is not None:
        for index, (low, high) in enumerate(zip(house.boxes.low, house.boxes.high)):  # noqa: B905 (Python 3.8)
            boxes.append(Box(f"box {index}", -1, low, high, np.eye(4)))
    return boxes


def container(boxes: list[Box], position: np.ndarray, number: int) -> str | None:
    """Return the name of a box that contains the object `number` at a position, or None."""
    point = np.asarray(position, np.float64) + np.array([0.0, LIFT, 0.0])
    return next((box.name for box in boxes if box.number != number and box.contains(point)), None)
