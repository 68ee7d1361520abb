"""Acting inside jit: a scan over policy and environment, with the memory of the whole trial so far.

The cost of a step should be proportional to the number of filled steps. The compiled CPU kernel reads only these. Other
kernels read their whole buffer, so a segment acts on a copy of the cache that is only as large as needed, one of
a few static sizes, and returns only the steps that it added. Policy and environment are then compiled for every size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from relic_jax.environment.reference_agents import batch_probabilities
from relic_jax.environment.trials import TrialState, TrialStep
from relic_jax.models.memory import Memory
from relic_jax.models.policy import Policy
from relic_jax.rl.state import Setup, step_input
from relic_jax.types import Params, PyTree, StepInput, Trajectory

MAX_SIZES = 8
"""Number of buffer sizes on which segments act with kernels that read the whole buffer. Each compiles the step once."""


class Collected(NamedTuple):
    """Result of acting for one segment of K steps in B environments.

    Attributes:
        trial: the trials after the segment.
        memory: the memory after the segment.
        steps: the segment's part of the trajectory, leading axes [B, K].
        results: leading axes [K, B].
        last_value: float32 [B], value of the observation after the segment.
        observation: the observations with their images, leading axes [B, K], if the update trains the image encoder;
          otherwise None. `steps` and the context contain only features.
        teacher: the memory of the teacher after the segment, or None without one.
        probabilities: its distributions over actions, float32 [B, K, n], or None without a teacher.
    """

    trial: TrialState
    memory: Memory
    steps: Trajectory
    results: TrialStep
    last_value: jax.Array
    observation: PyTree
    teacher: PyTree = None
    probabilities: jax.Array | None = None


def collect(
    setup: Setup, params: Params, trial: TrialState, memory: Memory, key: jax.Array, teacher: PyTree = None
) -> Collected:
    """Act for one segment.

    Args:
        setup: the training setup.
        params: parameters of the policy.
        trial: the trials at the start of the segment.
        memory: the context so far.
        key: typed PRNG key [].
        teacher: the memory of the teacher, or None without one.
    """
    trial_steps, segment = setup.config.trial.steps, setup.config.trial.segment
    if setup.policy.acts_in_place:
        return collect_within(setup, params, trial, memory, key, teacher)

    def act_in(size: int) -> Collected:
        working = setup.policy.for_acting(memory.prefix(size))
        collected = collect_within(setup, params, trial, working, key, teacher)
        return collected._replace(memory=setup.policy.for_storage(collected.memory.last_steps(segment)))

    collected = with_size(trial_steps, segment, memory.filled + segment, act_in, count=acting_sizes(setup.policy))
    return collected._replace(memory=memory.append(collected.memory))


def acting_sizes(policy: Policy, count: int = MAX_SIZES) -> int:
    """Return the number of buffer sizes for acting: `count`, or 1 if the cost of a step does not depend on the size."""
    return count if policy.config.traits.keeps_steps and not policy.reads_filled_steps else 1


def with_size(
    steps: int, segment: int, filled: jax.Array | int, function: Callable[[int], PyTree], *, count: int = MAX_SIZES
) -> PyTree:
    """Call `function(size)` with the smallest of the `buffer_sizes` that holds `filled` steps.

    Args:
        steps: steps of a trial.
        segment: steps of a segment.
        filled: int32 [], number of filled steps.
        function: traced once for each size. All results must have the same shapes.
        count: number of sizes.
    """
    sizes = buffer_sizes(steps, segment, count)
    index = jnp.searchsorted(jnp.asarray(sizes), filled)
    return jax.lax.switch(index, [lambda size=size: function(size) for size in sizes])


def buffer_sizes(steps: int, segment: int, count: int = MAX_SIZES) -> list[int]:
    """Return up to `count` evenly spaced sizes, multiples of `segment`. The last one is `steps`."""
    segments = steps // segment
    count = min(count, segments)
    return [segment * -(-segments * (index + 1) // count) for index in range(count)]


def collect_within(
    setup: Setup, params: Params, trial: TrialState, memory: Memory, key: jax.Array, teacher: PyTree = None
) -> Collected:
    """Act for one segment against all of `memory`, which must have room for the segment. See `collect`."""
    policy, agent = setup.policy, None if teacher is None else setup.teacher
    params = policy.cast_weights(params)

    def step(carry: tuple[TrialState, Memory, PyTree], key: jax.Array):
        trial, memory, teacher = carry
        action_key, env_key = jax.random.split(key)
        observed = step_input(trial)
        inputs = policy.encode_images(params, observed)
        output, memory = policy.act(params, memory, inputs)
        action = setup.shard.draw(lambda every: every.sample(action_key), output.distribution)
        teacher, probabilities = (None, None) if agent is None else batch_probabilities(agent, teacher, trial)
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
        observation = observed.observation if policy.trains_image_encoder else None
        return (trial, memory, teacher), (result, (record, observation, probabilities))

    keys = jax.random.split(key, setup.config.trial.segment)
    (trial, memory, teacher), (results, recorded) = jax.lax.scan(step, (trial, memory, teacher), keys)
    steps, observation, probabilities = jax.tree.map(lambda x: x.swapaxes(0, 1), recorded)
    last_value = policy.value(params, memory, step_input(trial))
    return Collected(trial, memory, steps, results, last_value, observation, teacher, probabilities)


def final_value(setup: Setup, params: Params, memory: Memory, action: jax.Array, result: TrialStep) -> jax.Array:
    """Return the value of the final observation of truncated episodes, and 0 elsewhere: float32 [B].

    The value is computed only if at least one episode was truncated.
    """
    zeros = jnp.zeros_like(result.reward)
    if setup.config.ppo.time_limit == "terminal":
        return zeros

    def value() -> jax.Array:
        previous = setup.policy.action_space.to_policy(action)
        inputs = StepInput(result.final_observation, previous, result.reward, jnp.zeros_like(result.truncated))
        return jnp.where(result.truncated, setup.policy.value(params, memory, inputs), 0.0)

    return jax.lax.cond(result.truncated.any(), value, lambda: zeros)
