"""Probe environments: each isolates one ability of a learner, so that a failure names the broken part.

Episodes last exactly `horizon` steps and then terminate. All but the bandit have a single, empty task, the same in
both splits.
"""

from __future__ import annotations

import dataclasses

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
    """step: int32 [], steps taken in this episode. cue: int32 [], 0 or 1, drawn anew for every episode."""

    step: jax.Array
    cue: jax.Array


class Probe(Environment):
    """What probes share; a probe says what is seen (`observe`) and what is rewarded (`reward`)."""

    ends_in_time = True

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """float32 [1] unless the probe says otherwise."""
        return jax.ShapeDtypeStruct((1,), jnp.float32)

    @property
    def action_space(self) -> ActionSpace:
        """Two actions unless the probe says otherwise."""
        return Discrete(2)

    def observe(self, state: ProbeState) -> jax.Array:
        """The observation in `state`."""
        raise NotImplementedError

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """What `action` earns in `state`, bool or float []."""
        raise NotImplementedError

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[ProbeState, TimeStep]:
        """Draws the cue."""
        del task
        state = ProbeState(jnp.zeros((), jnp.int32), jax.random.bernoulli(key).astype(jnp.int32))
        return state, first_timestep(self.observe(state))

    def step(
        self, key: jax.Array, state: ProbeState, action: jax.Array, task: jax.Array
    ) -> tuple[ProbeState, TimeStep]:
        """Deterministic; terminates after `horizon` steps."""
        del key
        next_state = ProbeState(state.step + 1, state.cue)
        return next_state, TimeStep(
            observation=self.observe(next_state),
            reward=jnp.asarray(self.reward(state, action, task), jnp.float32),
            terminated=next_state.step >= self.horizon,
            truncated=jnp.zeros((), bool),
        )

    def tasks(self, split: Split) -> np.ndarray:
        """One task without content, int32 [1]."""
        del split
        return np.zeros(1, np.int32)


@dataclasses.dataclass(frozen=True)
class ValueProbe(Probe):
    """One step, always rewarded 1: the value must become 1. Fails if the value loss or its target is wrong."""

    name: str = "probe-value"
    horizon: int = 1

    def observe(self, state: ProbeState) -> jax.Array:
        """Always 1."""
        del state
        return jnp.ones(1, jnp.float32)

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """Always 1."""
        del state, action, task
        return jnp.ones((), jnp.float32)


@dataclasses.dataclass(frozen=True)
class DiscountProbe(Probe):
    """Two steps, only the second rewarded: values must become γ and 1. Fails if the return is not discounted right."""

    name: str = "probe-discount"
    horizon: int = 2

    def observe(self, state: ProbeState) -> jax.Array:
        """The step's index: 0, then 1."""
        return state.step.astype(jnp.float32)[None]

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """1 for the last step, whatever the action."""
        del action, task
        return state.step == self.horizon - 1


@dataclasses.dataclass(frozen=True)
class PolicyProbe(Probe):
    """One step, rewarded 1 if the action matches what is seen. Fails if advantages or the policy loss are wrong."""

    name: str = "probe-policy"
    horizon: int = 1

    def observe(self, state: ProbeState) -> jax.Array:
        """−1 where action 0 is right, +1 where action 1 is."""
        return (2.0 * state.cue - 1.0)[None]

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """1 if the action is the cue."""
        del task
        return action == state.cue

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """The cue."""
        del task
        return state.cue


@dataclasses.dataclass(frozen=True)
class MemoryProbe(PolicyProbe):
    """The cue is seen at the first step only and must be the action at the last. Fails if memory in an episode does.

    Any policy without memory earns 0.5 an episode.
    """

    name: str = "probe-memory"
    horizon: int = 5

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """float32 [2]: the cue as ∓1 at the first step and 0 after it; 1 at the last step and 0 before it."""
        return jax.ShapeDtypeStruct((2,), jnp.float32)

    def observe(self, state: ProbeState) -> jax.Array:
        """As `observation_spec` says."""
        shown = jnp.where(state.step == 0, 2.0 * state.cue - 1.0, 0.0)
        return jnp.stack([shown, (state.step == self.horizon - 1).astype(jnp.float32)])

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """1 if the action of the last step is the cue."""
        return super().reward(state, action, task) & (state.step == self.horizon - 1)


@dataclasses.dataclass(frozen=True)
class BanditProbe(Probe):
    """A bandit whose best arm is the task: only the trial's own history tells it. Fails if learning in context does.

    Episodes are several pulls long because a trial may hide an episode's last action and reward from the policy: what
    the earlier pulls revealed is in its context and serves all later episodes of the trial.
    """

    name: str = "probe-bandit"
    horizon: int = 4
    arms: int = 5

    @property
    def action_space(self) -> Discrete:
        """One action per arm."""
        return Discrete(self.arms)

    def observe(self, state: ProbeState) -> jax.Array:
        """Always 1."""
        del state
        return jnp.ones(1, jnp.float32)

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """1 for the best arm."""
        del state
        return action == task

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """The best arm, which the expert knows."""
        del state
        return jnp.asarray(task)

    def tasks(self, split: Split) -> np.ndarray:
        """The best arms, int32 [arms]. Both splits hold every arm: what is tested is adaptation, not generalisation."""
        del split
        return np.arange(self.arms, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class ContinuousProbe(Probe):
    """One step, rewarded for the action that is seen. Fails if the head, its density or the bounds are wrong.

    The best action is 2 ± 1.5 in bounds of [0, 4]: only a policy that looks gets near to it, in either half. The best
    that does not look earns 0.25 (whichever it takes between the two); one that is right but for noise of deviation σ
    in [−1, 1] loses about σ.
    """

    name: str = "probe-continuous"
    horizon: int = 1

    @property
    def action_space(self) -> Box:
        """One number in [0, 4]."""
        return Box((0.0,), (4.0,))

    def observe(self, state: ProbeState) -> jax.Array:
        """−1 or +1."""
        return (2.0 * state.cue - 1.0)[None]

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """1 less the distance from the best action, in [−1, 1]."""
        return 1 - jnp.abs(action - self.optimal_action(state, task)).sum() / 2

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """0.5 or 3.5."""
        del task
        return (0.5 + 3.0 * state.cue)[None]


@dataclasses.dataclass(frozen=True)
class MaskProbe(Probe):
    """Four steps, five actions, of which other ones are legal at every step: an illegal one costs 4.

    Action a pays a/4. Step t of an episode with cue c forbids action 4 − (t + c) mod 3, and action 0 where t is odd;
    nothing of that is seen. The best legal action changes with the mask: 4, unless it is forbidden, then 3. Masks that
    come a step late make a policy fail. Random legal actions earn 2.0 an episode, the best ones 3.625.
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
        """Always 1."""
        del state
        return jnp.ones(1, jnp.float32)

    def legal(self, state: ProbeState) -> jax.Array:
        """All but one of the three that pay most, and but action 0 in odd steps: bool [5]."""
        forbidden = 4 - (state.step + state.cue) % 3
        return (jnp.arange(5) != forbidden) & ((jnp.arange(5) > 0) | (state.step % 2 == 0))

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """a/4 for a legal action a, −4 for another."""
        del task
        return jnp.where(self.legal(state)[action], action / 4, -4.0)

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[ProbeState, TimeStep]:
        """Draws the cue."""
        state, timestep = super().reset(key, task)
        return state, dataclasses.replace(timestep, legal=self.legal(state))

    def step(
        self, key: jax.Array, state: ProbeState, action: jax.Array, task: jax.Array
    ) -> tuple[ProbeState, TimeStep]:
        """Deterministic; terminates after `horizon` steps."""
        state, timestep = super().step(key, state, action, task)
        return state, dataclasses.replace(timestep, legal=self.legal(state))

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """The legal action that pays most."""
        del task
        return jnp.where(self.legal(state)[4], 4, 3)


@dataclasses.dataclass(frozen=True)
class MultiDiscreteProbe(Probe):
    """One step, two actions at a time, among two and among three: each pays half where it matches what is seen.

    Fails if the factored head, its log-probabilities or the order of components are wrong. Chance: 5/12.
    """

    name: str = "probe-multidiscrete"
    horizon: int = 1

    @property
    def action_space(self) -> MultiDiscrete:
        """2 × 3."""
        return MultiDiscrete((2, 3))

    def observe(self, state: ProbeState) -> jax.Array:
        """−1 or +1."""
        return (2.0 * state.cue - 1.0)[None]

    def reward(self, state: ProbeState, action: jax.Array, task: jax.Array) -> jax.Array:
        """The share of components that are right."""
        return (action == self.optimal_action(state, task)).mean()

    def optimal_action(self, state: ProbeState, task: jax.Array) -> jax.Array:
        """(cue, 2 − cue)."""
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
