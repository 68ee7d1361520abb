"""What a run will hold in memory, worked out before anything is compiled."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from relic_jax.config import ConfigError, EvalConfig, PolicyConfig, TrainConfig, changed, value_of
from relic_jax.models.encoders import image_mask
from relic_jax.rl.state import Setup, init_state
from relic_jax.types import PyTree
from relic_jax.validation import LARGEST, require

SIZES = (
    *("trial.steps", "trial.environments", "policy.transformer.width", "policy.transformer.mlp_width"),
    *("policy.transformer.max_positions", "policy.transformer.layers", "policy.recurrent.width"),
    *("policy.recurrent.layers", "policy.encoder.features"),
)
"""Fields that decide how much memory a run needs."""
UNKNOWN = 2**50
"""Bytes that are certainly too many where nobody says how many there are."""
_NUMBER = {"float32": 4, "bfloat16": 2, "int8": 1}
_STEP = 18
"""Bytes that a step leaves behind at the least, whatever the policy: action, rewards, value and flags."""


def tree_bytes(tree: PyTree) -> int:
    """Bytes of a pytree of arrays or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def context_bytes(setup: Setup) -> int:
    """Bytes of all environments' keys and values when the trial is full."""
    trial = setup.config.trial
    return trial.environments * trial.steps * setup.config.policy.transformer.cache_bytes_per_step


def segment_image_bytes(setup: Setup) -> int:
    """Bytes of one segment's observations with their images, where the update learns from these, else 0.

    Of the trial's other steps there are features, which count with the trajectory.
    """
    if not setup.policy.learns_images:
        return 0
    trial = setup.config.trial
    return trial.environments * trial.segment * tree_bytes(setup.policy.spec)


def context_line(setup: Setup) -> str:
    """One line: what a step of context costs and what all of it comes to."""
    trial, transformer = setup.config.trial, setup.config.policy.transformer
    if setup.policy.is_recurrent:
        size = tree_bytes(jax.eval_shape(lambda: setup.policy.initial_memory(trial.environments, trial.steps)))
        return f"{setup.config.policy.memory}, {size:,} bytes for {trial.environments} trials of any length"
    return (
        f"{transformer.cache_bytes_per_step:,} bytes a step and environment ({transformer.cache_format}); "
        f"{trial.environments} × {trial.steps:,} steps: {_mebibytes(context_bytes(setup))}"
    )


def step_bytes(policy: PolicyConfig) -> int:
    """Bytes of keys and values per step and environment, rounded down; 0 of a recurrent state."""
    if policy.memory != "transformer":
        return 0
    return 2 * policy.transformer.layers * policy.transformer.width * _NUMBER[policy.transformer.cache_format]


def least_bytes(config: TrainConfig, images: bool = False) -> int:
    """Bytes that a run needs at the least, from its sizes alone: Python's integers do not overflow.

    images: whether observations contain any. Parameters count three times, with Adam's two moments.
    """
    policy, trial = config.policy, config.trial
    if policy.memory == "transformer":
        cfg, width = policy.transformer, policy.transformer.width
        parameters = cfg.layers * width * (4 * width + 3 * cfg.mlp_width)
        parameters += cfg.max_positions * width if cfg.step_embedding else 0
    else:
        width = policy.recurrent.width
        parameters = 6 * policy.recurrent.layers * width**2
    features = policy.encoder.features if images else 0
    step = step_bytes(policy) + _STEP + 4 * features
    return 12 * (parameters + features * width) + trial.environments * trial.steps * step


def largest_size(config: TrainConfig, images: bool = False) -> str:
    """The field whose default value would save the most memory: the one to name where a run does not fit."""

    def without(field: str) -> int:
        default: int = value_of(TrainConfig(), field)
        return least_bytes(changed(config, field, min(value_of(config, field), default)), images)

    return min(SIZES, key=without)


def check_sizes(config: TrainConfig, images: bool = False, available: int | None = None) -> None:
    """Raises ConfigError where a run is too large by its sizes alone, before any shape is made of them.

    images: whether observations contain any. available: bytes; None asks the machine.
    """
    available = available_bytes(config.devices or 1) if available is None else available
    available, needed = available or UNKNOWN, least_bytes(config, images)
    if needed > available:
        field = largest_size(config, images)
        allowed = f"what fits into {_mebibytes(available)} of memory; this takes at least {_mebibytes(needed)}"
        require(False, field, value_of(config, field), allowed)


def check_evaluation(
    policy: PolicyConfig, config: EvalConfig, *, horizon: int, trials: int, available: int | None = None
) -> None:
    """Raises ConfigError where an evaluation is too large by its sizes alone.

    horizon: steps of the longest episode. trials: that are played at a time. available: bytes; None asks the machine.
    An estimate from below: episodes may be short, and then only the first part of the context is ever made.
    """
    longest, steps = LARGEST // horizon, horizon * -(-config.episodes // 4)
    allowed = f"at most {longest:,} (2^31 − 1 steps in all, of {horizon:,} an episode)"
    require(config.episodes <= longest, "eval.episodes", config.episodes, allowed)
    available = available_bytes(1) if available is None else available
    available, needed = available or UNKNOWN, trials * steps * (step_bytes(policy) + _STEP)
    field = max(("episodes", "repeats"), key=lambda name: getattr(config, name))
    allowed = f"what fits into {_mebibytes(available)} of memory; this takes at least {_mebibytes(needed)}"
    require(needed <= available, f"eval.{field}", getattr(config, field), f"{allowed}, {trials:,} trials at a time")


def check_context(policy: PolicyConfig, steps: int, available: int | None = None) -> None:
    """Raises ConfigError where the context of an exported policy cannot even be tried here. available: bytes, or None.

    steps: that it has room for.
    """
    require(steps <= LARGEST, "context", steps, "less than 2^31")
    available = (available_bytes(1) if available is None else available) or UNKNOWN
    needed = steps * step_bytes(policy)
    allowed = f"what fits into {_mebibytes(available)} of memory; this takes at least {_mebibytes(needed)}"
    require(needed <= available, "context", steps, allowed)


def check_memory(setup: Setup, available: int | None = None) -> None:
    """Raises ConfigError, with the arithmetic, where a run cannot fit. available: bytes; None asks the machine.

    An estimate from below: activations, which depend on the compiler, are left out.
    """
    available = available_bytes(setup.config.devices or 1) if available is None else available
    state = jax.eval_shape(lambda: init_state(setup))
    acting = jax.eval_shape(lambda memory: setup.policy.for_acting(memory), state.memory)
    context, rest = tree_bytes(state.memory), tree_bytes(state.replace(memory=None))
    images = 2 * segment_image_bytes(setup)  # as they are acted on and, environment after environment, for the update
    needed = 2 * context + tree_bytes(acting) + images + rest  # a refresh fills a second context, acting reads a copy
    if available is not None and needed > available:
        kept = f"images of a segment, twice, {_mebibytes(images)}; " if images else ""
        field = largest_size(setup.config, any(image_mask(setup.policy.spec)))
        raise ConfigError(
            f"{field} is {value_of(setup.config, field)}; allowed: what fits into {_mebibytes(available)} of memory; "
            f"context {context_line(setup)}, twice during a refresh; acting's copy {_mebibytes(tree_bytes(acting))}; "
            f"{kept}everything else {_mebibytes(rest)}; in all {_mebibytes(needed)}"
        )


def available_bytes(devices: int) -> int | None:
    """Memory that the devices (on CPU: the machine) can still give, None where that is not known."""
    if jax.default_backend() != "cpu":
        stats = [device.memory_stats() for device in jax.devices()[:devices]]
        known = [s["bytes_limit"] for s in stats if s and "bytes_limit" in s]
        return sum(known) if len(known) == devices else None
    try:  # free memory alone would leave out what the system only keeps for files
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
