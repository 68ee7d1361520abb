"""Key-to-Door: find an invisible key, then an invisible door (Laskin et al. 2022, arXiv 2210.14215)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.environment.base import Split, TimeStep, TrialRecord, first_timestep
from relic_jax.envs.darkroom import render
from relic_jax.envs.darkroom.env import Grid, cells, shuffled_split, towards


@struct.dataclass
class KeyToDoorTask:
    """A task of Key-to-Door: cells, int32 [2] each. Key and door are different cells."""

    start: jax.Array | np.ndarray
    key: jax.Array | np.ndarray
    door: jax.Array | np.ndarray


@struct.dataclass
class KeyToDoorState:
    """The state of an episode.

    Attributes:
        position: Int32 [2]; the agent's cell.
        has_key: Bool []; whether the agent has found the key.
        step: Int32 []; steps taken.
    """

    position: jax.Array
    has_key: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class KeyToDoor(Grid):
    """Earns 1 for reaching the key, once, then 1 for reaching the door with it, which terminates the episode.

    The agent observes its own cell, but not whether it holds the key. All episodes of a task start in the same cell.
    """

    ends_in_time = True

    train_fraction: float = 0.95

    def reset(self, key: jax.Array, task: KeyToDoorTask) -> tuple[KeyToDoorState, TimeStep]:
        """Put the agent on the start cell of the task, without the key. Deterministic."""
        del key
        position = jnp.asarray(task.start)
        state = KeyToDoorState(position, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
        return state, first_timestep(position.astype(jnp.float32))

    def step(
        self, key: jax.Array, state: KeyToDoorState, action: jax.Array, task: KeyToDoorTask
    ) -> tuple[KeyToDoorState, TimeStep]:
        """Move the agent. Deterministic. As in Darkroom, the NEXT cell earns the reward."""
        del key
        position = self.move(state.position, action)
        found_key = ~state.has_key & jnp.all(position == task.key)
        terminated = state.has_key & jnp.all(position == task.door)
        step = state.step + 1
        return KeyToDoorState(position, state.has_key | found_key, step), TimeStep(
            observation=position.astype(jnp.float32),
            reward=(found_key | terminated).astype(jnp.float32),
            terminated=terminated,
            truncated=(step >= self.horizon) & ~terminated,
        )

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether both rewards were earned: an episode can also end with the step that finds the key."""
        del timestep
        return episode_return >= 2

    def optimal_action(self, state: KeyToDoorState, task: KeyToDoorTask) -> jax.Array:
        """Return the action to the key, then to the door."""
        return towards(state.position, jnp.where(state.has_key, task.door, task.key))

    def tasks(self, split: Split) -> KeyToDoorTask:
        """Return the tasks of a split: start, key and door, int32 [N, 2] each.

        The list has all ordered pairs of different cells (cells as (j, i) with j in the outer loop; the key in the
        outer loop), each with a start drawn uniformly by RandomState(1) in this order. It is shuffled by
        RandomState(0); the first `train_fraction` are for training. The split separates pairs, not keys or doors.
        """
        grid = cells(self.width, self.height)
        key, door = np.nonzero(~np.eye(len(grid), dtype=bool))
        start = np.random.RandomState(1).randint(len(grid), size=len(key))
        rows = shuffled_split(np.stack([start, key, door], 1), self.train_fraction, split)
        return KeyToDoorTask(*(grid[column] for column in rows.T))

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Return frames of a trial, uint8 [n, H, W, 3], with the key in gold and the door in green."""
        task = trial.task
        return render.trial_frames(
            positions=trial.observation,
            marks=[render.Mark(task.key, render.GOLD), render.Mark(task.door, render.GREEN)],
            episodes=np.cumsum(trial.first) - 1,
            rewards=trial.reward,
            size=(self.width, self.height),
        )


PRESETS = {"key-to-door-9": KeyToDoor("key-to-door-9", 9, 9, 50)}
