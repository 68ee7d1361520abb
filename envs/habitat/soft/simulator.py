"""The simulator: one agent in one scene.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from relic_jax.envs.habitat.soft.body import Agent
from relic_jax.envs.habitat.soft.camera import Camera, VisibleBoxes, render
from relic_jax.envs.habitat.soft.config import AgentState, Configuration
from relic_jax.envs.habitat.soft.house import Boxes, load_scene
from relic_jax.envs.habitat.soft.navmesh import NavMeshSettings, PathFinder
from relic_jax.envs.habitat.soft.objects import OBJECT_SIZE, ObjectTemplateManager, RigidObjectManager, object_color


class Simulator:
    """One agent in one scene."""

    def __init__(self, config: Configuration) -> None:
        self.pathfinder = PathFinder()
        self._objects, self._templates = RigidObjectManager(), ObjectTemplateManager()
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
        self._cameras = [Camera(spec) for spec in config.agents[0].sensor_specifications]

    def reconfigure(self, config: Configuration) -> None:
        """Load another scene or another agent configuration."""
        self._load(config)

    def recompute_navmesh(self, pathfinder: PathFinder, navmesh_settings: NavMeshSettings) -> bool:
        """Rebuild the navigation mesh. Return False if the agent fits nowhere."""
        return pathfinder.build(self.house, navmesh_settings.agent_radius)

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
