"""The partial update: PPO on a window of the trial, with the whole context in view.

Elawady et al. 2024, arXiv 2410.02751, section 3.1. `segment_step` is the unit of training: act for K steps, update,
shuffle and refresh the context. One compiled function serves every segment of a growing trial.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from relic_jax.config import TrainConfig
from relic_jax.models.memory import Memory, rows
from relic_jax.models.policy import PolicyOutput
from relic_jax.rl import context, losses
from relic_jax.rl.finite import Metrics, finiteness, first_nonfinite
from relic_jax.rl.gae import advantages
from relic_jax.rl.masked import Counts, count_of, mean_of_valid, normalized, step_counts
from relic_jax.rl.optimizer import entropy_coef, global_norm, learning_rate
from relic_jax.rl.rollout import Collected, collect, with_size
from relic_jax.rl.state import Setup, TrainState, empty_trajectory, new_trial
from relic_jax.rl.steps import StepCount
from relic_jax.types import Params, PyTree, Span, StepInput, Trajectory

GRADIENT_SIZES = 4  # static lengths of a trial that the gradient through all of it is compiled for


class Batch(NamedTuple):
    """What an update learns from, leading axis B (environments). trajectory: [B, T]. memory: the context as it was when
    the segment began. advantage, target: float32 [B, T]. observation: of the newest segment, [B, K, ...], with its
    images (`Collected.observation`).
    """

    trajectory: Trajectory
    memory: Memory
    advantage: jax.Array
    target: jax.Array
    observation: PyTree = None

    def rows(self, index: jax.Array) -> Batch:
        """The environments `index`: int32 [b], no two the same."""
        if len(index) == len(self.advantage):  # all of them: their order changes no mean
            return self
        steps = (self.trajectory, self.advantage, self.target, self.observation)
        trajectory, advantage, target, observation = jax.tree.map(lambda x: x[index], steps)
        return Batch(trajectory, rows(self.memory, index), advantage, target, observation)

    def first_steps(self, size: int) -> Batch:
        """Only the first `size` steps of the trial, and no context: for a pass over all of them."""
        trajectory, advantage, target = jax.tree.map(lambda x: x[:, :size], self[:1] + self[2:4])
        return Batch(trajectory, self.memory.prefix(0), advantage, target, self.observation)


class Window(NamedTuple):
    """The loss window: steps start … start+size. full: it is the whole trial. size, full: static."""

    start: jax.Array | int
    size: int
    full: bool


def segment_step(setup: Setup, state: TrainState) -> tuple[TrainState, Metrics]:
    """One segment: acts, updates, and readies the context for the next one (or a new trial). Metrics are float32 []."""
    key, own_key = jax.random.split(state.key)
    act_key, update_key, after_key = jax.random.split(setup.own_key(own_key), 3)
    before, steps = state.memory, state.trajectory
    trial = setup.trials.counting(
        state.trial, steps.terminated | steps.truncated, state.segment * setup.config.trial.segment
    )
    collected = collect(setup, state.params, trial, before, act_key)
    return learn(setup, state.replace(key=key), before, collected, update_key, after_key)


def learn(
    setup: Setup, state: TrainState, before: Memory, collected: Collected, update_key: jax.Array, after_key: jax.Array
) -> tuple[TrainState, Metrics]:
    """What follows on acting: the update, and the context made ready.

    before: the memory that acting began with; of a cache only the counters are read.
    """
    cfg = setup.config
    start = state.segment * cfg.trial.segment
    state = state.replace(
        env_steps=state.env_steps + cfg.trial.environments * cfg.trial.segment,
        trial=dataclasses.replace(collected.trial, episode_steps=None),
        memory=collected.memory,
        trajectory=context.write_window(state.trajectory, collected.steps, start),
    )
    batch = make_batch(setup, state, before, collected.last_value)._replace(observation=collected.observation)
    is_last = state.segment == cfg.trial.updates - 1
    params, opt_state, metrics = update(setup, state, batch, is_last, update_key)
    # only now, so that the update still sees what was acted on; the refresh then sees what comes next
    seen = collected.steps
    params = setup.policy.observed(params, seen.inputs.observation, seen.valid, setup.total)
    counts = setup.total(episode_sums(collected) | finiteness(setup.policy.action_space, collected, metrics, params))
    counts |= first_nonfinite(setup, collected, start)
    metrics = setup.mean(metrics | {"reward": mean_reward(setup, collected)}) | counts
    state = state.replace(params=params, opt_state=opt_state)
    next_trial, next_segment = (
        (lambda s: start_trial(setup, s, after_key)),
        (lambda s: continue_trial(setup, s, after_key)),
    )
    return lax.cond(is_last, next_trial, next_segment, state), metrics


def trial_step(setup: Setup, state: TrainState) -> tuple[TrainState, Metrics]:
    """A whole trial in one call: metrics get a leading axis [U]."""
    return lax.scan(lambda s, _: segment_step(setup, s), state, length=setup.config.trial.updates)


def make_batch(setup: Setup, state: TrainState, before: Memory, last_value: jax.Array) -> Batch:
    """Advantages and returns over ALL steps of the trial so far, and the context as the segment found it."""
    ppo, steps = setup.config.ppo, state.trajectory
    ended = steps.terminated | steps.truncated
    length = (state.segment + 1) * setup.config.trial.segment
    if ppo.credit == "trial":
        ended = jnp.zeros_like(ended)
    reward, final_value = steps.reward * ppo.reward_scale, jnp.where(steps.terminated, 0.0, steps.final_value)
    if steps.valid is not None:  # what a lost step led to is unknown: its advantage is 0, what precedes is bootstrapped
        ended = ended | ~steps.valid
        reward = jnp.where(steps.valid, reward, steps.value)
        final_value = jnp.where(steps.valid, final_value, 0.0)

    def one(reward: jax.Array, value: jax.Array, last: jax.Array, end: jax.Array, final: jax.Array) -> jax.Array:
        return advantages(reward, value, last, end, final, length, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda)

    advantage = jax.vmap(one)(reward, steps.value, last_value, ended, final_value)
    return Batch(steps, state.memory.as_of(before), advantage, advantage + steps.value)


def update(
    setup: Setup, state: TrainState, batch: Batch, is_last: jax.Array, key: jax.Array
) -> tuple[Params, PyTree, Metrics]:
    """Partial update, or the trial's last one."""
    trial = setup.config.trial
    partial = Window(state.segment * trial.segment, trial.segment, full=trial.updates == 1)
    if setup.config.ppo.last_update == "partial" or partial.full:
        return run_epochs(setup, state, batch, partial, key)
    full = Window(0, trial.steps, full=True)
    return lax.cond(
        is_last,
        lambda: run_epochs(setup, state, batch, full, key),
        lambda: run_epochs(setup, state, batch, partial, key),
    )


def run_epochs(
    setup: Setup, state: TrainState, batch: Batch, window: Window, key: jax.Array
) -> tuple[Params, PyTree, Metrics]:
    """Epochs of optimiser steps; each sums the gradients of `accumulate` minibatches of whole environments."""
    ppo, environments = setup.config.ppo, setup.local_environments
    if ppo.normalize_advantages:
        length = window.start + window.size
        batch = batch._replace(advantage=normalized(setup, batch.advantage, length, batch.trajectory.valid))
    shape = minibatch_shape(setup.config, environments)
    rate = learning_rate(ppo, setup.config.total_steps, state.env_steps)

    def optimiser_step(carry: tuple[Params, PyTree], inputs: tuple[jax.Array, jax.Array]):
        params, opt_state = carry
        gradients, metrics = accumulated_gradients(setup, state, params, batch, window, *inputs)
        gradients = setup.mean(gradients)
        direction, opt_state = setup.optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda d: -rate * d, direction))
        clipped = {name: g for name, g in gradients.items() if name != "critic"}
        return (params, opt_state), metrics | {"grad_norm": global_norm(clipped)}

    def epoch(carry: tuple[Params, PyTree], key: jax.Array):
        order_key, dropout_key = jax.random.split(key)
        order = jax.random.permutation(order_key, environments).reshape(shape)
        return lax.scan(optimiser_step, carry, (order, jax.random.split(dropout_key, shape[:2])))

    before = setup.policy.trained(state.params), state.opt_state
    (params, opt_state), metrics = lax.scan(epoch, before, jax.random.split(key, ppo.epochs))
    return setup.policy.completed(params, state.params), opt_state, jax.tree.map(jnp.mean, metrics) | {"lr": rate}


def minibatch_shape(config: TrainConfig, environments: int) -> tuple[int, int, int]:
    """Optimiser steps an epoch, minibatches a step and environments a minibatch, on a device of `environments`.

    Devices share every minibatch, or else the minibatches of every step.
    """
    ppo, devices = config.ppo, config.trial.environments // environments
    steps, rows = ppo.minibatches // ppo.accumulate, config.trial.environments // ppo.minibatches
    if devices_share_minibatches(config, environments):
        return steps, ppo.accumulate, rows // devices
    return steps, ppo.accumulate // devices, rows


def devices_share_minibatches(config: TrainConfig, environments: int) -> bool:
    """Whether each minibatch is split over the devices, which hold `environments` each, not dealt out whole."""
    devices, rows = config.trial.environments // environments, config.trial.environments // config.ppo.minibatches
    return rows % devices == 0


def accumulated_gradients(
    setup: Setup, state: TrainState, params: Params, batch: Batch, window: Window, order: jax.Array, keys: jax.Array
) -> tuple[Params, Metrics]:
    """Sum (or mean) of the gradients of several minibatches. order: int32 [accumulate, b]; keys: [accumulate].

    To be averaged over devices, see `masked`.
    """

    def add(total: Params, inputs: tuple[jax.Array, jax.Array, Counts | None]) -> tuple[Params, Metrics]:
        index, dropout_key, counts = inputs
        part, metrics = gradient(setup, state.env_steps, params, batch.rows(index), window, dropout_key, counts)
        return jax.tree.map(jnp.add, total, part), metrics

    valid = context.window(batch.trajectory.valid, window.start, window.size)
    shared = devices_share_minibatches(setup.config, setup.local_environments)
    inputs = (order, keys, step_counts(setup, valid, order, shared=shared))
    total, metrics = lax.scan(add, jax.tree.map(jnp.zeros_like, params), inputs)
    ppo = setup.config.ppo
    minibatches = 1 if ppo.gradient_reduction == "mean" else ppo.accumulate  # other devices may hold some of them
    total = jax.tree.map(lambda g: g * (minibatches / order.shape[0]), total)
    return total, jax.tree.map(jnp.mean, metrics)


def gradient(
    setup: Setup,
    env_steps: StepCount,
    params: Params,
    batch: Batch,
    window: Window,
    dropout_key: jax.Array,
    counts: Counts | None = None,
) -> tuple[Params, Metrics]:
    """Gradient of `minibatch_loss`, whose pass through the whole context is given only as much of it as is filled."""
    if window.full or setup.config.ppo.context_gradient == "stopped":
        take = jax.grad(minibatch_loss, argnums=2, has_aux=True)
        return take(setup, env_steps, params, batch, window, dropout_key, counts)

    def seen(params: Params) -> list[jax.Array]:
        """Features of the window's images, looked at once, outside of what is compiled for each size."""
        if batch.observation is None:
            return []
        return setup.policy.features(window_inputs(setup, params, batch, window).observation)

    def up_to(size: int) -> tuple[tuple[Params, list[jax.Array]], Metrics]:
        def loss(params: Params, features: list[jax.Array]) -> tuple[jax.Array, Metrics]:
            known = batch.first_steps(size)
            if known.observation is not None:
                known = known._replace(observation=setup.policy.with_features(known.observation, features))
            return minibatch_loss(setup, env_steps, params, known, window, dropout_key, counts)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, features)

    trial = setup.config.trial
    features, pullback = jax.vjp(seen, params)
    (direct, through), metrics = with_size(
        trial.steps, trial.segment, window.start + window.size, up_to, count=GRADIENT_SIZES
    )
    return jax.tree.map(jnp.add, direct, *pullback(through)), metrics


def minibatch_loss(
    setup: Setup,
    env_steps: StepCount,
    params: Params,
    batch: Batch,
    window: Window,
    dropout_key: jax.Array,
    counts: Counts | None = None,
) -> tuple[jax.Array, Metrics]:
    """The PPO loss averaged over the window only. counts: of valid steps, where some may be lost (None: the batch's).

    Its mean over devices is the loss, see `masked`.
    """
    ppo = setup.config.ppo
    output = window_output(setup, params, batch, window, dropout_key)
    steps, advantage, target = context.window(
        (batch.trajectory, batch.advantage, batch.target), window.start, window.size
    )
    if counts is None and steps.valid is not None:
        counts = Counts(*[count_of(setup, steps.valid)] * 2)

    def mean(x: jax.Array) -> jax.Array:
        return mean_of_valid(x, steps.valid, counts and counts.loss)

    log_prob = output.distribution.log_prob(steps.action)
    entropy = mean(output.distribution.entropy())
    policy_loss = mean(losses.policy_loss(log_prob, steps.log_prob, advantage, ppo.clip))
    value_loss = mean(losses.value_loss(output.value, steps.value, target, ppo.value_clip))
    bonus = entropy_coef(ppo, setup.config.total_steps, env_steps) * entropy
    log_ratio = log_prob - steps.log_prob
    metrics = {
        "loss": policy_loss + ppo.value_coef * value_loss - bonus,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": mean(jnp.exp(log_ratio) - 1 - log_ratio),
        "clip_fraction": mean((jnp.abs(jnp.exp(log_ratio) - 1) > ppo.clip) * 1.0),
    }
    loss = metrics["loss"]
    if counts is not None:
        scale = counts.loss / counts.metrics
        metrics = {name: value * scale for name, value in metrics.items()}
    return loss, metrics


def window_inputs(setup: Setup, params: Params, batch: Batch, window: Window) -> StepInput:
    """Inputs [b, size] of the loss window: its images are looked at again, with gradient."""
    block = context.window(batch.trajectory.inputs, window.start, window.size)
    if batch.observation is None:
        return block
    return setup.policy.encode_images(params, block.replace(observation=batch.observation))


def window_output(setup: Setup, params: Params, batch: Batch, window: Window, dropout_key: jax.Array) -> PolicyOutput:
    """Policy outputs [b, size] over the loss window, differentiable in `params`.

    What came before the window keeps the features that it was acted on with.
    """
    inputs, block = batch.trajectory.inputs, window_inputs(setup, params, batch, window)
    if setup.config.ppo.context_gradient == "stopped" and not window.full:
        return setup.policy.unroll(params, batch.memory, block, dropout_key=dropout_key)[0]
    if batch.observation is not None:
        inputs = context.write_window(inputs, block, window.start)
    nothing = setup.policy.initial_memory(batch.advantage.shape[0], 0)
    valid = jnp.asarray(window.start + window.size, jnp.int32)
    query_span = None if window.full else Span(window.start, window.size)
    return setup.policy.unroll(params, nothing, inputs, valid=valid, dropout_key=dropout_key, query_span=query_span)[0]


def continue_trial(setup: Setup, state: TrainState, key: jax.Array) -> TrainState:
    """After a partial update: shuffles complete episodes and recomputes keys, values and value predictions.

    The stored log-probabilities stay those of the acting policy.
    """
    ppo, filled = setup.config.ppo, state.segment + 1
    if ppo.refresh_every is None:
        return state.replace(segment=filled)

    def renew() -> tuple[Trajectory, Memory]:
        return renewed_context(setup, state, key)

    def keep() -> tuple[Trajectory, Memory]:
        return state.trajectory, state.memory

    if ppo.refresh_every == 1:
        trajectory, memory = renew()
    else:
        trajectory, memory = lax.cond(filled % ppo.refresh_every == 0, renew, keep)
    return state.replace(segment=filled, trajectory=trajectory, memory=memory)


def renewed_context(setup: Setup, state: TrainState, key: jax.Array) -> tuple[Trajectory, Memory]:
    """The context shuffled and recomputed, as far back as the config says."""
    ppo, segment, filled = setup.config.ppo, setup.config.trial.segment, state.segment + 1
    trajectory = state.trajectory
    if ppo.shuffle:
        trajectory = context.shuffle_episodes(key, trajectory, filled * segment)
    start = 0 if ppo.refresh_segments is None else jnp.maximum(filled - ppo.refresh_segments, 0)
    memory, value = context.refresh(
        setup.policy, state.params, state.memory, trajectory.inputs, trajectory.value, start, filled, segment
    )
    return trajectory.replace(value=value), memory


def start_trial(setup: Setup, state: TrainState, key: jax.Array) -> TrainState:
    """After a trial's last update: new tasks, an empty context (zeroed: checkpoints of it compress to nothing)."""
    trial = setup.config.trial
    return state.replace(
        segment=jnp.zeros_like(state.segment),
        trial=new_trial(setup, key),
        trajectory=empty_trajectory(setup, state.trial),
        memory=setup.policy.initial_memory(setup.local_environments, trial.steps),
    )


def mean_reward(setup: Setup, collected: Collected) -> jax.Array:
    """Of the segment's valid steps, float32 []; to be averaged over devices, see `masked`."""
    valid = collected.steps.valid
    if valid is None:
        return collected.results.reward.mean()
    return mean_of_valid(collected.results.reward, valid.T, count_of(setup, valid))


def episode_sums(collected: Collected) -> Metrics:
    """Sums over the segment's finished episodes; the host divides, so that segments without one do no harm.

    Lost steps are counted too, where there can be any; an episode that ended with one does not count. So are episodes
    that were truncated only because the environment did not end them by its horizon.
    """
    results, valid = collected.results, collected.steps.valid
    ended = results.terminated | results.truncated
    lost = {}
    if valid is not None:
        ended = ended & valid.T
        lost = {"lost_steps": (~valid).sum(dtype=jnp.float32)}
    if results.cut is not None:
        lost["cut_episodes"] = results.cut.sum(dtype=jnp.float32)
    others = {f"episode/{name}": jnp.where(ended, value, 0.0).sum() for name, value in results.metrics.items()}
    return {
        **lost,
        **others,
        "episodes": ended.sum(dtype=jnp.float32),
        "return_sum": jnp.where(ended, results.episode_return, 0.0).sum(),
        "success_sum": (ended & results.success).sum(dtype=jnp.float32),
    }
