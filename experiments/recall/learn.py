"""Learn, by supervision alone, to answer where the kind that an episode asks for was last seen."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from relic_jax import prng
from relic_jax.config import PolicyConfig
from relic_jax.environment.base import num_tasks
from relic_jax.envs.gridobj.env import GridObj
from relic_jax.experiments.recall.record import Recordings, record
from relic_jax.models.policy import Policy, policy_for
from relic_jax.rl.losses import recall_loss
from relic_jax.types import Params
from relic_jax.validation import check_positive, require

AGES = (0, 1, 10, 50, 300)
"""Lower bounds of the groups of steps by age."""


@dataclasses.dataclass(frozen=True)
class RecallConfig:
    """The supervised task and its optimizer."""

    layouts: int = 64
    """Training layouts recorded at a time."""
    steps: int = 400
    """Steps of a trial."""
    held_out: int = 64
    """Held-out layouts of the evaluation."""
    noise: float = 0.2
    """Share of the searcher's actions that are drawn uniformly."""
    minibatches: int = 4
    """Optimizer steps on the layouts recorded together, each on a share of them."""
    lr: float = 1e-3
    """Learning rate of Adam, after 100 steps of linear warm-up."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    eps: float = 1e-8
    """Epsilon of Adam."""
    gradient: Literal["full", "stopped"] = "full"
    """full: through the whole trial; stopped: only within segments, which read earlier ones from the cache."""
    segment: int = 100
    """Steps of a segment if the gradient is stopped; must divide `steps`."""
    optimizer_steps: int = 1000
    """Optimizer steps of a run."""
    every: int = 80
    """Optimizer steps between evaluations; a multiple of `minibatches`."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        check_positive(self, "recall", "layouts", "steps", "held_out", "minibatches", "lr", "clip", "eps", "segment")
        check_positive(self, "recall", "optimizer_steps", "every")
        require(0 <= self.noise <= 1, "recall.noise", self.noise, "0 … 1")
        allowed = f"a divisor of recall.layouts ({self.layouts})"
        require(self.layouts % self.minibatches == 0, "recall.minibatches", self.minibatches, allowed)
        allowed = f"a divisor of recall.steps ({self.steps}) with recall.gradient 'stopped'"
        fits = self.gradient == "full" or self.steps % self.segment == 0
        require(fits, "recall.segment", self.segment, allowed)
        allowed = f"a multiple of recall.minibatches ({self.minibatches})"
        require(self.every % self.minibatches == 0, "recall.every", self.every, allowed)


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """A policy whose recall head (`PolicyConfig.recall`) learns to name the cell.

    Attributes:
        env: The environment.
        policy: The policy. Its actor and critic are not trained.
        config: The task and the optimizer.
    """

    env: GridObj
    policy: Policy
    config: RecallConfig

    @classmethod
    def of(cls, env: GridObj, policy: PolicyConfig, config: RecallConfig) -> Learner:
        """Return the learner of a policy's config."""
        return cls(env, policy_for(env, dataclasses.replace(policy, recall=env.recall_classes)), config)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with a clipped gradient."""
        rate = optax.linear_schedule(0.0, self.config.lr, 100)
        return optax.chain(optax.clip_by_global_norm(self.config.clip), optax.adam(rate, eps=self.config.eps))

    def init(self, key: jax.Array) -> tuple[Params, Any]:
        """Return (parameters, state of the optimizer)."""
        params = self.policy.init(key)
        return params, self.optimizer.init(params)

    def answers(self, params: Params, recordings: Recordings) -> tuple[jax.Array, ...]:
        """Return the log-probabilities of x and of y, float32 [B, T, N] each."""
        inputs = recordings.inputs
        batch, steps = inputs.first.shape
        if self.config.gradient == "full":
            return self.policy.unroll(params, self.policy.initial_memory(batch, 0), inputs)[0].recall
        memory, parts = self.policy.initial_memory(batch, steps), []
        for start in range(0, steps, self.config.segment):
            block = jax.tree.map(lambda x, start=start: x[:, start : start + self.config.segment], inputs)
            output, memory = self.policy.unroll(params, jax.lax.stop_gradient(memory), block)
            parts.append(output.recall)
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)

    def loss(self, params: Params, recordings: Recordings) -> jax.Array:
        """Return the cross-entropy of x and y in nats, over the steps at which the kind was seen before."""
        nats = recall_loss(self.answers(params, recordings), recordings.cell)
        known = recordings.age >= 0
        return jnp.where(known, nats, 0.0).sum() / jnp.maximum(known.sum(), 1)

    @functools.partial(jax.jit, static_argnums=0)
    def iteration(self, state: tuple[Params, Any], key: jax.Array, tasks: Any) -> tuple[tuple[Params, Any], jax.Array]:
        """Record trials in new layouts and take one optimizer step per minibatch. Returns (state, loss [])."""
        task_key, record_key, order_key = jax.random.split(key, 3)
        config = self.config
        chosen = jax.random.randint(task_key, (config.layouts,), 0, num_tasks(tasks))
        recordings = record(self.env, record_key, jax.tree.map(lambda x: x[chosen], tasks), config.steps, config.noise)

        def update(state: tuple[Params, Any], rows: jax.Array) -> tuple[tuple[Params, Any], jax.Array]:
            params, optimizer_state = state
            loss, gradient = jax.value_and_grad(self.loss)(params, jax.tree.map(lambda x: x[rows], recordings))
            change, optimizer_state = self.optimizer.update(gradient, optimizer_state, params)
            return (optax.apply_updates(params, change), optimizer_state), loss

        order = jax.random.permutation(order_key, config.layouts).reshape(config.minibatches, -1)
        state, losses = jax.lax.scan(update, state, order)
        return state, losses.mean()

    @functools.partial(jax.jit, static_argnums=0)
    def right(self, params: Params, recordings: Recordings) -> jax.Array:
        """Return where both row and column are right, bool [B, T]."""
        answers = [log_probs.argmax(-1) for log_probs in self.answers(params, recordings)]
        return (jnp.stack(answers, axis=-1) == recordings.cell).all(-1)


def shares(right: np.ndarray, recordings: Recordings) -> dict[str, float]:
    """Return the share of right answers by age and by the number of other kinds seen since."""
    age, between = np.asarray(recordings.age), np.asarray(recordings.between)
    groups = {"all": age >= 0}
    for low, high in zip(AGES, (*AGES[1:], None), strict=True):
        name = f"age {low}+" if high is None else f"age {low}–{high - 1}"
        groups[name] = (age >= low) if high is None else (age >= low) & (age < high)
    for count in range(4):
        match = between == count if count < 3 else between >= count
        groups[f"between {count}" + ("+" if count == 3 else "")] = (age > 0) & match
    return {name: float(right[group].mean()) for name, group in groups.items() if group.any()}


def train(learner: Learner, seed: int, report: Any) -> tuple[Params, list[dict[str, Any]]]:
    """Train one seed, and call `report` with each row.

    Returns:
        The parameters, and the rows: optimizer steps, loss, shares.
    """
    config, env = learner.config, learner.env
    train_tasks = jax.tree.map(jnp.asarray, env.tasks("train"))
    held_out = jax.tree.map(lambda x: jnp.asarray(x[: config.held_out]), env.tasks("test"))
    test = record(env, prng.key(2**31 - 1), held_out, config.steps, config.noise)
    init_key, key = jax.random.split(prng.key(seed))
    state, rows = learner.init(init_key), []
    for iteration in range(config.optimizer_steps // config.minibatches):
        state, loss = learner.iteration(state, jax.random.fold_in(key, iteration), train_tasks)
        done = (iteration + 1) * config.minibatches
        if done % config.every == 0:
            right = np.asarray(learner.right(state[0], test))
            rows.append({"seed": seed, "optimizer_steps": done, "loss": float(loss), **shares(right, test)})
            report(rows[-1])
    return state[0], rows
