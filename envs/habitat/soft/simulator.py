"""The simulator: one agent in one scene.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from relic_jax.envs.habitat.soft.body import Agent
from relic_jax.envs.habitat.soft.camera import Camera, VisibleBoxes, render
from relic_jax.envs.habitat.soft.config import AgentState, Configuration
from relic_jax.envs.habitat.soft.house import Boxes, load_scene, scene_handle
from relic_jax.envs.habitat.soft.navmesh import NavMeshSettings, PathFinder
from relic_jax.envs.habitat.soft.objects import OBJECT_SIZE, ObjectTemplateManager, RigidObjectManager, object_color
from relic_jax.envs.habitat.soft.rays import Ray, RaycastResults, cast


class Simulator:
    """One agent in one scene."""

    def __init__(self, config: Configuration) -> None:
        self.pathfinder = PathFinder()
        self._objects, self._templates = RigidObjectManager(), ObjectTemplateManager()
        self.config = config
        self._load(config)

    def _load(self, config: Configuration) -> None:
        self.config = config
        self.house = load_scene(config.sim_cfg.scene_id)
        self._objects.remove_all_objects()
        self.agents = [Agent(agent, self._move) for agent in config.agents]
        self.pathfinder.seed(config.sim_cfg.random_seed)
        self.pathfinder.build(self.house, config.agents[0].radius)
        self._cameras = [Camera(spec) for spec in config.agents[0].sensor_specifications]
        self.sensors = {camera.spec.uuid: Sensor(self, camera) for camera in self._cameras}

    def reconfigure(self, config: Configuration) -> None:
        """Load another scene or another agent configuration."""
        self._load(config)

    def recompute_navmesh(self, pathfinder: PathFinder, navmesh_settings: NavMeshSettings) -> bool:
        """Rebuild the navigation mesh. Return False if the agent fits nowhere."""
        return pathfinder.build(self.house, navmesh_settings.agent_radius)

    @property
    def curr_scene_name(self) -> str:
        """A canonical name of the scene, which does not depend on the spelling of its id."""
        return scene_handle(self.config.sim_cfg.scene_id)

    def cast_ray(self, ray: Ray, max_distance: float = 100.0) -> RaycastResults:
        """Return the hits of a ray with the scene and its objects, the nearest first."""
        return cast(ray, self._visible_boxes().boxes, self.house.size, max_distance)

    def seed(self, new_seed: int) -> None:
        """Seed the random navigable points."""
        self.pathfinder.seed(new_seed)

    def initialize_agent(self, agent_id: int, initial_state: AgentState | None = None) -> Agent:
        """Return the agent, moved to `initial_state` if it is given."""
        if initial_state is not None:
            self.agents[agent_id].set_state(initial_state)
        return self.agents[agent_id]

    def get_agent(self, agent_id: int) -> Agent:
        """Return the agent."""
        return self.agents[agent_id]

    def get_rigid_object_manager(self) -> RigidObjectManager:
        """Return the manager of the scene's objects."""
        return self._objects

    def get_object_template_manager(self) -> ObjectTemplateManager:
        """Return the manager of the available object templates."""
        return self._templates

    def reset(self) -> dict[str, np.ndarray]:
        """Return observations. The agent does not move."""
        return self.get_sensor_observations()

    def step(self, action: str, dt: float = 1.0 / 60.0) -> dict[str, Any]:
        """Execute an action and return the observations, with `collided` added."""
        collided = self.agents[0].act(action)
        return {**self.get_sensor_observations(), "collided": collided}

    def _move(self, start: np.ndarray, target: np.ndarray) -> np.ndarray:
        sliding = self.config.sim_cfg.allow_sliding
        return (self.pathfinder.try_step if sliding else self.pathfinder.try_step_no_sliding)(start, target)

    def get_sensor_observations(self, agent_ids: int = 0) -> dict[str, np.ndarray]:
        """Return each camera's image: color uint8 [H, W, 4], depth float32 [H, W], semantic uint32 [H, W]."""
        return render(self._cameras, self._visible_boxes(), self.agents[0])

    def _visible_boxes(self) -> VisibleBoxes:
        objects = list(self._objects.objects.values())
        feet = np.array([item.translation for item in objects], np.float64).reshape(-1, 3)
        half = OBJECT_SIZE / 2
        low, high = feet - np.array([half, 0, half]), feet + np.array([half, OBJECT_SIZE, half])
        colors = np.array([object_color(item.template) for item in objects], np.uint8).reshape(-1, 3)
        boxes = self.house.boxes
        ids = [0] * len(boxes.low) + [item.semantic_id for item in objects]
        parts = [(boxes.low, low), (boxes.high, high), (boxes.color, colors)]
        return VisibleBoxes(Boxes(*(np.concatenate(part) for part in parts)), np.array(ids, np.uint32))

    def close(self, destroy: bool = True) -> None:
        """Do nothing: there are no resources to free."""


class Sensor:
    """One camera of the agent."""

    def __init__(self, simulator: Simulator, camera: Camera) -> None:
        self._simulator, self._camera = simulator, camera
        self._image: np.ndarray | None = None

    def draw_observation(self) -> None:
        """Render the image at the agent's pose."""
        simulator = self._simulator
        images = render([self._camera], simulator._visible_boxes(), simulator.agents[0])
        self._image = images[self._camera.spec.uuid]

    def get_observation(self) -> np.ndarray | None:
        """Return the rendered image."""
        return self._image
