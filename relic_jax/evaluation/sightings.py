"""Whether attention reads the earlier steps at which the target kind was in view.

Each episode asks for a kind of object, the *target kind*. At a *recalling step*, this kind was in view in an earlier
episode of the trial, but not yet in the current one, so the policy can know its place only from memory. For these
steps, attention mass is divided among four classes: steps with the target kind in view (*sightings*), steps with only
other kinds in view, steps with nothing in view, and the sink. The baseline is uniform attention to all steps up to the
attending one.

All weights follow from the definition of attention (`attention.attention_mass`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import prng, settings
from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.base import Environment, PyTree, Split, TrialMap, TrialRecord
from relic_jax.environment.trials import Trials
from relic_jax.evaluation.attention import (
    QUERIES,
    Recording,
    attention_mass,
    attention_of,
    check_attention,
    record,
)
from relic_jax.evaluation.tasks import evaluated_tasks
from relic_jax.models.policy import Policy
from relic_jax.types import Params, StepInput

CLASSES = ("asked", "other", "nothing", "sink")
"""Classes of attended steps: the target kind in view, only other kinds in view, nothing in view, and the sink."""


@dataclasses.dataclass(frozen=True)
class Sightings:
    """Attention of recalling steps, averaged within each trial. N trials have recalling steps.

    Attributes:
        mass: float64 [N, layers, heads, 4]. Mass on each of `CLASSES`. Sums to 1.
        uniform: float64 [N, 4]. The mass if attention were uniform over steps. The sink's is 0.
        steps: int [N]. Number of recalling steps.
        tasks: int [N]. Index of the task of each trial.
        played: Number of trials, including those without recalling steps.
    """

    mass: np.ndarray
    uniform: np.ndarray
    steps: np.ndarray
    tasks: np.ndarray
    played: int

    @property
    def strongest(self) -> tuple[int, int]:
        """(layer, head) with the most mass on sightings, averaged over trials."""
        mean = self.mass[..., 0].mean(0)
        layer, head = np.unravel_index(mean.argmax(), mean.shape)
        return int(layer), int(head)

    def ratio(self, resamples: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mass divided by uniform mass for the first three classes, with 95% bootstrap intervals over trials.

        A class that no trial has is NaN.

        Args:
            resamples: Number of resamples. Each draws N trials with replacement.
            seed: Seed of the random numbers.

        Returns:
            (ratio, lower end, upper end), float64 [layers, heads, 3] each.
        """
        mass, uniform = self.mass[..., :3], self.uniform[:, None, None, :3]
        count = len(mass)
        times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = np.tensordot(times, mass, 1) / np.tensordot(times, uniform, 1)
            low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
            return mass.mean(0) / uniform.mean(0), low, high


@dataclasses.dataclass(frozen=True)
class Trial:
    """One recorded trial of T steps.

    Attributes:
        task: Index of its task in the split.
        map: Its map.
        episode: int [T]. Index of the episode of each step, from 0.
        recalling: bool [T]. Its recalling steps.
        inputs: The policy's inputs, [1, S]. S ≥ T: the steps after the first T belong to later episodes.
    """

    task: int
    map: TrialMap
    episode: np.ndarray
    recalling: np.ndarray
    inputs: StepInput


@settings.with_standard
def play_trials(
    policy: Policy,
    params: Params,
    env: Environment,
    config: EvalConfig,
    *,
    split: Split = "test",
    seed: int = 0,
    show_last_reward: bool = False,
) -> list[Trial]:
    """Act in one trial per task.

    Args:
        policy: The policy, with the memory 'transformer'.
        params: Its parameters.
        env: The environment, with a map (`Environment.trial_map`).
        config: Of the evaluation's settings, `episodes` and `tasks`.
        split: The tasks.
        seed: Seed of the random numbers.
        show_last_reward: As in training (`Trials`).

    Raises:
        ConfigError: If the memory is not a transformer, or the environment has no map or runs in worker processes.
    """
    if type(env).trial_map is Environment.trial_map:
        raise _no_map(env)
    check_attention(policy, env, config, split)
    tasks = evaluated_tasks(env, split, config)
    trials = Trials(env, show_last_reward)
    recording = record(policy, params, trials, jax.tree.map(jnp.asarray, tasks), config.episodes, prng.key(seed))
    recording = jax.device_get(recording)
    first = recording.inputs.first
    ends = [_end(row, config.episodes) for row in first]
    size = min(-(-max(ends) // QUERIES) * QUERIES, first.shape[1])  # one shape for all trials
    return [_trial(env, recording, tasks, index, end, size) for index, end in enumerate(ends)]


def _no_map(env: Environment) -> ConfigError:
    allowed = "an environment with a map of objects (Environment.trial_map), such as gridobj-9"
    return ConfigError(f"env is {env.name!r}; allowed: {allowed}")


def _end(first: np.ndarray, episodes: int) -> int:
    """Return the number of steps of the first episodes of a trial."""
    starts = np.flatnonzero(first)
    return int(starts[episodes]) if len(starts) > episodes else len(first)


def _trial(env: Environment, recording: Recording, tasks: PyTree, index: int, end: int, size: int) -> Trial:
    steps = jax.tree.map(lambda x: x[index, :end], recording)
    task = jax.tree.map(lambda x: np.asarray(x)[index], tasks)
    trial = TrialRecord(steps.inputs.observation, steps.action, steps.reward, steps.inputs.first, task, steps.state)
    layout = env.trial_map(trial)
    if layout is None:
        raise _no_map(env)
    inputs = jax.tree.map(lambda x: x[index : index + 1, :size], recording.inputs)
    return Trial(index, layout, trial.episode, recalling_steps(layout, trial.episode), inputs)


def recalling_steps(layout: TrialMap, episode: np.ndarray) -> np.ndarray:
    """Return the steps at which the target kind was in view in an earlier episode, but not yet in the current one.

    Args:
        layout: The map of T steps.
        episode: int [T]. Index of the episode of each step, from 0.

    Returns:
        bool [T].
    """
    steps = np.arange(len(episode))
    count = np.concatenate([np.zeros((1, layout.in_view.shape[1]), int), layout.in_view.cumsum(0)])
    before = count[np.searchsorted(episode, episode), layout.asked]  # sightings before the episode
    return (before > 0) & (count[steps + 1, layout.asked] == before)


def first_asked(layout: TrialMap, episode: np.ndarray) -> np.ndarray:
    """Return the steps of episodes that ask for a kind which no earlier episode of the trial asked for.

    Such a kind can have been in view only by chance, while the agent searched for another one.

    Args:
        layout: The map of T steps.
        episode: int [T]. Index of the episode of each step, from 0.

    Returns:
        bool [T].
    """
    asked = layout.asked[np.searchsorted(episode, np.arange(episode[-1] + 1))]
    _, first = np.unique(asked, return_index=True)
    return np.isin(episode, first)


@functools.lru_cache(maxsize=4)
def _measure(policy: Policy) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(_mass_of_trial, policy))


@settings.with_standard
def sightings(
    policy: Policy, params: Params, trials: Sequence[Trial], progress: Callable[[float], None] = lambda fraction: None
) -> Sightings:
    """Compute the attention of the recalling steps of trials.

    Args:
        policy: The policy.
        params: Its parameters.
        trials: The trials.
        progress: Called with the fraction that is done.

    Raises:
        ConfigError: If no trial has a recalling step.
    """
    chosen = [trial for trial in trials if trial.recalling.any()]
    if not chosen:
        episodes = trials[0].episode[-1] + 1
        allowed = "more, so that an episode asks for a kind that was in view before"
        raise ConfigError(f"episodes is {episodes}; allowed: {allowed}")
    measure = _measure(policy)
    mass, uniform = [], []
    for index, trial in enumerate(chosen):
        in_view, asked, weight = _padded(trial)
        mass.append(jax.device_get(measure(params, trial.inputs, in_view, asked, weight)))
        uniform.append(uniform_mass(trial))
        progress((index + 1) / len(chosen))
    steps = np.array([trial.recalling.sum() for trial in chosen])
    tasks = np.array([trial.task for trial in chosen])
    return Sightings(np.asarray(mass, np.float64), np.stack(uniform), steps, tasks, len(trials))


def _padded(trial: Trial) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (in view [S, K], asked [S], weight [S]). The weights of the recalling steps are equal and sum to 1."""
    extra = trial.inputs.first.shape[1] - len(trial.episode)
    weight = trial.recalling / trial.recalling.sum()
    in_view = np.pad(trial.map.in_view, ((0, extra), (0, 0)))
    return in_view.astype(np.float32), np.pad(trial.map.asked, (0, extra)), np.pad(weight, (0, extra))


def _mass_of_trial(
    policy: Policy, params: Params, inputs: StepInput, in_view: jax.Array, asked: jax.Array, weight: jax.Array
) -> jax.Array:
    """Return the mean mass of the weighted steps on `CLASSES`, [layers, heads, 4]."""
    labels = jnp.concatenate([in_view, in_view.max(-1, keepdims=True)], -1)

    def of_layer(mass: jax.Array) -> jax.Array:  # [H, S, K + 2]
        mine = jnp.take_along_axis(mass, asked[None, :, None], -1)[..., 0]
        any_kind, sink = mass[..., -2], mass[..., -1]
        classes = jnp.stack([mine, any_kind - mine, 1 - any_kind - sink, sink], -1)
        return jnp.einsum("s,hsc->hc", weight, classes)

    return jnp.stack([of_layer(attention_mass(layer, labels)[0]) for layer in attention_of(policy, params, inputs)])


def uniform_mass(trial: Trial) -> np.ndarray:
    """Return the mean mass of the recalling steps on `CLASSES` under uniform attention to past steps, float64 [4]."""
    steps = np.flatnonzero(trial.recalling)
    count = trial.map.in_view.cumsum(0)[steps, trial.map.asked[steps]]
    any_kind = trial.map.in_view.any(-1).cumsum()[steps]
    seen, total = np.stack([count, any_kind - count, steps + 1 - any_kind]), steps + 1
    return np.append((seen / total).mean(-1), 0.0)


@settings.with_standard
def steps_read(policy: Policy, params: Params, trial: Trial, episodes: Sequence[int]) -> np.ndarray:
    """Return the mean attention weights of the recalling steps of some episodes.

    The output of attention is linear in the values, and its derivatives with respect to them are the weights.

    Args:
        policy: The policy.
        params: Its parameters.
        trial: The trial.
        episodes: n episodes, counted from 0. One without recalling steps gets zeros.

    Returns:
        float32 [n, layers, heads, T]. The weight of each attended step.
    """
    chosen = trial.recalling & (trial.episode == np.asarray(episodes)[:, None])
    weight = chosen / np.maximum(chosen.sum(-1, keepdims=True), 1)
    extra = trial.inputs.first.shape[1] - len(trial.episode)
    read = jax.jit(functools.partial(_read, policy))
    weights = read(params, trial.inputs, np.pad(weight, ((0, 0), (0, extra))).astype(np.float32))
    return np.asarray(weights)[..., : len(trial.episode)]


def _read(policy: Policy, params: Params, inputs: StepInput, weight: jax.Array) -> jax.Array:
    """Return the attention weights of all steps, [n, layers, heads, S], averaged with n sets of weights [n, S]."""
    layers = []
    for layer in attention_of(policy, params, inputs):
        heads, steps = layer.key.shape[1:3]
        zeros = jnp.zeros((heads, steps, 1), jnp.float32)
        _, pull = jax.vjp(lambda values, layer=layer: attention_mass(layer, values)[0, ..., 0], zeros)
        layers.append(jax.vmap(lambda w, h=heads, p=pull: p(jnp.broadcast_to(w, (h, *w.shape)))[0][..., 0])(weight))
    return jnp.stack(layers, 1)
