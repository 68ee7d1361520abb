"""One segment of training: act for K steps, update the parameters, and prepare the next segment.

Elawady et al. 2024, arXiv 2410.02751, section 3.1. One compiled function serves every segment of a growing trial.
"""

from __future__ import annotations

import dataclasses

import jax
from jax import lax

from relic_jax.models.memory import Memory
from relic_jax.rl import context
from relic_jax.rl.curriculum import count_episodes, curriculum_metrics
from relic_jax.rl.diagnostics import count_nonfinite, ended_episodes, episode_sums, first_nonfinite, mean_reward
from relic_jax.rl.rollout import Collected, collect
from relic_jax.rl.state import Metrics, Setup, TrainState
from relic_jax.rl.teaching import teacher_labels
from relic_jax.rl.trial import continue_trial, start_trial
from relic_jax.rl.update import make_batch, update


def segment_step(setup: Setup, state: TrainState) -> tuple[TrainState, Metrics]:
    """Train for one segment.

    Returns:
        The state at the start of the next segment, and metrics, each float32 [].
    """
    key, own_key = jax.random.split(state.key)
    act_key, update_key, after_key = jax.random.split(setup.device_key(own_key), 3)
    before, steps = state.memory, state.trajectory
    trial = setup.trials.counting(
        state.trial, steps.terminated | steps.truncated, state.segment * setup.config.trial.segment
    )
    collected = collect(setup, state.params, trial, before, act_key, state.teacher)
    return learn(setup, state.replace(key=key), before, collected, update_key, after_key)


def trial_step(setup: Setup, state: TrainState) -> tuple[TrainState, Metrics]:
    """Train for a whole trial. Metrics have a leading axis [U], the number of updates per trial."""
    return lax.scan(lambda s, _: segment_step(setup, s), state, length=setup.config.trial.updates)


def learn(
    setup: Setup, state: TrainState, before: Memory, collected: Collected, update_key: jax.Array, after_key: jax.Array
) -> tuple[TrainState, Metrics]:
    """Update the parameters after acting, and prepare the next segment.

    Args:
        setup: the training setup.
        state: the state before the segment.
        before: the memory before the segment. Only the counters of a KV cache are used.
        collected: the segment.
        update_key: typed PRNG key [], for minibatches and dropout.
        after_key: typed PRNG key [], for shuffling episodes or drawing new tasks.

    Returns:
        The state at the start of the next segment, and metrics, each float32 [].
    """
    cfg = setup.config
    start = state.segment * cfg.trial.segment
    state = state.replace(
        env_steps=state.env_steps + cfg.trial.environments * cfg.trial.segment,
        trial=dataclasses.replace(collected.trial, episode_steps=None),
        memory=collected.memory,
        teacher=collected.teacher,
        trajectory=context.write_window(state.trajectory, collected.steps, start),
    )
    batch = make_batch(setup, state, before, collected.last_value)._replace(
        observation=collected.observation, teacher=teacher_labels(setup, state, collected)
    )
    is_last = state.segment == cfg.trial.updates - 1
    params, opt_state, metrics = update(setup, state, batch, is_last, update_key)
    # The statistics of observations change only here: the update uses those that the policy acted with, and the
    # refresh uses those that it will act with.
    steps = collected.steps
    params = setup.policy.update_statistics(params, steps.inputs.observation, steps.valid, setup.total)
    nonfinite = count_nonfinite(setup.policy.action_space, collected, metrics, params)
    counts = setup.total(episode_sums(collected) | nonfinite) | first_nonfinite(setup, collected, start)
    metrics = setup.mean(metrics | {"reward": mean_reward(setup, collected)}) | counts
    state = state.replace(params=params, opt_state=opt_state)
    if setup.rungs is not None and state.curriculum is not None:
        running = count_episodes(
            state.curriculum.running, ended_episodes(collected), collected.results.episode_return, cfg.curriculum.later
        )
        curriculum = state.curriculum.replace(running=running)
        state = state.replace(curriculum=curriculum)
        metrics |= curriculum_metrics(setup.rungs, curriculum, setup.mean)
    state = lax.cond(
        is_last, lambda s: start_trial(setup, s, after_key), lambda s: continue_trial(setup, s, after_key), state
    )
    return state, metrics
