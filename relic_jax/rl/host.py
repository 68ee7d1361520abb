"""Acting with simulators in worker processes: a loop on the host that feeds the same jitted update.

The environments are in one or two groups. While the policy acts for one, the workers simulate the other. Each group has
a working copy of its part of the context, donated from step to step; what a segment added to the copies is joined and
appended to the context for the update. An observation is uploaded once: the step that acts on it also stores it.
"""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.host_trials import GroupStep, HostTrials
from relic_jax.environment.trials import TrialState, TrialStep
from relic_jax.models.memory import Memory, joined, rows
from relic_jax.models.policy import Policy
from relic_jax.rl import context
from relic_jax.rl.parallel import memory_specs, parallel, shardings_of
from relic_jax.rl.rollout import Collected, acting_sizes, buffer_sizes
from relic_jax.rl.state import AXIS, Setup, TrainState, init_state, step_input
from relic_jax.rl.update import Metrics, learn
from relic_jax.types import Params, PyTree, StepInput, Trajectory


class Acted(NamedTuple):
    """What acting stores, [b, K, ...]: what the policy read, with features in place of images; its action, that one's
    log-probability, its value; the observation itself where the update looks at images again, else None.
    """

    inputs: StepInput
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    observation: PyTree


class Running(NamedTuple):
    """One group in the middle of acting. memory: its context. acted: buffers, None where nothing is stored."""

    memory: Memory
    acted: Acted | None


class Actor:
    """A policy that acts for groups of `environments` environments. Its functions are jitted.

    window: the context is limited to that many last steps.
    """

    def __init__(self, policy: Policy, environments: int, window: int | None = None) -> None:
        limit = None if window is None else jnp.asarray(window, jnp.int32)
        step = functools.partial(_act, policy, environments, limit)
        self._step = jax.jit(step, donate_argnums=1)
        self.peek = jax.jit(policy.peek)

    def __call__(
        self, params: Params, running: Running, trial: TrialState, key: jax.Array, start: int, index: int
    ) -> tuple[Running, jax.Array]:
        """Acts in `trial`; `running` is donated. start: number of the group's first environment. index: of the step.

        Returns the actions, [b, ...], as the policy chose them. What is drawn for an environment does not depend on how
        they are grouped.
        """
        return self._step(params, running, step_input(trial), key, np.int32(start), np.int32(index))


def _act(
    policy: Policy,
    environments: int,
    window: jax.Array | None,
    params: Params,
    running: Running,
    seen: StepInput,
    key: jax.Array,
    start: jax.Array,
    index: jax.Array,
) -> tuple[Running, jax.Array]:
    inputs = policy.encode_images(params, seen)
    output, memory = policy.act(params, running.memory, inputs, window=window)
    rows = start + jnp.arange(inputs.first.shape[0])
    keys = jax.random.split(jax.random.fold_in(key, index), environments)[rows]
    action = jax.vmap(lambda distribution, own: distribution.sample(own))(output.distribution, keys)
    acted = running.acted
    if acted is not None:
        observation = seen.observation if policy.learns_images else None
        new = Acted(inputs, action, output.distribution.log_prob(action), output.value, observation)
        acted = context.write_window(acted, jax.tree.map(lambda x: x[:, None], new), index)
    return Running(memory, acted), action


class HostSegments:
    """`rl.update.segment_step` for a `HostEnvironment`: called with a TrainState, returns the next one and the metrics.

    A context manager, which ends the workers. Raises ConfigError where they cannot start.
    """

    def __init__(self, setup: Setup) -> None:
        env, trial = setup.trials.env, setup.config.trial
        assert isinstance(env, HostEnvironment)
        self._setup, self._env = setup, env
        self._sizes = buffer_sizes(trial.steps, trial.segment, acting_sizes(setup.policy))
        self._actor = Actor(setup.policy, trial.environments)
        state = jax.eval_shape(lambda: init_state(setup))
        self._open = jax.jit(functools.partial(_opened, setup, state.trajectory), static_argnums=(2, 3))
        self._close = jax.jit(functools.partial(_closed, setup))
        self._specs = _collected_specs(state.memory)
        self._learn = parallel(setup, _learn, self._specs)
        self._trials = HostTrials(env, env.start(trial.environments), setup.trials.show_last_reward)

    def __enter__(self) -> HostSegments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trials.pool.close()

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One segment. `state` is donated to the update; what fails before that (PoolError) leaves it as it was."""
        segment = int(state.segment)
        if segment == 0:
            self._trials.reset(np.asarray(state.trial.task), np.asarray(state.trial.env))
        elif not self._trials.trials:
            state = self._resumed(state, segment * self._setup.config.trial.segment)
        collected = self._collect(state, segment)
        shardings = shardings_of(self._setup.config, self._specs)
        return self._learn(state, jax.device_put(collected, shardings))

    def _resumed(self, state: TrainState, filled: int) -> TrainState:
        """Puts fresh workers where a checkpoint's were, by playing the running episodes' actions again.

        Where that leads elsewhere, the running episode ends as if its last step had been lost.
        """
        steps = jax.device_get(state.trajectory.replace(inputs=None))
        ended = (steps.terminated | steps.truncated)[:, :filled]
        begun = [int(row.nonzero()[0][-1]) + 1 if row.any() else 0 for row in ended]
        applied = self._env.action_space.to_env(steps.action)
        replay = [row[start:filled] for row, start in zip(applied, begun, strict=True)]
        same = self._trials.resume(jax.device_get(state.trial), ended.sum(1), replay)
        truncated, valid = np.array(steps.truncated), np.array(steps.valid)
        truncated[~same, filled - 1], valid[~same, filled - 1] = True, False
        new = jax.device_put((truncated, valid), state.trajectory.truncated.sharding)
        return state.replace(trajectory=state.trajectory.replace(truncated=new[0], valid=new[1]))

    def _collect(self, state: TrainState, segment: int) -> Collected:
        """Acts for one segment. `memory` of the result holds the segment's own keys and values only."""
        steps, trials = self._setup.config.trial.segment, self._trials
        acting = (state.params, state.memory, _act_key(state.key))
        params, memory, key = jax.device_put(acting, jax.devices()[0])
        size = next(size for size in self._sizes if size >= (segment + 1) * steps)
        running = [self._open(memory, np.int32(rows.start), rows.stop - rows.start, size) for rows in trials.rows]

        def act(group: int, index: int, trial: TrialState) -> np.ndarray:
            start = trials.rows[group].start
            running[group], action = self._actor(params, running[group], trial, key, start, index)
            return self._env.action_space.to_env(np.asarray(action))

        happened: list[list[GroupStep]] = [[] for _ in running]
        finals: list[list[np.ndarray]] = [[] for _ in running]
        for found in trials.run(act, steps):
            happened[found.group].append(found)
            finals[found.group].append(self._final_value(params, running[found.group].memory, found))
        last_value = [
            self._actor.peek(params, group.memory, step_input(trial))
            for group, trial in zip(running, trials.trials, strict=True)
        ]
        added, acted = self._close(tuple(running))
        results, valid = _stacked([[(f.step, f.batch.valid) for f in group] for group in happened])
        return Collected(
            trial=trials.all,
            memory=added,
            steps=_trajectory(acted, results, valid, _stacked(finals)),
            results=results,
            last_value=jnp.concatenate(last_value),
            observation=acted.observation,
        )

    def _final_value(self, params: Params, memory: Memory, found: GroupStep) -> np.ndarray:
        """Value of the observation that a time limit cut off, 0 elsewhere: float32 [b]."""
        batch = found.batch
        cut = batch.truncated & batch.valid
        if self._setup.config.ppo.time_limit == "terminal" or batch.final is None or not cut.any():
            return np.zeros(len(cut), np.float32)
        acted = self._env.action_space.from_env(batch.acted)
        fields: Any = (self._env.observe(batch.final), acted, batch.reward, np.zeros_like(cut))
        inputs = StepInput(*fields)
        return np.where(cut, np.asarray(self._actor.peek(params, memory, inputs)), 0).astype(np.float32)


@jax.jit
def _act_key(key: jax.Array) -> jax.Array:
    return jax.random.split(jax.random.split(key)[1], 3)[0]


def _learn(setup: Setup, state: TrainState, collected: Collected) -> tuple[TrainState, Metrics]:
    """`learn`, with the keys of the segment that `_act_key` began."""
    key, own_key = jax.random.split(state.key)
    _, update_key, after_key = jax.random.split(setup.own_key(own_key), 3)
    collected = collected._replace(memory=state.memory.append(collected.memory))
    return learn(setup, state.replace(key=key), state.memory, collected, update_key, after_key)


def _opened(setup: Setup, steps: Trajectory, memory: Memory, start: jax.Array, count: int, size: int) -> Running:
    """A working copy for `count` environments from `start` on, with room for `size` steps, and buffers for a segment.

    steps: shapes of the trial's. count, size: static.
    """
    part = rows(memory, start + jnp.arange(count)).prefix(size)
    shape = (count, setup.config.trial.segment)
    policy = setup.policy

    def zeros(tree: PyTree, leading: int) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape[leading:]), x.dtype), tree)

    acted = zeros(Acted(steps.inputs, steps.action, steps.log_prob, steps.value, None), 2)
    acted = acted._replace(observation=zeros(policy.spec, 0) if policy.learns_images else None)
    return Running(policy.for_acting(part), acted)


def _closed(setup: Setup, groups: tuple[Running, ...]) -> tuple[Memory, Acted]:
    """What the segment added, of all environments."""
    segment = setup.config.trial.segment
    memory = joined([setup.policy.stored(group.memory.last_steps(segment)) for group in groups])
    return memory, jax.tree.map(lambda *parts: jnp.concatenate(parts), *(group.acted for group in groups))


def _stacked(groups: list[list[Any]]) -> Any:
    """[K, B, ...] arrays from those of one step of one group, groups[g][k]: [b, ...]."""
    parts = [jax.tree.map(lambda *steps: np.stack(steps), *group) for group in groups]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *parts)


def _trajectory(acted: Acted, results: TrialStep, valid: Any, final_value: Any) -> Trajectory:
    """results, valid (bool), final_value (float32): [K, B]."""
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


def _collected_specs(memory: Memory) -> Any:
    """PartitionSpecs of a `Collected`: everything is split over the environments. memory: one of the same kind."""
    split: Any = P(AXIS)
    steps_first: Any = P(None, AXIS)
    return Collected(
        trial=split, memory=memory_specs(memory), steps=split, results=steps_first, last_value=split, observation=split
    )
