"""The software simulator as a Simulator of habitat-lab: `habitat.simulator.type: RelicSoft-v0` in its configs.

It is imported after habitat-lab (`worker.import_habitat`), in a worker process. Scenes are those of `soft`; the config
determines cameras, steps and turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import quaternion  # numpy-quaternion, which habitat-lab depends on
from gym import spaces
from habitat.core.embodied_task import SimulatorTaskAction
from habitat.core.registry import registry
from habitat.core.simulator import AgentState, DepthSensor, RGBSensor, SemanticSensor, SensorSuite, Simulator

from relic_jax.envs.habitat import soft
from relic_jax.envs.habitat.api import heading_of
from relic_jax.envs.habitat.configuration import ACTIONS

NAME = "RelicSoft-v0"


class SoftRGB(RGBSensor):
    """Color images, uint8 [H, W, 3]."""

    kind = soft.SensorType.COLOR

    def _get_observation_space(self, *args: Any, **kwargs: Any) -> Any:
        return spaces.Box(0, 255, (self.config.height, self.config.width, 3), np.uint8)

    def get_observation(self, raw: dict[str, np.ndarray], *args: Any, **kwargs: Any) -> np.ndarray:
        """Return the image without the alpha channel."""
        return raw[self.uuid][..., :3]


class SoftDepth(DepthSensor):
    """Depth images, float32 [H, W, 1]: meters from min_depth to max_depth, or 0 … 1 with `normalize_depth`."""

    kind = soft.SensorType.DEPTH

    def _get_observation_space(self, *args: Any, **kwargs: Any) -> Any:
        low, high = (0, 1) if self.config.normalize_depth else (self.config.min_depth, self.config.max_depth)
        return spaces.Box(low, high, (self.config.height, self.config.width, 1), np.float32)

    def get_observation(self, raw: dict[str, np.ndarray], *args: Any, **kwargs: Any) -> np.ndarray:
        """Return the clipped depth, as habitat-sim does."""
        near, far = self.config.min_depth, self.config.max_depth
        depth = np.clip(raw[self.uuid], near, far)
        if self.config.normalize_depth:
            depth = (depth - near) / (far - near)
        return depth[..., None].astype(np.float32)


class SoftSemantic(SemanticSensor):
    """Object ids, int32 [H, W, 1]."""

    kind = soft.SensorType.SEMANTIC

    def _get_observation_space(self, *args: Any, **kwargs: Any) -> Any:
        highest = np.iinfo(np.int32).max
        return spaces.Box(0, highest, (self.config.height, self.config.width, 1), np.int32)

    def get_observation(self, raw: dict[str, np.ndarray], *args: Any, **kwargs: Any) -> np.ndarray:
        """Return the ids as signed integers."""
        return raw[self.uuid][..., None].astype(np.int32)


SENSORS = {
    "HabitatSimRGBSensor": SoftRGB,
    "HabitatSimDepthSensor": SoftDepth,
    "HabitatSimSemanticSensor": SoftSemantic,
}
"""Sensors by the types in habitat-lab's configs, which need no changes."""


@registry.register_simulator(name=NAME)
class SoftSimulator(Simulator):
    """The simulator of a config `habitat.simulator` with one agent."""

    def __init__(self, config: Any) -> None:
        self.habitat_config = config
        self._sensors = SensorSuite([_sensor(sensor) for sensor in self._agent.sim_sensors.values()])
        self._simulator: Any = None
        self._scene = ""
        self._collided = False
        self.reconfigure(config)

    @property
    def _agent(self) -> Any:
        return self.habitat_config.agents[self.habitat_config.agents_order[0]]

    @property
    def sensor_suite(self) -> SensorSuite:
        """The cameras."""
        return self._sensors

    @property
    def action_space(self) -> Any:
        """Indices of `api.ACTIONS`, which are those of habitat-lab."""
        return spaces.Discrete(len(ACTIONS))

    @property
    def previous_step_collided(self) -> bool:
        """Whether the last step hit an obstacle."""
        return self._collided

    def reconfigure(self, config: Any, episode: Any = None) -> None:
        """Load the scene of the config if it has changed."""
        self.habitat_config = config
        if self._simulator is None or config.scene != self._scene:
            self._simulator = soft.Simulator(self._configuration(config))
            self._scene = config.scene

    def _configuration(self, config: Any) -> Any:
        simulator = soft.SimulatorConfiguration()
        simulator.scene_id, simulator.random_seed = config.scene, config.seed
        simulator.allow_sliding = config.habitat_sim_v0.allow_sliding
        amounts = {"move_forward": config.forward_step_size}
        actions = {
            name: soft.ActionSpec(name, soft.ActuationSpec(amounts.get(name, config.turn_angle)))
            for name in ACTIONS[1:4]  # looking up and down is not a step, see `RelicLookUp`
        }
        cameras = [self._camera(sensor) for sensor in self._sensors.sensors.values()]
        return soft.Configuration(
            simulator, [soft.AgentConfiguration(self._agent.height, self._agent.radius, cameras, actions)]
        )

    @staticmethod
    def _camera(sensor: Any) -> Any:
        camera = soft.CameraSensorSpec()
        camera.uuid, camera.sensor_type = sensor.uuid, sensor.kind
        camera.resolution = [sensor.config.height, sensor.config.width]
        camera.position, camera.hfov = list(sensor.config.position), sensor.config.hfov
        return camera

    def reset(self) -> Any:
        """Move the agent to the start of the episode and return observations."""
        self._collided = False
        if self._agent.is_set_start_state:
            self.set_agent_state(self._agent.start_position, self._agent.start_rotation)
        return self._sensors.get_observations(self._simulator.get_sensor_observations())

    def step(self, action: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute an action (None: no action) and return observations."""
        if action is None:
            return self._sensors.get_observations(self._simulator.get_sensor_observations())
        raw = self._simulator.step(ACTIONS[int(action)])
        self._collided = bool(raw["collided"])
        return self._sensors.get_observations(raw)

    def look(self, degrees: float) -> None:
        """Tilt the cameras, upwards if positive."""
        self._simulator.get_agent(0).pitch += np.radians(degrees)

    def step_physics(self, delta: float) -> None:
        """Do nothing: there are no dynamics."""

    def seed(self, seed: int) -> None:
        """Seed random points."""
        self._simulator.seed(seed)

    def geodesic_distance(self, position_a: Any, position_b: Any, episode: Any = None) -> float:
        """Return the length of the shortest path from a to b, or to the nearest of several; infinite without a path."""
        path = soft.MultiGoalShortestPath()
        path.requested_start, path.requested_ends = position_a, np.asarray(position_b, np.float32).reshape(-1, 3)
        self._simulator.pathfinder.find_path(path)
        return float(path.geodesic_distance)

    def get_straight_shortest_path_points(self, position_a: Any, position_b: Any) -> list[Any]:
        """Return the points of the shortest path; an empty list if there is none."""
        path = soft.ShortestPath()
        path.requested_start, path.requested_end = position_a, position_b
        self._simulator.pathfinder.find_path(path)
        return list(path.points)

    def sample_navigable_point(self) -> list[float]:
        """Return a random navigable point."""
        return self._simulator.pathfinder.get_random_navigable_point(100).tolist()

    def is_navigable(self, point: Any) -> bool:
        """Return whether the agent fits at a point."""
        return self._simulator.pathfinder.is_navigable(point)

    def get_agent_state(self, agent_id: int = 0) -> AgentState:
        """Return the agent's pose."""
        state = self._simulator.get_agent(agent_id).get_state()
        return AgentState(state.position, quaternion.quaternion(*state.rotation))

    def set_agent_state(self, position: Any, rotation: Any, agent_id: int = 0, reset_sensors: bool = True) -> bool:
        """Move the agent. rotation: [x, y, z, w] or a quaternion, about y."""
        half = heading_of(rotation) / 2
        state = soft.AgentState(list(position), [0.0, float(np.sin(half)), 0.0, float(np.cos(half))])
        self._simulator.get_agent(agent_id).set_state(state, reset_sensors)
        return True

    def get_observations_at(
        self, position: Any = None, rotation: Any = None, keep_agent_at_new_pose: bool = False
    ) -> Any:
        """Return observations at a pose; None: the agent's pose."""
        before = self.get_agent_state()
        if position is not None and rotation is not None:
            self.set_agent_state(position, rotation, reset_sensors=False)
        observations = self._sensors.get_observations(self._simulator.get_sensor_observations())
        if not keep_agent_at_new_pose:
            self.set_agent_state(before.position, before.rotation, reset_sensors=False)
        return observations

    def close(self, destroy: bool = True) -> None:
        """Do nothing: there are no resources to free."""


@registry.register_task_action
class RelicLookUp(SimulatorTaskAction):
    """Look up. The action of habitat-lab needs sensor nodes of habitat-sim."""

    sign = 1

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Tilt the cameras by the config's tilt_angle."""
        self._sim.look(self.sign * self._config.tilt_angle)


@registry.register_task_action
class RelicLookDown(RelicLookUp):
    """Look down."""

    sign = -1


def _sensor(config: Any) -> Any:
    if config.type not in SENSORS:
        raise ValueError(f"sensor is {config.type!r}; allowed: {', '.join(SENSORS)}")
    return SENSORS[config.type](config=config)
