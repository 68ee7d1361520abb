"""Supervised training before PPO on trials of a scripted agent.

The recall head learns the environment's labels, and the actor can learn the agent's actions (behavior cloning).
Reinforcement learning alone does not learn to recall many things that the trial has shown, although the network can
(`docs/recall.md`). It runs on one device, which makes its result independent of the number of devices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from relic_jax import prng, processes
from relic_jax.config import PPOConfig, PretrainConfig, TrainConfig
from relic_jax.distributions import Categorical
from relic_jax.environment.base import Environment, num_tasks
from relic_jax.environment.reference_agents import ScriptedAgent
from relic_jax.environment.trials import Trials
from relic_jax.metrics import Record
from relic_jax.models.policy import Policy, PolicyOutput
from relic_jax.rl.diagnostics import NonFiniteError
from relic_jax.rl.gae import advantages
from relic_jax.rl.losses import action_loss, recall_loss, recall_right, value_loss
from relic_jax.rl.memory_budget import check_recordings
from relic_jax.rl.recordings import Recordings, record, relabeled
from relic_jax.rl.state import Setup, TrainState
from relic_jax.rl.teaching import check_teacher
from relic_jax.stopping import Stop
from relic_jax.types import Params, PyTree
from relic_jax.validation import require

State = tuple[Params, Any]
"""Parameters, and the state of the optimizer."""

RELABEL = 1
"""Number of the stream of random numbers for `PretrainConfig.relabel`."""
WARMUP = 100
"""Optimizer steps of linear warm-up of the learning rate."""


def check_pretraining(config: TrainConfig, env: Environment) -> None:
    """Raise ConfigError if an environment, a policy or the memory does not allow the pretraining of a config."""
    pretrain, classes, agents = config.pretrain, env.recall_classes, env.reference_agents
    if not pretrain.steps:
        return
    name = repr(config.env.name)
    labelled = bool(classes or pretrain.action_coef)
    missing = "has no scripted agent to record" if labelled else env.without_labels
    missing = "is stepped by worker processes" if env.on_host else missing
    possible = bool(labelled and agents and not env.on_host)
    require(possible, "pretrain.steps", pretrain.steps, f"0 in {name}, which {missing}")
    require(pretrain.agent in agents, "pretrain.agent", pretrain.agent, f"{', '.join(map(repr, agents))} in {name}")
    if pretrain.action_coef:
        check_teacher(env, pretrain.agent, "pretrain.action_coef", pretrain.action_coef, "pretrain.agent")
    allowed, recall = f"{classes} with pretrain.steps in {name}", config.policy.recall
    require(recall == classes or bool(pretrain.action_coef and not recall), "policy.recall", recall, allowed)
    allowed = f"False in {name}, which cannot be relabeled" if recall else "False without policy.recall"
    require(not pretrain.relabel or bool(recall and env.can_relabel), "pretrain.relabel", pretrain.relabel, allowed)
    allowed = "0 with ppo.credit 'trial' (the rewards after a recorded trial are unknown)"
    by_episode = config.ppo.credit == "episode" or not pretrain.value_coef
    require(by_episode, "pretrain.value_coef", pretrain.value_coef, allowed)
    check_recordings(pretrain, env.observation_spec)


def pretraining_key(seed: int) -> jax.Array:
    """Return the key of the pretraining of a run. The first half of the split belongs to the parameters."""
    return jax.random.split(prng.key(seed))[1]


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Trains a policy on recorded trials: its recall head, and its actor and critic if their weights are not 0.

    Attributes:
        trials: The environment's trials.
        policy: The policy, with a recall head or with `action_coef`.
        config: The recordings and the optimizer.
        ppo: The discount and the scale of rewards, for the value loss.
    """

    trials: Trials
    policy: Policy
    config: PretrainConfig
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)

    @property
    def agent(self) -> ScriptedAgent:
        """The agent whose trials are recorded."""
        return self.trials.env.reference_agents[self.config.agent]

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with a clipped gradient."""
        config = self.config
        rate = optax.linear_schedule(0.0, config.lr, WARMUP)
        if config.lr_final is not None:
            fall = optax.linear_schedule(config.lr, config.lr_final, max(config.steps - WARMUP, 1))
            rate = optax.join_schedules([rate, fall], [WARMUP])
        return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate, eps=config.adam_eps))

    @functools.partial(jax.jit, static_argnums=0)
    def record(self, key: jax.Array, tasks: PyTree) -> Recordings:
        """Record one trial per task. key: typed PRNG key []; tasks: leading axis [B]."""
        config, teaches = self.config, self.config.action_coef > 0
        steps, share = config.trial_steps, config.random_actions
        return record(self.trials, self.agent, key, tasks, steps, share, with_probabilities=teaches)

    def copies(self, key: jax.Array, recordings: Recordings) -> Recordings | None:
        """Return the recordings relabeled, or None without `PretrainConfig.relabel`. key: typed PRNG key []."""
        return relabeled(self.trials.env, key, recordings) if self.config.relabel else None

    def outputs(self, params: Params, recordings: Recordings) -> PolicyOutput:
        """Return the outputs of the policy, with leading axes [B, T]."""
        inputs, segment = recordings.inputs, self.config.segment
        batch, steps = inputs.first.shape
        if segment is None:
            return self.policy.unroll(params, self.policy.initial_memory(batch, 0), inputs)[0]
        memory, parts = self.policy.initial_memory(batch, steps), []
        for start in range(0, steps, segment):
            block = jax.tree.map(lambda x, start=start: x[:, start : start + segment], inputs)
            output, memory = self.policy.unroll(params, jax.lax.stop_gradient(memory), block)
            parts.append(output)
        joined: PolicyOutput = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
        return joined

    def loss(
        self, params: Params, recordings: Recordings, copies: Recordings | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Compute the recall loss plus `action_coef` times the action loss and `value_coef` times the value loss.

        Args:
            params: The parameters.
            recordings: The recorded trials.
            copies: The same trials, relabeled. Their recall loss is added.

        Returns:
            The loss and metrics, each float32 []. With a recall head, the recall loss is the cross-entropy in nats,
            summed over the answers, and the metric `right` is the share of steps with all answers right. Both use the
            steps at which the answers are known. The metric `recall_loss` is included if there are other losses. With
            `action_coef`, `action_loss` is the mean of `losses.action_loss`, and `action_right` is the share of steps
            whose most probable action is one of the agent's. With `value_coef`, `value_loss` is half the mean squared
            error. With `copies`, `relabeled_loss` and `relabeled_right` are their recall loss and right answers.
        """
        output, loss = self.outputs(params, recordings), jnp.zeros(())
        metrics: dict[str, jax.Array] = {}
        if output.recall:
            loss, metrics["right"] = self.recall(output, recordings)
        if output.recall and (self.config.action_coef or self.config.value_coef):
            metrics["recall_loss"] = loss
        if recordings.probabilities is not None:
            assert isinstance(output.distribution, Categorical)
            probabilities, mode = recordings.probabilities, output.distribution.mode()
            action = action_loss(output.distribution, probabilities).mean()
            right = (jnp.take_along_axis(probabilities, mode[..., None], -1) > 0).mean()
            metrics |= {"action_loss": action, "action_right": right}
            loss += self.config.action_coef * action
        if self.config.value_coef:
            metrics["value_loss"] = self.value_loss(output.value, recordings)
            loss += self.config.value_coef * metrics["value_loss"]
        if copies is not None:
            found = self.recall(self.outputs(params, copies), copies)
            metrics["relabeled_loss"], metrics["relabeled_right"] = found
            loss += metrics["relabeled_loss"]
        return loss, metrics

    def value_loss(self, value: jax.Array, recordings: Recordings) -> jax.Array:
        """Compute half the mean squared error of values, float32 [B, T], against the returns of the recordings.

        The return after the end of an episode is 0, also after a time limit. The unfinished last episode of each trial
        is excluded.
        """
        ppo, ended = self.ppo, recordings.ended
        counted = jax.lax.cummax(ended.astype(jnp.int32), axis=1, reverse=True) > 0
        zero = jnp.zeros_like(recordings.reward[0])

        def returns(reward: jax.Array, ended: jax.Array) -> jax.Array:
            return advantages(reward, zero, zero[0], ended, zero, len(zero), gamma=ppo.gamma, gae_lambda=1.0)

        target = jax.vmap(returns)(recordings.reward * ppo.reward_scale, ended)
        error = jnp.where(counted, value_loss(value, value, target, None), 0.0)
        return error.sum() / jnp.maximum(counted.sum(), 1)

    def recall(self, output: PolicyOutput, recordings: Recordings) -> tuple[jax.Array, jax.Array]:
        """Return the recall loss and the share of right answers over the steps with known answers, float32 [] each."""
        known = recordings.known
        count = jnp.maximum(known.sum(), 1)
        loss = jnp.where(known, recall_loss(output.recall, recordings.answers), 0.0).sum() / count
        return loss, (known & recall_right(output.recall, recordings.answers)).sum() / count

    @functools.partial(jax.jit, static_argnums=0)
    def right(self, params: Params, recordings: Recordings) -> jax.Array:
        """Return whether all answers are right, bool [B, T]."""
        return recall_right(self.outputs(params, recordings).recall, recordings.answers)

    @functools.partial(jax.jit, static_argnums=0)
    def iteration(self, state: State, key: jax.Array, tasks: PyTree) -> tuple[State, dict[str, jax.Array]]:
        """Record trials in random tasks and take one optimizer step per minibatch and epoch.

        Args:
            state: The parameters and the state of the optimizer.
            key: Typed PRNG key [].
            tasks: All training tasks.

        Returns:
            The next state, and the means over minibatches of `loss` and of its metrics.
        """
        task_key, record_key, order_key = jax.random.split(key, 3)
        trials, policy = self.config.trials, self.policy
        chosen = jax.random.randint(task_key, (trials,), 0, num_tasks(tasks))
        recordings = self.record(record_key, jax.tree.map(lambda x: x[chosen], tasks))
        params, optimizer_state = state
        params = policy.update_statistics(params, recordings.inputs.observation, None, lambda x: x)

        def with_all(trainable: Params) -> Params:
            return policy.with_frozen(trainable, params) if policy.config.encoder.freeze else trainable

        def epoch(state: State, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
            copies = self.copies(jax.random.fold_in(key, RELABEL), recordings)

            def loss(trainable: Params, rows: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
                return self.loss(with_all(trainable), *jax.tree.map(lambda x: x[rows], (recordings, copies)))

            def update(state: State, rows: jax.Array) -> tuple[State, dict[str, jax.Array]]:
                trainable, optimizer_state = state
                (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(trainable, rows)
                change, optimizer_state = self.optimizer.update(gradient, optimizer_state, trainable)
                return (optax.apply_updates(trainable, change), optimizer_state), {"loss": value, **metrics}

            order = jax.random.permutation(key, trials).reshape(self.config.minibatches, -1)
            return jax.lax.scan(update, state, order)

        keys = [order_key, *(jax.random.fold_in(order_key, number) for number in range(1, self.config.epochs))]
        start = policy.trainable(params), optimizer_state
        (trainable, optimizer_state), metrics = jax.lax.scan(epoch, start, jnp.stack(keys))
        return (with_all(trainable), optimizer_state), jax.tree.map(jnp.mean, metrics)

    def learn(self, params: Params, key: jax.Array, tasks: PyTree) -> Iterator[tuple[Params, Record]]:
        """Train, and yield the parameters and a record after every iteration.

        Args:
            params: The initial parameters, on one device.
            key: Typed PRNG key [].
            tasks: All training tasks.

        Yields:
            (parameters, record with `optimizer_steps` so far and the metrics of `loss`).
        """
        tasks = jax.tree.map(jnp.asarray, tasks)
        state: State = (params, self.optimizer.init(self.policy.trainable(params)))
        taken = self.config.iteration_steps
        for iteration in range(self.config.steps // taken):
            state, metrics = self.iteration(state, jax.random.fold_in(key, iteration), tasks)
            numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
            yield state[0], {"optimizer_steps": (iteration + 1) * taken, **numbers}


def pretrained(setup: Setup, state: TrainState, tracker: Any, stop: Stop) -> TrainState | None:
    """Return the state of a run with pretrained parameters.

    The result depends on the config and the initial parameters only. An interrupted pretraining starts again.

    Args:
        setup: The setup of the run.
        state: The state before the first step.
        tracker: Its optional method `pretrained` receives each record and the total number of optimizer steps.
        stop: Ends pretraining after the current iteration.

    Returns:
        The state, or None if the pretraining was stopped.

    Raises:
        NonFiniteError: if the loss is not finite.
    """
    config, show = setup.config.pretrain, getattr(tracker, "pretrained", None)
    pretraining = Pretraining(setup.trials, setup.policy, config, setup.config.ppo)
    params = processes.on_own_device(state.params)
    tasks = setup.trials.env.tasks("train")  # not those of a curriculum, which are easier
    for trained, numbers in pretraining.learn(params, pretraining_key(setup.config.seed), tasks):
        steps = int(numbers["optimizer_steps"])
        if not math.isfinite(numbers["loss"]):
            allowed = "lower pretrain.lr or pretrain.max_grad_norm"
            raise NonFiniteError(f"not finite at optimizer step {steps} of the pretraining: loss; {allowed}")
        if show is not None:
            show(numbers, config.steps)
        if processes.any_of(stop.is_set()) and steps < config.steps:
            return None
        params = trained
    shardings = jax.tree.map(lambda x: x.sharding, state.params)
    return state.replace(params=jax.device_put(processes.from_first(params), shardings))
