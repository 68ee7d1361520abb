"""Where attention goes: the share of its mass on the sink, the current episode and each earlier episode of a trial.

A policy acts in held-out tasks as in an evaluation. Attention of the whole trial is then computed by the definition
(`attention.reference`) from the recorded steps.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import prng, settings
from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.base import Environment, Split, num_tasks
from relic_jax.environment.trials import Trials, TrialState
from relic_jax.evaluation.tasks import check_evaluated, evaluated_tasks
from relic_jax.models.attention import AttentionInputs, Sink
from relic_jax.models.attention.reference import attend
from relic_jax.models.memory import Memory
from relic_jax.models.policy import Policy
from relic_jax.models.transformer import ATTENTION
from relic_jax.rl.state import step_input
from relic_jax.types import Params, StepInput

QUERIES = 256
"""Largest number of steps whose attention is computed at a time."""
_LOCK = threading.Lock()
"""Guards the compiled functions, which computations in several threads share."""


@dataclasses.dataclass(frozen=True)
class AttentionShares:
    """Shares of attention mass, averaged over the steps of an episode and over tasks. Each row sums to 1.

    Attributes:
        sink: float64 [layers, heads, E]. Share of the sink, by the episode of the attending step.
        episodes: float64 [layers, heads, E, E]. Share of each episode (last axis), by the episode of the attending
            step. The diagonal is the current episode; entries after it are 0.
        tasks: Number of tasks.
    """

    sink: np.ndarray
    episodes: np.ndarray
    tasks: int

    @property
    def current(self) -> np.ndarray:
        """Share of the current episode, float64 [layers, heads, E]."""
        return np.diagonal(self.episodes, axis1=2, axis2=3)

    @property
    def earlier(self) -> np.ndarray:
        """Share of all earlier episodes together, float64 [layers, heads, E]."""
        return self.episodes.sum(-1) - self.current


@settings.with_standard
def attention_shares(
    policy: Policy,
    params: Params,
    env: Environment,
    config: EvalConfig,
    *,
    split: Split = "test",
    seed: int = 0,
    show_last_reward: bool = False,
    progress: Callable[[float], None] = lambda fraction: None,
) -> AttentionShares:
    """Act in one trial per task and compute where attention goes.

    Args:
        policy: The policy, with the memory 'transformer'.
        params: Its parameters.
        env: The environment.
        config: Of the evaluation's settings, `episodes` and `tasks`.
        split: The tasks.
        seed: Seed of the random numbers.
        show_last_reward: As in training (`Trials`).
        progress: Called with the fraction that is done.

    Raises:
        ConfigError: If the memory is not a transformer, or the environment runs in worker processes.
    """
    check_attention(policy, env, config, split)
    tasks = jax.tree.map(jnp.asarray, evaluated_tasks(env, split, config))
    inputs = record(policy, params, Trials(env, show_last_reward), tasks, config.episodes, prng.key(seed)).inputs
    count = len(inputs.first)
    with _LOCK:
        measure = compiled_measure(policy, config.episodes)
    rows = []
    for index in range(count):
        rows.append(jax.device_get(measure(params, jax.tree.map(lambda x, i=index: x[i : i + 1], inputs))))
        progress((index + 1) / count)
    shares = np.mean(np.asarray(rows, np.float64), axis=0)
    return AttentionShares(shares[..., -1], shares[..., :-1], count)


def check_attention(policy: Policy, env: Environment, config: EvalConfig, split: Split) -> None:
    """Raise ConfigError if the attention of a policy cannot be computed in the trials of an evaluation."""
    memory = policy.config.memory
    if memory != "transformer":
        raise ConfigError(f"policy.memory is {memory!r}; allowed: 'transformer', whose attention can be shown")
    if env.on_host:
        raise ConfigError(f"env is {env.name!r}, which runs in worker processes; allowed: an environment inside jit")
    check_evaluated(policy.config, config, env, split)


class Recording(NamedTuple):
    """Steps of one trial per task, leading axes [B, T].

    Attributes:
        inputs: The policy's inputs.
        action: Actions, in the environment's units.
        reward: float32. The reward of each action.
        state: `Environment.record` of the state of each input.
    """

    inputs: StepInput
    action: jax.Array
    reward: jax.Array
    state: Any


def record(policy: Policy, params: Params, trials: Trials, tasks: Any, episodes: int, key: jax.Array) -> Recording:
    """Act in one trial per task and record the steps.

    T is as many steps as `episodes` of the longest episodes take. In trials with shorter episodes, further episodes
    follow.
    """
    with _LOCK:
        play = compiled_record(policy, trials, episodes * trials.env.horizon)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), play(params, tasks, key))


@functools.lru_cache(maxsize=4)
def compiled_record(policy: Policy, trials: Trials, steps: int) -> Callable[[Params, Any, jax.Array], Recording]:
    """Return a jitted function that acts for `steps` steps. It maps (params, tasks, key) to a recording, [T, B, …]."""

    @jax.jit
    def play(params: Params, tasks: Any, key: jax.Array) -> Recording:
        reset_key, key = jax.random.split(key)
        params = policy.cast_weights(params)

        def step(carry: tuple[TrialState, Memory], key: jax.Array) -> tuple[tuple[TrialState, Memory], Recording]:
            trial, memory = carry
            action_key, env_key = jax.random.split(key)
            inputs = policy.encode_images(params, step_input(trial))
            output, memory = policy.act(params, memory, inputs)
            action = output.distribution.sample(action_key)
            next_trial, result = trials.step(env_key, trial, action)
            state = jax.vmap(trials.env.record)(trial.env)
            recorded = Recording(inputs, trials.env.action_space.to_env(action), result.reward, state)
            return (next_trial, memory), recorded

        memory = policy.for_acting(policy.initial_memory(num_tasks(tasks), steps))
        start = trials.reset(reset_key, tasks), memory
        return jax.lax.scan(step, start, jax.random.split(key, steps))[1]

    return play


@functools.lru_cache(maxsize=4)
def compiled_measure(policy: Policy, episodes: int) -> Callable[[Params, StepInput], jax.Array]:
    """Return the jitted `_one_trial`."""
    return jax.jit(functools.partial(_one_trial, policy, episodes=episodes))


def attention_of(policy: Policy, params: Params, inputs: StepInput) -> list[AttentionInputs]:
    """Return the inputs of attention in each layer for whole trials, [B, T], with an empty context."""
    memory = policy.initial_memory(inputs.first.shape[0], 0)
    _, stored = policy.network.apply({"params": params}, inputs, memory, mutable=[ATTENTION])
    blocks = stored[ATTENTION]["transformer"]
    return [blocks[f"blocks_{layer}"]["inputs"][0] for layer in range(policy.config.transformer.layers)]


def _one_trial(policy: Policy, params: Params, inputs: StepInput, *, episodes: int) -> jax.Array:
    """Return the shares in one trial, [layers, heads, E, E + 1]. The last column is the sink."""
    episode = jnp.cumsum(inputs.first[0]) - 1
    return jnp.stack([_of_layer(layer, episode, episodes) for layer in attention_of(policy, params, inputs)])


def _of_layer(inputs: AttentionInputs, episode: jax.Array, episodes: int) -> jax.Array:
    """Return mean shares by the episode of the attending step, [heads, E, E + 1]. Later episodes are left out."""
    mass = episode_mass(inputs, episode, episodes)[0]  # [H, T, E + 1]
    by_episode = jax.nn.one_hot(episode, episodes)
    return jnp.einsum("te,hts->hes", by_episode, mass) / by_episode.sum(0)[:, None]


def episode_mass(inputs: AttentionInputs, episode: jax.Array, episodes: int) -> jax.Array:
    """Return the attention mass of every step on each episode and on the sink.

    Args:
        inputs: Attention of a whole trial, Q = K = T, with an empty context.
        episode: int32 [T], index of the episode of each step, from 0.
        episodes: E. Mass on later episodes is left out.

    Returns:
        float32 [B, H, T, E + 1]. The last column is the sink.
    """
    return attention_mass(inputs, jax.nn.one_hot(episode, episodes))


def attention_mass(inputs: AttentionInputs, labels: jax.Array) -> jax.Array:
    """Return the attention mass of every step on the steps with each label, and on the sink.

    Attention is linear in the values. If the values of a step are the indicators of its labels, and that of the sink is
    the indicator of a further column, then the output of attention is the mass on each of them.

    Args:
        inputs: Attention of whole trials, Q = K = T, with an empty context.
        labels: float32 [T, C] or [H, T, C]. 1 if a step has a label, else 0. A step can have several labels, or none.

    Returns:
        float32 [B, H, T, C + 1]. The last column is the sink.
    """
    batch, heads, steps, _ = inputs.key.shape
    columns = labels.shape[-1] + 1
    values = jnp.pad(jnp.broadcast_to(labels, (heads, steps, columns - 1)), ((0, 0), (0, 0), (0, 1)))
    of_sink = jnp.broadcast_to(jax.nn.one_hot(columns - 1, columns), (heads, columns))
    empty = jax.tree.map(lambda x: jnp.zeros((batch, heads, 0, columns), jnp.float32), inputs.context.values.data)
    real = inputs.replace(
        key=inputs.key.astype(jnp.float32),
        value=jnp.broadcast_to(values, (batch, heads, steps, columns)),
        context=inputs.context._replace(values=inputs.context.values._replace(data=empty, scale=None)),
        sink=None if inputs.sink is None else Sink(inputs.sink.key, of_sink),
    )
    size = max(size for size in range(1, min(QUERIES, steps) + 1) if steps % size == 0)

    def part(start: jax.Array) -> jax.Array:
        query = jax.lax.dynamic_slice_in_dim(inputs.query, start, size, axis=2).astype(jnp.float32)
        return attend(real.replace(query=query, start=start))

    parts = jax.lax.map(part, jnp.arange(0, steps, size))  # [n, B, H, size, C + 1]
    return jnp.moveaxis(parts, 0, 2).reshape(batch, heads, steps, columns)
