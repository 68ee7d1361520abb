"""Configuration records of the simulator, with the fields and defaults of habitat-sim's.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class SensorType:
    """Camera types."""

    COLOR, DEPTH, SEMANTIC = 1, 2, 3


class MotionType:
    """Motion types of objects. This simulator moves no object."""

    STATIC, KINEMATIC, DYNAMIC = 0, 1, 2


class ActuationSpec:
    """The amount of an action, in meters or degrees."""

    def __init__(self, amount: float, constraint: float | None = None) -> None:
        self.amount, self.constraint = amount, constraint


class ActionSpec:
    """An action: move_forward, turn_left, turn_right, look_up or look_down."""

    def __init__(self, name: str, actuation: ActuationSpec | None = None) -> None:
        self.name, self.actuation = name, actuation


class AgentConfiguration:
    """A cylindrical agent with cameras."""

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
    """A pose. position: float32 [3]. rotation: a `Quaternion` or [x, y, z, w]."""

    def __init__(self, position: Any = None, rotation: Any = None, sensor_states: Any = None) -> None:
        self.position = np.zeros(3, np.float32) if position is None else np.asarray(position, np.float32)
        self.rotation = Quaternion(1.0, 0.0, 0.0, 0.0) if rotation is None else rotation
        self.sensor_states = sensor_states or {}


class Quaternion(NamedTuple):
    """The quaternion w + xi + yj + zk."""

    w: float
    x: float
    y: float
    z: float


class CameraSensorSpec:
    """A pinhole camera.

    Attributes:
        uuid: Key of the camera's image in the observations.
        sensor_type: One of `SensorType`.
        resolution: [height, width] in pixels.
        position: Offset from the agent's feet, in meters.
        hfov: Horizontal field of view, in degrees.
    """

    def __init__(self) -> None:
        self.uuid, self.sensor_type = "", SensorType.COLOR
        self.resolution, self.position, self.orientation = [128, 128], [0.0, 1.5, 0.0], [0.0, 0.0, 0.0]
        self.hfov = 90.0


class SimulatorConfiguration:
    """The scene and the options of its simulation."""

    def __init__(self) -> None:
        self.scene_id, self.scene_dataset_config_file = "NONE", "default"
        self.gpu_device_id, self.allow_sliding, self.enable_physics, self.random_seed = 0, True, False, 0
        self.override_scene_light_defaults, self.scene_light_setup = False, ""


class Configuration:
    """The configuration of a simulator and its agents."""

    def __init__(self, sim_cfg: SimulatorConfiguration, agents: list[AgentConfiguration]) -> None:
        self.sim_cfg, self.agents = sim_cfg, agents
