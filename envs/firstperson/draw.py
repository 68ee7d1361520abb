"""Renders a trial for humans: the agent's view, and a map with the path of the current episode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw

from relic_jax.environment.base import PyTree, TrialRecord
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.renderer import render
from relic_jax.envs.firstperson.scene import BOX, Camera, Scene, Solids

VIEW_HEIGHT = 320  # pixels
MAP_SIDE = 320  # pixels; longer side of the map
MARGIN = 12  # pixels
CAPTION = 18  # pixels; height of the text below

PAPER, INK, PATH, AGENT, TARGET = (250, 250, 250), (40, 42, 48), (66, 110, 190), (236, 112, 20), (20, 140, 70)


class RenderInput(NamedTuple):
    """A step to render: the scene, the camera, and which of the scene's N solids are targets, bool [N]."""

    scene: Scene
    camera: Camera
    targets: Any


def trial_frames(
    render_input: Callable[[PyTree, PyTree], RenderInput], trial: TrialRecord, lens: Lens, max_frames: int = 240
) -> np.ndarray:
    """Render the steps of a trial.

    Args:
        render_input: Maps (record, task) of one step to a `RenderInput`.
        trial: The steps of the trial.
        lens: The agent's camera. The view has the same field of view and more pixels.
        max_frames: Maximum number of frames.

    Returns:
        Uint8 [n, H, W, 3], n = min(T, max_frames) evenly spaced steps.
    """
    count = len(trial.reward)
    steps = np.linspace(0, count - 1, min(count, max_frames)).round().astype(int)
    view = dataclasses.replace(
        lens, width=round(VIEW_HEIGHT * lens.width / lens.height), height=VIEW_HEIGHT, samples=4, layers=16
    )
    records = jax.tree.map(lambda x: x[steps], trial.record)
    inputs, pictures = _render(render_input, records, trial.task, view)
    positions = _positions(render_input, trial)
    episodes = np.cumsum(trial.first) - 1
    on_map = _MapView.of(jax.tree.map(lambda x: x[0], inputs.scene))
    frames = []
    for index, step in enumerate(steps):
        first = int(np.searchsorted(episodes, episodes[step]))
        now = jax.tree.map(lambda x, i=index: x[i], inputs)
        plan = on_map.draw(now, positions[first : step + 1])
        earned = float(trial.reward[first:step].sum())
        text = f"episode {episodes[step] + 1}   step {step - first}   return {earned:.2f}"
        frames.append(_page(pictures[index], plan, text))
    return np.stack(frames)


def _render(
    render_input: Callable[[PyTree, PyTree], RenderInput], records: PyTree, task: PyTree, lens: Lens
) -> tuple[RenderInput, np.ndarray]:
    """Return render inputs and views of n steps, computed 16 at a time, as host arrays with leading axis n."""

    @jax.jit
    def batch(records: PyTree) -> tuple[RenderInput, jax.Array]:
        inputs = jax.vmap(render_input, in_axes=(0, None), axis_size=16)(records, task)
        return inputs, jax.vmap(lambda s: render(s.scene, s.camera, lens))(inputs)

    count = len(jax.tree.leaves(records)[0])
    parts = []
    for begin in range(0, count, 16):
        chosen = np.minimum(np.arange(begin, begin + 16), count - 1)
        parts.append(jax.device_get(batch(jax.tree.map(lambda x, c=chosen: x[c], records))))
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)


def _positions(render_input: Callable[[PyTree, PyTree], RenderInput], trial: TrialRecord) -> np.ndarray:
    """Return the agent's position at every step, float32 [T, 2]."""
    positions = jax.jit(jax.vmap(lambda record: render_input(record, trial.task).camera.position))
    return np.asarray(positions(trial.record))


class _MapView(NamedTuple):
    """The projection of the map: (x, z) of the top left corner, pixels per meter, and (width, height) in pixels."""

    corner: np.ndarray
    scale: float
    size: tuple[int, int]

    @staticmethod
    def of(scene: Scene) -> _MapView:
        """Return a map that shows all walls."""
        ends = np.asarray(scene.walls.ends).reshape(-1, 2)
        low, high = ends.min(0), ends.max(0)
        scale = (MAP_SIDE - 2 * MARGIN) / float((high - low).max())
        width, height = np.ceil((high - low) * scale).astype(int) + 2 * MARGIN
        return _MapView(low - MARGIN / scale, scale, (int(width), int(height)))

    def at(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Return the pixels of points [..., 2], with x to the right and z downwards."""
        return [(float(x), float(y)) for x, y in ((np.asarray(points) - self.corner) * self.scale).reshape(-1, 2)]

    def draw(self, now: RenderInput, path: np.ndarray) -> Image.Image:
        """Draw walls, solids, the path, [n, 2], and the agent at its end."""
        image = Image.new("RGB", self.size, PAPER)
        pen = ImageDraw.Draw(image)
        for index in range(len(now.scene.solids.top)):
            self._draw_solid(pen, now.scene.solids, index, bool(now.targets[index]))
        for ends in np.asarray(now.scene.walls.ends):
            if (ends[0] != ends[1]).any():
                pen.line(self.at(ends), fill=INK, width=2)
        if len(path) > 1:
            pen.line(self.at(path), fill=PATH, width=2)
        position, (cos, sin) = np.asarray(now.camera.position), np.asarray(now.camera.direction)
        nose = position + 0.45 * np.array([cos, -sin])
        (x, y), tip = self.at(position)[0], self.at(nose)[0]
        pen.line([(x, y), tip], fill=AGENT, width=3)
        pen.ellipse([x - 5, y - 5, x + 5, y + 5], fill=AGENT)
        return image

    def _draw_solid(self, pen: ImageDraw.ImageDraw, solids: Solids, index: int, is_target: bool) -> None:
        if solids.top[index] <= solids.bottom[index]:
            return
        colour = tuple(int(255 * c) for c in solids.colour[index])
        centre, half = np.asarray(solids.centre)[index], np.asarray(solids.half)[index]
        yaw = float(solids.yaw[index])
        ahead, aside = np.array([np.cos(yaw), -np.sin(yaw)]), np.array([np.sin(yaw), np.cos(yaw)])
        if solids.shape[index] == BOX:
            corners = [
                centre + i * half[0] * ahead + j * half[1] * aside for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1))
            ]
            pen.polygon(self.at(np.array(corners)), fill=colour, outline=INK)
        else:
            pen.ellipse([*self.at(centre - half[0])[0], *self.at(centre + half[0])[0]], fill=colour, outline=INK)
        if is_target:
            ring = float(np.hypot(*half)) + 4 / self.scale
            pen.ellipse([*self.at(centre - ring)[0], *self.at(centre + ring)[0]], outline=TARGET, width=3)


def _page(picture: np.ndarray, plan: Image.Image, text: str) -> np.ndarray:
    """Join the view on the left, the map on the right and the text below."""
    page = Image.new("RGB", (picture.shape[1] + plan.width, max(picture.shape[0], plan.height) + CAPTION), PAPER)
    page.paste(Image.fromarray(picture), (0, 0))
    page.paste(plan, (picture.shape[1], 0))
    ImageDraw.Draw(page).text((6, page.height - CAPTION + 3), text, fill=INK)
    return np.asarray(page)
