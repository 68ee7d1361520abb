"""The partial update: PPO on the newest segment of the trial, with the whole trial as context.

Elawady et al. 2024, arXiv 2410.02751, section 3.1. The last update of a trial can instead cover the whole trial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from relic_jax.distributions import Categorical
from relic_jax.models.memory import Memory, rows
from relic_jax.models.policy import PolicyOutput
from relic_jax.models.sharded import own_steps
from relic_jax.rl import context, losses
from relic_jax.rl.gae import advantages
from relic_jax.rl.masked import Counts, mean_count, mean_of_valid, normalize_advantages, step_counts
from relic_jax.rl.minibatches import Order, devices_share_minibatches, epoch_order
from relic_jax.rl.optimizer import entropy_coef, learning_rate, recall_coef, teacher_coef
from relic_jax.rl.rollout import with_size
from relic_jax.rl.state import Metrics, Setup, TrainState
from relic_jax.rl.steps import StepCount
from relic_jax.types import Params, PyTree, Span, StepInput, Trajectory

GRADIENT_SIZES = 4
"""Number of static trial lengths for which the gradient through a whole trial is compiled."""

AUXILIARY = {"recall_loss": recall_coef, "teacher_loss": teacher_coef}
"""Schedules of the weights of the auxiliary losses."""


class Batch(NamedTuple):
    """Data of an update, for B environments.

    Attributes:
        trajectory: the trial so far, leading axes [B, T].
        memory: the context at the start of the segment.
        advantage: float32 [B, T].
        target: float32 [B, T], regression target of the value.
        observation: observations of the newest segment with their images, leading axes [B, K], or None
          (`Collected.observation`).
        recall: `Environment.recall_labels` of all steps, int32 [B, T, answers] and bool [B, T], or None without a
          recall loss.
        teacher: the teacher's probabilities of the actions at the steps of the newest segment, float32 [B, K, n], 0 at
          steps without a teacher loss. None without a teacher.
    """

    trajectory: Trajectory
    memory: Memory
    advantage: jax.Array
    target: jax.Array
    observation: PyTree = None
    recall: tuple[jax.Array, jax.Array] | None = None
    teacher: jax.Array | None = None

    def rows(self, index: jax.Array) -> Batch:
        """Select the environments `index`, int32 [b], which must be distinct."""
        if len(index) == len(self.advantage):  # all environments: their order does not affect means
            return self
        steps = self._replace(memory=None)  # type: ignore[arg-type]  # an empty tree
        return jax.tree.map(lambda x: x[index], steps)._replace(memory=rows(self.memory, index))

    def first_steps(self, size: int) -> Batch:
        """Select the first `size` steps of the trial, with an empty context, for a pass over all of them."""
        steps = self._replace(memory=None, observation=None, teacher=None)  # type: ignore[arg-type]  # empty trees
        steps = jax.tree.map(lambda x: x[:, :size], steps)
        return steps._replace(memory=self.memory.prefix(0), observation=self.observation, teacher=self.teacher)


class Window(NamedTuple):
    """The steps with a loss: start, …, start + size − 1.

    Attributes:
        start: int32 [].
        size: static number of steps.
        full: whether the window is the whole trial. Static.
    """

    start: jax.Array | int
    size: int
    full: bool


def make_batch(setup: Setup, state: TrainState, before: Memory, last_value: jax.Array) -> Batch:
    """Compute advantages and value targets of all steps of the trial so far.

    Args:
        setup: the training setup.
        state: the state after acting.
        before: the memory before the segment.
        last_value: float32 [B], value of the observation after the segment.
    """
    ppo, steps = setup.config.ppo, state.trajectory
    ended = steps.terminated | steps.truncated
    length = (state.segment + 1) * setup.config.trial.segment
    if ppo.credit == "trial":
        ended = jnp.zeros_like(ended)
    reward, final_value = steps.reward * ppo.reward_scale, jnp.where(steps.terminated, 0.0, steps.final_value)
    if steps.valid is not None:  # the result of a lost step is unknown: advantage 0, and bootstrap the steps before it
        ended = ended | ~steps.valid
        reward = jnp.where(steps.valid, reward, steps.value)
        final_value = jnp.where(steps.valid, final_value, 0.0)

    def one(reward: jax.Array, value: jax.Array, last: jax.Array, end: jax.Array, final: jax.Array) -> jax.Array:
        return advantages(reward, value, last, end, final, length, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda)

    advantage = jax.vmap(one)(reward, steps.value, last_value, ended, final_value)
    batch = Batch(steps, state.memory.as_of(before), advantage, advantage + steps.value)
    if not ppo.recall_coef and not ppo.recall_coef_final:
        return batch
    return batch._replace(recall=jax.vmap(setup.trials.env.recall_labels)(steps.inputs.observation))


def update(
    setup: Setup, state: TrainState, batch: Batch, is_last: jax.Array, key: jax.Array
) -> tuple[Params, PyTree, Metrics]:
    """Update the parameters, on the newest segment or, after the trial's last segment, on the whole trial.

    Returns:
        The parameters, the state of the optimizer, and metrics averaged over optimizer steps, each float32 [].
    """
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
    """Run `ppo.epochs` epochs of optimizer steps.

    Each optimizer step reduces the gradients of `ppo.accumulate` minibatches. A minibatch holds whole trials of some of
    the environments.
    """
    ppo = setup.config.ppo
    if ppo.normalize_advantages:
        length = window.start + window.size
        batch = batch._replace(advantage=normalize_advantages(setup, batch.advantage, length, batch.trajectory.valid))
    rate = learning_rate(ppo, setup.config.total_steps, state.env_steps)

    def optimizer_step(carry: tuple[Params, PyTree], inputs: tuple[Order, jax.Array]):
        params, opt_state = carry
        gradients, metrics = accumulated_gradients(setup, state, params, batch, window, *inputs)
        gradients = setup.mean_gradient(gradients)
        direction, opt_state = setup.optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda d: -rate * d, direction))
        clipped = {name: g for name, g in gradients.items() if name != "critic"}
        return (params, opt_state), metrics | {"grad_norm": optax.tree.norm(clipped)}

    def epoch(carry: tuple[Params, PyTree], key: jax.Array):
        order_key, dropout_key = jax.random.split(key)
        order = epoch_order(setup, order_key)
        if setup.axis is not None and not setup.device_keys:  # groups of different devices drop different blocks
            dropout_key = jax.random.fold_in(dropout_key, lax.axis_index(setup.axis))
        return lax.scan(optimizer_step, carry, (order, jax.random.split(dropout_key, order.rows.shape[:2])))

    before = setup.policy.trainable(state.params), state.opt_state
    (params, opt_state), metrics = lax.scan(epoch, before, jax.random.split(key, ppo.epochs))
    metrics = setup.mean_over_context(jax.tree.map(jnp.mean, metrics))
    return setup.policy.with_frozen(params, state.params), opt_state, metrics | {"lr": rate}


def accumulated_gradients(
    setup: Setup, state: TrainState, params: Params, batch: Batch, window: Window, order: Order, keys: jax.Array
) -> tuple[Params, Metrics]:
    """Compute the sum or mean of the gradients of several minibatches, to be averaged over devices (see `masked`).

    Args:
        setup: the training setup.
        state: the state after acting.
        params: the trainable parameters.
        batch: data of all environments.
        window: the steps with a loss.
        order: the environments of the optimizer step, in groups, without the leading axis over steps.
        keys: typed PRNG keys [groups], for dropout.

    Returns:
        The gradients, and metrics averaged over the groups.
    """

    def add(total: Params, inputs: tuple[jax.Array, jax.Array, Counts | None]) -> tuple[Params, Metrics]:
        index, dropout_key, counts = inputs
        part, metrics = gradient(setup, state.env_steps, params, batch.rows(index), window, dropout_key, counts)
        return jax.tree.map(jnp.add, total, part), metrics

    valid = context.window(batch.trajectory.valid, window.start, window.size)
    shared = devices_share_minibatches(setup.config, setup.local_environments)
    inputs = (order.rows, keys, step_counts(setup, valid, order, shared=shared))
    total, metrics = lax.scan(add, jax.tree.map(jnp.zeros_like, params), inputs)
    ppo = setup.config.ppo
    minibatches = 1 if ppo.gradient_reduction == "mean" else ppo.accumulate  # other devices can hold some of them
    total = jax.tree.map(lambda g: g * (minibatches / order.rows.shape[0]), total)
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
    """Compute the gradient of `minibatch_loss`, with a pass over only the filled part of the trial.

    The pass is compiled for `GRADIENT_SIZES` static trial lengths. Images are encoded once, outside these branches.
    """
    if window.full or setup.config.ppo.context_gradient == "stopped":
        take = jax.grad(minibatch_loss, argnums=2, has_aux=True)
        return take(setup, env_steps, params, batch, window, dropout_key, counts)

    def encode(params: Params) -> list[jax.Array]:
        if batch.observation is None:
            return []
        return setup.policy.image_features(window_inputs(setup, params, batch, window).observation)

    def up_to(size: int) -> tuple[tuple[Params, list[jax.Array]], Metrics]:
        def loss(params: Params, features: list[jax.Array]) -> tuple[jax.Array, Metrics]:
            part = batch.first_steps(size)
            if part.observation is not None:
                part = part._replace(observation=setup.policy.with_image_features(part.observation, features))
            return minibatch_loss(setup, env_steps, params, part, window, dropout_key, counts)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, features)

    trial = setup.config.trial
    features, pullback = jax.vjp(encode, params)
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
    """Compute the PPO loss of a minibatch, averaged over the steps of the window.

        L = L_policy + value_coef·L_value − entropy_coef·H + recall_coef·L_recall + teacher_coef·L_teacher

    with L_recall of `recall_terms`, L_teacher of `losses.action_loss`. L_recall and L_teacher are 0 at steps without an
    answer or a teacher, which count in the mean; pretraining averages over the others only. The mean of L over devices
    is the loss (see `masked`).

    Args:
        setup: the training setup.
        env_steps: environment steps so far, for the schedules of the coefficients.
        params: the trainable parameters.
        batch: data of the minibatch's environments.
        window: the steps with a loss.
        dropout_key: typed PRNG key [].
        counts: number of valid steps if steps can be lost. None counts them in the batch.

    Returns:
        The loss, float32 [], and metrics, each float32 [].
    """
    output = window_output(setup, params, batch, window, dropout_key)
    batch, window = own_part(setup, batch, window)
    part = (batch.trajectory, batch.advantage, batch.target)
    steps, advantage, target = context.window(part, window.start, window.size)
    if counts is None and steps.valid is not None:
        counts = Counts(*[mean_count(setup, steps.valid)] * 2)

    def terms(count: jax.Array | None) -> Metrics:
        def mean(x: jax.Array) -> jax.Array:
            return mean_of_valid(x, steps.valid, count)

        return loss_terms(setup, env_steps, output, (steps, advantage, target), auxiliary, mean)

    auxiliary = auxiliary_terms(batch, window, output)
    metrics = terms(counts and counts.loss)
    loss = metrics["loss"]
    if counts is not None and counts.loss.ndim:
        metrics = terms(counts.metrics)
    elif counts is not None:
        scale = counts.loss / counts.metrics
        metrics = {name: value * scale for name, value in metrics.items()}
    return loss, metrics


def own_part(setup: Setup, batch: Batch, window: Window) -> tuple[Batch, Window]:
    """Return the steps with a loss on this device, and the data with the teacher's probabilities at these steps.

    These are all steps of the window, unless the devices that share a context split a pass over the whole trial.
    """
    whole_trial = window.full or setup.config.ppo.context_gradient == "full"
    empty = setup.policy.initial_memory(batch.advantage.shape[0], 0)
    own = own_steps(empty, Span(window.start, window.size)) if whole_trial else None
    if own is None:
        return batch, window
    if batch.teacher is not None:
        batch = batch._replace(teacher=Span(own.start - window.start, own.size).of(batch.teacher))
    return batch, Window(own.start, own.size, window.full)


def loss_terms(
    setup: Setup,
    env_steps: StepCount,
    output: PolicyOutput,
    data: tuple[Trajectory, jax.Array, jax.Array],
    auxiliary: dict[str, jax.Array],
    mean: Callable[[jax.Array], jax.Array],
) -> Metrics:
    """Compute the loss of `minibatch_loss` and its terms.

    Args:
        setup: the training setup.
        env_steps: environment steps so far.
        output: outputs of the policy over the window.
        data: trajectory, advantages and value targets of the window.
        auxiliary: `auxiliary_terms` of each step.
        mean: mean over the steps.

    Returns:
        `loss` and metrics, each float32 [].
    """
    ppo, (steps, advantage, target) = setup.config.ppo, data
    log_prob = output.distribution.log_prob(steps.action)
    entropy = mean(output.distribution.entropy())
    policy_loss = mean(losses.policy_loss(log_prob, steps.log_prob, advantage, ppo.clip))
    value_loss = mean(losses.value_loss(output.value, steps.value, target, ppo.value_clip))
    bonus = entropy_coef(ppo, setup.config.total_steps, env_steps) * entropy
    loss = policy_loss + ppo.value_coef * value_loss - bonus
    auxiliary_means = {name: mean(x) for name, x in auxiliary.items()}
    for name in [name for name in AUXILIARY if name in auxiliary]:
        loss += AUXILIARY[name](ppo, setup.config.total_steps, env_steps) * auxiliary_means[name]
    log_ratio = log_prob - steps.log_prob
    return {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": mean(jnp.exp(log_ratio) - 1 - log_ratio),
        "clip_fraction": mean((jnp.abs(jnp.exp(log_ratio) - 1) > ppo.clip) * 1.0),
        **auxiliary_means,
    }


def auxiliary_terms(batch: Batch, window: Window, output: PolicyOutput) -> dict[str, jax.Array]:
    """Return `recall_terms` and the teacher loss of each step of the window, float32 [b, size], if there are any."""
    parts = {} if batch.recall is None else recall_terms(batch, window, output)
    if batch.teacher is not None:
        assert isinstance(output.distribution, Categorical)
        parts["teacher_loss"] = losses.action_loss(output.distribution, batch.teacher)
    return parts


def recall_terms(batch: Batch, window: Window, output: PolicyOutput) -> Metrics:
    """Return the recall loss, whether the answer is known, and whether it is right; 0 where it is not known."""
    assert batch.recall is not None
    answer, known = context.window(batch.recall, window.start, window.size)
    loss, right = losses.recall_loss(output.recall, answer), known & losses.recall_right(output.recall, answer)
    return {"recall_loss": jnp.where(known, loss, 0.0), "recall_known": known * 1.0, "recall_right": right * 1.0}


def window_inputs(setup: Setup, params: Params, batch: Batch, window: Window) -> StepInput:
    """Return the inputs of the window, leading axes [b, size]. Its images are encoded again, to get a gradient."""
    block = context.window(batch.trajectory.inputs, window.start, window.size)
    if batch.observation is None:
        return block
    return setup.policy.encode_images(params, block.replace(observation=batch.observation))


def window_output(setup: Setup, params: Params, batch: Batch, window: Window, dropout_key: jax.Array) -> PolicyOutput:
    """Return the outputs of the policy over the window or its `own_part`, leading axes [b, size].

    They are differentiable in `params`.

    Steps before the window keep the image features that were computed when the policy acted.
    """
    inputs, block = batch.trajectory.inputs, window_inputs(setup, params, batch, window)
    if setup.config.ppo.context_gradient == "stopped" and not window.full:
        return setup.policy.unroll(params, batch.memory, block, dropout_key=dropout_key)[0]
    if batch.observation is not None:
        inputs = context.write_window(inputs, block, window.start)
    empty = setup.policy.initial_memory(batch.advantage.shape[0], 0)
    valid = jnp.asarray(window.start + window.size, jnp.int32)
    query_span = None if window.full else Span(window.start, window.size)
    return setup.policy.unroll(params, empty, inputs, valid=valid, dropout_key=dropout_key, query_span=query_span)[0]
