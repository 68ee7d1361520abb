"""Probe environments. Each isolates one ability of a learner, so a failure identifies the broken part.

Episodes last exactly `horizon` steps and then terminate. All probes but the bandit have a single, empty task, which is
the same in both splits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.environment.base import (
    ActionSpace,
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    Split,
    TimeStep,
    first_timestep,
)


@struct.dataclass
class ProbeState:
    """The state of an episode.

    Attributes:
        step: Int32 []; steps taken.
        cue: Int32 []; 0 or 1, drawn for each episode.
    """

    step: jax.Array
    cue: jax.Array


class Probe(Environment):
    """Base of the probes. A subclass defines `observe` and `reward`."""

    ends_in_time = True

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """Float32 [1] by default."""
        return jax.ShapeDtypeStruct((1,), jnp.float32)

    @property
    def action_space(self) -> ActionSpace:
        """Two actions by default."""
        return Discrete(2)

    def observe(self, state: ProbeState) -> jax.Array:
        """Return the observation in `state`."""
        raise NotImplementedError

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return the reward of `action` in `state`, bool or float []."""
        raise NotImplementedError

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[ProbeState, TimeStep]:
        """Draw the cue."""
        del task
        state = ProbeState(jnp.zeros((), jnp.int32), jax.random.bernoulli(key).astype(jnp.int32))
        return state, first_timestep(self.observe(state))

    def step(
        self, key: jax.Array, state: ProbeState, action: jax.Array, task: jax.Array
    ) -> tuple[ProbeState, TimeStep]:
        """Take one step. Deterministic; the episode terminates after `horizon` steps."""
        del key
        next_state = ProbeState(state.step + 1, state.cue)
        return next_state, TimeStep(
            observation=self.observe(next_state),
            reward=jnp.asarray(self.reward(state, action, task), jnp.float32),
            terminated=next_state.step >= self.horizon,
            truncated=jnp.zeros((), bool),
        )

    def tasks(self, split: Split) -> np.ndarray:
        """Return one task without content, int32 [1]."""
        del split
        return np.zeros(1, np.int32)


@dataclasses.dataclass(frozen=True)
class ValueProbe(Probe):
    """One step with reward 1. The value must become 1. Fails if the value loss or its target is wrong."""

    name: str = "probe-value"
    horizon: int = 1

    def observe(self, state: ProbeState) -> jax.Array:
        """Return 1."""
        del state
        return jnp.ones(1, jnp.float32)

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return 1."""
        del state, action, task
        return jnp.ones((), jnp.float32)


@dataclasses.dataclass(frozen=True)
class DiscountProbe(Probe):
    """Two steps, the second with reward 1. The values must become γ and 1. Fails if discounting is wrong."""

    name: str = "probe-discount"
    horizon: int = 2

    def observe(self, state: ProbeState) -> jax.Array:
        """Return the index of the step: 0, then 1."""
        return state.step.astype(jnp.float32)[None]

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return 1 in the last step for any action."""
        del action, task
        return state.step == self.horizon - 1


@dataclasses.dataclass(frozen=True)
class PolicyProbe(Probe):
    """One step with reward 1 if the action matches the cue. Fails if advantages or the policy loss are wrong."""

    name: str = "probe-policy"
    horizon: int = 1

    def observe(self, state: ProbeState) -> jax.Array:
        """Return −1 if action 0 is right, +1 if action 1 is."""
        return (2.0 * state.cue - 1.0)[None]

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return 1 if the action is the cue."""
        del task
        return action == state.cue

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """Return the cue."""
        del task
        return state.cue


@dataclasses.dataclass(frozen=True)
class MemoryProbe(PolicyProbe):
    """The cue is observed in the first step only and must be the last action. Fails if memory in an episode does.

    Any policy without memory earns 0.5 per episode.
    """

    name: str = "probe-memory"
    horizon: int = 5

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """Float32 [2]: the cue as ∓1 in the first step, then 0; and 1 in the last step, 0 before."""
        return jax.ShapeDtypeStruct((2,), jnp.float32)

    def observe(self, state: ProbeState) -> jax.Array:
        """Return the cue in the first step, and whether the step is the last one."""
        cue = jnp.where(state.step == 0, 2.0 * state.cue - 1.0, 0.0)
        return jnp.stack([cue, (state.step == self.horizon - 1).astype(jnp.float32)])

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return 1 if the action of the last step is the cue."""
        return super().reward(state, action, task) & (state.step == self.horizon - 1)


@dataclasses.dataclass(frozen=True)
class BanditProbe(Probe):
    """A bandit whose best arm is the task. Only the history of the trial reveals it. Fails if in-context learning does.

    Episodes have several pulls because a trial can hide the last action and reward of an episode from the policy. The
    results of earlier pulls remain in the context for all later episodes of the trial.
    """

    name: str = "probe-bandit"
    horizon: int = 4
    arms: int = 5

    @property
    def action_space(self) -> Discrete:
        """One action per arm."""
        return Discrete(self.arms)

    def observe(self, state: ProbeState) -> jax.Array:
        """Return 1."""
        del state
        return jnp.ones(1, jnp.float32)

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return 1 for the best arm."""
        del state
        return action == task

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """Return the best arm, which the expert knows."""
        del state
        return jnp.asarray(task)

    def tasks(self, split: Split) -> np.ndarray:
        """Return all best arms, int32 [arms], for both splits. The probe tests adaptation, not generalization."""
        del split
        return np.arange(self.arms, dtype=np.int32)

    @property
    def rungs(self) -> Mapping[str, tuple[int | str, ...]]:
        """How many of the arms can be the best one."""
        return {"arms": tuple(range(1, self.arms + 1))}

    def rung_tasks(self, option: str, value: int | str) -> np.ndarray:
        """Return the first `value` arms as best arms, int32 [value]."""
        del option
        return np.arange(int(value), dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class ContinuousProbe(Probe):
    """One step, rewarded for the action that the cue asks for. Fails if the head, its density or the bounds are wrong.

    The best action is 2 ± 1.5 in bounds of [0, 4]. A policy that ignores the cue earns at most 0.25. An optimal policy
    with noise of standard deviation σ (for actions in [−1, 1]) loses about σ.
    """

    name: str = "probe-continuous"
    horizon: int = 1

    @property
    def action_space(self) -> Box:
        """One number in [0, 4]."""
        return Box((0.0,), (4.0,))

    def observe(self, state: ProbeState) -> jax.Array:
        """Return the cue as −1 or +1."""
        return (2.0 * state.cue - 1.0)[None]

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return 1 minus half the distance to the best action, in [−1, 1]."""
        return 1 - jnp.abs(action - self.optimal_action(state, task)).sum() / 2

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """Return 0.5 or 3.5."""
        del task
        return (0.5 + 3.0 * state.cue)[None]


@dataclasses.dataclass(frozen=True)
class MaskProbe(Probe):
    """Four steps with five actions, whose mask changes in every step. An illegal action costs 4.

    Action a pays a/4. Step t of an episode with cue c forbids action 4 − (t + c) mod 3, and action 0 if t is odd. Only
    the mask shows this: the best action is 4, or 3 if 4 is forbidden. Fails if masks are a step late. Random legal
    actions earn 2.0 per episode, the best ones 3.625.
    """

    name: str = "probe-mask"
    horizon: int = 4
    ends_in_time = True

    masks_actions = True

    @property
    def action_space(self) -> Discrete:
        """Five actions."""
        return Discrete(5)

    def observe(self, state: ProbeState) -> jax.Array:
        """Return 1."""
        del state
        return jnp.ones(1, jnp.float32)

    def legal(self, state: ProbeState) -> jax.Array:
        """Return the mask, bool [5]: one of the three best actions is illegal, and action 0 in odd steps."""
        forbidden = 4 - (state.step + state.cue) % 3
        return (jnp.arange(5) != forbidden) & ((jnp.arange(5) > 0) | (state.step % 2 == 0))

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return a/4 for a legal action a, −4 for an illegal one."""
        del task
        return jnp.where(self.legal(state)[action], action / 4, -4.0)

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[ProbeState, TimeStep]:
        """Draw the cue."""
        state, timestep = super().reset(key, task)
        return state, dataclasses.replace(timestep, legal=self.legal(state))

    def step(
        self, key: jax.Array, state: ProbeState, action: jax.Array, task: jax.Array
    ) -> tuple[ProbeState, TimeStep]:
        """Take one step. Deterministic; the episode terminates after `horizon` steps."""
        state, timestep = super().step(key, state, action, task)
        return state, dataclasses.replace(timestep, legal=self.legal(state))

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """Return the best legal action."""
        del task
        return jnp.where(self.legal(state)[4], 4, 3)


@dataclasses.dataclass(frozen=True)
class MultiDiscreteProbe(Probe):
    """One step with an action of two components, with two and three choices. Each pays 1/2 if it matches the cue.

    Fails if the factored head, its log-probabilities or the order of components are wrong. Random actions earn 5/12.
    """

    name: str = "probe-multidiscrete"
    horizon: int = 1

    @property
    def action_space(self) -> MultiDiscrete:
        """Two components, with two and three choices."""
        return MultiDiscrete((2, 3))

    def observe(self, state: ProbeState) -> jax.Array:
        """Return the cue as −1 or +1."""
        return (2.0 * state.cue - 1.0)[None]

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return the fraction of components that are right."""
        return (action == self.optimal_action(state, task)).mean()

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """Return (cue, 2 − cue)."""
        del task
        return jnp.stack([state.cue, 2 - state.cue])


PRESETS: dict[str, Probe] = {
    probe.name: probe
    for probe in (
        ValueProbe(),
        DiscountProbe(),
        PolicyProbe(),
        MemoryProbe(),
        BanditProbe(),
        ContinuousProbe(),
        MaskProbe(),
        MultiDiscreteProbe(),
    )
}
