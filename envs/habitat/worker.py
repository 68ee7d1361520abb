"""ExtObjNav: find an object of a given category, over and over in one house. Worker side: Python 3.8 and numpy.

A task, the same for a whole trial, is {"scene": id, "objects": [{"category", "position", "template"}, …]}; it may list
"episodes": [{"category", "position", "heading"}, …] to draw from. Without, an episode asks for a category drawn
uniformly from those in the house, and starts at a random navigable point and heading. Actions: `api.ACTIONS`. `stop`
ends the episode; it is a success within `radius` (horizontally) of an instance of the category that fills at least
`pixels` pixels of the view, a border left out. Reward: decrease of the geodesic distance to the nearest instance,
−0.001 a step, +2 on success. The task is that of Elawady et al. 2024 (arXiv 2410.02751); the agent is a cylinder, not
a Fetch robot.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np

from relic_jax.bridge.protocol import ArraySpec, Spec
from relic_jax.bridge.worker import SetupError
from relic_jax.envs.habitat.api import ACTIONS, Settings, Simulation
from relic_jax.envs.habitat.dataset import CATEGORIES

STOP, FORWARD, LEFT, RIGHT, UP, DOWN = range(len(ACTIONS))
METRICS = ("success", "spl", "soft_spl", "distance", "collided")
SLACK, SUCCESS = 0.001, 2.0
FIRST_NUMBER = 10_000  # object ids of scenes are smaller


_checked: set[tuple[str, ...]] = set()  # scenes that this process has looked for


class Instance(NamedTuple):
    """An object. number: what the object-id camera shows. position: where it is. at: the navigable point next to it."""

    category: str
    number: int
    position: np.ndarray
    at: np.ndarray


class ExtObjNav:
    """See the module. gpus: one of them per worker, in turn; none: software rendering."""

    def __init__(
        self,
        backend: str = "soft",
        scene_dataset: str = "default",
        objects: str = "",
        size: int = 256,
        horizon: int = 500,
        categories: tuple[str, ...] | list[str] = CATEGORIES,
        scenes: tuple[str, ...] | list[str] = (),
        radius: float = 2.0,
        pixels: int = 10,
        border: int = 5,
        gpus: tuple[int, ...] | list[int] = (),
    ) -> None:
        """scenes: looked for now, by the first worker, so that what is missing shows before training starts."""
        worker = int(os.environ.get("RELIC_WORKER", "0"))
        gpu = gpus[worker % len(gpus)] if gpus else -1
        settings = Settings(backend=backend, scene_dataset=scene_dataset, objects=objects, size=size, gpu=gpu)
        self.simulation = Simulation(settings)
        if worker == 0 and tuple(scenes) not in _checked:
            self.simulation.check(scenes)
            _checked.add(tuple(scenes))
        self.radius, self.pixels, self.border = radius, pixels, border
        self.categories = list(categories)
        self.versions = {backend: self.simulation.version}
        self.spec = self.announce(size, horizon, len(self.categories))
        self._task: Any = None
        self.instances: list[Instance] = []
        self.goals: list[Instance] = []

    @staticmethod
    def announce(size: int, horizon: int, categories: int) -> Spec:
        """The spec, which the learner can know without a simulator."""
        observation = {
            "rgb": ArraySpec("uint8", (size, size, 3)),
            "goal": ArraySpec("float32", (categories,)),
            "gps": ArraySpec("float32", (2,)),
        }
        return Spec(
            name="extobjnav",
            observation=observation,
            action=ArraySpec("int32", ()),
            actions=len(ACTIONS),
            low=0.0,
            high=0.0,
            metrics=METRICS,
            horizon=horizon,
            restorable=True,
            expert=True,
        )

    def reset(self, task: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        """Starts an episode; the house and its objects are set up again only where the task changed."""
        if task != self._task:
            self._furnish(task)
        random = np.random.RandomState(seed)
        self.simulation.seed(seed)
        self.category, self.start, self.start_heading = self._draw(task, random)
        self.heading = self.start_heading
        self.goals = [instance for instance in self.instances if instance.category == self.category]
        self.simulation.put(self.start, self.heading)
        self.first_distance = self.distance = self._distance(self.start)
        if not math.isfinite(self.distance):
            raise SetupError(f"category {self.category!r} cannot be reached in scene {task['scene']!r}")
        self.steps, self.travelled, self.position, self.pitch = 0, 0.0, self.start, 0
        self.view = self.simulation.look()
        return self._observe()

    def _furnish(self, task: dict[str, Any]) -> None:
        """Loads the scene and puts the objects."""
        self._task = None
        self.simulation.load(task["scene"])
        self.instances = []
        for number, thing in enumerate(task["objects"], start=1):
            position = np.asarray(thing["position"], np.float32)
            at = self.simulation.snap(position)
            if thing["category"] not in self.categories:
                raise SetupError(f"category {thing['category']!r} is none of: {', '.join(self.categories)}")
            if at is None:
                raise SetupError(f"object {number} of scene {task['scene']!r} is next to no navigable point")
            self.instances.append(Instance(thing["category"], FIRST_NUMBER + number, position, at))
        placed = zip(self.instances, task["objects"])  # noqa: B905 (Python 3.8)
        self.simulation.place([(t.get("template", i.category), i.position, i.number) for i, t in placed])
        self._task = task

    def _draw(self, task: dict[str, Any], random: np.random.RandomState) -> tuple[str, np.ndarray, float]:
        """(category, position, heading) of an episode."""
        if task.get("episodes"):
            episode = task["episodes"][random.randint(len(task["episodes"]))]
            return episode["category"], np.asarray(episode["position"], np.float32), float(episode["heading"])
        present = sorted({instance.category for instance in self.instances})
        category = present[random.randint(len(present))]
        ends = [instance.at for instance in self.instances if instance.category == category]
        for _ in range(100):
            point = self.simulation.random_point()
            if point is not None and math.isfinite(self.simulation.distance(point, ends)):
                return category, point, float(random.uniform(-math.pi, math.pi))
        raise SetupError(f"no start in scene {task['scene']!r} from which {category!r} can be reached")

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """One step."""
        self.steps += 1
        success, before = False, self.distance
        if action == STOP:
            success = self.succeeds()
        else:
            self.view = self.simulation.act(action)
            self.pitch += {UP: 1, DOWN: -1}.get(action, 0)
            position, self.heading = self.simulation.pose()
            self.travelled += float(np.linalg.norm(position - self.position))
            self.position = position
            self.distance = self._distance(position)
            if not math.isfinite(self.distance):  # pushed off the navmesh for a moment: the distance is unknown
                self.distance = before
        reward = before - self.distance - SLACK + SUCCESS * success
        truncated = action != STOP and self.steps >= self.spec.horizon
        return self._observe(), reward, action == STOP, truncated, self._metrics(success)

    def succeeds(self) -> bool:
        """Whether stop would be a success now."""
        border = slice(self.border, -self.border or None)
        inner = self.view.ids[border, border]
        near = [g for g in self.goals if np.linalg.norm((g.position - self.position)[[0, 2]]) <= self.radius]
        return any(int((inner == instance.number).sum()) >= self.pixels for instance in near)

    def _metrics(self, success: bool) -> dict[str, float]:
        """SPL: success · l / max(p, l), Anderson et al. 2018 (arXiv 1807.06757), l geodesic, p travelled; soft-SPL puts
        the share of the way that was made in the place of success.
        """
        longest = max(self.travelled, self.first_distance, 1e-6)
        efficiency = self.first_distance / longest if self.first_distance > 1e-6 else 1.0
        made = 1.0 - self.distance / self.first_distance if self.first_distance > 1e-6 else 1.0
        return {
            "success": float(success),
            "spl": float(success) * efficiency,
            "soft_spl": max(made, 0.0) * efficiency,
            "distance": self.distance,
            "collided": float(self.view.collided),
        }

    def _distance(self, position: np.ndarray) -> float:
        return self.simulation.distance(position, [goal.at for goal in self.goals])

    def _observe(self) -> dict[str, np.ndarray]:
        goal = np.zeros(len(self.categories), np.float32)
        goal[self.categories.index(self.category)] = 1.0
        return {"rgb": self.view.rgb, "goal": goal, "gps": self._gps()}

    def _gps(self) -> np.ndarray:
        """(ahead, right) in metres, in the frame of the episode's start."""
        return self._ahead_right(self.position - self.start, self.start_heading)

    @staticmethod
    def _ahead_right(offset: np.ndarray, heading: float) -> np.ndarray:
        sin, cos = math.sin(heading), math.cos(heading)
        return np.array([-offset[0] * sin - offset[2] * cos, offset[0] * cos - offset[2] * sin], np.float32)

    def expert(self) -> int:
        """Follows the shortest way to the nearest instance, turns to it, looks down or up to it, and stops."""
        if self.succeeds():
            return STOP
        _, which, points = self.simulation.way(self.position, [goal.at for goal in self.goals])
        goal = self.goals[max(which, 0)]
        to_goal = goal.position - self.position
        near = float(np.linalg.norm(to_goal[[0, 2]]))
        towards = next((p for p in points[1:] if np.linalg.norm((p - self.position)[[0, 2]]) > 0.05), None)
        arrived = towards is None or self.distance < 0.15
        facing = near <= self.radius and (arrived or self._sees_straight(goal))
        offset = to_goal if facing or towards is None else towards - self.position
        ahead, right = self._ahead_right(offset, self.heading)
        angle, half_turn = math.atan2(-right, ahead), math.radians(self.simulation.settings.turn) / 2
        if abs(angle) > half_turn + 0.01:
            return LEFT if angle > 0 else RIGHT
        if facing:
            down = math.atan2(goal.position[1] - self.position[1] + 0.15 - self.simulation.settings.eye, max(near, 0.1))
            wanted = round(down / (2 * half_turn))
            if wanted != self.pitch:
                return DOWN if wanted < self.pitch else UP
        if arrived:
            return STOP if self.view.collided else FORWARD
        return FORWARD

    def _sees_straight(self, goal: Instance) -> bool:
        """The straight way to a near goal is about as short as the shortest: nothing is in between."""
        straight = np.linalg.norm((goal.at - self.position)[[0, 2]])
        return bool(self.distance < straight + 0.3 and straight < self.radius - 0.5)

    def close(self) -> None:
        """Ends the simulator."""
        self.simulation.close()


def make(**config: Any) -> ExtObjNav:
    """The worker's entry."""
    return ExtObjNav(**config)
