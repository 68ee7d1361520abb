"""The agent: a body with cameras.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from relic_jax.envs.habitat.soft.config import AgentConfiguration, AgentState, Quaternion


class Agent:
    """The agent's pose and configuration.

    Args:
        config: Its actions and cameras.
        move: Returns the position after a step from a position towards another.
    """

    def __init__(self, config: AgentConfiguration, move: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.agent_config, self._move = config, move
        self.position, self.heading, self.pitch = np.zeros(3, np.float32), 0.0, 0.0

    def set_state(self, state: AgentState, reset_sensors: bool = True, infer_sensor_states: bool = True) -> None:
        """Move the agent. With `reset_sensors` the cameras look straight ahead again."""
        self.position = np.asarray(state.position, np.float32)
        rotation = state.rotation
        y, w = (rotation.y, rotation.w) if hasattr(rotation, "w") else (rotation[1], rotation[3])
        self.heading = 2 * math.atan2(y, w)
        if reset_sensors:
            self.pitch = 0.0

    def act(self, action_id: str) -> bool:
        """Execute an action. Return whether the agent hit an obstacle."""
        actuation = self.agent_config.action_space[action_id].actuation
        amount = 0.0 if actuation is None else actuation.amount
        if action_id == "move_forward":
            ahead = np.array([-math.sin(self.heading), 0.0, -math.cos(self.heading)])
            target = self.position + ahead * amount
            self.position = self._move(self.position, target)
            return bool(np.linalg.norm(self.position - target) > 1e-4)
        if action_id in ("turn_left", "turn_right"):
            self.heading += math.radians(amount) * (1 if action_id == "turn_left" else -1)
        elif action_id in ("look_up", "look_down"):
            limit = math.pi if actuation is None or actuation.constraint is None else math.radians(actuation.constraint)
            change = math.radians(amount) * (1 if action_id == "look_up" else -1)
            self.pitch = max(-limit, min(limit, self.pitch + change))
        return False

    def get_state(self) -> AgentState:
        """Return the agent's position and rotation."""
        return AgentState(self.absolute_translation, self.rotation)

    @property
    def scene_node(self) -> Agent:
        """The node of the agent in the scene, with `absolute_translation` and `rotation`."""
        return self

    @property
    def absolute_translation(self) -> np.ndarray:
        """The agent's position."""
        return self.position.copy()

    @property
    def rotation(self) -> Quaternion:
        """The agent's rotation."""
        return Quaternion(math.cos(self.heading / 2), 0.0, math.sin(self.heading / 2), 0.0)
