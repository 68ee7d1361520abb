"""Pointmass: a point on a plane, moved by its velocity, must find a hidden goal and stay there.

The point robot of meta-RL (Finn et al. 2017, arXiv 1703.03400, section 5.1; goals on a half circle as in Zintgraf et
al. 2020, arXiv 1910.08348), the light one of the tasks with continuous actions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.environment.base import Box, Environment, Split, TimeStep, TrialRecord, first_timestep
from relic_jax.envs.pointmass import render

SPLIT_SEEDS = {"train": 0, "test": 1}
"""Of numpy's RandomState (a stream that it keeps unchanged), from which a split's goals are drawn."""


@struct.dataclass
class PointState:
    """position: float32 [2]. step: int32 [], steps taken in this episode."""

    position: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Pointmass(Environment):
    """Each step adds the action, at most `speed` along each axis, to the position, which a wall at ±`wall` limits.

    Episodes open at the origin. The goal lies on the upper half of the circle of radius 1; a step that leads to within
    `reach` of it, at distance d, earns 1 − d / `reach`, any other 0. Nothing is rewarded near the start (`reach` < 1),
    so a new goal must be searched for, and what was found pays in every later episode. It never terminates.
    """

    ends_in_time = True

    name: str = "pointmass-goal"
    horizon: int = 40
    speed: float = 0.1
    reach: float = 0.7
    wall: float = 1.5
    train_tasks: int = 200
    test_tasks: int = 40

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """float32 [2]: the position (x, y). The goal is not seen."""
        return jax.ShapeDtypeStruct((2,), jnp.float32)

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        """The walls, float32 [2] each."""
        return np.full(2, -self.wall, np.float32), np.full(2, self.wall, np.float32)

    @property
    def action_names(self) -> tuple[str, ...]:
        """As in `action_space`."""
        return ("Δx", "Δy")

    @property
    def action_space(self) -> Box:
        """(Δx, Δy)."""
        return Box((-self.speed,) * 2, (self.speed,) * 2)

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[PointState, TimeStep]:
        """At the origin."""
        del key, task
        return PointState(jnp.zeros(2), jnp.zeros((), jnp.int32)), first_timestep(jnp.zeros(2))

    def step(
        self, key: jax.Array, state: PointState, action: jax.Array, task: jax.Array
    ) -> tuple[PointState, TimeStep]:
        """Moves the point; deterministic."""
        del key
        position = jnp.clip(state.position + jnp.clip(action, -self.speed, self.speed), -self.wall, self.wall)
        distance = jnp.sqrt(jnp.sum(jnp.square(position - task)))
        next_state = PointState(position, state.step + 1)
        return next_state, TimeStep(
            observation=position,
            reward=jnp.maximum(1 - distance / self.reach, 0.0),
            terminated=jnp.zeros((), bool),
            truncated=next_state.step >= self.horizon,
        )

    def optimal_action(self, state: PointState, task: jax.Array) -> jax.Array:
        """Straight along each axis as fast as it goes: no other way is nearer to the goal at any time."""
        return jnp.clip(task - state.position, -self.speed, self.speed)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Ends within a fifth of `reach` of the goal."""
        del episode_return
        return timestep.reward > 0.8

    def tasks(self, split: Split) -> np.ndarray:
        """Goals, float32 [N, 2]: angles drawn uniformly from [0, π), each split from a seed of its own."""
        count = self.train_tasks if split == "train" else self.test_tasks
        angle = np.random.RandomState(SPLIT_SEEDS[split]).uniform(0, np.pi, count)
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Frames of a trial, uint8 [n, H, W, 3]."""
        return render.trial_frames(
            positions=np.asarray(trial.observation),
            goal=np.asarray(trial.task),
            episodes=np.cumsum(trial.first) - 1,
            rewards=trial.reward,
            wall=self.wall,
            reach=self.reach,
        )


PRESETS = {"pointmass-goal": Pointmass()}
