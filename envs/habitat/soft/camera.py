"""The cameras: a ray caster that returns colors, depths and object ids.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Tuple  # noqa: UP035 (Python 3.8)

import numpy as np

from relic_jax.envs.habitat.soft.body import Agent
from relic_jax.envs.habitat.soft.config import CameraSensorSpec, SensorType
from relic_jax.envs.habitat.soft.house import WALL_HEIGHT, Boxes

SKY, FLOOR = np.array([190, 200, 215]), np.array([110, 100, 90])


class VisibleBoxes(NamedTuple):
    """Boxes, and the id that the semantic camera shows for each of them."""

    boxes: Boxes
    ids: np.ndarray


class Camera:
    """A camera and its rays.

    Attributes:
        rays: Float64 [H·W, 3]; directions at heading and pitch 0.
        x: Float64 [W]; their x at depth 1.
        y: Float64 [H]; their y at depth 1.
        key: What the rays depend on; cameras with equal keys share a rendering.
    """

    def __init__(self, spec: CameraSensorSpec) -> None:
        self.spec = spec
        height, width = (int(size) for size in spec.resolution)
        half = math.tan(math.radians(float(spec.hfov)) / 2)
        x = (2 * (np.arange(width) + 0.5) / width - 1) * half
        y = (1 - 2 * (np.arange(height) + 0.5) / height) * half * height / width
        rays = np.stack(np.broadcast_arrays(x[None], y[:, None], np.full((1, 1), -1.0)), -1)
        self.rays, self.x, self.y = rays.reshape(-1, 3), x, y
        self.key = (height, width, float(spec.hfov), tuple(float(part) for part in spec.position))


def render(cameras: list[Camera], visible: VisibleBoxes, agent: Agent) -> dict[str, np.ndarray]:
    """Return the image of each camera by `uuid`. Cameras of equal geometry share their rays."""
    images, casts = {}, {}
    for camera in cameras:
        if camera.key not in casts:
            casts[camera.key] = _cast(camera, visible, agent)
        color, depth, ids = casts[camera.key]
        kind = camera.spec.sensor_type
        images[camera.spec.uuid] = {SensorType.COLOR: color, SensorType.DEPTH: depth}.get(kind, ids)
    return images


def _cast(camera: Camera, visible: VisibleBoxes, agent: Agent) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cast one ray per pixel. Return color uint8 [H, W, 4], depth float32 [H, W] and ids uint32 [H, W]."""
    height, width = camera.key[:2]
    eye = agent.position.astype(np.float64) + np.array(camera.key[3])
    to_world = _about_x(agent.pitch).T @ _about_y(agent.heading).T
    rays = (camera.rays @ to_world).T.astype(np.float32).reshape(3, height, width)
    rays[np.abs(rays) < 1e-7] = 1e-7
    boxes = visible.boxes
    down = rays[1] < 0
    depth = np.where(down, -eye[1], WALL_HEIGHT - eye[1]).astype(np.float32) / rays[1]  # of the floor and the ceiling
    low, high = boxes.low - eye, boxes.high - eye
    box, axis = _first_hits(low, high, _windows(camera, low, high, to_world), rays, depth)
    place = (eye[:, None, None] + rays * depth).astype(np.float32)
    floor = 0.85 + 0.15 * ((np.floor(place[0]) + np.floor(place[2])) % 2)
    stripes = 0.9 + 0.1 * (np.floor(4 * place.sum(0)) % 2)
    ids = np.append(visible.ids, np.uint32(0))[box]  # box −1: none
    side = np.array([0.8, 1.0, 0.65], np.float32)[axis] * np.where(ids > 0, 1.0, stripes)
    shade = np.where(box >= 0, side, np.where(down, floor, 1.0)) / (1 + 0.06 * depth)
    base = np.concatenate([boxes.color, SKY[None], FLOOR[None]])[np.where(box >= 0, box, np.where(down, -1, -2))]
    rgba = np.full((height, width, 4), 255, np.uint8)
    rgba[..., :3] = np.minimum(base * shade[..., None], 255)
    return rgba, depth, ids


Window = Tuple[int, slice, slice]  # noqa: UP006 (Python 3.8)
"""The index of a box, and the rows and columns of the image that can show it."""


def _windows(camera: Camera, low: np.ndarray, high: np.ndarray, to_world: np.ndarray) -> list[Window]:
    """Return the image windows that can show each box; the whole image for boxes partly behind the camera.

    Args:
        camera: The camera.
        low: Lower corners relative to the eye, [m, 3].
        high: Upper corners relative to the eye, [m, 3].
        to_world: Rotation from camera to world coordinates, [3, 3].
    """
    pick = np.indices((2, 2, 2)).reshape(3, 8).T.astype(bool)
    x, y, z = np.moveaxis(np.where(pick, high[:, None], low[:, None]) @ to_world.T, -1, 0)
    ahead = -z.min(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        across, up = x / -z, y / -z
    left, right = (np.searchsorted(camera.x, bound) for bound in (across.min(1), across.max(1)))
    top, bottom = (np.searchsorted(-camera.y, bound) for bound in (-up.max(1), -up.min(1)))
    whole = z.max(1) > -1e-3
    windows = []
    for index in np.flatnonzero(ahead > 0):
        rows, columns = (slice(None), slice(None)) if whole[index] else (
            slice(max(top[index] - 1, 0), bottom[index] + 1), slice(max(left[index] - 1, 0), right[index] + 1)
        )  # fmt: skip
        if whole[index] or (rows.start < len(camera.y) and columns.start < len(camera.x)):
            windows.append((int(index), rows, columns))
    return windows


def _first_hits(
    low: np.ndarray, high: np.ndarray, windows: list[Window], rays: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the first box that each ray from the origin enters.

    Args:
        low: Lower corners, [m, 3].
        high: Upper corners, [m, 3].
        windows: Parts of the image that can show a box.
        rays: Float32 [3, H, W].
        depth: Float32 [H, W]; maximum length of each ray, shortened in place to the hit.

    Returns:
        (index of the box or −1, axis of the side that is hit), int [H, W] each.
    """
    inverse = 1 / rays
    boxes, side = np.full(depth.shape, -1), np.zeros(depth.shape, int)
    low, high = (bound.astype(np.float32)[..., None, None] for bound in (low, high))
    for index, *window in windows:
        window_slices = tuple(window)
        through = inverse[(slice(None), *window_slices)]
        a, b = low[index] * through, high[index] * through
        near, far = np.minimum(a, b), np.maximum(a, b)
        enter = np.maximum(np.maximum(near[0], near[1]), near[2])
        leave = np.minimum(np.minimum(far[0], far[1]), far[2])
        hit = (enter < leave) & (enter > 0) & (enter < depth[window_slices])
        if hit.any():
            depth[window_slices][hit], boxes[window_slices][hit] = enter[hit], index
            side[window_slices][hit] = near[:, hit].argmax(0)
    return boxes, side


def _about_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
