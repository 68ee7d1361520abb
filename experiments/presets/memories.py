"""Presets that compare memories on one environment and budget: everything but the memory is that of one preset.

The window, Transformer-XL and Memo hold about as many keys at the end of a trial, 128 per layer.
"""

from __future__ import annotations

from dataclasses import replace

from relic_jax.config import TrainConfig
from relic_jax.experiments.presets import gridworlds
from relic_jax.experiments.presets.base import Preset
from relic_jax.experiments.presets.darkroom import DARKROOM


def with_memory(config: TrainConfig, memory: str = "transformer", **transformer: object) -> TrainConfig:
    """Return a configuration with another memory of attention, and fields of `TransformerConfig`."""
    size = replace(config.policy.transformer, **transformer)  # type: ignore[arg-type]
    return replace(config, policy=replace(config.policy, transformer=size, memory=memory))  # type: ignore[arg-type]


def compared(name: str, config: TrainConfig, budget: str) -> dict[str, Preset]:
    """Return the presets of an environment.

    Args:
        name: Start of their names.
        config: ReLIC on this environment.
        budget: The preset of `config`.
    """
    on = f"on the budget of {budget}"
    summaries = with_memory(config, "memo", summary_every=64, summary_tokens=8)
    return {
        f"{name}-within-episode": Preset(
            with_memory(config, inter_episode=False), f"attention within the current episode only, {on}"
        ),
        f"{name}-one-update": Preset(
            replace(config, trial=replace(config.trial, updates=1)), f"one update per trial: no partial updates, {on}"
        ),
        f"{name}-window": Preset(
            with_memory(config, "window", window=128), f"attention to the last 128 steps, all else as ReLIC, {on}"
        ),
        f"{name}-transformer-xl": Preset(
            with_memory(config, "transformer-xl", memory_steps=64),
            f"Transformer-XL with segments of 64 steps, all else as ReLIC, {on}",
        ),
        f"{name}-gtrxl": Preset(
            with_memory(config, "transformer-xl", memory_steps=64, gate="gru"),
            f"GTrXL: Transformer-XL with gates and segments of 64 steps, all else as ReLIC, {on}",
        ),
        f"{name}-memo": Preset(
            replace(summaries, ppo=replace(summaries.ppo, context_gradient="full")),
            f"Memo: 8 summary tokens per 64 steps, with gradients through all summaries, {on}",
        ),
    }


PRESETS: dict[str, Preset] = {
    **compared("darkroom", DARKROOM, "darkroom-dpt"),
    **compared("gridobj-9", gridworlds.PRESETS["gridobj-9"].config, "gridobj-9"),
}
