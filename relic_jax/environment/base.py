"""The environment interface: explicit keys, structured results, and the task passed in from outside.

An environment is a frozen dataclass (hashable, so jit may close over it) whose methods are pure functions of ONE
environment; callers vmap. It never resets itself: `relic_jax.environment.trials` handles episodes,
trials, batching and metrics.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.environment.spaces import ActionSpace, Box, Discrete, MultiDiscrete

__all__ = [
    "ActionSpace",
    "Box",
    "Discrete",
    "Environment",
    "Image",
    "MultiDiscrete",
    "PyTree",
    "Split",
    "TimeStep",
    "TrialRecord",
    "VisualEnvironment",
    "first_timestep",
    "num_tasks",
    "split_hash",
]

PyTree = Any
Split = Literal["train", "test"]


@struct.dataclass
class TimeStep:
    """What the environment answers to `reset` and `step`. All fields are unbatched.

    observation: pytree of arrays, matching `Environment.observation_spec`.
    reward: float32 []; 0 on reset.
    terminated: bool []; the episode reached an end state of the task, nothing follows.
    truncated: bool []; the episode was cut by the time limit, the state would have had a future. Where an environment
      sets both, it terminated (`one_end`).
    legal: bool [action_space.mask_size], which actions can be taken next, where `Environment.masks_actions`; else None.
      Not read where the episode ended.
    """

    observation: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    legal: jax.Array | None = None


class Image(jax.ShapeDtypeStruct):
    """The spec of an observation array that is an image: shape [height, width, channels].

    Only arrays whose spec is an `Image` go through the image encoder; every other array, of any rank, is a vector.
    dtype: uint8 for pixels 0 … 255, which the encoder reads as −1 … 1 (for the encoder `cells`: one-hot cells of 0 and
    255). Floats, which should be of about unit scale, and other integers and booleans are read as they are.

    `jax.tree` treats it as a leaf. `jax.eval_shape` takes it like any other `jax.ShapeDtypeStruct`, but returns plain
    ones. An `Image` equals no spec that is not one.
    """

    def __eq__(self, other: object) -> bool:
        """Whether `other` is an image of the same shape and dtype."""
        return isinstance(other, Image) and super().__eq__(other)

    def __hash__(self) -> int:
        """Of what makes two equal."""
        return hash((Image, super().__hash__()))


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """T consecutive steps of ONE trial, as numpy arrays on the host; what a renderer draws.

    observation: pytree, leading axis T; what the policy saw before it acted.
    action: int32 [T] or [T, n], or float32 [T, n]; what it then did, in the environment's units.
    reward: float32 [T]; what that earned.
    first: bool [T]; `observation` opens an episode.
    task: the trial's task, without a leading axis.
    record: pytree, leading axis T; `Environment.record` of the state that `observation` was made in.
    """

    observation: PyTree
    action: np.ndarray
    reward: np.ndarray
    first: np.ndarray
    task: PyTree
    record: PyTree = None


class Environment:
    """Base class. Subclasses are frozen dataclasses.

    `state` and `task` are pytrees of arrays of the subclass's own making. `task` has no leading axis in `reset`/`step`;
    `tasks(split)` stacks the tasks of a split along a leading axis. Subclasses define what raises NotImplementedError:
    `optimal_action` only where there is an expert, `step` not in `HostEnvironment` (worker processes do it).
    """

    name: str
    horizon: int  # the longest episode, in steps; one that has not terminated by then is truncated
    expensive_reset = (
        False  # trials reset only those whose episode ended, a block at a time, which a loop and copies cost
    )
    masks_actions = False  # every TimeStep says which actions are legal (`TimeStep.legal`); the policy takes no other
    may_fail = False  # its steps can get lost (simulators in worker processes): trajectories say which are valid
    ends_in_time = False  # no episode outlasts `horizon`; where this is False, trials count steps and truncate it there

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass with dynamics of its own does not inherit the promise that its episodes end in time."""
        super().__init_subclass__(**options)
        own = vars(cls)
        if own.keys() & {"step", "transition", "advance"} and "ends_in_time" not in own:
            cls.ends_in_time = False

    @property
    def reference_episodes(self) -> int:
        """How many episodes the random and the optimal line are estimated from, unless asked otherwise."""
        return 8192

    @property
    def observation_spec(self) -> PyTree:
        """Pytree of jax.ShapeDtypeStruct for one observation; of `Image` for the arrays that are images."""
        raise NotImplementedError

    @property
    def observation_range(self) -> tuple[PyTree, PyTree] | None:
        """(low, high), both inclusive: numpy arrays in the tree of `observation_spec`, to scale a policy's inputs by.

        None (default): unbounded, or of unit scale already.
        """
        return None

    @property
    def action_space(self) -> ActionSpace:
        """The set of actions: `Discrete`, `MultiDiscrete` or `Box`."""
        raise NotImplementedError

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """What the actions, or an action's components, are called, in their order. None (default): no names."""
        return None

    @property
    def observation_names(self) -> tuple[str, ...] | None:
        """What the components of the observation are called, where it is one vector. None (default): no names."""
        return None

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Starts an episode of `task`. key: typed PRNG key []. Returns (state, first TimeStep)."""
        raise NotImplementedError

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """One transition. action: one of `action_space`. Returns (next state, TimeStep)."""
        raise NotImplementedError

    def step_within(
        self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree, taken: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """`step`, truncated at the horizon. taken: int32 [], steps of the episode so far.

        Returns (next state, TimeStep, whether the environment itself would have gone on beyond the horizon: bool []).
        """
        state, timestep = self.step(key, state, action, task)
        return state, *cut_at(one_end(timestep), taken + 1 >= self.horizon)

    def tasks(self, split: Split) -> PyTree:
        """The task set of a split: a pytree of numpy arrays with a common leading axis."""
        raise NotImplementedError

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Whether an episode that ended with `timestep` is a success, bool []. Default: rewarded at its end."""
        del episode_return
        return timestep.reward > 0

    def optimal_action(self, state: PyTree, task: PyTree) -> jax.Array:
        """The scripted expert's action, one of `action_space`, where there is an expert (`has_expert`)."""
        raise NotImplementedError

    def render_trial(self, trial: TrialRecord) -> np.ndarray | None:
        """Frames of a trial, uint8 [n, H, W, 3], or None where the environment cannot be drawn (default)."""
        del trial
        return None

    def record(self, state: PyTree) -> PyTree:
        """What `render_trial` needs to know of `state` besides the observation. Default: nothing (None)."""
        del state
        return None

    def metrics(self, state: PyTree) -> dict[str, jax.Array]:
        """What else is measured in an episode that ended in `state`: float32 [] by name. Default: nothing."""
        del state
        return {}

    @property
    def has_expert(self) -> bool:
        """Whether the subclass defines `optimal_action`."""
        return type(self).optimal_action is not Environment.optimal_action


class VisualEnvironment(Environment):
    """An environment whose observations are too dear to be made for nothing: dynamics and looking are apart.

    Subclasses define `start`, `transition` and `observe`; `reset` and `step` are made from them. `Trials`
    looks once per step, after a reset where there was one, and a second time only in steps that truncate an episode.
    """

    def start(self, key: jax.Array, task: PyTree) -> PyTree:
        """The state at the start of a trial's first episode, before anything was seen. key: typed PRNG key []."""
        raise NotImplementedError

    def restart(self, key: jax.Array, state: PyTree, task: PyTree) -> PyTree:
        """The same for a later episode of the trial that `state` is in; may keep what depends on the task alone."""
        del state
        return self.start(key, task)

    def transition(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """`step` without its observation (None)."""
        raise NotImplementedError

    def observe(self, state: PyTree, task: PyTree) -> tuple[PyTree, PyTree]:
        """Returns (state, observation): what is seen in `state`; the state may keep what the dynamics need of it."""
        raise NotImplementedError

    def legal(self, state: PyTree, task: PyTree) -> jax.Array | None:
        """`TimeStep.legal` in `state`; to be defined where `masks_actions`."""
        del state, task
        return None

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Starts a trial's first episode."""
        state, observation = self.observe(self.start(key, task), task)
        return state, first_timestep(observation, self.legal(state, task))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Acts, then looks."""
        state, timestep = self.transition(key, state, action, task)
        state, observation = self.observe(state, task)
        return state, dataclasses.replace(timestep, observation=observation, legal=self.legal(state, task))


def one_end(timestep: TimeStep) -> TimeStep:
    """With `truncated` only where it did not terminate: a state that terminated has no future value."""
    return dataclasses.replace(timestep, truncated=timestep.truncated & ~timestep.terminated)


def cut_at(timestep: TimeStep, last: jax.Array) -> tuple[TimeStep, jax.Array]:
    """Truncates an episode that did not end where `last` (bool, any shape) holds. Returns (TimeStep, where it did)."""
    cut = last & ~(timestep.terminated | timestep.truncated)
    return dataclasses.replace(timestep, truncated=timestep.truncated | cut), cut


def num_tasks(tasks: PyTree) -> int:
    """Length of the leading axis of a task set."""
    return int(jax.tree.leaves(tasks)[0].shape[0])


def split_hash(tasks: PyTree) -> str:
    """First 12 hex digits of SHA-256 over the task arrays (dtype, shape, bytes): two equal hashes are equal splits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tasks):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


def first_timestep(observation: PyTree, legal: jax.Array | None = None) -> TimeStep:
    """The TimeStep of a reset: no reward, not ended."""
    false = jnp.zeros((), bool)
    return TimeStep(observation, jnp.zeros((), jnp.float32), false, false, legal)
