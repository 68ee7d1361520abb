"""Named configurations. Each states its command, its cost and the result to expect."""

from __future__ import annotations

import difflib

from relic_jax.config import ConfigError, TrainConfig, differences
from relic_jax.experiments.presets import continuous, darkroom, gridworlds, memories, navigation, simulators, xland
from relic_jax.experiments.presets.base import SMALL, TINY, Preset, linear_rnn, rl2
from relic_jax.experiments.presets.darkroom import DARKROOM
from relic_jax.validation import shown

__all__ = ["DARKROOM", "PRESETS", "SMALL", "TINY", "Preset", "get", "linear_rnn", "name_of", "rl2"]

PRESETS: dict[str, Preset] = {
    **darkroom.PRESETS,
    **gridworlds.PRESETS,
    **memories.PRESETS,
    **navigation.PRESETS,
    **xland.PRESETS,
    **continuous.PRESETS,
    **simulators.PRESETS,
}
"""All presets by name."""


def get(name: str) -> Preset:
    """Return the preset called `name`. Raises ConfigError that offers up to three of the nearest names."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"preset is {shown(name)}; allowed: a name that relic-jax presets lists{hint}")


def name_of(config: TrainConfig) -> str | None:
    """Return the preset with this config, apart from its seed and devices; None if there is none."""
    for name, preset in PRESETS.items():
        if not {*differences(config, preset.config)} - {"seed", "devices"}:
            return name
    return None
