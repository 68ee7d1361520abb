"""Multi-object Darkroom: object navigation on a grid.

K objects, one of each kind, lie on an N×N grid for a whole trial. Every episode asks for one kind and starts in a
random cell. The agent sees its own cell, the target kind and the objects within one cell. Early episodes have to
explore; later ones can recall where an object was seen during the search for another. This is the object navigation of
ReLIC (Elawady et al. 2024, arXiv 2410.02751, section 4.1) without images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.config import EnvConfig, WorkerConfig
from relic_jax.environment.base import Discrete, Environment, Split, TimeStep, TrialMap, TrialRecord, first_timestep
from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING, ScriptedAgent
from relic_jax.envs.asked import read_asked, sample_observed
from relic_jax.envs.darkroom import render
from relic_jax.envs.darkroom.env import MOVES, towards

RADIUS = 1
"""The agent sees objects at most so many cells away, along x and along y."""
VIEW = (2 * RADIUS + 1) ** 2
TRAIN_LAYOUTS, TEST_LAYOUTS = 10_000, 1_000
STEP_REWARD = -0.01


@dataclasses.dataclass(frozen=True)
class GridObjOptions:
    """Options of `gridobj-N`."""

    asked: int | str | None = None
    """Number of kinds of objects that a trial asks for; None: all. Fewer are easier to recall. Several numbers, such as
    1,2,3: each is used by an equal share of the tasks."""


@struct.dataclass
class GridObjTask:
    """What a trial keeps fixed.

    Attributes:
        objects: int32 [K, 2]; the cell (x, y) of the object of each kind, all different.
        asked: int32 [A]; the kinds that the trial asks for, distinct. If tasks ask for different numbers of kinds, A is
            the largest one, and unused entries at the end are −1.
    """

    objects: jax.Array | np.ndarray
    asked: jax.Array | np.ndarray


@struct.dataclass
class GridObjState:
    """State of an episode.

    Attributes:
        position: int32 [2]; the agent's cell (x, y).
        target: int32 []; the kind that this episode asks for.
        objects: int32 [K, 2]; the cell of the object of each kind, constant within a trial.
        step: int32 []; steps taken in this episode.
    """

    position: jax.Array
    target: jax.Array
    objects: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class GridObj(Environment):
    """Find the object of the kind that the episode asks for.

    Reward 1 on reaching its cell, which terminates the episode, and −0.01 for every other step. An episode is truncated
    after `horizon` steps.

    Attributes:
        name: Registered name.
        size: N, cells along each side.
        kinds: K, kinds of objects. One object of each kind lies on the grid.
        horizon: Steps of the longest episode.
        asked: Number of kinds that a trial asks for, 1 … K; None: all. The task decides which ones. Objects of the
            other kinds lie on the grid too. With n numbers, task i asks for the number at index i mod n.
    """

    ends_in_time = True
    can_relabel = True

    name: str
    size: int
    kinds: int
    horizon: int
    asked: int | tuple[int, ...] | None = None

    @property
    def observation_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What the agent sees.

        position: float32 [2 N]; one-hot x, then one-hot y. target: float32 [K]; one-hot. view: float32 [K · 9]; for
        each kind a one-hot of the neighbouring cell (Δx, then Δy, each −1 … 1) with its object, zeros if it is not in
        view.
        """
        return {
            "position": jax.ShapeDtypeStruct((2 * self.size,), jnp.float32),
            "target": jax.ShapeDtypeStruct((self.kinds,), jnp.float32),
            "view": jax.ShapeDtypeStruct((self.kinds * VIEW,), jnp.float32),
        }

    @property
    def action_space(self) -> Discrete:
        """0 x+1, 1 x−1, 2 y+1, 3 y−1, 4 stay."""
        return Discrete(len(MOVES))

    @property
    def action_names(self) -> tuple[str, ...]:
        """The names of the actions, in the order of `action_space`."""
        return ("right", "left", "up", "down", "stay")

    def reset(self, key: jax.Array, task: GridObjTask) -> tuple[GridObjState, TimeStep]:
        """Start an episode in a random cell with a random one of the kinds that the trial asks for."""
        cell_key, kind_key = jax.random.split(key)
        count = (task.asked >= 0).sum()
        state = GridObjState(
            position=jax.random.randint(cell_key, (2,), 0, self.size, jnp.int32),
            target=task.asked[jax.random.randint(kind_key, (), 0, count)],
            objects=jnp.asarray(task.objects),
            step=jnp.zeros((), jnp.int32),
        )
        return state, first_timestep(self.observe(state))

    def step(
        self, key: jax.Array, state: GridObjState, action: jax.Array, task: GridObjTask
    ) -> tuple[GridObjState, TimeStep]:
        """Move the agent; deterministic. A move off the grid leaves it at the edge."""
        del key, task
        position = jnp.clip(state.position + jnp.asarray(MOVES)[action], 0, self.size - 1)
        next_state = dataclasses.replace(state, position=position, step=state.step + 1)
        found = jnp.all(position == state.objects[state.target])
        return next_state, TimeStep(
            observation=self.observe(next_state),
            reward=jnp.where(found, 1.0, STEP_REWARD),
            terminated=found,
            truncated=(next_state.step >= self.horizon) & ~found,
        )

    def observe(self, state: GridObjState) -> dict[str, jax.Array]:
        """Return the observation in `state`, see `observation_spec`."""
        offset = state.objects - state.position
        cell = (offset[:, 0] + RADIUS) * (2 * RADIUS + 1) + offset[:, 1] + RADIUS
        view = jax.nn.one_hot(jnp.where(in_view(state), cell, -1), VIEW)
        return {
            "position": jax.nn.one_hot(state.position, self.size).reshape(-1),
            "target": jax.nn.one_hot(state.target, self.kinds),
            "view": view.reshape(-1),
        }

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the object was reached, bool []."""
        del episode_return
        return timestep.terminated

    def metrics(self, state: GridObjState) -> dict[str, jax.Array]:
        """Return the length of the episode in steps."""
        return {"steps": state.step.astype(jnp.float32)}

    def optimal_action(self, state: GridObjState, task: GridObjTask) -> jax.Array:
        """Return a step on a shortest path: along x first, then along y."""
        del task
        return towards(state.position, state.objects[state.target])

    @property
    def reference_agents(self) -> Mapping[str, ScriptedAgent]:
        """The two searchers of `searcher.py`."""
        from relic_jax.envs.gridobj.searcher import Searcher  # it needs this module

        return {FORGETFUL: Searcher(self, "episode"), REMEMBERING: Searcher(self, "trial")}

    @property
    def recall_classes(self) -> tuple[int, int]:
        """X and y of a cell."""
        return self.size, self.size

    def recall_labels(self, observations: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Return the cell of the target kind, and whether it was in view at this step or before in the trial."""
        view = observations["view"].reshape(-1, self.kinds, 2 * RADIUS + 1, 2 * RADIUS + 1)
        seen, target = view.any((-1, -2)), observations["target"].argmax(-1)
        position = observations["position"].reshape(-1, 1, 2, self.size).argmax(-1)
        offset = jnp.stack([view.any(-1).argmax(-1), view.any(-2).argmax(-1)], axis=-1) - RADIUS
        sighting = seen.argmax(0)[None, :, None]  # objects do not move within a trial: any sighting will do
        cells = jnp.take_along_axis(position + offset, sighting, axis=0)[0]
        known = jnp.take_along_axis(jax.lax.cummax(seen.astype(jnp.int32)), target[:, None], 1)[:, 0]
        return cells[target].astype(jnp.int32), known > 0

    def relabel(self, key: jax.Array, observations: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Replace the target of each step with a random kind that has been in view in the trial."""
        view = observations["view"].reshape(-1, self.kinds, VIEW).any(-1)
        return observations | {"target": sample_observed(key, view, observations["target"])}

    def record(self, state: GridObjState) -> GridObjState:
        """Return the state: the observation has no cells as numbers."""
        return state

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Return frames of a trial, uint8 [n, H, W, 3]: the target object in green, the others in yellow."""
        state = trial.record

        def marks(step: int) -> list[render.Mark]:
            colours = [render.GREEN if kind == state.target[step] else render.GOLD for kind in range(self.kinds)]
            return [render.Mark(cell, colour) for cell, colour in zip(state.objects[step], colours, strict=True)]

        return render.trial_frames(
            positions=state.position,
            marks=marks,
            episodes=np.cumsum(trial.first) - 1,
            rewards=trial.reward,
            size=(self.size, self.size),
        )

    def trial_map(self, trial: TrialRecord) -> TrialMap:
        """Return the map of a trial. Cell (x, y) is the square of side 1 around the point (x, y)."""
        state = trial.record
        offset = np.asarray(state.objects) - np.asarray(state.position)[:, None]
        return TrialMap(
            position=np.asarray(state.position, float),
            asked=np.asarray(state.target),
            in_view=(np.abs(offset) <= RADIUS).all(-1),
            objects=np.asarray(state.objects[0], float),
            kinds=np.arange(self.kinds),
            low=np.full(2, -0.5),
            high=np.full(2, self.size - 0.5),
            cell=1.0,
        )

    def tasks(self, split: Split) -> GridObjTask:
        """Return the layouts of a split: objects int32 [n, K, 2], asked int32 [n, A].

        The first 10,000 of a fixed sequence of random layouts are for training, the next 1,000 are held out.
        """
        objects, order = layouts(self.size, self.kinds)
        rows = slice(TRAIN_LAYOUTS) if split == "train" else slice(TRAIN_LAYOUTS, None)
        if not isinstance(self.asked, tuple):
            return GridObjTask(objects[rows], order[rows, : self.asked])
        asked = order[rows, : max(self.asked)]
        return GridObjTask(objects[rows], first_kinds(asked, np.resize(np.array(self.asked), len(asked))))

    @property
    def rungs(self) -> Mapping[str, tuple[int | str, ...]]:
        """The numbers of kinds that a trial can ask for, up to `asked`. () if the tasks already have several."""
        if isinstance(self.asked, tuple):
            return {"asked": ()}
        return {"asked": tuple(range(1, (self.asked or self.kinds) + 1))}

    def rung_tasks(self, option: str, value: int | str) -> GridObjTask:
        """Return the training layouts, each with the first `value` of the kinds that its trials ask for."""
        del option
        tasks = self.tasks("train")
        asked = np.asarray(tasks.asked)
        return dataclasses.replace(tasks, asked=first_kinds(asked, np.full(len(asked), int(value))))


@functools.cache
def layouts(size: int, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (cells of the objects, int32 [n, K, 2]; kinds in the order in which trials ask for them, int32 [n, K]).

    They come from `numpy.random.RandomState(0)`, whose stream NumPy keeps unchanged.
    """
    random, count = np.random.RandomState(0), TRAIN_LAYOUTS + TEST_LAYOUTS
    cells = random.random_sample((count, size**2)).argsort(axis=1, kind="stable")[:, :kinds]
    order = random.random_sample((count, kinds)).argsort(axis=1, kind="stable")
    return np.stack([cells // size, cells % size], axis=-1).astype(np.int32), order.astype(np.int32)


def first_kinds(asked: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return `asked`, int32 [n, A], with −1 in place of the entries from `counts`, int [n], on."""
    return np.where(np.arange(asked.shape[1]) >= counts[:, None], np.int32(-1), asked)


def in_view(state: GridObjState) -> jax.Array:
    """Return which objects the agent sees, bool [K]."""
    return jnp.all(jnp.abs(state.objects - state.position) <= RADIUS, axis=-1)


PRESETS = {
    preset.name: preset
    for preset in (
        GridObj("gridobj-9", 9, 6, 60),
        GridObj("gridobj-13", 13, 8, 120),
        GridObj("gridobj-21", 21, 12, 240),
    )
}


def make(env: EnvConfig, workers: WorkerConfig) -> GridObj:
    """Return the environment of a name in `PRESETS`. Raises ConfigError if `asked` is out of range."""
    del workers
    preset = PRESETS[env.name]
    return dataclasses.replace(preset, asked=read_asked(env.name, env.typed(GridObjOptions).asked, preset.kinds))
