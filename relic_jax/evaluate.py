"""In-context learning curves: a frozen policy in many episodes of one task, one point per episode, with intervals.

Actions are sampled, the context is neither shuffled nor refreshed, the weights do not change (the paper's protocol).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import prng, settings
from relic_jax.bridge.pool import PoolError
from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.base import Environment, Split, TrialRecord, num_tasks, split_hash
from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.host_trials import EpisodeCount, HostTrials, per_row, waves
from relic_jax.environment.trials import Trials, TrialState, select
from relic_jax.horizon import tell_of_cut
from relic_jax.models.memory import Memory, rows
from relic_jax.models.policy import Policy, PolicyConfig
from relic_jax.rl.host import Actor, Running
from relic_jax.rl.memory_budget import check_evaluation
from relic_jax.rl.rollout import buffer_sizes
from relic_jax.rl.state import step_input
from relic_jax.types import Params, PyTree

SIZES = 4  # of the context's buffer in the course of an evaluation; each costs a compilation
MANY = 256  # trials, at which it pays to go on with the unfinished ones alone: one more compilation, half the work
SPARE = 4  # more episodes than asked for that there is room for, where simulators fail and episodes are lost
Array = jax.Array | np.ndarray


class _Steps(NamedTuple):
    """What acting leaves behind per step, [T, B]; `observation` and `record` of one environment only, [T, ...], which
    is the first one's at least until its trial is finished. cut: [T, B], see `TrialStep`.
    """

    action: Array
    reward: Array
    first: Array
    ended: Array
    episode_return: Array
    success: Array
    metrics: Mapping[str, Array]
    observation: PyTree
    record: PyTree
    cut: Array | None = None


_BATCHED = ("action", "reward", "first", "ended", "episode_return", "success", "metrics")


@dataclasses.dataclass(frozen=True)
class Curves:
    """One run on one split. returns: float32 [tasks·repeats, episodes]; successes: bool, same; rows are task-major.

    trial: what happened in the first task, for drawing. metrics: float32 [tasks·repeats, episodes] by name,
    `Environment.metrics` at the end of each episode; empty where the environment has none.
    """

    returns: np.ndarray
    successes: np.ndarray
    trial: TrialRecord
    metrics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@settings.with_standard
def in_context_curves(
    policy: Policy,
    params: Params,
    env: Environment,
    config: EvalConfig,
    *,
    split: Split = "test",
    task: int | None = None,
    seed: int = 0,
    show_last_reward: bool = False,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Curves:
    """Runs the tasks of `split` (the first `tasks` of them) `repeats` times, `episodes` episodes each in one context.

    task: only this one, by its index in the split. show_last_reward: as in training. progress: called with the fraction
    done. Raises ConfigError where the expert is asked for and there is none, where there is no such task, or where the
    context of a recurrent memory is to be limited; PoolError where simulators fail too often.
    """
    if config.expert_episodes and not env.has_expert:
        raise ConfigError(f"eval.expert_episodes is {config.expert_episodes}; allowed: 0, {env.name} has no expert")
    if config.context_limit is not None and policy.is_recurrent:
        allowed = f"None with a recurrent memory ({policy.config.memory!r})"
        raise ConfigError(f"eval.context_limit is {config.context_limit}; allowed: {allowed}")
    check_evaluated(policy.config, config, env, split, None if task is None else 1)
    if policy.masked and not env.masks_actions:
        raise ConfigError(f"env is {env.name!r}, which masks no actions; allowed: one that does, as in training")
    tasks = evaluated_tasks(env, split, config) if task is None else one_task(env, split, task)
    repeated = jax.tree.map(lambda x: np.repeat(x, config.repeats, axis=0), tasks)
    key, trials = jax.random.fold_in(prng.key(seed), 0x5EED), Trials(env, show_last_reward)
    play = _play_on_host if env.on_host else _play
    found = list(play(policy, params, trials, repeated, config, key, progress))
    values = [_per_episode(steps, config.episodes) for steps in found]
    returns, successes, metrics = jax.tree.map(lambda *x: np.concatenate(x), *values)
    return Curves(returns, successes, _first_trial(found[0], tasks, config.episodes), metrics)


Progress = Callable[[float], None]


def _play(
    policy: Policy,
    params: Params,
    trials: Trials,
    tasks: PyTree,
    config: EvalConfig,
    key: jax.Array,
    progress: Progress,
) -> Iterator[_Steps]:
    """All trials at once, in jitted chunks; once most of many have finished, only the others go on."""
    horizon, batch = trials.env.horizon, num_tasks(tasks)
    sizes = buffer_sizes(config.episodes * horizon, horizon, SIZES)
    reset_key, key = jax.random.split(key)
    trial = jax.jit(trials.reset)(reset_key, jax.tree.map(jnp.asarray, tasks))
    memory = policy.for_acting(policy.initial_memory(batch, sizes[0]))
    episode = jnp.zeros((batch,), jnp.int32)
    chunk = jax.jit(_chunk_function(policy, trials, config, horizon), donate_argnums=(1, 2))
    parts: list[_Steps] = []
    playing = np.arange(batch)
    for index in range(config.episodes):  # at most: short episodes end the trial sooner
        size = next(size for size in sizes if size >= (index + 1) * horizon)
        if size > memory.capacity:  # acting reads the whole buffer, so it grows with what is in it
            memory = memory.grown(size)
        trial, memory, episode, steps = chunk(params, trial, memory, episode, jax.random.fold_in(key, index))
        tell_of_cut(trials.env.name, horizon, steps.cut)
        parts.append(_spread(jax.device_get(steps._replace(cut=None)), playing, batch))
        done = int(episode.min())
        progress(min(done / config.episodes, 1.0))
        if done >= config.episodes:
            break
        unfinished = np.flatnonzero(np.asarray(episode) < config.episodes)
        if MANY <= len(playing) >= 2 * len(unfinished):
            trial, episode = jax.tree.map(itemgetter(unfinished), (trial, episode))
            memory, playing = rows(memory, jnp.asarray(unfinished)), playing[unfinished]
    yield jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _play_on_host(
    policy: Policy,
    params: Params,
    trials: Trials,
    tasks: np.ndarray,
    config: EvalConfig,
    key: jax.Array,
    progress: Progress,
) -> Iterator[_Steps]:
    """As many trials at a time as the workers hold. Raises PoolError where a trial is lost."""
    env = trials.env
    assert isinstance(env, HostEnvironment)
    seeds = np.asarray(jax.random.randint(key, (len(tasks),), 0, 2**31 - 1))
    for hosted, numbers in waves(env, len(tasks), trials.show_last_reward):
        hosted.reset(tasks[numbers], seeds[numbers])
        wave_key = jax.random.fold_in(key, int(numbers[0]))
        steps = _host_steps(policy, params, hosted, config, wave_key)
        real = len(np.unique(numbers))
        yield _batched(lambda x, real=real: x[:, :real], steps)
        progress((int(numbers[-1]) + 1) / len(tasks))


def _host_steps(policy: Policy, params: Params, hosted: HostTrials, config: EvalConfig, key: jax.Array) -> _Steps:
    """Acts until every environment has played its episodes."""
    horizon, actions = hosted.env.horizon, hosted.env.action_space
    sizes = buffer_sizes((config.episodes + SPARE) * horizon, horizon, SIZES)
    actor, count = Actor(policy, hosted.pool.config.total, config.context_limit), EpisodeCount(hosted, config.episodes)
    empty = [policy.initial_memory(rows.stop - rows.start, sizes[0]) for rows in hosted.rows]
    running = [Running(policy.for_acting(memory), None) for memory in empty]

    def act(group: int, index: int, trial: TrialState) -> np.ndarray:
        memory, rows = running[group].memory, hosted.rows[group]
        if index == memory.capacity:
            memory = memory.grown(next(size for size in sizes if size > index))
        running[group], action = actor(params, Running(memory, None), trial, key, rows.start, index)
        applied = actions.to_env(np.asarray(action))
        return per_row(count.ended[rows] < config.expert_episodes, np.full_like(applied, actions.expert_mark), applied)

    steps: list[list[_Steps]] = [[] for _ in running]
    for found in hosted.run(act, sizes[-1], count.enough):
        before, step, ended = found.before, found.step, count.add(found)
        seen = jax.tree.map(lambda x: x[0], before.observation)
        values = (found.batch.acted, step.reward, before.first, ended, step.episode_return, step.success)
        steps[found.group].append(_Steps(*values, metrics=step.metrics, observation=seen, record=None))
    if not count.enough():
        raise PoolError(f"env {hosted.env.name!r}: too many episodes were lost to evaluate {config.episodes}")
    groups = [jax.tree.map(lambda *x: np.stack(x), *group) for group in steps]
    return _batched(lambda *x: np.concatenate(x, axis=1), *groups)


def check_evaluated(
    policy: PolicyConfig, config: EvalConfig, env: Environment, split: Split, tasks: int | None = None
) -> None:
    """Raises ConfigError where an evaluation cannot fit into memory. tasks: how many; None: those of the config."""
    tasks = num_tasks(evaluated_tasks(env, split, config)) if tasks is None else tasks
    trials = env.concurrent_trials(tasks * config.repeats)
    check_evaluation(policy, config, horizon=env.horizon, trials=trials)


def evaluated_tasks(env: Environment, split: Split, config: EvalConfig) -> PyTree:
    """The split's tasks, or as many of the first as the config says."""
    return jax.tree.map(lambda x: x[: config.tasks], env.tasks(split))


def one_task(env: Environment, split: Split, index: int) -> PyTree:
    """A task set of one task of the split. Raises ConfigError where there is none of that index."""
    tasks = env.tasks(split)
    if not 0 <= index < num_tasks(tasks):
        raise ConfigError(f"task is {index}; allowed: 0 … {num_tasks(tasks) - 1} ({env.name}, split {split})")
    return jax.tree.map(lambda x: x[index : index + 1], tasks)


def _chunk_function(policy: Policy, trials: Trials, config: EvalConfig, length: int) -> Callable[..., Any]:
    """Acts for `length` steps. Returns (trial, memory, episode, steps); `episode` counts each environment's."""
    window = None if config.context_limit is None else jnp.asarray(config.context_limit, jnp.int32)
    actions = trials.env.action_space

    def act(params: Params, trial: TrialState, memory: Memory, episode: jax.Array, key: jax.Array):
        action_key, env_key = jax.random.split(key)
        output, memory = policy.act(params, memory, step_input(trial), window=window)
        action = output.distribution.sample(action_key)
        if config.expert_episodes:
            expert = jax.vmap(trials.env.optimal_action)(trial.env, trial.task)
            by_expert = episode < config.expert_episodes
            if trial.legal is not None:
                by_expert &= actions.allows(trial.legal, expert)
            action = select(by_expert, actions.from_env(expert), action)
        next_trial, result = trials.step(env_key, trial, action)
        ended = result.terminated | result.truncated
        observation, state = jax.tree.map(lambda x: x[0], (trial.observation, trial.env))
        steps = _Steps(
            action=actions.to_env(action),
            reward=result.reward,
            first=trial.first,
            ended=ended,
            episode_return=result.episode_return,
            success=result.success,
            metrics=result.metrics,
            observation=observation,
            record=trials.env.record(state),
            cut=result.cut,
        )
        return next_trial, memory, episode + ended, steps

    def chunk(params: Params, trial: TrialState, memory: Memory, episode: jax.Array, key: jax.Array):
        params = policy.for_steps(params)

        def step(carry: tuple[TrialState, Memory, jax.Array], key: jax.Array):
            *carry, steps = act(params, *carry, key)
            return tuple(carry), steps

        carry, steps = jax.lax.scan(step, (trial, memory, episode), jax.random.split(key, length))
        return *carry, steps

    return chunk


def _spread(steps: _Steps, playing: np.ndarray, batch: int) -> _Steps:
    """Steps of the trials `playing` (int [b]) among those of all, [T, batch]; nothing happens in the others."""

    def spread(x: np.ndarray) -> np.ndarray:
        wide = np.zeros((len(x), batch, *x.shape[2:]), x.dtype)
        wide[:, playing] = x
        return wide

    return _batched(spread, steps)


def _batched(function: Callable[..., np.ndarray], steps: _Steps, *others: _Steps) -> _Steps:
    """`function` of what all environments leave behind, the rest as in `steps`."""
    same = zip(*([getattr(s, name) for name in _BATCHED] for s in (steps, *others)), strict=True)
    return steps._replace(**{name: jax.tree.map(function, *x) for name, x in zip(_BATCHED, same, strict=True)})


def _per_episode(steps: _Steps, episodes: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Returns, successes and metrics at each environment's first `episodes` episode ends, [B, episodes] each."""
    ends = [np.flatnonzero(column)[:episodes] for column in steps.ended.T]
    index, row = np.stack(ends), np.arange(len(ends))[:, None]
    return jax.tree.map(lambda x: np.asarray(x)[index, row], (steps.episode_return, steps.success, steps.metrics))


def _first_trial(steps: _Steps, tasks: PyTree, episodes: int) -> TrialRecord:
    end = np.flatnonzero(steps.ended[:, 0])[episodes - 1] + 1
    return TrialRecord(
        observation=jax.tree.map(lambda x: x[:end], steps.observation),
        action=np.asarray(steps.action)[:end, 0],
        reward=np.asarray(steps.reward)[:end, 0],
        first=np.asarray(steps.first)[:end, 0],
        task=jax.tree.map(lambda x: np.asarray(x)[0], tasks),
        record=jax.tree.map(lambda x: x[:end], steps.record),
    )


def bootstrap_interval(
    values: Sequence[np.ndarray], *, tasks: int, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile bootstrap of the mean over tasks AND seeds.

    values: one [tasks·repeats, E] per seed. Each resample draws seeds with replacement, and for each of them tasks with
    replacement (all repeats of a drawn task come along). Returns (low, high), each float64 [E].
    """
    by_task = np.stack([np.asarray(v, np.float64).reshape(tasks, -1, v.shape[-1]).mean(1) for v in values])
    rng = np.random.default_rng(seed)
    seeds = len(values)
    means = np.empty((resamples, by_task.shape[-1]))
    for index in range(resamples):
        chosen = rng.integers(seeds, size=seeds)
        means[index] = by_task[chosen[:, None], rng.integers(tasks, size=(seeds, tasks))].mean((0, 1))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def summarise(
    env: Environment,
    split: Split,
    config: EvalConfig,
    curves: Sequence[Curves],
    lines: dict[str, float | None],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The content of `curve.json`: one curve over all seeds, with intervals, lines, raw values and provenance.

    curves: one per seed. lines: mean return of `random` and `optimal` (None: no expert) on these tasks. `gain` is the
    return of the last episode less that of the policy's first, in the same trial; `later_gain` the mean over its third
    to last episodes less its first, of returns, successes and metrics (None: there are fewer than three). `return.p20`
    is the 20th percentile over tasks (of a task's mean over its repeats), averaged over seeds.
    """
    tasks = evaluated_tasks(env, split, config)

    def curve(values: list[np.ndarray]) -> dict[str, list[float]]:
        low, high = bootstrap_interval(values, tasks=num_tasks(tasks))
        mean = np.mean(np.stack(values), axis=(0, 1), dtype=np.float64)
        return {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}

    def later_gain(values: list[np.ndarray]) -> dict[str, list[float]] | None:
        own = [v[:, config.expert_episodes :] for v in values]
        if own[0].shape[1] < 3:
            return None
        return curve([v[:, 2:].mean(1, keepdims=True) - v[:, :1] for v in own])

    returns, successes = [c.returns for c in curves], [c.successes.astype(np.float32) for c in curves]
    metrics = {name: [c.metrics[name] for c in curves] for name in curves[0].metrics}
    kinds = {"return": returns, "success": successes}
    later_gains = {
        kind: later_gain(v) for kind, v in (kinds | metrics | kinds).items()
    }  # a metric takes no name of ours
    later = config.expert_episodes + 1  # the first episode may have to explore; what follows it is what was learned
    per_seed = [
        {
            "first": float(r[:, config.expert_episodes].mean()),
            "later": float(r[:, later:].mean()) if later < r.shape[1] else None,
        }
        for r in returns
    ]
    return {
        "env": env.name,
        "split": split,
        "split_hash": split_hash(env.tasks(split)),
        **dataclasses.asdict(config),
        "tasks": num_tasks(tasks),
        "seeds": len(curves),
        "lines": lines,
        "return": curve(returns) | {"p20": percentile_over_tasks(returns, num_tasks(tasks), 20.0).tolist()},
        "success": curve(successes),
        "metrics": {name: curve(values) for name, values in metrics.items()},
        "gain": curve([r[:, -1:] - r[:, config.expert_episodes, None] for r in returns]),
        "later_gain": later_gains,
        "per_seed": per_seed,
        "raw_returns": [shortest(r) for r in returns],
        "raw_successes": [s.astype(int).tolist() for s in successes],
        "raw_metrics": {name: [shortest(v) for v in values] for name, values in metrics.items()},
        **provenance,
    }


def shortest(x: np.ndarray) -> list[Any]:
    """Nested lists of the numbers with the fewest digits that are still the same float32."""
    return np.asarray(x, np.float32).astype(str).astype(np.float64).tolist()


def percentile_over_tasks(values: Sequence[np.ndarray], tasks: int, percent: float) -> np.ndarray:
    """Percentile over tasks of their means over repeats, averaged over seeds: float64 [E]. values: as above."""
    by_task = [np.asarray(v, np.float64).reshape(tasks, -1, v.shape[-1]).mean(1) for v in values]
    return np.mean([np.percentile(v, percent, axis=0) for v in by_task], axis=0)


def to_csv(summary: dict[str, Any]) -> str:
    """The curve as CSV: one line per in-context episode."""
    ours = {kind: summary[kind] for kind in ("return", "success")}
    curves = ours | summary.get("metrics", {}) | ours  # a metric takes no name of ours
    columns = [(kind, part) for kind in curves for part in ("mean", "low", "high")]
    columns += [("return", "p20")] if "p20" in curves["return"] else []  # curves of earlier versions have none
    rows = ["episode," + ",".join(f"{kind}_{part}" for kind, part in columns)]
    for index in range(len(curves["return"]["mean"])):
        rows.append(f"{index + 1}," + ",".join(f"{curves[kind][part][index]:.6g}" for kind, part in columns))
    return "\n".join(rows) + "\n"
