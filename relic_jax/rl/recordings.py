"""Recorded trials of a scripted agent, with the labels that a policy can learn from them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.environment.reference_agents import ScriptedAgent
from relic_jax.environment.spaces import ActionSpace, Discrete
from relic_jax.environment.trials import Trials, TrialState, select
from relic_jax.rl.state import step_input
from relic_jax.types import PyTree, StepInput


@struct.dataclass
class Recordings:
    """Steps of trials, with leading axes [B, T].

    Attributes:
        inputs: The inputs of the policy.
        answers: int32 [B, T, number of answers]; `Environment.recall_labels`, 0 if they are not known.
        known: bool [B, T]; whether the trial has shown the answers up to this step.
    """

    inputs: StepInput
    answers: jax.Array
    known: jax.Array


def record(
    trials: Trials, agent: ScriptedAgent, key: jax.Array, tasks: PyTree, steps: int, random_actions: float
) -> Recordings:
    """Record one trial of a scripted agent per task.

    Args:
        trials: The environment's trials.
        agent: The agent.
        key: Typed PRNG key [].
        tasks: Tasks with leading axis [B].
        steps: T, steps of a trial.
        random_actions: Share of the actions that are drawn uniformly. They reach states that the agent alone does
            not visit.
    """
    actions, batch = trials.env.action_space, jax.tree.leaves(tasks)[0].shape[0]
    reset_key, steps_key = jax.random.split(key)

    def step(carry: tuple[TrialState, PyTree], key: jax.Array) -> tuple[tuple[TrialState, PyTree], StepInput]:
        trial, memory = carry
        agent_key, choice_key, random_key, env_key = jax.random.split(key, 4)
        keys = jax.random.split(agent_key, batch)
        memory, action = jax.vmap(agent.act)(keys, memory, trial.env, trial.first, trial.task)
        replaced = jax.random.bernoulli(choice_key, random_actions, (batch,))
        if trial.legal is not None:
            replaced = replaced | ~actions.allows(trial.legal, action)
        action = select(replaced, _draw(actions, random_key, batch, trial.legal), action)
        next_trial, _ = trials.step(env_key, trial, actions.from_env(action))
        return (next_trial, memory), step_input(trial)

    memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *jnp.shape(x))), agent.initial_memory())
    start = (trials.reset(reset_key, tasks), memory)
    _, inputs = jax.lax.scan(step, start, jax.random.split(steps_key, steps))
    inputs = jax.tree.map(lambda x: x.swapaxes(0, 1), inputs)
    answers, known = jax.vmap(trials.env.recall_labels)(inputs.observation)
    return Recordings(inputs, jnp.where(known[..., None], answers, 0), known)


def _draw(actions: ActionSpace, key: jax.Array, batch: int, legal: jax.Array | None) -> Any:
    """Draw a random action for each environment, in the environment's units."""
    if legal is None and isinstance(actions, Discrete):
        return jax.random.randint(key, (batch,), 0, actions.n, jnp.int32)
    return jax.vmap(actions.sample)(jax.random.split(key, batch), legal)
