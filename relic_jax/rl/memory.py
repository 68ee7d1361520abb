"""What a run will hold in memory, worked out before anything is compiled."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from relic_jax.config import ConfigError
from relic_jax.rl.state import Setup, init_state
from relic_jax.types import PyTree


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
        raise ConfigError(
            f"trial.steps is {setup.config.trial.steps}; allowed: what fits into {_mebibytes(available)} of memory; "
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
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
