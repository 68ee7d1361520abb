"""Base classes of wrappers: environments that change one aspect of another environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from relic_jax.environment.base import (
    ActionSpace,
    Environment,
    PyTree,
    Split,
    TimeStep,
    TrialMap,
    TrialRecord,
    VisualEnvironment,
)

if TYPE_CHECKING:
    from relic_jax.environment.reference_agents import ScriptedAgent


@dataclasses.dataclass(frozen=True)
class Wrapper(Environment):
    """An environment that forwards every member to another one. Subclasses override what they change.

    A wrapper of a `VisualEnvironment` that must stay one is a `VisualWrapper`. A subclass that defines `step` must also
    define `ends_in_time` if its episodes end by themselves.

    Attributes:
        env: The wrapped environment.
    """

    env: Environment

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the wrapped environment."""
        return self.env.name

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """The horizon of the wrapped environment."""
        return self.env.horizon

    @property
    def expensive_reset(self) -> bool:  # type: ignore[override]
        """Whether resets of the wrapped environment are expensive."""
        return self.env.expensive_reset

    @property
    def masks_actions(self) -> bool:  # type: ignore[override]
        """Whether the wrapped environment has masks of legal actions."""
        return self.env.masks_actions

    @property
    def ends_in_time(self) -> bool:  # type: ignore[override]
        """Whether no episode of the wrapped environment outlasts its horizon."""
        return self.env.ends_in_time

    @property
    def ending_actions(self) -> tuple[int, ...]:  # type: ignore[override]
        """The actions that end an episode of the wrapped environment."""
        return self.env.ending_actions

    @property
    def on_host(self) -> bool:  # type: ignore[override]
        """Whether worker processes step the wrapped environment."""
        return self.env.on_host

    @property
    def has_expert(self) -> bool:
        """Whether the wrapped environment has a scripted expert."""
        return self.env.has_expert

    @property
    def rungs(self) -> Mapping[str, tuple[int | str, ...]]:
        """The rungs of the wrapped environment."""
        return self.env.rungs

    def rung_tasks(self, option: str, value: int | str) -> PyTree:
        """Return the tasks of a rung of the wrapped environment."""
        return self.env.rung_tasks(option, value)

    @property
    def recall_classes(self) -> tuple[int, ...]:
        """The numbers of classes of the wrapped environment's labels."""
        return self.env.recall_classes

    @property
    def without_labels(self) -> str:  # type: ignore[override]
        """The text of the wrapped environment."""
        return self.env.without_labels

    def recall_labels(self, observations: PyTree) -> tuple[jax.Array, jax.Array]:
        """Return the labels of the wrapped environment."""
        return self.env.recall_labels(observations)

    @property
    def can_relabel(self) -> bool:  # type: ignore[override]
        """Whether the wrapped environment can."""
        return self.env.can_relabel

    def relabel(self, key: jax.Array, observations: PyTree) -> PyTree:
        """Return the relabeled observations of the wrapped environment."""
        return self.env.relabel(key, observations)

    @property
    def observation_spec(self) -> PyTree:
        """The observation spec of the wrapped environment."""
        return self.env.observation_spec

    @property
    def observation_range(self) -> tuple[PyTree, PyTree] | None:
        """The observation range of the wrapped environment."""
        return self.env.observation_range

    @property
    def observation_names(self) -> tuple[str, ...] | None:
        """The observation names of the wrapped environment."""
        return self.env.observation_names

    @property
    def action_space(self) -> ActionSpace:
        """The action space of the wrapped environment."""
        return self.env.action_space

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """The action names of the wrapped environment."""
        return self.env.action_names

    @property
    def reference_agents(self) -> Mapping[str, ScriptedAgent]:
        """The reference agents of the wrapped environment."""
        return self.env.reference_agents

    @property
    def reference_episodes(self) -> int:
        """The default number of episodes for the reference returns of the wrapped environment."""
        return self.env.reference_episodes

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Reset the wrapped environment."""
        return self.env.reset(key, task)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Step the wrapped environment."""
        return self.env.step(key, state, action, task)

    def tasks(self, split: Split) -> PyTree:
        """Return the tasks of the wrapped environment."""
        return self.env.tasks(split)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether an episode of the wrapped environment succeeded."""
        return self.env.success(timestep, episode_return)

    def metrics(self, state: PyTree) -> dict[str, jax.Array]:
        """Return the metrics of the wrapped environment."""
        return self.env.metrics(state)

    def optimal_action(self, state: PyTree, task: PyTree) -> jax.Array:
        """Return the expert's action in the wrapped environment."""
        return self.env.optimal_action(state, task)

    def render_trial(self, trial: TrialRecord) -> np.ndarray | None:
        """Render a trial of the wrapped environment."""
        return self.env.render_trial(trial)

    def trial_map(self, trial: TrialRecord) -> TrialMap | None:
        """Return the map of a trial of the wrapped environment."""
        return self.env.trial_map(trial)

    def record(self, state: PyTree) -> PyTree:
        """Return the record of a state of the wrapped environment."""
        return self.env.record(state)

    def check_start(self, environments: int) -> None:
        """Raise ConfigError if a batch of the wrapped environment cannot be started."""
        self.env.check_start(environments)

    def concurrent_trials(self, count: int) -> int:
        """Return how many of `count` trials of the wrapped environment run at the same time."""
        return self.env.concurrent_trials(count)


@dataclasses.dataclass(frozen=True)
class VisualWrapper(Wrapper, VisualEnvironment):
    """A `Wrapper` of an environment whose observations are expensive. Dynamics and observations stay separate.

    `reset`, `step` and `step_within` are made from `start`, `transition` and `observe`, as in `VisualEnvironment`.

    Attributes:
        env: The wrapped environment.
    """

    env: VisualEnvironment

    reset = VisualEnvironment.reset
    step = VisualEnvironment.step
    step_within = VisualEnvironment.step_within

    @property
    def ends_in_time(self) -> bool:  # type: ignore[override]
        """Whether no episode of the wrapped environment outlasts its horizon."""
        return self.env.ends_in_time

    def start(self, key: jax.Array, task: PyTree) -> PyTree:
        """Start the first episode of a trial of the wrapped environment."""
        return self.env.start(key, task)

    def restart(self, key: jax.Array, state: PyTree, task: PyTree) -> PyTree:
        """Start a later episode of a trial of the wrapped environment."""
        return self.env.restart(key, state, task)

    def transition(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Step the wrapped environment without an observation."""
        return self.env.transition(key, state, action, task)

    def observe(self, state: PyTree, task: PyTree) -> tuple[PyTree, PyTree]:
        """Observe a state of the wrapped environment."""
        return self.env.observe(state, task)

    def legal(self, state: PyTree, task: PyTree) -> jax.Array | None:
        """Return the mask of legal actions in a state of the wrapped environment."""
        return self.env.legal(state, task)
