"""Recorded trials of a scripted agent, with the labels that a policy can learn from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.environment.base import Environment
from relic_jax.environment.reference_agents import ScriptedAgent, Teacher, batch_memory, batch_probabilities
from relic_jax.environment.spaces import Discrete
from relic_jax.environment.trials import Trials, TrialState, select
from relic_jax.rl.state import step_input
from relic_jax.types import PyTree, StepInput

_Step = tuple[StepInput, jax.Array, jax.Array, jax.Array | None]
"""`Recordings.inputs`, `reward`, `ended` and `probabilities` of one step."""


@struct.dataclass
class Recordings:
    """Steps of trials, with leading axes [B, T].

    Attributes:
        inputs: The inputs of the policy.
        answers: int32 [B, T, number of answers]; `Environment.recall_labels`, 0 if they are not known.
        known: bool [B, T]; whether the trial has shown the answers up to this step.
        reward: float32 [B, T]; the reward of the action at each step.
        ended: bool [B, T]; whether an episode ended with it.
        probabilities: float32 [B, T, n]; `Teacher.action_probabilities`, restricted to legal actions, or None.
    """

    inputs: StepInput
    answers: jax.Array
    known: jax.Array
    reward: jax.Array
    ended: jax.Array
    probabilities: jax.Array | None = None


def record(
    trials: Trials,
    agent: ScriptedAgent,
    key: jax.Array,
    tasks: PyTree,
    steps: int,
    random_actions: float,
    *,
    with_probabilities: bool = False,
) -> Recordings:
    """Record one trial of a scripted agent per task. Actions of a `Teacher` are drawn from its probabilities.

    Args:
        trials: The environment's trials.
        agent: The agent.
        key: Typed PRNG key [].
        tasks: Tasks with leading axis [B].
        steps: T, steps of a trial.
        random_actions: Share of the actions that are drawn uniformly. They reach states that the agent alone does
            not visit. `Environment.ending_actions` are excluded if other actions are legal.
        with_probabilities: Whether to record the probabilities of the agent's actions. It must be a `Teacher`.
    """
    actions, batch = trials.env.action_space, jax.tree.leaves(tasks)[0].shape[0]
    reset_key, steps_key = jax.random.split(key)

    def step(carry: tuple[TrialState, PyTree], key: jax.Array) -> tuple[tuple[TrialState, PyTree], _Step]:
        trial, memory = carry
        agent_key, choice_key, random_key, env_key = jax.random.split(key, 4)
        memory, action, probabilities = _act(agent, agent_key, memory, trial)
        replaced = jax.random.bernoulli(choice_key, random_actions, (batch,))
        if trial.legal is not None:
            replaced = replaced | ~actions.allows(trial.legal, action)
        action = select(replaced, _draw(trials.env, random_key, batch, trial.legal), action)
        next_trial, result = trials.step(env_key, trial, actions.from_env(action))
        ended = result.terminated | result.truncated
        kept = probabilities if with_probabilities else None
        return (next_trial, memory), (step_input(trial), result.reward, ended, kept)

    start = (trials.reset(reset_key, tasks), batch_memory(agent, batch))
    _, recorded = jax.lax.scan(step, start, jax.random.split(steps_key, steps))
    inputs, *others = jax.tree.map(lambda x: x.swapaxes(0, 1), recorded)
    if trials.env.recall_classes:
        answers, known = _labels(trials.env, inputs)
    else:
        answers, known = jnp.zeros((batch, steps, 0), jnp.int32), jnp.zeros((batch, steps), bool)
    return Recordings(inputs, answers, known, *others)


def relabeled(env: Environment, key: jax.Array, recordings: Recordings) -> Recordings:
    """Return the recordings with other targets and their labels, see `Environment.relabel`.

    Args:
        env: The environment, with `Environment.can_relabel`.
        key: Typed PRNG key [].
        recordings: The recordings. Actions and rewards do not change; they belong to the original targets.
    """
    inputs = recordings.inputs
    keys = jax.random.split(key, inputs.first.shape[0])
    inputs = inputs.replace(observation=jax.vmap(env.relabel)(keys, inputs.observation))
    answers, known = _labels(env, inputs)
    return recordings.replace(inputs=inputs, answers=answers, known=known)  # type: ignore[attr-defined]


def _labels(env: Environment, inputs: StepInput) -> tuple[jax.Array, jax.Array]:
    """Return `Recordings.answers` and `Recordings.known`."""
    answers, known = jax.vmap(env.recall_labels)(inputs.observation)
    return jnp.where(known[..., None], answers, 0), known


def _act(
    agent: ScriptedAgent, key: jax.Array, memory: PyTree, trial: TrialState
) -> tuple[PyTree, jax.Array, jax.Array | None]:
    """Return the memories, the actions and, of a `Teacher`, the probabilities from which they are drawn."""
    batch = trial.first.shape[0]
    if not isinstance(agent, Teacher):
        keys = jax.random.split(key, batch)
        return *jax.vmap(agent.act)(keys, memory, trial.env, trial.first, trial.task), None
    memory, probabilities = batch_probabilities(agent, memory, trial)
    weights = probabilities
    if trial.legal is not None:  # without a legal action of the agent, any legal one
        weights = jnp.where(probabilities.any(-1, keepdims=True), probabilities, trial.legal)
    return memory, jax.random.categorical(key, jnp.log(weights)), probabilities


def _draw(env: Environment, key: jax.Array, batch: int, legal: jax.Array | None) -> jax.Array:
    """Draw a random action for each environment, in its units, without `ending_actions` if others are legal."""
    actions, ending = env.action_space, env.ending_actions
    if ending:
        others = jnp.ones((batch, actions.n), bool).at[:, jnp.array(ending)].set(False)
        allowed = others if legal is None else others & legal
        legal = allowed if legal is None else select(allowed.any(-1), allowed, legal)
    if legal is None and isinstance(actions, Discrete):
        return jax.random.randint(key, (batch,), 0, actions.n, jnp.int32)
    return jax.vmap(actions.sample)(jax.random.split(key, batch), legal)
