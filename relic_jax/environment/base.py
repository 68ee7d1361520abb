"""The environment interface.

An environment is a frozen dataclass whose methods are pure functions of ONE environment: random keys, states and tasks
are explicit arguments. Callers `vmap` them. An environment is hashable, so `jax.jit` can close over it. It never resets
itself: `relic_jax.environment.Trials` handles episodes, batching and metrics. A complete environment, a guessing game
whose task is the number to guess:

    @dataclasses.dataclass(frozen=True)
    class Guess(Environment):
        name: str = "guess"
        horizon: int = 10

        observation_spec = jax.ShapeDtypeStruct((1,), jnp.float32)
        action_space = Discrete(5)

        def reset(self, key, task):
            return jnp.zeros((), jnp.int32), first_timestep(jnp.zeros(1))

        def step(self, key, state, action, task):
            hit = (action == task).astype(jnp.float32)
            timestep = TimeStep(hit[None], hit, terminated=state + 1 >= self.horizon, truncated=jnp.zeros((), bool))
            return state + 1, timestep

        def tasks(self, split):
            return np.array([0, 1, 2] if split == "train" else [3, 4], np.int32)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from relic_jax.environment.records import TrialMap, TrialRecord
from relic_jax.environment.spaces import ActionSpace, Box, Discrete, MultiDiscrete
from relic_jax.environment.task_sets import num_tasks, split_hash
from relic_jax.environment.timestep import TimeStep, cut_at, first_timestep, one_end

if TYPE_CHECKING:
    from relic_jax.environment.reference_agents import ScriptedAgent

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
    "TrialMap",
    "TrialRecord",
    "VisualEnvironment",
    "first_timestep",
    "num_tasks",
    "split_hash",
]

PyTree = Any
Split = Literal["train", "test"]


class Image(jax.ShapeDtypeStruct):
    """The spec of an observation array that is an image, of shape [height, width, channels].

    The image encoder reads only arrays whose spec is an `Image`. Every other array, of any rank, is read as a vector.
    The dtype is usually uint8: pixels 0 … 255 are scaled to [−1, 1] (for the encoder `cells`: one-hot cells of 0 and
    255). Floats, other integers and booleans are read without scaling; floats should be of about unit scale.

    `jax.tree` treats it as a leaf. `jax.eval_shape` returns plain `jax.ShapeDtypeStruct`s, which equal no `Image`.
    """

    def __eq__(self, other: object) -> bool:
        """Return whether `other` is an image of the same shape and dtype."""
        return isinstance(other, Image) and super().__eq__(other)

    def __hash__(self) -> int:
        """Return a hash that is consistent with equality."""
        return hash((Image, super().__hash__()))


class Environment:
    """Base class of environments. Subclasses are frozen dataclasses.

    States and tasks are pytrees of arrays that the subclass defines. Subclasses must define `observation_spec`,
    `action_space`, `reset`, `step` and `tasks`. Everything else has a default.
    """

    name: str
    """The environment's name in errors and results."""
    horizon: int
    """The longest episode, in steps. Episodes that do not end by then are truncated."""
    expensive_reset = False
    """Whether resets are expensive. If so, trials reset only environments whose episode ended, a few at a time."""
    masks_actions = False
    """Whether every `TimeStep` has a mask of legal actions. The policy then takes no other action."""
    ends_in_time = False
    """Whether no episode outlasts `horizon`. If False, trials count steps and truncate episodes there."""
    ending_actions: tuple[int, ...] = ()
    """Discrete actions that end the episode at once, such as a stop. The random actions in recorded trials
    (`PretrainConfig.random_actions`) exclude them. Default: none."""
    on_host = False
    """Whether worker processes step the environment (`HostEnvironment`). If False, it runs inside `jax.jit`.

    Steps of worker processes can be lost. Trajectories then mark the valid steps.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Reset `ends_in_time` in subclasses that define their own dynamics without declaring it."""
        super().__init_subclass__(**options)
        own = vars(cls)
        if own.keys() & {"step", "transition", "advance"} and "ends_in_time" not in own:
            cls.ends_in_time = False

    @property
    def observation_spec(self) -> PyTree:
        """Pytree of `jax.ShapeDtypeStruct`s of one observation. Arrays that are images have an `Image` instead."""
        raise NotImplementedError

    @property
    def action_space(self) -> ActionSpace:
        """The set of actions: `Discrete`, `MultiDiscrete` or `Box`."""
        raise NotImplementedError

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Start an episode of `task`.

        Args:
            key: Typed PRNG key [].
            task: One task, without a leading axis.

        Returns:
            The state and the first `TimeStep`.
        """
        raise NotImplementedError

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Take one step.

        Args:
            key: Typed PRNG key [].
            state: The current state.
            action: An element of `action_space`.
            task: One task, without a leading axis.

        Returns:
            The next state and its `TimeStep`.
        """
        raise NotImplementedError

    def tasks(self, split: Split) -> PyTree:
        """Return the tasks of a split: a pytree of numpy arrays with a common leading axis."""
        raise NotImplementedError

    def step_within(
        self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree, elapsed: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Take one step and truncate the episode at the horizon.

        Args:
            key: Typed PRNG key [].
            state: The current state.
            action: An element of `action_space`.
            task: One task, without a leading axis.
            elapsed: int32 []. Steps of the episode before this one.

        Returns:
            The next state, its `TimeStep`, and whether the horizon cut the episode: bool [].
        """
        state, timestep = self.step(key, state, action, task)
        return state, *cut_at(one_end(timestep), elapsed + 1 >= self.horizon)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether an episode that ended with `timestep` succeeded, bool []. Default: its last reward is > 0."""
        del episode_return
        return timestep.reward > 0

    def metrics(self, state: PyTree) -> dict[str, jax.Array]:
        """Return further metrics of an episode that ended in `state`, float32 [] by name. Default: none."""
        del state
        return {}

    def optimal_action(self, state: PyTree, task: PyTree) -> jax.Array:
        """Return the action of a scripted expert. Define it only if there is one (`has_expert`)."""
        raise NotImplementedError

    @property
    def has_expert(self) -> bool:
        """Whether the subclass defines `optimal_action`."""
        return type(self).optimal_action is not Environment.optimal_action

    @property
    def reference_agents(self) -> Mapping[str, ScriptedAgent]:
        """Scripted agents with a memory by name, which are played beside every evaluation. Default: none.

        The trials of one of them are recorded for pretraining (`PretrainConfig.agent`).
        """
        return {}

    @property
    def rungs(self) -> Mapping[str, tuple[int | str, ...]]:
        """Values of task options from easy to hard, by option, which a curriculum can draw for each trial.

        The tasks of `tasks` have the hardest value. () if the tasks have several values already. Default: none.
        """
        return {}

    def rung_tasks(self, option: str, value: int | str) -> PyTree:
        """Return the training tasks with a value of an option in `rungs`: as `tasks("train")`, but for their number."""
        raise NotImplementedError

    without_labels = "labels nothing that can be recalled"
    """What an environment without `recall_classes` does, for errors: "NAME, which labels nothing …"."""

    @property
    def recall_classes(self) -> tuple[int, ...]:
        """Number of classes of each answer in `recall_labels`. Default: (), there are no labels."""
        return ()

    def recall_labels(self, observations: PyTree) -> tuple[jax.Array, jax.Array]:
        """Label every step of a trial with what a remembering agent could answer, for recall losses.

        Args:
            observations: Those of a trial, with a leading axis T.

        Returns:
            (answers, int32 [T, answers]; bool [T], whether the trial has shown them up to this step).
        """
        raise NotImplementedError

    can_relabel = False
    """Whether `relabel` is defined."""

    def relabel(self, key: jax.Array, observations: PyTree) -> PyTree:
        """Replace the target of each step with a random one that has been observed in the trial so far.

        Hindsight relabeling (Andrychowicz et al. 2017, arXiv 1707.01495), for `PretrainConfig.relabel`. `recall_labels`
        must know the answers for the new targets.

        Args:
            key: Typed PRNG key [].
            observations: Those of a trial, with a leading axis T.

        Returns:
            The observations, in which only the target and what depends on it differ.
        """
        raise NotImplementedError

    def render_trial(self, trial: TrialRecord) -> np.ndarray | None:
        """Return frames of a trial, uint8 [n, H, W, 3]. Default: None, the environment cannot be drawn."""
        del trial
        return None

    def trial_map(self, trial: TrialRecord) -> TrialMap | None:
        """Return the map of a trial and the kinds of objects in view at each step. Default: None."""
        del trial
        return None

    def record(self, state: PyTree) -> PyTree:
        """Return what `render_trial` and `trial_map` need of `state` besides the observation. Default: None."""
        del state
        return None

    @property
    def observation_range(self) -> tuple[PyTree, PyTree] | None:
        """(low, high), both inclusive: numpy arrays in the tree of `observation_spec`. They scale the policy's inputs.

        Default: None. Observations are unbounded, or already of unit scale.
        """
        return None

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """Names of the actions, or of an action's components, in their order. Default: None."""
        return None

    @property
    def observation_names(self) -> tuple[str, ...] | None:
        """Names of the components of a vector observation, in their order. Default: None."""
        return None

    @property
    def reference_episodes(self) -> int:
        """The default number of episodes from which `reference_returns` estimates mean returns."""
        return 8192

    def check_start(self, environments: int) -> None:
        """Raise ConfigError if a batch of `environments` cannot be started. Default: nothing has to be started."""
        del environments

    def concurrent_trials(self, count: int) -> int:
        """Return how many of `count` trials run at the same time in an evaluation. Default: all of them."""
        return count


class VisualEnvironment(Environment):
    """Base class of environments whose observations are expensive: dynamics and observations are separate.

    Subclasses define `start`, `transition` and `observe` in place of `reset` and `step`. `Trials` observes each state
    once, after the reset if there is one, and a second time only in steps that truncate an episode. Under action repeat
    (`ActionRepeat`), only the last state is observed.
    """

    def start(self, key: jax.Array, task: PyTree) -> PyTree:
        """Return the state at the start of a trial's first episode. `key` is a typed PRNG key []."""
        raise NotImplementedError

    def restart(self, key: jax.Array, state: PyTree, task: PyTree) -> PyTree:
        """Return the state at the start of a later episode of the trial.

        Override it to keep a part of `state` that depends only on the task. Default: `start`.
        """
        del state
        return self.start(key, task)

    def transition(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Take one step like `step`, with None as the observation."""
        raise NotImplementedError

    def observe(self, state: PyTree, task: PyTree) -> tuple[PyTree, PyTree]:
        """Return the state and its observation.

        The returned state can keep a part of the observation for `transition`. Under action repeat, that is the
        observation from which the policy chose the action.
        """
        raise NotImplementedError

    def legal(self, state: PyTree, task: PyTree) -> jax.Array | None:
        """Return `TimeStep.legal` of `state`. Define it if `masks_actions`."""
        del state, task
        return None

    def transition_within(
        self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree, elapsed: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Take one step like `step_within`, with None as the observation."""
        state, timestep = self.transition(key, state, action, task)
        return state, *cut_at(one_end(timestep), elapsed + 1 >= self.horizon)

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Start the first episode of a trial."""
        state, observation = self.observe(self.start(key, task), task)
        return state, first_timestep(observation, self.legal(state, task))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Take one step and observe the next state."""
        return self._observed(*self.transition(key, state, action, task), task)

    def step_within(
        self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree, elapsed: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Take one step, truncate the episode at the horizon, and observe the next state."""
        state, timestep, cut = self.transition_within(key, state, action, task, elapsed)
        return *self._observed(state, timestep, task), cut

    def _observed(self, state: PyTree, timestep: TimeStep, task: PyTree) -> tuple[PyTree, TimeStep]:
        state, observation = self.observe(state, task)
        return state, dataclasses.replace(timestep, observation=observation, legal=self.legal(state, task))
