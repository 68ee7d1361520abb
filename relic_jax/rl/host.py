"""Acting in environments that run in worker processes: a loop on the host around jitted steps of the policy.

With several training processes, each has the workers of its own environments.

The environments form groups, by default two. While the policy acts in one group, the workers simulate the others. Each
group has a working copy of its part of the context, which is donated from step to step. After a segment, the steps that
were added to the copies are appended to the context, and the same jitted update follows as for environments inside jit.
Each observation is transferred to the device once, by the step that acts on it and also stores it.
"""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from relic_jax import processes
from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.host_trials import GroupStep, HostTrials
from relic_jax.environment.trials import TrialState, TrialStep
from relic_jax.models.memory import Memory, joined, rows
from relic_jax.models.policy import Policy
from relic_jax.rl import context
from relic_jax.rl.parallel import data_mesh, parallel, shardings_of
from relic_jax.rl.rollout import Collected, acting_sizes, buffer_sizes
from relic_jax.rl.segment import learn
from relic_jax.rl.state import AXIS, Metrics, Setup, TrainState, step_input
from relic_jax.types import Params, PyTree, StepInput, Trajectory

_SPLIT: Any = P(AXIS)
_SPLIT_SECOND: Any = P(None, AXIS)
COLLECTED_SPECS = Collected(
    trial=_SPLIT, memory=_SPLIT, steps=_SPLIT, results=_SPLIT_SECOND, last_value=_SPLIT, observation=_SPLIT
)
"""PartitionSpecs of a `Collected`, whose arrays are split over the environments."""


class Acted(NamedTuple):
    """Buffers for the policy's part of a segment, leading axes [b, K].

    Attributes:
        inputs: inputs of the policy, with features in place of images.
        action: the sampled action.
        log_prob: its log-probability, float32.
        value: the value prediction, float32.
        observation: the observation with its images if the update trains the image encoder, otherwise None.
    """

    inputs: StepInput
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    observation: PyTree


class Running(NamedTuple):
    """State of one group while acting.

    Attributes:
        memory: the group's context.
        acted: the group's buffers, or None if nothing is stored.
    """

    memory: Memory
    acted: Acted | None


class Actor:
    """Jitted functions of a policy that acts in groups of environments.

    Args:
        policy: the policy.
        environments: number of environments in all groups.
        window: limits the context to that number of last steps.
    """

    def __init__(self, policy: Policy, environments: int, window: int | None = None) -> None:
        limit = None if window is None else jnp.asarray(window, jnp.int32)
        step = functools.partial(_act, policy, environments, limit)
        self._step = jax.jit(step, donate_argnums=1)
        self.value = jax.jit(policy.value)

    def __call__(
        self, params: Params, running: Running, trial: TrialState, key: jax.Array, start: int, index: int
    ) -> tuple[Running, jax.Array]:
        """Act for one step of a group.

        The random numbers of an environment do not depend on the grouping.

        Args:
            params: parameters of the policy.
            running: the group's state. It is donated.
            trial: the group's trials.
            key: typed PRNG key [], the same for all steps and groups of a segment.
            start: number of the group's first environment.
            index: index of the step.

        Returns:
            The group's next state, and the sampled actions, leading axis [b], in the units of the policy.
        """
        return self._step(params, running, step_input(trial), key, np.int32(start), np.int32(index))


def _act(
    policy: Policy,
    environments: int,
    window: jax.Array | None,
    params: Params,
    running: Running,
    observed: StepInput,
    key: jax.Array,
    start: jax.Array,
    index: jax.Array,
) -> tuple[Running, jax.Array]:
    inputs = policy.encode_images(params, observed)
    output, memory = policy.act(params, running.memory, inputs, window=window)
    rows = start + jnp.arange(inputs.first.shape[0])
    keys = jax.random.split(jax.random.fold_in(key, index), environments)[rows]
    action = jax.vmap(lambda distribution, own: distribution.sample(own))(output.distribution, keys)
    acted = running.acted
    if acted is not None:
        observation = observed.observation if policy.trains_image_encoder else None
        new = Acted(inputs, action, output.distribution.log_prob(action), output.value, observation)
        acted = context.write_window(acted, jax.tree.map(lambda x: x[:, None], new), index)
    return Running(memory, acted), action


class HostRunner:
    """Runs segments of training in a `HostEnvironment` (a `runner.Runner`). Exiting the context ends the workers.

    Raises:
        ConfigError: if the workers cannot start.
    """

    def __init__(self, setup: Setup) -> None:
        env, trial = setup.trials.env, setup.config.trial
        assert isinstance(env, HostEnvironment)
        self._setup, self._env = setup, env
        self._sizes = buffer_sizes(trial.steps, trial.segment, acting_sizes(setup.policy))
        self._actor = Actor(setup.policy, trial.environments)
        self._mesh = data_mesh(setup.config)
        own = trial.environments // jax.process_count()
        self._first = own * jax.process_index()
        state = setup.abstract_state
        self._open = jax.jit(functools.partial(_opened, setup, state.trajectory), static_argnums=(2, 3))
        self._close = jax.jit(functools.partial(_closed, setup))
        self._learn = parallel(setup, _learn, COLLECTED_SPECS)
        self._trials = HostTrials(env, env.start(own, env.host.batch), setup.trials.show_last_reward)

    def __enter__(self) -> HostRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trials.pool.close()

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Train for one segment. The state is donated to the update. A PoolError before the update leaves it intact."""
        segment = int(state.segment)
        if segment == 0:
            trial = self._own(state.trial)
            self._trials.reset(np.asarray(trial.task), np.asarray(trial.env))
        elif not self._trials.trials:
            state = self._resumed(state, segment * self._setup.config.trial.segment)
        collected = self._of_all(self._collect(state, segment), COLLECTED_SPECS)
        return self._learn(state, collected)

    def _own(self, tree: PyTree) -> PyTree:
        """Return the part of arrays over all environments that belongs to this process."""
        return processes.own_part(tree, self._mesh, _SPLIT)

    def _of_all(self, tree: PyTree, specs: PyTree) -> PyTree:
        """Place arrays over the environments of this process on its devices, as parts of arrays over all."""
        if processes.are_several():
            return processes.of_all(tree, self._mesh, specs)
        return jax.device_put(tree, shardings_of(self._setup.config, specs))

    def _resumed(self, state: TrainState, filled: int) -> TrainState:
        """Bring new workers to the state of a checkpoint's workers, by replaying the actions of the current episodes.

        If a replay leads to a different observation, the current episode ends as if its last step had been lost.
        """
        steps = jax.device_get(self._own(state.trajectory.replace(inputs=None)))
        ended = (steps.terminated | steps.truncated)[:, :filled]
        starts = [int(row.nonzero()[0][-1]) + 1 if row.any() else 0 for row in ended]
        actions = self._env.action_space.to_env(steps.action)
        replay = [row[start:filled] for row, start in zip(actions, starts, strict=True)]
        same = self._trials.resume(jax.device_get(self._own(state.trial)), ended.sum(1), replay)
        truncated, valid = np.array(steps.truncated), np.array(steps.valid)
        truncated[~same, filled - 1], valid[~same, filled - 1] = True, False
        new = self._of_all((truncated, valid), (_SPLIT, _SPLIT))
        return state.replace(trajectory=state.trajectory.replace(truncated=new[0], valid=new[1]))

    def _collect(self, state: TrainState, segment: int) -> Collected:
        """Act for one segment. The memory of the result holds only the steps of the segment."""
        steps, trials = self._setup.config.trial.segment, self._trials
        key = jax.random.wrap_key_data(processes.on_own_device(_act_key(state.key)))
        params = processes.on_own_device(state.params)
        memory = jax.device_put(self._own(state.memory), jax.local_devices()[0])
        size = next(size for size in self._sizes if size >= (segment + 1) * steps)
        running = [self._open(memory, np.int32(rows.start), rows.stop - rows.start, size) for rows in trials.rows]

        def act(group: int, index: int, trial: TrialState) -> np.ndarray:
            start = self._first + trials.rows[group].start
            running[group], action = self._actor(params, running[group], trial, key, start, index)
            return self._env.action_space.to_env(np.asarray(action))

        group_steps: list[list[GroupStep]] = [[] for _ in running]
        final_values: list[list[np.ndarray]] = [[] for _ in running]
        for step in trials.run_ready(act, steps):
            group_steps[step.group].append(step)
            final_values[step.group].append(self._final_value(params, running[step.group].memory, step))
        last_value = [
            self._actor.value(params, group.memory, step_input(trial))
            for group, trial in zip(running, trials.trials, strict=True)
        ]
        added, acted = self._close(tuple(running))
        results, valid = _stacked([[(step.step, step.batch.valid) for step in group] for group in group_steps])
        return Collected(
            trial=trials.all,
            memory=added,
            steps=_trajectory(acted, results, valid, _stacked(final_values)),
            results=results,
            last_value=jnp.concatenate(last_value),
            observation=acted.observation,
        )

    def _final_value(self, params: Params, memory: Memory, step: GroupStep) -> np.ndarray:
        """Return the value of the final observation of truncated episodes, and 0 elsewhere: float32 [b]."""
        batch = step.batch
        cut = batch.truncated & batch.valid
        if self._setup.config.ppo.time_limit == "terminal" or batch.final is None or not cut.any():
            return np.zeros(len(cut), np.float32)
        acted = self._env.action_space.from_env(batch.acted)
        fields: Any = (self._env.observe(batch.final), acted, batch.reward, np.zeros_like(cut))
        inputs = StepInput(*fields)
        return np.where(cut, np.asarray(self._actor.value(params, memory, inputs)), 0).astype(np.float32)


@jax.jit
def _act_key(key: jax.Array) -> jax.Array:
    """Return the data of the key for acting in a segment."""
    return jax.random.key_data(jax.random.split(jax.random.split(key)[1], 3)[0])


def _learn(setup: Setup, state: TrainState, collected: Collected) -> tuple[TrainState, Metrics]:
    """Call `learn` with the keys of the same segment as `_act_key`."""
    key, own_key = jax.random.split(state.key)
    _, update_key, after_key = jax.random.split(setup.device_key(own_key), 3)
    collected = collected._replace(memory=state.memory.append(collected.memory))
    return learn(setup, state.replace(key=key), state.memory, collected, update_key, after_key)


def _opened(setup: Setup, steps: Trajectory, memory: Memory, start: jax.Array, count: int, size: int) -> Running:
    """Return a working copy of the context and buffers for a segment, for a group of environments.

    Args:
        setup: the training setup.
        steps: shapes of the trajectory.
        memory: the context of all environments.
        start: number of the group's first environment.
        count: number of environments in the group. Static.
        size: number of steps for which the copy has room. Static.
    """
    part = rows(memory, start + jnp.arange(count)).prefix(size)
    shape = (count, setup.config.trial.segment)
    policy = setup.policy

    def zeros(tree: PyTree, leading: int) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape[leading:]), x.dtype), tree)

    acted = zeros(Acted(steps.inputs, steps.action, steps.log_prob, steps.value, None), 2)
    acted = acted._replace(observation=zeros(policy.spaces.observation, 0) if policy.trains_image_encoder else None)
    return Running(policy.for_acting(part), acted)


def _closed(setup: Setup, groups: tuple[Running, ...]) -> tuple[Memory, Acted]:
    """Return the steps that the segment added to the context, and the buffers, of all environments."""
    segment = setup.config.trial.segment
    memory = joined([setup.policy.for_storage(group.memory.last_steps(segment)) for group in groups])
    return memory, jax.tree.map(lambda *parts: jnp.concatenate(parts), *(group.acted for group in groups))


def _stacked(groups: list[list[Any]]) -> Any:
    """Stack arrays groups[g][k]: [b, ...] of step k of group g as [K, B, ...]."""
    parts = [jax.tree.map(lambda *steps: np.stack(steps), *group) for group in groups]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *parts)


def _trajectory(acted: Acted, results: TrialStep, valid: Any, final_value: Any) -> Trajectory:
    """Assemble the segment's trajectory. results, valid (bool), final_value (float32): leading axes [K, B]."""
    return Trajectory(
        inputs=acted.inputs,
        action=acted.action,
        log_prob=acted.log_prob,
        value=acted.value,
        reward=results.reward.T,
        terminated=results.terminated.T,
        truncated=results.truncated.T,
        final_value=final_value.T,
        valid=valid.T,
    )
