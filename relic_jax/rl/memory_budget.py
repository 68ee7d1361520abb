"""Estimates of the memory that a run needs, computed before anything is compiled.

All estimates are lower bounds. A config that exceeds the available memory is rejected with a one-line error.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax

from relic_jax.config import ConfigError, EvalConfig, PolicyConfig, PretrainConfig, TrainConfig, changed, value_of
from relic_jax.rl.state import Setup
from relic_jax.types import PyTree
from relic_jax.validation import LARGEST, require

SIZES = (
    *("trial.steps", "trial.environments", "policy.transformer.width", "policy.transformer.mlp_width"),
    *("policy.transformer.max_positions", "policy.transformer.layers", "policy.recurrent.width"),
    *("policy.recurrent.layers", "policy.linear_rnn.width", "policy.linear_rnn.mlp_width"),
    *("policy.linear_rnn.layers", "policy.encoder.features"),
)
"""Config fields that determine how much memory a run needs."""
UNKNOWN = 2**50
"""Assumed number of available bytes if it is not known: larger than the memory of any machine."""
_NUMBER = {"float32": 4, "bfloat16": 2, "int8": 1}
_STEP = 18
"""Bytes stored per step for any policy: action, rewards, value and flags."""


def tree_bytes(tree: PyTree) -> int:
    """Return the bytes of a pytree of arrays or of `jax.ShapeDtypeStruct`."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def context_bytes(setup: Setup) -> int:
    """Return the bytes of the keys and values of all environments at the end of a trial."""
    trial = setup.config.trial
    return trial.environments * trial.steps * setup.config.policy.transformer.cache_bytes_per_step


def segment_image_bytes(setup: Setup) -> int:
    """Return the bytes of one segment's observations with their images, or 0 if updates do not need the images.

    For the other steps of the trial only features are kept, as part of the trajectory.
    """
    if not setup.policy.trains_image_encoder:
        return 0
    trial = setup.config.trial
    return trial.environments * trial.segment * tree_bytes(setup.policy.spaces.observation)


def context_line(setup: Setup) -> str:
    """Return a one-line summary of the size of the context, per step and in total."""
    trial, transformer = setup.config.trial, setup.config.policy.transformer
    if not setup.config.policy.traits.keeps_steps:
        size, longer = (
            tree_bytes(jax.eval_shape(lambda steps=steps: setup.policy.initial_memory(trial.environments, steps)))
            for steps in (trial.steps, 100 * trial.steps)
        )
        length = "any length" if longer == size else f"{trial.steps:,} steps"
        return f"{setup.config.policy.memory}, {size:,} bytes for {trial.environments} trials of {length}"
    return (
        f"{transformer.cache_bytes_per_step:,} bytes a step and environment ({transformer.cache_format}); "
        f"{trial.environments} × {trial.steps:,} steps: {_mebibytes(context_bytes(setup))}"
    )


def step_bytes(policy: PolicyConfig) -> int:
    """Return the bytes of keys and values per step and environment, rounded down. 0 if not every step is kept."""
    if not policy.traits.keeps_steps:
        return 0
    return 2 * policy.transformer.layers * policy.transformer.width * _NUMBER[policy.transformer.cache_format]


def least_bytes(config: TrainConfig, images: bool = False) -> int:
    """Return a lower bound of the bytes that a run needs, computed from its config in integers that cannot overflow.

    Parameters count three times, because Adam stores two moments for each.

    Args:
        config: the run's config.
        images: whether observations contain images.
    """
    policy, trial = config.policy, config.trial
    if policy.architecture is policy.transformer:
        cfg, width = policy.transformer, policy.transformer.width
        parameters = cfg.layers * width * (4 * width + 3 * cfg.mlp_width)
        parameters += cfg.max_positions * width if cfg.step_embedding else 0
    elif policy.architecture is policy.linear_rnn:
        width = policy.linear_rnn.width
        parameters = 3 * policy.linear_rnn.layers * width * policy.linear_rnn.mlp_width
    else:
        width, into = policy.recurrent.width, policy.input_width
        parameters = 3 * width * (into + width + 2 * width * (policy.recurrent.layers - 1))
    features = policy.encoder.features if images else 0
    step = step_bytes(policy) + _STEP + 4 * features
    return 12 * (parameters + features * width) + trial.environments * trial.steps * step


def largest_size(config: TrainConfig, images: bool = False) -> str:
    """Return the config field whose default value would save the most memory, for errors."""

    def without(field: str) -> int:
        default: int = value_of(TrainConfig(), field)
        return least_bytes(changed(config, field, min(value_of(config, field), default)), images)

    return min(SIZES, key=without)


def check_sizes(config: TrainConfig, images: bool = False, available: int | None = None) -> None:
    """Check the memory of a run by its config alone, before any array shape is computed.

    Args:
        config: the run's config.
        images: whether observations contain images.
        available: available bytes. None queries the device.

    Raises:
        ConfigError: if the run does not fit.
    """
    available = available_bytes(config.devices or 1) if available is None else available
    available, needed = available or UNKNOWN, least_bytes(config, images)
    if needed > available:
        field = largest_size(config, images)
        allowed = f"a size that fits into {_mebibytes(available)} of memory; this takes at least {_mebibytes(needed)}"
        require(False, field, value_of(config, field), allowed)


def check_evaluation(
    policy: PolicyConfig, config: EvalConfig, *, horizon: int, trials: int, available: int | None = None
) -> None:
    """Check the memory of an evaluation by its config alone.

    The estimate counts a quarter of the context, because short episodes fill only the first of its four buffer sizes.

    Args:
        policy: architecture of the policy.
        config: config of the evaluation.
        horizon: steps of the longest episode.
        trials: number of trials that run at the same time.
        available: available bytes. None queries the device.

    Raises:
        ConfigError: if the evaluation does not fit.
    """
    longest, steps = LARGEST // horizon, horizon * -(-config.episodes // 4)
    allowed = f"at most {longest:,} (2^31 − 1 steps in all, of {horizon:,} an episode)"
    require(config.episodes <= longest, "eval.episodes", config.episodes, allowed)
    available = available_bytes(1) if available is None else available
    available, needed = available or UNKNOWN, trials * steps * (step_bytes(policy) + _STEP)
    field = max(("episodes", "repeats"), key=lambda name: getattr(config, name))
    allowed = f"a size that fits into {_mebibytes(available)} of memory; this takes at least {_mebibytes(needed)}"
    require(needed <= available, f"eval.{field}", getattr(config, field), f"{allowed}, {trials:,} trials at a time")


def evaluation_bytes(policy: PolicyConfig, *, steps: int, trials: int) -> int:
    """Return an upper estimate of the bytes of an evaluation: twice its whole context, because buffers can grow.

    Args:
        policy: architecture of the policy.
        steps: largest number of steps of a trial.
        trials: number of trials that run at the same time.
    """
    return 2 * trials * steps * (step_bytes(policy) + _STEP)


def check_context(policy: PolicyConfig, steps: int, available: int | None = None) -> None:
    """Check the memory of an exported policy's context on this machine.

    Args:
        policy: architecture of the policy.
        steps: capacity of the context.
        available: available bytes. None queries the device.

    Raises:
        ConfigError: if the context does not fit.
    """
    require(steps <= LARGEST, "context", steps, "less than 2^31")
    available = (available_bytes(1) if available is None else available) or UNKNOWN
    needed = steps * step_bytes(policy)
    allowed = f"a size that fits into {_mebibytes(available)} of memory; this takes at least {_mebibytes(needed)}"
    require(needed <= available, "context", steps, allowed)


def check_recordings(config: PretrainConfig, observation: PyTree, available: int | None = None) -> None:
    """Check the memory of the observations that pretraining records at a time.

    Args:
        config: config of the pretraining.
        observation: the environment's observation spec.
        available: available bytes. None queries the device.

    Raises:
        ConfigError: if they do not fit.
    """
    available = (available_bytes(1) if available is None else available) or UNKNOWN
    needed = (1 + config.relabel) * config.trials * config.trial_steps * tree_bytes(observation)
    allowed = f"a size that fits into {_mebibytes(available)} of memory; this takes at least {_mebibytes(needed)}"
    require(needed <= available, "pretrain.trials", config.trials, allowed)


def check_memory(setup: Setup, available: int | None = None) -> None:
    """Check the memory of a run by the shapes of its state. Activations depend on the compiler and are not included.

    Args:
        setup: the training setup.
        available: available bytes. None queries the device.

    Raises:
        ConfigError: if the run does not fit. The error lists the parts of the estimate.
    """
    available = available_bytes(setup.config.devices or 1) if available is None else available
    state = setup.abstract_state
    in_place, copies = setup.device_policy.acts_in_place, setup.config.context_devices
    acting = 0 if in_place else tree_bytes(jax.eval_shape(setup.policy.for_acting, state.memory))
    context, rest = tree_bytes(state.memory), copies * tree_bytes(state.replace(memory=None))
    images = 2 * copies * segment_image_bytes(setup)  # once while acting, once transposed for the update
    needed = 2 * context + acting + images + rest  # a refresh fills a second context
    if available is not None and needed > available:
        image_part = f"images of a segment, twice, {_mebibytes(images)}; " if images else ""
        field = largest_size(setup.config, any(setup.policy.spaces.images))
        raise ConfigError(
            f"{field} is {value_of(setup.config, field)}; "
            f"allowed: a size that fits into {_mebibytes(available)} of memory; "
            f"context {context_line(setup)}, twice during a refresh; acting's copy {_mebibytes(acting)}; "
            f"{image_part}everything else {_mebibytes(rest)}; in all {_mebibytes(needed)}"
        )


def available_bytes(devices: int) -> int | None:
    """Return the available bytes of the devices (on CPU, of the machine), or None if they are not known.

    With several processes, the others are assumed to have as much memory as this one.
    """
    if jax.default_backend() != "cpu":
        stats = [device.memory_stats() for device in jax.local_devices()[: devices // jax.process_count()]]
        known = [s["bytes_limit"] for s in stats if s and "bytes_limit" in s]
        return jax.process_count() * sum(known) if len(known) * jax.process_count() == devices else None
    try:  # MemAvailable includes the file cache, which the system can free
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        own = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        return own * jax.process_count()
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
