"""The state that training carries from one jitted call to the next, and the static setup that its functions share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax import prng
from relic_jax.config import TrainConfig
from relic_jax.environment.base import Environment, num_tasks
from relic_jax.environment.reference_agents import Teacher, batch_memory
from relic_jax.environment.trials import Trials, TrialState
from relic_jax.models.memory import Memory
from relic_jax.models.policy import Policy, policy_for
from relic_jax.models.sharded import ContextShards
from relic_jax.rl.curriculum import CurriculumState, Rungs, draw_tasks, initial_curriculum, rungs_of
from relic_jax.rl.optimizer import make_optimizer
from relic_jax.rl.steps import StepCount
from relic_jax.shards import Shard
from relic_jax.types import Params, PyTree, StepInput, Trajectory

Metrics = dict[str, jax.Array]
"""Metrics of an update by name, each float32 []."""

AXIS = "data"
"""Name of the device axis over which the environments are split."""

CONTEXT_AXIS = "context"
"""Name of the device axis over which the steps of a context are split, if `config.context_devices` is more than 1."""


class TrainState(struct.PyTreeNode):
    """Everything needed to resume a run bit for bit. All of it is saved in checkpoints.

    Attributes:
        params: parameters of the policy.
        opt_state: state of the optimizer, for the trainable parameters (`Policy.trainable`).
        key: typed PRNG key [].
        env_steps: environment steps so far, summed over environments.
        segment: int32 [], index in the trial of the next segment.
        trial: the N environments.
        trajectory: the trial's steps so far, in buffers [N, T].
        memory: the policy's memory of the trial.
        curriculum: the state of the curriculum, or None without one.
        teacher: the memory of the teacher in each of the N trials, or None without one.
    """

    params: Params
    opt_state: PyTree
    key: jax.Array
    env_steps: StepCount
    segment: jax.Array
    trial: TrialState
    trajectory: Trajectory
    memory: Memory
    curriculum: CurriculumState | None = None
    teacher: PyTree = None


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """The static side of training: pure functions and sizes, closed over by jit.

    Attributes:
        config: the run's config.
        policy: the policy.
        trials: steps the environments.
        tasks: the training split, with a leading axis over tasks. With a curriculum, the tasks of all rungs.
        local_environments: number of environments on one device.
        axis: name of the device axis inside a function that runs on several devices, otherwise None.
        rungs: the rungs of the curriculum, or None without one.
        device_keys: whether each device draws separate random numbers and minibatches. True for runs that started
          before these became independent of the number of devices.
    """

    config: TrainConfig
    policy: Policy
    trials: Trials
    tasks: PyTree
    local_environments: int
    axis: str | None = None
    rungs: Rungs | None = None
    device_keys: bool = False

    @property
    def shard(self) -> Shard:
        """The part of the environments for which this device draws random numbers from a shared key."""
        if self.axis is None or self.device_keys:
            return Shard()
        return Shard(self.config.trial.environments // self.local_environments, self.axis)

    @property
    def optimizer(self) -> Any:
        """The optax transformation."""
        return make_optimizer(self.config.ppo)

    @property
    def teacher(self) -> Teacher | None:
        """The agent of the teacher loss, or None without one."""
        ppo = self.config.ppo
        agent = self.trials.env.reference_agents[ppo.teacher] if ppo.has_teacher else None
        return agent if isinstance(agent, Teacher) else None

    @property
    def initializer(self) -> Callable[[], TrainState]:
        """`init_state` as the same object every time: JAX traces it once, for its shapes and for its program."""
        return _initializer(self, prng.current()["implementation"])

    @property
    def abstract_state(self) -> TrainState:
        """The shapes and dtypes of `init_state`."""
        return _abstract_state(self, prng.current()["implementation"])

    @property
    def device_policy(self) -> Policy:
        """The policy as each device runs it, with its part of the context if `context_devices` share the context."""
        devices = self.config.context_devices
        return self.policy if devices == 1 else self.policy.over_devices(ContextShards(CONTEXT_AXIS, devices))

    def mean(self, tree: PyTree) -> PyTree:
        """Return the mean over devices."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)

    def mean_gradient(self, gradient: PyTree) -> PyTree:
        """Return the mean gradient over all devices, also over those that share a context.

        These have losses of different steps in a pass over a whole trial. Otherwise their gradients are equal, except
        for rounding if the order of a device's sums can vary, and the mean keeps their parameters equal.
        """
        shards = self.policy.shards
        axes = [axis for axis in (self.axis, shards and shards.axis) if axis is not None]
        return jax.lax.pmean(gradient, axes) if axes else gradient

    def mean_over_context(self, tree: PyTree) -> PyTree:
        """Return the mean over the devices that share a context."""
        return tree if self.policy.shards is None else jax.lax.pmean(tree, self.policy.shards.axis)

    def total(self, tree: PyTree) -> PyTree:
        """Return the sum over devices."""
        return tree if self.axis is None else jax.lax.psum(tree, self.axis)

    def device_key(self, key: jax.Array) -> jax.Array:
        """Derive a different key for each device from a key that all devices share, if `device_keys`."""
        return (
            key if self.axis is None or not self.device_keys else jax.random.fold_in(key, jax.lax.axis_index(self.axis))
        )


def make_setup(config: TrainConfig, env: Environment) -> Setup:
    """Return the setup for training in an environment."""
    trials = Trials(env, config.trial.show_last_reward)
    rungs, tasks = rungs_of(config.curriculum, env)
    return Setup(config, policy_for(env, config.policy), trials, tasks, config.trial.environments, rungs=rungs)


@functools.lru_cache(maxsize=2)
def _initializer(setup: Setup, prng_implementation: str) -> Callable[[], TrainState]:
    """Return a function for each implementation of keys, because JAX does not trace one again for another."""
    del prng_implementation
    return lambda: init_state(setup)


@functools.lru_cache(maxsize=2)
def _abstract_state(setup: Setup, prng_implementation: str) -> TrainState:
    """Trace `init_state`, which takes a while. The dtype of the key depends on JAX's implementation of keys."""
    del prng_implementation
    return jax.eval_shape(setup.initializer)


def init_state(setup: Setup) -> TrainState:
    """Return the state before the first step. Can be jitted."""
    cfg = setup.config
    params_key, trial_key, key = jax.random.split(jax.random.key(cfg.seed), 3)
    params = setup.policy.init(params_key)
    environments, rungs = setup.local_environments, setup.rungs
    curriculum = None if rungs is None else initial_curriculum(cfg.curriculum, rungs, environments)
    trial = new_trial(setup, trial_key, curriculum)
    return TrainState(
        params=params,
        opt_state=setup.optimizer.init(setup.policy.trainable(params)),
        key=key,
        env_steps=StepCount.of(0),
        segment=jnp.zeros((), jnp.int32),
        trial=trial,
        trajectory=empty_trajectory(setup, params, trial),
        memory=setup.policy.initial_memory(environments, cfg.trial.steps),
        curriculum=curriculum,
        teacher=new_teacher_memory(setup),
    )


def new_teacher_memory(setup: Setup) -> PyTree:
    """Return the memory of the teacher at the start of every trial, or None without one."""
    return None if setup.teacher is None else batch_memory(setup.teacher, setup.local_environments)


def new_trial(setup: Setup, key: jax.Array, curriculum: CurriculumState | None = None) -> TrialState:
    """Start a trial in every environment, each in a task drawn uniformly from the training split, or from its rung."""
    task_key, reset_key = jax.random.split(key)
    shard, rungs = setup.shard, setup.rungs
    if rungs is None or curriculum is None:
        count = setup.local_environments * shard.devices
        index = shard.own(jax.random.randint(task_key, (count,), 0, num_tasks(setup.tasks)))
    else:
        index = shard.draw(lambda rung: draw_tasks(rungs, rung, task_key), curriculum.running.rung)
    trial = setup.trials.reset(reset_key, jax.tree.map(lambda x: jnp.asarray(x)[index], setup.tasks))
    return dataclasses.replace(trial, episode_steps=None)  # derived from the trajectory by `Trials.counting`


def step_input(trial: TrialState) -> StepInput:
    """Return the inputs of the policy at the next step, leading axis [N]."""
    return StepInput(trial.observation, trial.previous_action, trial.previous_reward, trial.first, trial.legal)


def empty_trajectory(setup: Setup, params: Params, trial: TrialState) -> Trajectory:
    """Return zero buffers [N, T] for the steps of a trial, with features in place of images."""
    policy, steps = setup.policy, setup.config.trial.steps
    encoded = step_input(trial)
    if any(policy.spaces.images):
        encoded = jax.eval_shape(policy.encode_images, params, encoded)
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
        valid=flag if setup.trials.env.on_host else None,
    )
