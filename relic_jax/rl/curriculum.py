"""A curriculum over a task option: which values trials have, and when the next harder value begins.

The values of the option are the rungs of a ladder, from easy to hard. Every trial has one of them, drawn when the trial
starts: the present rung, or with probability `easier` one of the rungs below it. All of it runs inside the jitted step
of training. The state is a part of `TrainState`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.config import CurriculumConfig, TrainConfig
from relic_jax.environment.base import Environment, num_tasks
from relic_jax.rl.steps import StepCount
from relic_jax.shards import WHOLE, Shard
from relic_jax.types import PyTree
from relic_jax.validation import require

OverDevices = Callable[[PyTree], PyTree]
"""The sum or the mean of a tree over devices."""


class RunningTrials(struct.PyTreeNode):
    """The episodes of the running trials, each array [N].

    Attributes:
        rung: int32, index of the trial's rung.
        episodes: int32, episodes that have ended.
        first: float32, return of the first episode.
        later: float32, sum of the returns of the later episodes (`CurriculumConfig.later`).
    """

    rung: jax.Array
    episodes: jax.Array
    first: jax.Array
    later: jax.Array


class CurriculumState(struct.PyTreeNode):
    """The state of a curriculum with R rungs.

    Attributes:
        rung: int32 [], index of the present rung.
        gain: float32 [R], running mean of the gain of each rung's trials. 0 before the first one.
        trials: int32 [R], number of trials in that mean, at most `CurriculumConfig.window`.
        running: the running trials.
        variance: float32 [R], running variance of the gain over the same trials. None without
            `CurriculumConfig.standard_errors`.
    """

    rung: jax.Array
    gain: jax.Array
    trials: jax.Array
    running: RunningTrials
    variance: jax.Array | None = None

    @property
    def standard_error(self) -> jax.Array | None:
        """Standard error of `gain`, float32 [R]. None without a variance."""
        return None if self.variance is None else jnp.sqrt(self.variance / jnp.maximum(self.trials - 1, 1))


class Rungs(NamedTuple):
    """The static side of a curriculum.

    Attributes:
        option: name of the task option.
        values: its values, from easy to hard.
        sizes: number of training tasks of each value.
    """

    option: str
    values: tuple[int | str, ...]
    sizes: tuple[int, ...]

    def task_name(self, index: int) -> str:
        """Describe a task by its index in the tasks of all rungs."""
        rung = int(np.searchsorted(np.cumsum(self.sizes), index, side="right"))
        return f"{index - sum(self.sizes[:rung])} of {self.option} {self.values[rung]}"


def check_curriculum(config: TrainConfig, env: Environment) -> None:
    """Raise ConfigError if the environment does not have the curriculum's option, or its trials cannot measure it."""
    curriculum, name = config.curriculum, repr(config.env.name)
    if curriculum.option is None:
        return
    known = _known_values(config, env)
    wanted = [known.index(str(value)) if str(value) in known else -1 for value in curriculum.values or known]
    ordered = len(wanted) > 1 and -1 not in wanted and wanted == sorted(set(wanted))
    allowed = f"() or two or more of {', '.join(known)}, in this order, for {curriculum.option!r} in {name}"
    require(ordered, "curriculum.values", curriculum.values, allowed)
    count = len(wanted) - 1
    allowed = f"{count} fractions, one for each rung after the first, or ()"
    require(len(curriculum.starts) in (0, count), "curriculum.starts", curriculum.starts, allowed)
    if curriculum.mode == "gain":  # an episode can end after one step
        allowed = f"{curriculum.later:,} or more, as many as curriculum.later, or curriculum.mode 'schedule'"
        require(config.trial.steps >= curriculum.later, "trial.steps", config.trial.steps, allowed)
    _check_tasks(curriculum.option, _values(curriculum, env), env)


def _known_values(config: TrainConfig, env: Environment) -> list[str]:
    """Return the values of the curriculum's option, as text. Raises ConfigError if there are not two or more."""
    option, options, name = config.curriculum.option or "", env.rungs, repr(config.env.name)
    allowed = f"None in {name}, which has no task option that a curriculum can vary"
    allowed = f"{', '.join(map(repr, options))} in {name}, or None" if options else allowed
    require(option in options, "curriculum.option", option, allowed)
    known = [str(value) for value in options[option]]
    if option in config.env.options:  # it fixes the hardest value, or all of them
        allowed = f"one number, 2 or more, or None with curriculum.option {option!r}"
        require(len(known) > 1, f"env.{option}", config.env.options[option], allowed)
    allowed = f"an option with two or more values in {name}; its values are {known}"
    require(len(known) > 1, "curriculum.option", option, allowed)
    return known


def _check_tasks(option: str, values: tuple[int | str, ...], env: Environment) -> None:
    """Raise ConfigError if the tasks of a rung are not like those of the environment, or if there are none."""
    whole = _types(env.tasks("train"))
    for value in values:
        tasks = env.rung_tasks(option, value)
        allowed = f"an option whose tasks are {whole}; those of {value!r} are {_types(tasks)}"
        require(_types(tasks) == whole, "curriculum.option", option, allowed)
        allowed = f"an option with training tasks of every value; {value!r} has none"
        require(num_tasks(tasks) > 0, "curriculum.option", option, allowed)


def _values(config: CurriculumConfig, env: Environment) -> tuple[int | str, ...]:
    """Return the values of the curriculum's option as the environment lists them."""
    names = {str(value) for value in config.values}
    return tuple(value for value in env.rungs[config.option or ""] if not names or str(value) in names)


def _types(tasks: PyTree) -> str:
    """Return shapes and dtypes of one task in their tree, as text."""
    return str(jax.tree.map(lambda x: f"{x.dtype.name}{list(x.shape[1:])}", tasks))


def rungs_of(config: CurriculumConfig, env: Environment) -> tuple[Rungs | None, PyTree]:
    """Return the rungs of a curriculum and the training tasks: those of all rungs, one rung after the other.

    Args:
        config: the curriculum, which fits the environment (`check_curriculum`).
        env: the environment.
    """
    if config.option is None:
        return None, env.tasks("train")
    values = _values(config, env)
    tasks = [env.rung_tasks(config.option, value) for value in values]
    rungs = Rungs(config.option, values, tuple(num_tasks(part) for part in tasks))
    return rungs, jax.tree.map(lambda *parts: np.concatenate(parts), *tasks)


def initial_curriculum(config: CurriculumConfig, rungs: Rungs, environments: int) -> CurriculumState:
    """Return the state before the first trial: all trials have the easiest value."""
    count = len(rungs.values)
    running = new_trials(jnp.zeros((environments,), jnp.int32))
    rung, trials = jnp.zeros((), jnp.int32), jnp.zeros((count,), jnp.int32)
    variance = jnp.zeros((count,), jnp.float32) if config.standard_errors else None
    return CurriculumState(rung, jnp.zeros((count,), jnp.float32), trials, running, variance)


def new_trials(rung: jax.Array) -> RunningTrials:
    """Return trials without episodes. rung: int32 [N]."""
    zeros = jnp.zeros_like(rung, jnp.float32)
    return RunningTrials(rung, jnp.zeros_like(rung), zeros, zeros)


def draw_tasks(rungs: Rungs, rung: jax.Array, key: jax.Array) -> jax.Array:
    """Draw a task of each trial's rung uniformly, int32 [N], as indices into the tasks of all rungs."""
    sizes = np.asarray(rungs.sizes, np.int32)
    first = np.cumsum(sizes) - sizes
    return jnp.asarray(first, jnp.int32)[rung] + jax.random.randint(key, rung.shape, 0, jnp.asarray(sizes)[rung])


def shares(rung: jax.Array, count: int, easier: float) -> jax.Array:
    """Return the probability of each of `count` rungs if `rung`, int32 [], is the present one: float32 [count]."""
    index = jnp.arange(count)
    below = easier / jnp.maximum(rung, 1)
    return jnp.where(index < rung, below, jnp.where(index == rung, jnp.where(rung > 0, 1 - easier, 1.0), 0.0))


def count_episodes(running: RunningTrials, ended: jax.Array, episode_return: jax.Array, later: int) -> RunningTrials:
    """Add the episodes of a segment.

    Args:
        running: the trials before the segment.
        ended: bool [K, N], whether an episode ended at each step.
        episode_return: float32 [K, N], its return.
        later: number of the first later episode.
    """
    number = running.episodes + jnp.cumsum(ended, axis=0, dtype=jnp.int32)

    def total(episodes: jax.Array) -> jax.Array:
        return jnp.where(ended & episodes, episode_return, 0.0).sum(0)

    first, others = running.first + total(number == 1), running.later + total(number >= later)
    return running.replace(episodes=number[-1], first=first, later=others)


def with_gains(state: CurriculumState, later: int, window: int, total: OverDevices) -> CurriculumState:
    """Add the gains of finished trials to the running means, and to the running variances if there are any.

    A trial's gain is the mean return of its later episodes minus that of the first. Trials without later episodes are
    left out. The mean is exact up to `window` trials. From then on a trial has the weight 1 / window, which is an
    exponential moving average.

    Args:
        state: the state at the end of the trials.
        later: number of the first later episode.
        window: largest number of trials in the mean.
        total: sum over devices.
    """
    running = state.running
    episodes = running.episodes - later + 1
    gain = running.later / jnp.maximum(episodes, 1) - running.first
    is_in = (running.rung[:, None] == jnp.arange(len(state.gain))) & (episodes > 0)[:, None]
    count, gains = total((is_in.sum(0, dtype=jnp.int32), jnp.where(is_in, gain[:, None], 0.0).sum(0)))
    trials = jnp.minimum(state.trials + count, window)
    weight = count / jnp.maximum(jnp.maximum(trials, count), 1)
    new, variance = gains / jnp.maximum(count, 1), state.variance
    mean = state.gain + weight * (new - state.gain)
    if variance is not None:  # that of a mixture of the trials before and the new ones
        squares = total(jnp.where(is_in, (gain[:, None] - new) ** 2, 0.0).sum(0)) / jnp.maximum(count, 1)
        variance = (1 - weight) * (variance + weight * (new - state.gain) ** 2) + weight * squares
    return state.replace(gain=mean, trials=trials, variance=variance)


def next_rung(config: TrainConfig, state: CurriculumState, env_steps: StepCount) -> jax.Array:
    """Return the index of the rung that follows the finished trials, int32 []."""
    curriculum, count = config.curriculum, len(state.gain)
    if curriculum.mode == "schedule":
        starts = curriculum.starts or [index / count for index in range(1, count)]
        steps = [math.ceil(start * config.total_steps) for start in starts]
        begun = sum((~env_steps.is_before(step)).astype(jnp.int32) for step in steps)
        return jnp.maximum(state.rung, begun)  # a run that is extended keeps its rung
    error = state.standard_error
    gain = state.gain if error is None else state.gain - curriculum.standard_errors * error
    enough = state.trials[state.rung] >= curriculum.window
    rises = enough & (gain[state.rung] > curriculum.threshold) & (state.rung < count - 1)
    return state.rung + rises.astype(jnp.int32)


def next_curriculum(
    config: TrainConfig,
    state: CurriculumState,
    env_steps: StepCount,
    key: jax.Array,
    total: OverDevices,
    shard: Shard = WHOLE,
) -> CurriculumState:
    """Return the state at the start of new trials, whose rungs are drawn.

    Args:
        config: the run's config.
        state: the state at the end of the trials before.
        env_steps: environment steps so far.
        key: typed PRNG key [].
        total: sum over devices.
        shard: the environments of this device.
    """
    curriculum = config.curriculum
    state = with_gains(state, curriculum.later, curriculum.window, total)
    rung = next_rung(config, state, env_steps)
    logits = jnp.log(shares(rung, len(state.gain), curriculum.easier))
    drawn = shard.draw(lambda old: jax.random.categorical(key, logits, shape=old.shape), state.running.rung)
    drawn = drawn.astype(jnp.int32)
    return state.replace(rung=rung, running=new_trials(drawn))


def curriculum_metrics(rungs: Rungs, state: CurriculumState, mean: OverDevices) -> dict[str, jax.Array]:
    """Return the metrics of a curriculum, each float32 [].

    Args:
        rungs: the rungs.
        state: the state.
        mean: mean over devices.

    Returns:
        `curriculum/rung`, the number of the present rung from 1; `curriculum/share/VALUE`, the share of the running
        trials; `curriculum/gain/VALUE`, the running mean of the gain, and with a variance `curriculum/error/VALUE`,
        its standard error, NaN before the first trial.
    """
    measured = {"gain": state.gain, "error": state.standard_error}
    values = {name: jnp.where(state.trials > 0, x, jnp.nan) for name, x in measured.items() if x is not None}
    values = {"share": mean(jax.nn.one_hot(state.running.rung, len(rungs.values)).mean(0)), **values}
    return {
        "curriculum/rung": (state.rung + 1).astype(jnp.float32),
        **{f"curriculum/{name}/{value}": x[i] for name, x in values.items() for i, value in enumerate(rungs.values)},
    }
