"""Pointmass: a point on a plane, controlled by its velocity, must find a hidden goal and stay there.

The point robot of meta-RL (Finn et al. 2017, arXiv 1703.03400, section 5.1), with goals on a half circle (Zintgraf et
al. 2020, arXiv 1910.08348). It is the fastest environment with continuous actions.
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
"""Seeds of numpy's RandomState, whose stream is stable, for the goals of each split."""


@struct.dataclass
class PointState:
    """The state of an episode.

    Attributes:
        position: Float32 [2].
        step: Int32 []; steps taken.
    """

    position: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Pointmass(Environment):
    """Adds each action to the position of the point.

    Episodes start at the origin and never terminate. The goal is on the upper half of the circle of radius 1. A step to
    within `reach` of it, at distance d, earns 1 − d / `reach`; other steps earn 0. There is no reward near the start
    (`reach` < 1), so a new goal must be searched for.

    Attributes:
        name: Name of the environment.
        horizon: Steps of an episode.
        speed: Bound of each component of an action.
        reach: Radius of the rewarded disc around the goal.
        wall: Bound of each component of the position.
        train_tasks: Number of training tasks.
        test_tasks: Number of held-out tasks.
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
        """The position (x, y), float32 [2]. The goal is not observed."""
        return jax.ShapeDtypeStruct((2,), jnp.float32)

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        """The walls, float32 [2] each."""
        return np.full(2, -self.wall, np.float32), np.full(2, self.wall, np.float32)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the components of an action."""
        return ("Δx", "Δy")

    @property
    def action_space(self) -> Box:
        """The change (Δx, Δy) of the position."""
        return Box((-self.speed,) * 2, (self.speed,) * 2)

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[PointState, TimeStep]:
        """Put the point at the origin."""
        del key, task
        return PointState(jnp.zeros(2), jnp.zeros((), jnp.int32)), first_timestep(jnp.zeros(2))

    def step(
        self, key: jax.Array, state: PointState, action: jax.Array, task: jax.Array
    ) -> tuple[PointState, TimeStep]:
        """Move the point. Deterministic."""
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
        """Return the fastest action along each axis, which is the closest to the goal at any time."""
        return jnp.clip(task - state.position, -self.speed, self.speed)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the step ends within a fifth of `reach` of the goal."""
        del episode_return
        return timestep.reward > 0.8

    def tasks(self, split: Split) -> np.ndarray:
        """Return goals, float32 [N, 2], at angles drawn uniformly from [0, π). Each split has a separate seed."""
        count = self.train_tasks if split == "train" else self.test_tasks
        angle = np.random.RandomState(SPLIT_SEEDS[split]).uniform(0, np.pi, count)
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Return frames of a trial, uint8 [n, H, W, 3]."""
        return render.trial_frames(
            positions=np.asarray(trial.observation),
            goal=np.asarray(trial.task),
            episodes=np.cumsum(trial.first) - 1,
            rewards=trial.reward,
            wall=self.wall,
            reach=self.reach,
        )


PRESETS = {"pointmass-goal": Pointmass()}
