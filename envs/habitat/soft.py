"""A small software simulator with the slice of habitat-sim's interface that `api` calls, under the same names.

No files, no GPU: scenes are procedural houses ("house-SEED") or JSON files, objects are boxes, the camera is a ray
caster in numpy (RGB, depth, object ids), geodesics are exact. Worker side: Python 3.8 and numpy.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, Tuple  # noqa: UP035 (Python 3.8)

import numpy as np

from relic_jax.envs.habitat.house import WALL_HEIGHT, Boxes, FreeSpace, House, make_house

__version__ = "soft-1"
OBJECT_SIZE = 0.3
SKY, FLOOR = np.array([190, 200, 215]), np.array([110, 100, 90])


class SensorType:
    """Kinds of cameras."""

    COLOR, DEPTH, SEMANTIC = 1, 2, 3


class MotionType:
    """How objects move. Here, none does."""

    STATIC, KINEMATIC, DYNAMIC = 0, 1, 2


class ActuationSpec:
    """amount: metres or degrees."""

    def __init__(self, amount: float, constraint: float | None = None) -> None:
        self.amount, self.constraint = amount, constraint


class ActionSpec:
    """name: move_forward, turn_left, turn_right, look_up, look_down."""

    def __init__(self, name: str, actuation: ActuationSpec | None = None) -> None:
        self.name, self.actuation = name, actuation


class AgentConfiguration:
    """A cylinder with cameras."""

    def __init__(
        self,
        height: float = 1.5,
        radius: float = 0.1,
        sensor_specifications: list[CameraSensorSpec] | None = None,
        action_space: dict[str, ActionSpec] | None = None,
        body_type: str = "cylinder",
    ) -> None:
        self.height, self.radius, self.body_type = height, radius, body_type
        self.sensor_specifications = sensor_specifications or []
        self.action_space = action_space or {}


class AgentState:
    """position: float32 [3]. rotation: a `Quaternion`, or [x, y, z, w]."""

    def __init__(self, position: Any = None, rotation: Any = None, sensor_states: Any = None) -> None:
        self.position = np.zeros(3, np.float32) if position is None else np.asarray(position, np.float32)
        self.rotation = Quaternion(1.0, 0.0, 0.0, 0.0) if rotation is None else rotation
        self.sensor_states = sensor_states or {}


class Quaternion(NamedTuple):
    """w + xi + yj + zk."""

    w: float
    x: float
    y: float
    z: float


class CameraSensorSpec:
    """A pinhole camera. position: above the agent's feet. hfov: degrees. resolution: [height, width]."""

    def __init__(self) -> None:
        self.uuid, self.sensor_type = "", SensorType.COLOR
        self.resolution, self.position, self.orientation = [128, 128], [0.0, 1.5, 0.0], [0.0, 0.0, 0.0]
        self.hfov = 90.0


class SimulatorConfiguration:
    """What scene, and how it is simulated."""

    def __init__(self) -> None:
        self.scene_id, self.scene_dataset_config_file = "NONE", "default"
        self.gpu_device_id, self.allow_sliding, self.enable_physics, self.random_seed = 0, True, False, 0
        self.override_scene_light_defaults, self.scene_light_setup = False, ""


class Configuration:
    """A simulator's and its agents' configurations."""

    def __init__(self, sim_cfg: SimulatorConfiguration, agents: list[AgentConfiguration]) -> None:
        self.sim_cfg, self.agents = sim_cfg, agents


class NavMeshSettings:
    """The agent that the navmesh is for."""

    def __init__(self) -> None:
        self.set_defaults()

    def set_defaults(self) -> None:
        """As of a small robot."""
        self.agent_height, self.agent_radius = 1.5, 0.1


class ShortestPath:
    """A query and its answer."""

    def __init__(self) -> None:
        self.requested_start: Any = np.zeros(3)
        self.requested_end: Any = np.zeros(3)
        self.geodesic_distance = math.inf
        self.trace: Callable[[], list[np.ndarray]] = list

    @property
    def points(self) -> list[np.ndarray]:
        """The way's points, traced only for those who ask: most want its length."""
        return self.trace()


class MultiGoalShortestPath(ShortestPath):
    """A query for the nearest of several ends, and its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.requested_ends: Any = []
        self.closest_end_point_index = -1


def _flat(point: Any) -> np.ndarray:
    """x, z of a point."""
    return np.asarray(point, np.float64)[[0, 2]]


def _point(flat: np.ndarray) -> np.ndarray:
    return np.array([flat[0], 0.0, flat[1]], np.float32)


class PathFinder:
    """The navmesh."""

    def __init__(self) -> None:
        self.space: FreeSpace | None = None
        self._random = np.random.RandomState(0)
        self._ways: dict[bytes, np.ndarray] = {}

    @property
    def is_loaded(self) -> bool:
        """Whether there is anywhere to go."""
        return self.space is not None

    def build(self, house: House, radius: float) -> bool:
        """Makes the navmesh; False where the agent fits nowhere."""
        space = FreeSpace(house, radius)
        self._ways = {}
        grid = np.stack(np.meshgrid(*(np.linspace(0, s, 40) for s in house.size)), -1).reshape(-1, 2)
        self.space = space if space.is_free(grid).any() else None
        return self.is_loaded

    def seed(self, seed: int) -> None:
        """Seeds random points."""
        self._random = np.random.RandomState(seed)

    def _loaded(self) -> FreeSpace:
        if self.space is None:
            raise RuntimeError("no navmesh is loaded")
        return self.space

    def is_navigable(self, pt: Any, max_y_delta: float = 0.5) -> bool:
        """Whether the agent can be there."""
        point = np.asarray(pt, np.float64)
        return bool(abs(point[1]) <= max_y_delta and self._loaded().is_free(_flat(point)[None])[0])

    def get_random_navigable_point(self, max_tries: int = 10, island_index: int = -1) -> np.ndarray:
        """A uniformly random point, NaN where `max_tries` were not enough."""
        space = self._loaded()
        for _ in range(max_tries):
            point = self._random.uniform(0, 1, 2) * space.size
            if space.is_free(point[None])[0]:
                return _point(point)
        return np.full(3, np.nan, np.float32)

    def snap_point(self, point: Any, island_index: int = -1) -> np.ndarray:
        """The nearest navigable point, NaN where there is none."""
        return _point(self._loaded().snap(_flat(point)))

    def try_step(self, start: Any, end: Any) -> np.ndarray:
        """Where a step arrives that slides along what it hits."""
        return _point(self._loaded().move(_flat(start), _flat(end)))

    def try_step_no_sliding(self, start: Any, end: Any) -> np.ndarray:
        """Where a step arrives that stops at what it hits."""
        return _point(self._loaded().move(_flat(start), _flat(end), slide=False))

    def find_path(self, path: Any) -> bool:
        """Answers a ShortestPath or a MultiGoalShortestPath; False where no end can be reached."""
        space = self._loaded()
        several = isinstance(path, MultiGoalShortestPath)
        ends = [_flat(end) for end in (path.requested_ends if several else [path.requested_end])]
        start = _flat(path.requested_start)
        lengths = [space.distance(start, end, self._ways_to(end)) for end in ends]
        best = int(np.argmin(lengths)) if lengths else -1
        path.geodesic_distance = lengths[best] if lengths else math.inf
        found = math.isfinite(path.geodesic_distance)
        path.trace = lambda: [_point(point) for point in space.way(start, ends[best])] if found else []
        if several:
            path.closest_end_point_index = best if found else -1
        return found

    def _ways_to(self, end: np.ndarray) -> np.ndarray:
        """Ways from all corners to an end are computed once: tasks ask for the same ends at every step."""
        key = end.tobytes()
        if key not in self._ways:
            if len(self._ways) > 256:
                self._ways.clear()
            self._ways[key] = self._loaded().ways_to(end)
        return self._ways[key]


class RigidObject:
    """A box of `OBJECT_SIZE`, standing on `translation`."""

    def __init__(self, object_id: int, handle: str) -> None:
        self.object_id, self.handle, self.creation_attributes = object_id, f"{handle}_:{object_id:04d}", None
        self.template = handle
        self.translation = np.zeros(3, np.float32)
        self.rotation: Any = None
        self.motion_type, self.semantic_id = MotionType.DYNAMIC, 0


class RigidObjectManager:
    """The objects of a scene."""

    def __init__(self) -> None:
        self.objects: dict[int, RigidObject] = {}
        self._next = 0

    def add_object_by_template_handle(self, object_lib_handle: str) -> RigidObject:
        """Makes an object; its place is set by the caller."""
        made = RigidObject(self._next, object_lib_handle)
        self.objects[self._next] = made
        self._next += 1
        return made

    def remove_object_by_id(
        self, object_id: int, delete_object_node: bool = True, delete_visual_node: bool = True
    ) -> None:
        """Removes one."""
        del self.objects[object_id]

    def remove_all_objects(self) -> None:
        """Removes all."""
        self.objects.clear()

    def get_num_objects(self) -> int:
        """How many there are."""
        return len(self.objects)


class ObjectTemplateManager:
    """Every name is a template: a box whose colour follows from the name."""

    def get_template_handles(self, search_str: str = "", contains: bool = True) -> list[str]:
        """The names that match: the name itself."""
        return [search_str] if search_str else []

    def load_configs(self, path: str, save_as_defaults: bool = False) -> list[int]:
        """There are no files to load."""
        return []


class Agent:
    """The agent's body and cameras."""

    def __init__(self, config: AgentConfiguration) -> None:
        self.agent_config = config
        self.position, self.heading, self.pitch = np.zeros(3, np.float32), 0.0, 0.0

    def set_state(self, state: AgentState, reset_sensors: bool = True, infer_sensor_states: bool = True) -> None:
        """Puts the agent somewhere; with `reset_sensors` it looks straight ahead again."""
        self.position = np.asarray(state.position, np.float32)
        rotation = state.rotation
        y, w = (rotation.y, rotation.w) if hasattr(rotation, "w") else (rotation[1], rotation[3])
        self.heading = 2 * math.atan2(y, w)
        if reset_sensors:
            self.pitch = 0.0

    def get_state(self) -> AgentState:
        """Where it is."""
        half = self.heading / 2
        return AgentState(self.position.copy(), Quaternion(math.cos(half), 0.0, math.sin(half), 0.0))


class Simulator:
    """One agent in one scene."""

    def __init__(self, config: Configuration) -> None:
        self.pathfinder = PathFinder()
        self._objects = RigidObjectManager()
        self._collided = False
        self.config = config
        self._load(config)

    def _load(self, config: Configuration) -> None:
        self.config = config
        self.house = load_scene(config.sim_cfg.scene_id)
        self._objects.remove_all_objects()
        self.agents = [Agent(agent) for agent in config.agents]
        self.pathfinder.seed(config.sim_cfg.random_seed)
        self.pathfinder.build(self.house, config.agents[0].radius)
        self._cameras = [_Camera(spec) for spec in config.agents[0].sensor_specifications]

    def reconfigure(self, config: Configuration) -> None:
        """Another scene, or another agent."""
        self._load(config)

    def recompute_navmesh(self, pathfinder: PathFinder, navmesh_settings: NavMeshSettings) -> bool:
        """Makes the navmesh anew; False where the agent fits nowhere."""
        return pathfinder.build(self.house, navmesh_settings.agent_radius)

    def seed(self, new_seed: int) -> None:
        """Seeds random points."""
        self.pathfinder.seed(new_seed)

    def initialize_agent(self, agent_id: int, initial_state: AgentState | None = None) -> Agent:
        """The agent, at a state."""
        if initial_state is not None:
            self.agents[agent_id].set_state(initial_state)
        return self.agents[agent_id]

    def get_agent(self, agent_id: int) -> Agent:
        """The agent."""
        return self.agents[agent_id]

    def get_rigid_object_manager(self) -> RigidObjectManager:
        """The objects."""
        return self._objects

    def get_object_template_manager(self) -> ObjectTemplateManager:
        """What objects can be made."""
        return ObjectTemplateManager()

    def reset(self) -> dict[str, np.ndarray]:
        """Observations; the agent stays where it is."""
        return self.get_sensor_observations()

    def step(self, action: str, dt: float = 1.0 / 60.0) -> dict[str, Any]:
        """Acts and looks."""
        agent = self.agents[0]
        actuation = agent.agent_config.action_space[action].actuation
        amount = 0.0 if actuation is None else actuation.amount
        self._collided = False
        if action == "move_forward":
            self._move(agent, amount)
        elif action in ("turn_left", "turn_right"):
            agent.heading += math.radians(amount) * (1 if action == "turn_left" else -1)
        elif action in ("look_up", "look_down"):
            limit = math.pi if actuation is None or actuation.constraint is None else math.radians(actuation.constraint)
            change = math.radians(amount) * (1 if action == "look_up" else -1)
            agent.pitch = max(-limit, min(limit, agent.pitch + change))
        return {**self.get_sensor_observations(), "collided": self._collided}

    def _move(self, agent: Agent, amount: float) -> None:
        ahead = np.array([-math.sin(agent.heading), 0.0, -math.cos(agent.heading)])
        target = agent.position + ahead * amount
        sliding = self.config.sim_cfg.allow_sliding
        finder = self.pathfinder
        arrived = (finder.try_step if sliding else finder.try_step_no_sliding)(agent.position, target)
        self._collided = bool(np.linalg.norm(arrived - target) > 1e-4)
        agent.position = arrived

    def get_sensor_observations(self, agent_ids: int = 0) -> dict[str, np.ndarray]:
        """What every camera sees: color uint8 [H, W, 4], depth float32 [H, W], semantic uint32 [H, W]."""
        return render(self._cameras, self._boxes(), self.agents[0])

    def _boxes(self) -> _Things:
        objects = list(self._objects.objects.values())
        feet = np.array([thing.translation for thing in objects], np.float64).reshape(-1, 3)
        half = OBJECT_SIZE / 2
        low, high = feet - np.array([half, 0, half]), feet + np.array([half, OBJECT_SIZE, half])
        colors = np.array([object_color(thing.template) for thing in objects], np.uint8).reshape(-1, 3)
        boxes = self.house.boxes
        ids = [0] * len(boxes.low) + [thing.semantic_id for thing in objects]
        parts = [(boxes.low, low), (boxes.high, high), (boxes.color, colors)]
        return _Things(Boxes(*(np.concatenate(part) for part in parts)), np.array(ids, np.uint32))

    def close(self, destroy: bool = True) -> None:
        """Nothing to free."""


class _Things(NamedTuple):
    """boxes and, for each, the number that the semantic camera shows."""

    boxes: Boxes
    ids: np.ndarray


def load_scene(scene_id: str) -> House:
    """house-SEED, or a file {"size": [x, z], "boxes": [[x0, y0, z0, x1, y1, z1, r, g, b], …], "tables": [i, …]}."""
    kind, _, seed = scene_id.partition("-")
    if kind == "house" and seed.isdigit():
        return make_house(int(seed))
    if not os.path.isfile(scene_id):
        raise FileNotFoundError(f"scene {scene_id!r} is neither house-SEED nor a file")
    with open(scene_id, encoding="utf-8") as file:
        data = json.load(file)
    rows = np.array(data["boxes"], np.float64).reshape(-1, 9)
    boxes = Boxes(rows[:, :3], rows[:, 3:6], rows[:, 6:].astype(np.uint8))
    return House((data["size"][0], data["size"][1]), boxes, tuple(data.get("tables", ())))


def object_color(name: str) -> tuple[int, int, int]:
    """A bright colour that follows from the name."""
    code = sum((index + 1) * 131 * byte for index, byte in enumerate(name.encode())) % 997
    r, g, b = colorsys.hsv_to_rgb((code * 0.61803) % 1.0, 1.0, 1.0)
    return int(255 * r), int(255 * g), int(255 * b)


class _Camera:
    """A camera with its rays, float64 [H·W, 3], for heading and pitch 0: x [W] and y [H] at a depth of 1."""

    def __init__(self, spec: CameraSensorSpec) -> None:
        self.spec = spec
        height, width = (int(size) for size in spec.resolution)
        half = math.tan(math.radians(float(spec.hfov)) / 2)
        x = (2 * (np.arange(width) + 0.5) / width - 1) * half
        y = (1 - 2 * (np.arange(height) + 0.5) / height) * half * height / width
        rays = np.stack(np.broadcast_arrays(x[None], y[:, None], np.full((1, 1), -1.0)), -1)
        self.rays, self.x, self.y = rays.reshape(-1, 3), x, y
        self.key = (height, width, float(spec.hfov), tuple(float(part) for part in spec.position))


def render(cameras: list[_Camera], things: _Things, agent: Agent) -> dict[str, np.ndarray]:
    """Cameras of equal geometry share their rays."""
    found, seen = {}, {}
    for camera in cameras:
        if camera.key not in seen:
            seen[camera.key] = _cast(camera, things, agent)
        color, depth, ids = seen[camera.key]
        kind = camera.spec.sensor_type
        found[camera.spec.uuid] = {SensorType.COLOR: color, SensorType.DEPTH: depth}.get(kind, ids)
    return found


def _cast(camera: _Camera, things: _Things, agent: Agent) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One ray per pixel: (color uint8 [H, W, 4], depth float32 [H, W], ids uint32 [H, W])."""
    height, width = camera.key[:2]
    eye = agent.position.astype(np.float64) + np.array(camera.key[3])
    to_world = _about_x(agent.pitch).T @ _about_y(agent.heading).T
    rays = (camera.rays @ to_world).T.astype(np.float32).reshape(3, height, width)
    rays[np.abs(rays) < 1e-7] = 1e-7
    boxes = things.boxes
    down = rays[1] < 0
    depth = np.where(down, -eye[1], WALL_HEIGHT - eye[1]).astype(np.float32) / rays[1]  # of the floor and the ceiling
    low, high = boxes.low - eye, boxes.high - eye
    box, axis = _first_hits(low, high, _windows(camera, low, high, to_world), rays, depth)
    place = (eye[:, None, None] + rays * depth).astype(np.float32)
    floor = 0.85 + 0.15 * ((np.floor(place[0]) + np.floor(place[2])) % 2)
    stripes = 0.9 + 0.1 * (np.floor(4 * place.sum(0)) % 2)
    ids = np.append(things.ids, np.uint32(0))[box]  # box −1: none
    side = np.array([0.8, 1.0, 0.65], np.float32)[axis] * np.where(ids > 0, 1.0, stripes)
    shade = np.where(box >= 0, side, np.where(down, floor, 1.0)) / (1 + 0.06 * depth)
    base = np.concatenate([boxes.color, SKY[None], FLOOR[None]])[np.where(box >= 0, box, np.where(down, -1, -2))]
    rgba = np.full((height, width, 4), 255, np.uint8)
    rgba[..., :3] = np.minimum(base * shade[..., None], 255)
    return rgba, depth, ids


Window = Tuple[int, slice, slice]  # noqa: UP006 (Python 3.8)
"""A box's index, and the rows and columns of the image that it may fill."""


def _windows(camera: _Camera, low: np.ndarray, high: np.ndarray, to_world: np.ndarray) -> list[Window]:
    """Where boxes may be seen. low, high: [m, 3] from the eye. A box that is partly behind the camera: everywhere."""
    pick = np.indices((2, 2, 2)).reshape(3, 8).T.astype(bool)
    x, y, z = np.moveaxis(np.where(pick, high[:, None], low[:, None]) @ to_world.T, -1, 0)
    ahead = -z.min(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        across, up = x / -z, y / -z
    left, right = (np.searchsorted(camera.x, bound) for bound in (across.min(1), across.max(1)))
    top, bottom = (np.searchsorted(-camera.y, bound) for bound in (-up.max(1), -up.min(1)))
    whole = z.max(1) > -1e-3
    found = []
    for index in np.flatnonzero(ahead > 0):
        rows, columns = (slice(None), slice(None)) if whole[index] else (
            slice(max(top[index] - 1, 0), bottom[index] + 1), slice(max(left[index] - 1, 0), right[index] + 1)
        )  # fmt: skip
        if whole[index] or (rows.start < len(camera.y) and columns.start < len(camera.x)):
            found.append((int(index), rows, columns))
    return found


def _first_hits(
    low: np.ndarray, high: np.ndarray, windows: list[Window], rays: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first box that each ray from the origin enters: (its index, −1: none; the axis of the side), int [H, W] each.

    low, high: [m, 3]. rays: float32 [3, H, W]. depth: float32 [H, W], how far rays go; shortened in place where they
    hit.
    """
    inverse = 1 / rays
    found, side = np.full(depth.shape, -1), np.zeros(depth.shape, int)
    low, high = (bound.astype(np.float32)[..., None, None] for bound in (low, high))
    for index, *window in windows:
        here = tuple(window)
        through = inverse[(slice(None), *here)]
        a, b = low[index] * through, high[index] * through
        near, far = np.minimum(a, b), np.maximum(a, b)
        enter = np.maximum(np.maximum(near[0], near[1]), near[2])
        leave = np.minimum(np.minimum(far[0], far[1]), far[2])
        hit = (enter < leave) & (enter > 0) & (enter < depth[here])
        if hit.any():
            depth[here][hit], found[here][hit] = enter[hit], index
            side[here][hit] = near[:, hit].argmax(0)
    return found, side


def _about_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


agent = SimpleNamespace(
    AgentConfiguration=AgentConfiguration, ActionSpec=ActionSpec, ActuationSpec=ActuationSpec, AgentState=AgentState
)
physics = SimpleNamespace(MotionType=MotionType)
nav = SimpleNamespace(
    PathFinder=PathFinder,
    ShortestPath=ShortestPath,
    MultiGoalShortestPath=MultiGoalShortestPath,
    NavMeshSettings=NavMeshSettings,
)
