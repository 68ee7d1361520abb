"""ExtObjNav: find an object of a given category, repeatedly in one house (Elawady et al. 2024, arXiv 2410.02751).

A task, the same for a whole trial, is {"scene": id, "objects": [{"category", "position", "template"}, …]}. It can list
"episodes": [{"category", "position", "heading"}, …] to draw from. Otherwise, an episode asks for a category drawn
uniformly from those in the house, and starts at a random navigable point and heading.

The actions are `api.ACTIONS`. `stop` ends the episode. It is a success within the horizontal distance `radius` of an
instance of the category that covers at least `pixels` pixels of the view without a border. The reward is the decrease
of the geodesic distance to the nearest instance, minus 0.001 per step, plus 2 for success. Unlike in the paper, the
agent is a cylinder and not a Fetch robot. Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np

from relic_jax.bridge.protocol import ArraySpec, Spec
from relic_jax.bridge.worker import SetupError
from relic_jax.envs.habitat.api import HIGHEST, LOWEST, REACH, Simulation
from relic_jax.envs.habitat.configuration import ACTIONS, Settings
from relic_jax.envs.habitat.dataset import CATEGORIES

STOP, FORWARD, LEFT, RIGHT, UP, DOWN = range(len(ACTIONS))
METRICS = ("success", "spl", "soft_spl", "distance", "collided")
SLACK, SUCCESS = 0.001, 2.0
FIRST_NUMBER = 10_000  # object ids of scenes are smaller

_checked: set[tuple[str, ...]] = set()  # scenes and templates that this process has checked


class Instance(NamedTuple):
    """An object.

    Attributes:
        category: Name of its category.
        number: Its value in the image of object ids.
        position: Float32 [3].
        at: Float32 [3]; the nearest navigable point.
    """

    category: str
    number: int
    position: np.ndarray
    at: np.ndarray


class ExtObjNav:
    """The environment ExtObjNav, see the module."""

    def __init__(
        self,
        backend: str = "soft",
        scene_dataset: str = "default",
        objects: str = "",
        size: int = 256,
        horizon: int = 500,
        categories: tuple[str, ...] | list[str] = CATEGORIES,
        scenes: tuple[str, ...] | list[str] = (),
        templates: tuple[str, ...] | list[str] = (),
        radius: float = 2.0,
        pixels: int = 10,
        border: int = 5,
        gpus: tuple[int, ...] | list[int] = (),
    ) -> None:
        """Create the simulation.

        Args:
            backend: soft or habitat.
            scene_dataset: See `Settings`.
            objects: Folder of object templates.
            size: Pixels of a side of the image.
            horizon: Steps of the longest episode.
            categories: Names of the categories.
            scenes: Scenes that the first worker checks now, to report missing ones before training starts.
            templates: Object templates, which the first worker checks when it starts.
            radius: Maximum distance of a successful stop, in meters.
            pixels: Minimum number of pixels of the object for a successful stop.
            border: Width of the ignored border, in pixels.
            gpus: Indices of GPUs, assigned to the workers in turn; empty: software rendering.

        Raises:
            SetupError: The simulator, a scene or an object template is missing.
        """
        worker = int(os.environ.get("RELIC_WORKER", "0"))
        gpu = gpus[worker % len(gpus)] if gpus else -1
        settings = Settings(backend=backend, scene_dataset=scene_dataset, objects=objects, size=size, gpu=gpu)
        self.simulation = Simulation(settings)
        checks = (*scenes, "", *templates, "", scene_dataset, objects)
        if worker == 0 and checks not in _checked:
            self.simulation.check(scenes, templates)
            _checked.add(checks)
        self.radius, self.pixels, self.border = radius, pixels, border
        self.categories = list(categories)
        self.versions = {backend: self.simulation.version}
        self.spec = self.announce(size, horizon, len(self.categories))
        self._task: Any = None
        self.instances: list[Instance] = []
        self.goals: list[Instance] = []
        self.ends: list[np.ndarray] = []

    @staticmethod
    def announce(size: int, horizon: int, categories: int) -> Spec:
        """Return the spec, which the learner can compute without a simulator."""
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
        """Start an episode. The scene is set up again only if the task has changed."""
        if task != self._task:
            self._furnish(task)
        random = np.random.RandomState(seed)
        self.simulation.seed(seed)
        self.category, self.start, self.start_heading = self._draw(task, random)
        self.heading = self.start_heading
        self.goals = [instance for instance in self.instances if instance.category == self.category]
        self.ends = [goal.at for goal in self.goals]
        self.simulation.put(self.start, self.heading)
        self.first_distance = self.distance = self._distance(self.start)
        if not math.isfinite(self.distance):
            raise SetupError(f"category {self.category!r} cannot be reached in scene {task['scene']!r}")
        self.steps, self.travelled, self.position, self.pitch = 0, 0.0, self.start, 0
        self.view = self.simulation.look()
        return self._observe()

    def _furnish(self, task: dict[str, Any]) -> None:
        """Load the scene and place the objects."""
        self._task = None
        self.simulation.load(task["scene"])
        self.instances = []
        for number, item in enumerate(task["objects"], start=1):
            position = np.asarray(item["position"], np.float32)
            at = self.simulation.reach(position)
            if item["category"] not in self.categories:
                raise SetupError(f"category {item['category']!r} is none of: {', '.join(self.categories)}")
            if at is None:
                raise SetupError(
                    f"object {number} of scene {task['scene']!r} is at {item['position']}; allowed: within "
                    f"{REACH} m of the floor that episodes take place on, and {LOWEST} … {HIGHEST} m above it"
                )
            self.instances.append(Instance(item["category"], FIRST_NUMBER + number, position, at))
        pairs = zip(self.instances, task["objects"])  # noqa: B905 (Python 3.8)
        self.simulation.place([(t.get("template", i.category), i.position, i.number) for i, t in pairs])
        self._task = task

    def _draw(self, task: dict[str, Any], random: np.random.RandomState) -> tuple[str, np.ndarray, float]:
        """Draw (category, position, heading) of an episode."""
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
        """Take one step."""
        self.steps += 1
        success, before = False, self.distance
        if action == STOP:
            success = self.succeeds()
        else:
            self.view = self.simulation.act(action)
            self.pitch += {UP: 1, DOWN: -1}.get(action, 0)
            position, self.heading = self.simulation.pose()
            if not np.array_equal(position, self.position):  # the geodesic distance is expensive
                self.travelled += float(np.linalg.norm(position - self.position))
                self.position = position
                self.distance = self._distance(position)
                if not math.isfinite(self.distance):  # momentarily off the navmesh: the distance is unknown
                    self.distance = before
        reward = before - self.distance - SLACK + SUCCESS * success
        truncated = action != STOP and self.steps >= self.spec.horizon
        return self._observe(), reward, action == STOP, truncated, self._metrics(success)

    def succeeds(self) -> bool:
        """Return whether stop would be a success now."""
        near = [g for g in self.goals if np.linalg.norm((g.position - self.position)[[0, 2]]) <= self.radius]
        if not near:
            return False
        border = slice(self.border, -self.border or None)
        inner = self.simulation.ids()[border, border]
        return any(int((inner == instance.number).sum()) >= self.pixels for instance in near)

    def _metrics(self, success: bool) -> dict[str, float]:
        """Return the metrics.

        SPL is success · l / max(p, l) with l the geodesic distance and p the traveled distance (Anderson et al. 2018,
        arXiv 1807.06757). Soft SPL replaces success by the covered share of l.
        """
        longest = max(self.travelled, self.first_distance, 1e-6)
        efficiency = self.first_distance / longest if self.first_distance > 1e-6 else 1.0
        covered = 1.0 - self.distance / self.first_distance if self.first_distance > 1e-6 else 1.0
        return {
            "success": float(success),
            "spl": float(success) * efficiency,
            "soft_spl": max(covered, 0.0) * efficiency,
            "distance": self.distance,
            "collided": float(self.view.collided),
        }

    def _distance(self, position: np.ndarray) -> float:
        return self.simulation.distance(position, self.ends)

    def _observe(self) -> dict[str, np.ndarray]:
        goal = np.zeros(len(self.categories), np.float32)
        goal[self.categories.index(self.category)] = 1.0
        return {"rgb": self.view.rgb, "goal": goal, "gps": self._gps()}

    def _gps(self) -> np.ndarray:
        """Return (forward, right) in meters relative to the pose at the start of the episode."""
        return self._ahead_right(self.position - self.start, self.start_heading)

    @staticmethod
    def _ahead_right(offset: np.ndarray, heading: float) -> np.ndarray:
        sin, cos = math.sin(heading), math.cos(heading)
        return np.array([-offset[0] * sin - offset[2] * cos, offset[0] * cos - offset[2] * sin], np.float32)

    def expert(self) -> int:
        """Return the expert's action: follow the shortest path, turn and look at the nearest instance, and stop."""
        if self.succeeds():
            return STOP
        _, index, points = self.simulation.path(self.position, self.ends)
        goal = self.goals[max(index, 0)]
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
            pitch = round(down / (2 * half_turn))
            if pitch != self.pitch:
                return DOWN if pitch < self.pitch else UP
        if arrived:
            return STOP if self.view.collided else FORWARD
        return FORWARD

    def _sees_straight(self, goal: Instance) -> bool:
        """Return whether a near goal has no obstacle before it: the straight path is about as short as the shortest."""
        straight = np.linalg.norm((goal.at - self.position)[[0, 2]])
        return bool(self.distance < straight + 0.3 and straight < self.radius - 0.5)

    def close(self) -> None:
        """Close the simulator."""
        self.simulation.close()


def make(**config: Any) -> ExtObjNav:
    """Make the environment. Entry of the worker."""
    return ExtObjNav(**config)
