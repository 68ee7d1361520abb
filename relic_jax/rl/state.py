"""What training carries from one jitted call to the next, and what it is built from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.config import TrainConfig
from relic_jax.environment.base import Environment, num_tasks
from relic_jax.environment.trials import Trials, TrialState
from relic_jax.models.memory import Memory
from relic_jax.models.policy import Policy, policy_for
from relic_jax.rl.optimizer import make_optimizer
from relic_jax.rl.steps import StepCount
from relic_jax.types import Params, PyTree, StepInput, Trajectory


class TrainState(struct.PyTreeNode):
    """Everything that a run needs to go on bit for bit. All of it is checkpointed.

    params: pytree. opt_state: pytree, of the parameters that are trained (`Policy.trained`). key: typed PRNG key [].
    env_steps: taken so far by all environments together. segment: int32 [], index in the trial of the segment
    to come. trial: the N environments. trajectory: the trial's steps so far ([N, T] buffers). memory: what the
    policy keeps of them.
    """

    params: Params
    opt_state: PyTree
    key: jax.Array
    env_steps: StepCount
    segment: jax.Array
    trial: TrialState
    trajectory: Trajectory
    memory: Memory


AXIS = "data"  # name of the device axis that environments are split over


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """The static side of training: pure functions and sizes, closed over by jit.

    tasks: the training split. local_environments: how many environments one device holds. axis: name of the device axis
    inside a function that runs on several devices, None on one.
    """

    config: TrainConfig
    policy: Policy
    trials: Trials
    tasks: PyTree
    local_environments: int
    axis: str | None = None

    @property
    def optimizer(self) -> Any:
        """The optax transformation."""
        return make_optimizer(self.config.ppo)

    def mean(self, tree: PyTree) -> PyTree:
        """Mean over devices."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)

    def total(self, tree: PyTree) -> PyTree:
        """Sum over devices."""
        return tree if self.axis is None else jax.lax.psum(tree, self.axis)

    def own_key(self, key: jax.Array) -> jax.Array:
        """A key of this device's own, from one that all devices share."""
        return key if self.axis is None else jax.random.fold_in(key, jax.lax.axis_index(self.axis))


def make_setup(config: TrainConfig, env: Environment) -> Setup:
    """Binds a config to an environment."""
    trials = Trials(env, config.trial.show_last_reward)
    return Setup(config, policy_for(env, config.policy), trials, env.tasks("train"), config.trial.environments)


def init_state(setup: Setup) -> TrainState:
    """The state before the first step. Jittable."""
    cfg = setup.config
    params_key, trial_key, key = jax.random.split(jax.random.key(cfg.seed), 3)
    params = setup.policy.init(params_key)
    trial = new_trial(setup, trial_key)
    return TrainState(
        params=params,
        opt_state=setup.optimizer.init(setup.policy.trained(params)),
        key=key,
        env_steps=StepCount.of(0),
        segment=jnp.zeros((), jnp.int32),
        trial=trial,
        trajectory=empty_trajectory(setup, trial),
        memory=setup.policy.initial_memory(setup.local_environments, cfg.trial.steps),
    )


def new_trial(setup: Setup, key: jax.Array) -> TrialState:
    """All environments at the start of a trial, each in a task drawn uniformly from the training split."""
    task_key, reset_key = jax.random.split(key)
    chosen = jax.random.randint(task_key, (setup.local_environments,), 0, num_tasks(setup.tasks))
    trial = setup.trials.reset(reset_key, jax.tree.map(lambda x: jnp.asarray(x)[chosen], setup.tasks))
    return dataclasses.replace(trial, episode_steps=None)  # they follow from the trajectory, see `Trials.counting`


def step_input(trial: TrialState) -> StepInput:
    """What the policy reads next. Leading axis [N]."""
    return StepInput(trial.observation, trial.previous_action, trial.previous_reward, trial.first, trial.legal)


def empty_trajectory(setup: Setup, trial: TrialState) -> Trajectory:
    """Zero buffers [N, T, ...] for the trial's steps. Of images there are features only."""
    policy, steps = setup.policy, setup.config.trial.steps
    encoded = jax.eval_shape(lambda: policy.encode_images(policy.init(jax.random.key(0)), step_input(trial)))
    inputs = jax.tree.map(lambda x: jnp.zeros((x.shape[0], steps, *x.shape[1:]), x.dtype), encoded)
    shape = (trial.first.shape[0], steps)
    real, flag = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)
    return Trajectory(
        inputs=inputs,
        action=jnp.zeros((*shape, *policy.action_space.shape), policy.action_space.dtype),
        log_prob=real,
        value=real,
        reward=real,
        terminated=flag,
        truncated=flag,
        final_value=real,
        valid=flag if setup.trials.env.may_fail else None,
    )
