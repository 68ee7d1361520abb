"""The agent: a body with cameras.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import math

import numpy as np

from relic_jax.envs.habitat.soft.config import AgentConfiguration, AgentState, Quaternion


class Agent:
    """The agent's pose and configuration."""

    def __init__(self, config: AgentConfiguration) -> None:
        self.agent_config = config
        self.position, self.heading, self.pitch = np.zeros(3, np.float32), 0.0, 0.0

    def set_state(self, state: AgentState, reset_sensors: bool = True, infer_sensor_states: bool = True) -> None:
        """Move the agent. With `reset_sensors` the cameras look straight ahead again."""
        self.position = np.asarray(state.position, np.float32)
        rotation = state.rotation
        y, w = (rotation.y, rotation.w) if hasattr(rotation, "w") else (rotation[1], rotation[3])
        self.heading = 2 * math.atan2(y, w)
        if reset_sensors:
            self.pitch = 0.0

    def get_state(self) -> AgentState:
        """Return the agent's position and rotation."""
        half = self.heading / 2
        return AgentState(self.position.copy(), Quaternion(math.cos(half), 0.0, math.sin(half), 0.0))
