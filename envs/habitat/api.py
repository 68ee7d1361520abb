"""The part of habitat-sim that this library uses, with one interface for its versions from 0.2.5 on and for `soft`.

All code that depends on the version of the simulator is in this file, `configuration`, `islands` and `overlap`.
Positions are float32 [3] with y up; headings are radians about y (0 is along −z, positive to the left). Runs in a
worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from relic_jax.bridge.worker import SetupError, activity
from relic_jax.envs.habitat import islands, overlap
from relic_jax.envs.habitat.configuration import (
    ACTIONS,
    HOW,
    Settings,
    configuration,
    has_physics,
    load_backend,
)
from relic_jax.envs.habitat.islands import Island
from relic_jax.envs.habitat.scene_files import SceneDataset, resolved
from relic_jax.envs.habitat.templates import Templates

REACH = 2.0  # meters; largest horizontal distance between an object and the navmesh point from which it is reached
LOWEST, HIGHEST = -0.5, 2.4  # meters; heights of an object above this point


class Observation(NamedTuple):
    """An observation.

    Attributes:
        rgb: Uint8 [H, W, 3].
        collided: Whether the last step hit an obstacle.
    """

    rgb: np.ndarray
    collided: bool


def vector(value: Any) -> np.ndarray:
    """Convert an array or a magnum Vector3, depending on the version, to float32 [3]."""
    return np.array([value[0], value[1], value[2]], np.float32)


def heading_of(rotation: Any) -> float:
    """Return the angle about y, in radians, of a quaternion.

    Args:
        rotation: A quaternion of magnum, an object with the attributes w, x, y and z, or a list [x, y, z, w].
    """
    if hasattr(rotation, "scalar"):
        y, w = rotation.vector[1], rotation.scalar
    elif hasattr(rotation, "w"):
        y, w = rotation.y, rotation.w
    else:
        y, w = rotation[1], rotation[3]
    return 2 * math.atan2(float(y), float(w))


class Simulation:
    """One simulator with one agent, which loads scenes one after another: a process can have only one simulator."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.module = settings, load_backend(settings.backend)
        dataset = settings.scene_dataset
        if dataset != "default" and not os.path.isfile(dataset):
            raise SetupError(f"scene dataset {dataset!r} does not exist; allowed: a *.scene_dataset_config.json")
        if settings.objects and not os.path.isdir(settings.objects):
            raise SetupError(f"folder of object templates {settings.objects!r} does not exist; allowed: a folder")
        self._files = SceneDataset(dataset)
        self._templates = Templates(())
        self.scene: str | None = None
        self.islands: list[Island] = []
        self.island: Island | None = None
        self._simulator: Any = None
        self._objects: list[int] = []
        self._ends: list[np.ndarray] = []
        self._query: Any = None

    @property
    def version(self) -> str:
        """Version of the simulator's package. That of habitat-sim can be wrong."""
        return str(getattr(self.module, "__version__", "unknown"))

    def load(self, scene: str) -> None:
        """Load a scene and choose its island. Raises SetupError if one of its files or its navmesh is missing."""
        if scene == self.scene:
            return
        self.scene = None
        self._objects, self._ends = [], []
        self._check_files(scene)
        try:
            with activity(f"loading scene {scene!r}"):
                self._configure(scene)
        except (FileNotFoundError, ValueError, AssertionError, RuntimeError) as error:
            where = f"in scene dataset {self.settings.scene_dataset!r}"
            raise SetupError(f"scene {scene!r} cannot be loaded {where}: {error}") from None
        finder = self._simulator.pathfinder
        if not finder.is_loaded and not self._make_navmesh(finder):
            raise SetupError(
                f"scene {scene!r} has no navmesh, and none can be made for radius {self.settings.radius} m"
            )
        self._simulator.initialize_agent(0)
        self.islands = islands.survey(self._simulator, self.module)
        self.island = islands.choose(self.islands)
        self.scene = scene

    def handle(self) -> str:
        """Return a canonical name of the loaded scene, independent of the spelling of its id."""
        if self.settings.backend == "soft":
            return str(self._simulator.curr_scene_name)
        return resolved(self._simulator, self._files.handle(str(self.scene)))

    def _configure(self, scene: str) -> None:
        """Load a scene and the object templates. Movable objects become kinematic, so physics does not move them."""
        if self._simulator is None:
            self._simulator = self.module.Simulator(self.configuration(scene))
        else:
            self._simulator.reconfigure(self.configuration(scene))
        if has_physics(self.module):
            motion = self.module.physics.MotionType
            for kind in ("rigid", "articulated"):
                items = getattr(self._simulator, f"get_{kind}_object_manager")()
                for item in items.get_objects_by_handle_substring("").values():
                    if item.motion_type == motion.DYNAMIC:
                        item.motion_type = motion.KINEMATIC
        manager = self._simulator.get_object_template_manager()
        if self.settings.objects:
            manager.load_configs(self.settings.objects)
        self._templates = Templates(manager.get_template_handles(""), self.settings.objects)

    def configuration(self, scene: str) -> Any:
        """Return the simulator's configuration for a scene."""
        return configuration(self.module, self.settings, self._files.handle(scene))

    def _check_files(self, scene: str) -> None:
        articulated = self._files.check(scene)
        if articulated and not has_physics(self.module):
            raise SetupError(
                f"scene {scene!r} has {len(articulated)} articulated objects, such as {articulated[0]!r}, and "
                f"habitat-sim was built without Bullet, which they need; {HOW}"
            )

    def template(self, name: str) -> str:
        """Return the handle of the object template `name` in the loaded scene. Raises SetupError, see `Templates`."""
        if self.settings.backend == "soft" and not self.settings.objects:
            return name  # a cube for every name
        return self._templates.find(name)

    def check(self, scenes: Sequence[str], templates: Sequence[str] = ()) -> None:
        """Raise SetupError if a scene, a file of a scene, or an object template is missing.

        The first scene is loaded, and with `soft` all of them, which also checks their navmeshes. Since habitat-sim
        takes seconds per scene, only the files of its other scenes are checked.
        """
        for scene in scenes[:1] if self.settings.backend != "soft" else scenes:
            self.load(scene)
        for name in templates if scenes else ():
            self.template(name)
        for scene in scenes:
            self._check_files(scene)
            if not (self.settings.backend == "soft" or os.path.isfile(scene) or self._knows(scene)):
                raise SetupError(
                    f"scene {scene!r} is neither a file nor in scene dataset {self.settings.scene_dataset!r}"
                )

    def _knows(self, scene: str) -> bool:
        """Return whether the scene dataset has the scene. habitat-sim matches parts of names."""
        mediator = self._simulator.metadata_mediator
        handles = list(mediator.get_scene_handles())
        if hasattr(mediator, "stage_template_manager"):
            handles += mediator.stage_template_manager.get_template_handles(scene)
        return any(scene in handle for handle in handles)

    def _make_navmesh(self, finder: Any) -> bool:
        settings = self.module.nav.NavMeshSettings()
        settings.set_defaults()
        settings.agent_radius, settings.agent_height = self.settings.radius, self.settings.height
        if hasattr(settings, "include_static_objects"):  # before 0.2.3, an argument of recompute_navmesh
            settings.include_static_objects = True
        return bool(self._simulator.recompute_navmesh(finder, settings)) and bool(finder.is_loaded)

    def place(self, objects: list[tuple[str, np.ndarray, int]]) -> None:
        """Replace the objects of the scene by (template, position, number > 0).

        The position is the center of the bottom of the object's bounding box.
        """
        manager = self._simulator.get_rigid_object_manager()
        for index in self._objects:
            manager.remove_object_by_id(index)
        self._objects = []
        for template, position, number in objects:
            item = manager.add_object_by_template_handle(self.template(template))
            low, high = overlap.bounds(item)  # the origin can be anywhere, by default it is the center
            bottom = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
            item.translation = (position - bottom).astype(np.float32)
            item.motion_type = self.module.physics.MotionType.STATIC
            item.semantic_id = number
            self._objects.append(item.object_id)

    def seed(self, seed: int) -> None:
        """Seed `random_point`."""
        self._simulator.seed(seed)
        self._simulator.pathfinder.seed(seed)

    def put(self, position: np.ndarray, heading: float) -> None:
        """Move the agent and let it look straight ahead."""
        agent = self._simulator.get_agent(0)
        state = self.module.agent.AgentState()
        state.position = np.asarray(position, np.float32)
        state.rotation = [0.0, math.sin(heading / 2), 0.0, math.cos(heading / 2)]
        agent.set_state(state, reset_sensors=True)

    def pose(self) -> tuple[np.ndarray, float]:
        """Return the agent's position and heading."""
        node = self._simulator.get_agent(0).scene_node  # get_state would also compute the poses of the cameras
        return vector(node.absolute_translation), heading_of(node.rotation)

    def move(self, action: int) -> bool:
        """Execute ACTIONS[action], except stop. Return whether the agent hit an obstacle."""
        return bool(self._simulator.get_agent(0).act(ACTIONS[action]))

    def rgb(self) -> np.ndarray:
        """Render the view. Return uint8 [H, W, 3]."""
        rgba = self._render("rgb")
        image = np.empty((*rgba.shape[:2], 3), np.uint8)
        for channel in range(3):  # seven times as fast as a copy of rgba[..., :3]
            image[..., channel] = rgba[..., channel]
        return image

    def ids(self) -> np.ndarray:
        """Render the objects in view. Return int64 [H, W]; numbers of the objects in `place`, 0 elsewhere."""
        return self._render("ids").astype(np.int64)

    def _render(self, camera: str) -> np.ndarray:
        """Render one camera: `Simulator.step` would render both, and simulate physics."""
        simulator = self._simulator
        sensor = (simulator.sensors if hasattr(simulator, "sensors") else simulator._sensors)[camera]
        sensor.draw_observation()
        return np.asarray(sensor.get_observation())

    def act(self, action: int) -> Observation:
        """Execute ACTIONS[action], except stop, and return the observation."""
        collided = self.move(action)
        return Observation(self.rgb(), collided)

    def look(self) -> Observation:
        """Return the observation at the current pose."""
        return Observation(self.rgb(), False)

    def containers(self, positions: Sequence[np.ndarray]) -> list[str | None]:
        """Return, for each placed object at these positions, the name of the object that it stands inside, or None."""
        boxes = overlap.boxes_of(self._simulator)
        pairs = zip(positions, self._objects)  # noqa: B905 (Python 3.8)
        return [overlap.container(boxes, position, number) for position, number in pairs]

    def random_point(self) -> np.ndarray | None:
        """Return a random point of the chosen island, or None if none was found."""
        if self.island is None:
            return None
        finder = self._simulator.pathfinder
        point = vector(finder.get_random_navigable_point(max_tries=100, island_index=self.island.number))
        return point if np.isfinite(point).all() else None

    def snap(self, position: np.ndarray) -> np.ndarray | None:
        """Return the nearest point of the chosen island, or None if there is none."""
        if self.island is None:
            return None
        finder = self._simulator.pathfinder
        point = vector(finder.snap_point(np.asarray(position, np.float32), island_index=self.island.number))
        return point if np.isfinite(point).all() else None

    def reach(self, position: np.ndarray) -> np.ndarray | None:
        """Return the point of the chosen island from which an object at a position is reached, or None.

        It is the nearest point, within `REACH` and at most `HIGHEST` below the object.
        """
        at = self.snap(position)
        if at is None:
            return None
        offset = np.asarray(position, np.float32) - at
        is_near = np.linalg.norm(offset[[0, 2]]) <= REACH and LOWEST <= offset[1] <= HIGHEST
        return at if is_near else None

    def distance(self, start: np.ndarray, ends: list[np.ndarray]) -> float:
        """Return the length of the shortest path to the nearest of several points, infinite if there is none.

        Consecutive calls with the same list share a query, which finds the points on the navmesh only once.
        """
        if ends is not self._ends:
            self._ends, self._query = ends, self._path_to(ends)
        return self._find(self._query, start)

    def path(self, start: np.ndarray, ends: list[np.ndarray]) -> tuple[float, int, list[np.ndarray]]:
        """Return the shortest path to the nearest of several points.

        Returns:
            (length, index of the end, points), or (inf, −1, []) if there is no path.
        """
        path = self._path_to(ends)
        length = self._find(path, start)
        if not math.isfinite(length):
            return math.inf, -1, []
        return length, int(path.closest_end_point_index), [vector(point) for point in path.points]

    def _path_to(self, ends: list[np.ndarray]) -> Any:
        path = self.module.nav.MultiGoalShortestPath()
        path.requested_ends = [np.asarray(end, np.float32) for end in ends]
        return path

    def _find(self, path: Any, start: np.ndarray) -> float:
        path.requested_start = np.asarray(start, np.float32)
        return float(path.geodesic_distance) if self._simulator.pathfinder.find_path(path) else math.inf

    def table_tops(self) -> list[np.ndarray]:
        """Return the centers of the table tops, float32 [3] each. Empty in `habitat`, which does not list tables."""
        if self.settings.backend != "soft":
            return []
        house = self._simulator.house
        low, high = house.boxes.low[list(house.tables)], house.boxes.high[list(house.tables)]
        middle = (low + high) / 2
        middle[:, 1] = high[:, 1]
        return [point.astype(np.float32) for point in middle]

    def close(self) -> None:
        """Close the simulator."""
        if self._simulator is not None:
            self._simulator.close(destroy=True)
            self._simulator = None


def open_simulation(**settings: Any) -> Simulation:
    """Open a simulation with these `Settings`. For other interpreters."""
    return Simulation(Settings(**settings))
