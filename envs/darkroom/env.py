"""Darkroom: a gridworld in which the agent sees only its own cell and must find a hidden goal.

Laskin et al. 2022 (Algorithm Distillation) and Lee et al. 2023 (Decision-Pretrained Transformer). Results are not
comparable across variants, hence the named presets at the end of this file.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.environment.base import Discrete, Environment, Split, TimeStep, TrialRecord, first_timestep
from relic_jax.envs.darkroom import render

Start = Literal["(0,0)", "centre", "random"]

# What actions 0 … 4 do to (x, y); 4 stays.
MOVES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)], np.int32)


@dataclasses.dataclass(frozen=True)
class Grid(Environment):
    """What all gridworlds here share: cells (x, y), five actions, and an observation that is the agent's own cell."""

    name: str
    width: int
    height: int
    horizon: int

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """float32 [2]: the agent's cell (x, y), unscaled."""
        return jax.ShapeDtypeStruct((2,), jnp.float32)

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        """(0, 0) and (width − 1, height − 1), float32 [2] each."""
        return np.zeros(2, np.float32), np.array([self.width - 1, self.height - 1], np.float32)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """The agent's cell."""
        return ("x", "y")

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """As in `action_space`."""
        return ("right", "left", "up", "down", "stay")

    @property
    def action_space(self) -> Discrete:
        """0 x+1, 1 x−1, 2 y+1, 3 y−1, 4 stay."""
        return Discrete(len(MOVES))

    def move(self, position: jax.Array, action: jax.Array) -> jax.Array:
        """The cell reached from `position` (int32 [2]); a move off the grid stays at its edge."""
        return jnp.clip(position + jnp.asarray(MOVES)[action], 0, jnp.array([self.width - 1, self.height - 1]))

    def random_cell(self, key: jax.Array) -> jax.Array:
        """A uniformly random cell, int32 [2]."""
        return jax.random.randint(key, (2,), 0, jnp.array([self.width, self.height]), jnp.int32)


@struct.dataclass
class DarkroomTask:
    """What a trial must find out.

    goal: int32 [2]. action_map: int32 [5], action a moves by MOVES[action_map[a]]; None: by MOVES[a].
    """

    goal: jax.Array | np.ndarray
    action_map: jax.Array | np.ndarray | None = None


@struct.dataclass
class DarkroomState:
    """position: int32 [2]. step: int32 [], steps taken in this episode."""

    position: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Darkroom(Grid):
    """Reward 1 on every step whose NEXT cell is the goal.

    start: where episodes open: "(0,0)", the "centre" cell, or a "random" cell drawn anew for every episode.
    end_on_goal: reaching the goal terminates the episode, which then earns at most 1.
    permuted: tasks differ in what the actions do instead of in the goal, which is always the far corner.
    train_fraction: share of the tasks that is for training, rounded down to whole tasks.
    """

    ends_in_time = True

    start: Start = "(0,0)"
    end_on_goal: bool = False
    permuted: bool = False
    train_fraction: float = 0.8

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """None where what they do depends on the task."""
        return None if self.permuted else super().action_names

    def __post_init__(self) -> None:
        """Rejects an unknown start."""
        if self.start not in get_args(Start):
            raise ValueError(f"start must be one of {get_args(Start)}, got {self.start!r}")

    def reset(self, key: jax.Array, task: DarkroomTask) -> tuple[DarkroomState, TimeStep]:
        """Puts the agent on its start cell."""
        del task
        if self.start == "random":
            position = self.random_cell(key)
        elif self.start == "centre":
            position = jnp.array([self.width // 2, self.height // 2], jnp.int32)
        else:
            position = jnp.zeros(2, jnp.int32)
        return DarkroomState(position, jnp.zeros((), jnp.int32)), first_timestep(position.astype(jnp.float32))

    def step(
        self, key: jax.Array, state: DarkroomState, action: jax.Array, task: DarkroomTask
    ) -> tuple[DarkroomState, TimeStep]:
        """Moves the agent; deterministic."""
        del key
        effect = action if task.action_map is None else task.action_map[action]
        next_state = DarkroomState(self.move(state.position, effect), state.step + 1)
        at_goal = jnp.all(next_state.position == task.goal)
        terminated = at_goal & self.end_on_goal
        return next_state, TimeStep(
            observation=next_state.position.astype(jnp.float32),
            reward=at_goal.astype(jnp.float32),
            terminated=terminated,
            truncated=(next_state.step >= self.horizon) & ~terminated,
        )

    def optimal_action(self, state: DarkroomState, task: DarkroomTask) -> jax.Array:
        """Along x first, then y, then stay; through the inverse of a permuted action map."""
        effect = towards(state.position, task.goal)
        return effect if task.action_map is None else jnp.argsort(task.action_map)[effect].astype(jnp.int32)

    def tasks(self, split: Split) -> DarkroomTask:
        """The split's tasks: all tasks listed, shuffled by RandomState(0), the first `train_fraction` for training.

        Goals: every cell, listed as (j, i) with j < width the outer and i < height the inner loop. goal: int32 [N, 2].
        Permuted: all 5! action maps in lexicographic order. goal: int32 [N, 2], action_map: int32 [N, 5].
        """
        if not self.permuted:
            return DarkroomTask(shuffled_split(cells(self.width, self.height), self.train_fraction, split))
        maps = np.array(list(itertools.permutations(range(len(MOVES)))), np.int32)
        action_map = shuffled_split(maps, self.train_fraction, split)
        goal = np.tile(np.array([self.width - 1, self.height - 1], np.int32), (len(action_map), 1))
        return DarkroomTask(goal, action_map)

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Frames of a trial, uint8 [n, H, W, 3], with the goal in green."""
        return render.trial_frames(
            positions=trial.observation,
            marks=[render.Mark(trial.task.goal, render.GREEN)],
            episodes=np.cumsum(trial.first) - 1,
            rewards=trial.reward,
            size=(self.width, self.height),
        )


def towards(position: jax.Array, target: jax.Array | np.ndarray) -> jax.Array:
    """The action that brings `position` nearer to `target` (int32 [2] each): along x first, then y, then stay."""
    dx, dy = target - position
    along_x, along_y = jnp.where(dx > 0, 0, 1), jnp.where(dy > 0, 2, 3)
    return jnp.where(dx != 0, along_x, jnp.where(dy != 0, along_y, 4)).astype(jnp.int32)


def cells(width: int, height: int) -> np.ndarray:
    """Every cell as (j, i), j < width outer and i < height inner. int32 [width·height, 2]."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height), indexing="ij"), -1).reshape(-1, 2).astype(np.int32)


def shuffled_split(rows: np.ndarray, train_fraction: float, split: Split) -> np.ndarray:
    """`rows` shuffled by RandomState(0) (a stream numpy keeps unchanged), then cut: the first part is for training."""
    rows = np.random.RandomState(0).permutation(rows)
    cut = int(train_fraction * len(rows))
    return rows[:cut] if split == "train" else rows[cut:]


def _presets() -> dict[str, Darkroom]:
    ad_9 = Darkroom("darkroom-ad-9", 9, 9, 20, start="centre", train_fraction=0.9)
    hard_17 = Darkroom("darkroom-hard-17", 17, 17, 20, end_on_goal=True, train_fraction=0.9)
    presets = (
        Darkroom("darkroom-dpt", 10, 10, 100),
        ad_9,
        dataclasses.replace(ad_9, name="darkroom-ad-9-random", start="random"),
        hard_17,
        dataclasses.replace(hard_17, name="darkroom-hard-17-random", start="random"),
        Darkroom("darkroom-large-40x20", 40, 20, 800),
        Darkroom("darkroom-permuted", 10, 10, 100, permuted=True),
    )
    return {preset.name: preset for preset in presets}


PRESETS = _presets()
