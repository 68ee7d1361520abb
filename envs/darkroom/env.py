"""Darkroom: a gridworld in which the agent observes only its own cell and must find a hidden goal.

The variants follow Laskin et al. 2022 (Algorithm Distillation, arXiv 2210.14215) and Lee et al. 2023
(Decision-Pretrained Transformer, arXiv 2306.14892). Results of different variants are not comparable.
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

MOVES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)], np.int32)
"""Effects of the actions on (x, y)."""


@dataclasses.dataclass(frozen=True)
class Grid(Environment):
    """Base of the gridworlds: cells (x, y), five actions, and the agent's cell as the observation.

    Attributes:
        name: Name of the environment.
        width: Cells along x.
        height: Cells along y.
        horizon: Steps of the longest episode.
    """

    name: str
    width: int
    height: int
    horizon: int

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """The agent's cell (x, y), float32 [2], unscaled."""
        return jax.ShapeDtypeStruct((2,), jnp.float32)

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        """(0, 0) and (width − 1, height − 1), float32 [2] each."""
        return np.zeros(2, np.float32), np.array([self.width - 1, self.height - 1], np.float32)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the components of an observation."""
        return ("x", "y")

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """Names of the actions."""
        return ("right", "left", "up", "down", "stay")

    @property
    def action_space(self) -> Discrete:
        """0 x+1, 1 x−1, 2 y+1, 3 y−1, 4 stay."""
        return Discrete(len(MOVES))

    def move(self, position: jax.Array, action: jax.Array) -> jax.Array:
        """Return the cell reached from `position`, int32 [2]. A move off the grid has no effect."""
        return jnp.clip(position + jnp.asarray(MOVES)[action], 0, jnp.array([self.width - 1, self.height - 1]))

    def random_cell(self, key: jax.Array) -> jax.Array:
        """Return a uniformly random cell, int32 [2]."""
        return jax.random.randint(key, (2,), 0, jnp.array([self.width, self.height]), jnp.int32)


@struct.dataclass
class DarkroomTask:
    """A task of Darkroom.

    Attributes:
        goal: Int32 [2]; the goal's cell.
        action_map: Int32 [5]; action a moves by MOVES[action_map[a]]. None: by MOVES[a].
    """

    goal: jax.Array | np.ndarray
    action_map: jax.Array | np.ndarray | None = None


@struct.dataclass
class DarkroomState:
    """The state of an episode.

    Attributes:
        position: Int32 [2]; the agent's cell.
        step: Int32 []; steps taken.
    """

    position: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Darkroom(Grid):
    """Earns reward 1 for every step whose NEXT cell is the goal.

    Attributes:
        start: First cell of an episode: "(0,0)", the "centre" cell, or a "random" cell drawn for each episode.
        end_on_goal: Whether reaching the goal terminates the episode.
        permuted: Whether tasks differ in the effects of the actions. The goal is then always the far corner.
        train_fraction: Share of the tasks used for training, rounded down to whole tasks.
    """

    ends_in_time = True

    start: Start = "(0,0)"
    end_on_goal: bool = False
    permuted: bool = False
    train_fraction: float = 0.8

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """Names of the actions; None if their effects depend on the task."""
        return None if self.permuted else super().action_names

    def __post_init__(self) -> None:
        """Raise ValueError if `start` is unknown."""
        if self.start not in get_args(Start):
            raise ValueError(f"start is {self.start!r}; allowed: {', '.join(map(repr, get_args(Start)))}")

    def reset(self, key: jax.Array, task: DarkroomTask) -> tuple[DarkroomState, TimeStep]:
        """Put the agent on its first cell."""
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
        """Move the agent. Deterministic."""
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
        """Return the action along x first, then along y, then stay, mapped by the inverse of the action map."""
        effect = towards(state.position, task.goal)
        return effect if task.action_map is None else jnp.argsort(task.action_map)[effect].astype(jnp.int32)

    def tasks(self, split: Split) -> DarkroomTask:
        """Return the tasks of a split.

        All tasks are listed, then shuffled by RandomState(0); the first `train_fraction` are for training.

        Goals: every cell, listed as (j, i) with j < width in the outer and i < height in the inner loop; `goal` is
        int32 [N, 2]. Permuted: all 5! action maps in lexicographic order; `action_map` is int32 [N, 5].
        """
        if not self.permuted:
            return DarkroomTask(shuffled_split(cells(self.width, self.height), self.train_fraction, split))
        maps = np.array(list(itertools.permutations(range(len(MOVES)))), np.int32)
        action_map = shuffled_split(maps, self.train_fraction, split)
        goal = np.tile(np.array([self.width - 1, self.height - 1], np.int32), (len(action_map), 1))
        return DarkroomTask(goal, action_map)

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Return frames of a trial, uint8 [n, H, W, 3], with the goal in green."""
        return render.trial_frames(
            positions=trial.observation,
            marks=[render.Mark(trial.task.goal, render.GREEN)],
            episodes=np.cumsum(trial.first) - 1,
            rewards=trial.reward,
            size=(self.width, self.height),
        )


def towards(position: jax.Array, target: jax.Array | np.ndarray) -> jax.Array:
    """Return the action from `position` towards `target`, int32 [2] each: along x first, then along y, then stay."""
    dx, dy = target - position
    along_x, along_y = jnp.where(dx > 0, 0, 1), jnp.where(dy > 0, 2, 3)
    return jnp.where(dx != 0, along_x, jnp.where(dy != 0, along_y, 4)).astype(jnp.int32)


def cells(width: int, height: int) -> np.ndarray:
    """Return all cells as (j, i), j < width in the outer and i < height in the inner loop, int32 [width·height, 2]."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height), indexing="ij"), -1).reshape(-1, 2).astype(np.int32)


def shuffled_split(rows: np.ndarray, train_fraction: float, split: Split) -> np.ndarray:
    """Shuffle `rows` by RandomState(0), whose stream numpy keeps stable, and return the part of a split."""
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
