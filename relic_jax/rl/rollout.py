"""Acting: a scan over policy and environment inside jit, with the memory of the whole trial so far.

Attention reads the whole buffer that it is given, so a trial's first step would cost as much as its last. A segment
therefore acts on a copy of the cache of about the right size, one of a few static sizes, and hands back only what it
added: the cost follows the filled context, in one compiled function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from relic_jax.environment.trials import TrialState, TrialStep
from relic_jax.models.memory import Memory
from relic_jax.models.policy import Policy
from relic_jax.rl.state import Setup, step_input
from relic_jax.types import Params, PyTree, StepInput, Trajectory

MAX_SIZES = 8  # of the buffers that segments act on; each costs a compilation of the step


class Collected(NamedTuple):
    """One segment. trial, memory: after it. steps: [B, K, ...]. results: TrialStep [K, B]. last_value: float32 [B],
    of the observation that the trial goes on from. observation: [B, K, ...] with its images, where the update learns
    from them (`Policy.learns_images`), else None; it ends with the update, the context keeps the features in `steps`.
    """

    trial: TrialState
    memory: Memory
    steps: Trajectory
    results: TrialStep
    last_value: jax.Array
    observation: PyTree


def collect(setup: Setup, params: Params, trial: TrialState, memory: Memory, key: jax.Array) -> Collected:
    """Acts for one segment of K steps."""
    trial_steps, segment = setup.config.trial.steps, setup.config.trial.segment

    def act_in(size: int) -> Collected:
        working = setup.policy.for_acting(memory.prefix(size))
        collected = collect_within(setup, params, trial, working, key)
        return collected._replace(memory=setup.policy.stored(collected.memory.last_steps(segment)))

    collected = with_size(trial_steps, segment, memory.length + segment, act_in, count=acting_sizes(setup.policy))
    return collected._replace(memory=memory.append(collected.memory))


def acting_sizes(policy: Policy) -> int:
    """How many sizes of buffers to act on: one where what is in a memory does not change its size."""
    return 1 if policy.is_recurrent else MAX_SIZES


def with_size(
    steps: int, segment: int, filled: jax.Array | int, function: Callable[[int], PyTree], *, count: int = MAX_SIZES
) -> PyTree:
    """`function(size)` for the smallest static size that holds `filled` steps (int32 []) of a trial of `steps`."""
    sizes = buffer_sizes(steps, segment, count)
    index = jnp.searchsorted(jnp.asarray(sizes), filled)
    return jax.lax.switch(index, [lambda size=size: function(size) for size in sizes])


def buffer_sizes(steps: int, segment: int, count: int = MAX_SIZES) -> list[int]:
    """Up to `count` evenly spaced sizes, multiples of `segment`, the last of which is `steps`."""
    segments = steps // segment
    count = min(count, segments)
    return [segment * -(-segments * (index + 1) // count) for index in range(count)]


def collect_within(setup: Setup, params: Params, trial: TrialState, memory: Memory, key: jax.Array) -> Collected:
    """`collect` against the whole of `memory`, which must have room for the segment."""
    policy = setup.policy
    params = policy.for_steps(params)

    def step(carry: tuple[TrialState, Memory], key: jax.Array):
        trial, memory = carry
        action_key, env_key = jax.random.split(key)
        seen = step_input(trial)
        inputs = policy.encode_images(params, seen)
        output, memory = policy.act(params, memory, inputs)
        action = output.distribution.sample(action_key)
        trial, result = setup.trials.step(env_key, trial, action)
        record = Trajectory(
            inputs=inputs,
            action=action,
            log_prob=output.distribution.log_prob(action),
            value=output.value,
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated,
            final_value=final_value(setup, params, memory, action, result),
        )
        return (trial, memory), (record, result, seen.observation if policy.learns_images else None)

    keys = jax.random.split(key, setup.config.trial.segment)
    (trial, memory), (records, results, observation) = jax.lax.scan(step, (trial, memory), keys)
    steps, observation = jax.tree.map(lambda x: x.swapaxes(0, 1), (records, observation))
    return Collected(trial, memory, steps, results, policy.peek(params, memory, step_input(trial)), observation)


def final_value(setup: Setup, params: Params, memory: Memory, action: jax.Array, result: TrialStep) -> jax.Array:
    """Value of the observation that a time limit cut off, 0 elsewhere: float32 [B]. Costs only where there is one."""
    zeros = jnp.zeros_like(result.reward)
    if setup.config.ppo.time_limit == "terminal":
        return zeros

    def peek() -> jax.Array:
        shown = setup.policy.action_space.to_policy(action)
        inputs = StepInput(result.final_observation, shown, result.reward, jnp.zeros_like(result.truncated))
        return jnp.where(result.truncated, setup.policy.peek(params, memory, inputs), 0.0)

    return jax.lax.cond(result.truncated.any(), peek, lambda: zeros)
