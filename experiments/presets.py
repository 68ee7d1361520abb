"""Named configurations. Each states its command, its cost and the result to expect."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import replace

from relic_jax.config import ConfigError, EvalConfig, HostConfig, PPOConfig, TrainConfig, TrialConfig
from relic_jax.models.encoders import EncoderConfig
from relic_jax.models.policy import PolicyConfig
from relic_jax.models.transformer import TransformerConfig

TINY = TransformerConfig(layers=2, heads=8, width=64, mlp_width=256, max_positions=2048)
SMALL = TransformerConfig(layers=4, heads=8, width=256, mlp_width=1024, max_positions=32_768, depth_dropout=0.1)
LARGE = TransformerConfig(layers=8, heads=24, width=768, mlp_width=3072, max_positions=32_768, depth_dropout=0.1)
"""The paper's three sizes."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """config: what runs. summary: what it is. cost: time on a named machine. expected: what it reaches."""

    config: TrainConfig
    summary: str
    cost: str
    expected: str


RELIC_PAPER = TrainConfig(env="darkroom-dpt", chunk="segment", policy=PolicyConfig(transformer=TINY))

DARKROOM = TrainConfig(
    env="darkroom-dpt",
    total_steps=7_000_000,
    policy=PolicyConfig(transformer=replace(TINY, heads=4), encoder=EncoderConfig(observation="scaled")),
    trial=TrialConfig(environments=64, steps=500, updates=4),
    ppo=PPOConfig(
        lr=1e-3,
        minibatches=4,
        accumulate=1,
        value_clip=None,
        value_coef=0.2,
        reward_scale=0.2,
        entropy_coef=0.015,
        entropy_coef_final=0.001,
        credit="trial",
        context_gradient="stopped",
        last_update="partial",
    ),
)

SMOKE = replace(
    DARKROOM,
    total_steps=8_000,
    policy=PolicyConfig(
        transformer=TransformerConfig(layers=1, heads=2, width=32, mlp_width=64, max_positions=128),
        encoder=EncoderConfig(observation="scaled"),
    ),
    trial=TrialConfig(environments=8, steps=250, updates=2),
    eval=EvalConfig(episodes=3),
)

EXTOBJNAV_SOFT = TrainConfig(
    env="extobjnav",
    total_steps=1_000_000,
    chunk="segment",
    policy=PolicyConfig(transformer=replace(TINY, heads=4), encoder=EncoderConfig(observation="scaled")),
    trial=TrialConfig(environments=16, steps=1024, updates=8),
    ppo=PPOConfig(
        lr=5e-4,
        minibatches=4,
        accumulate=1,
        value_clip=None,
        context_gradient="stopped",
        last_update="partial",
    ),
    eval=EvalConfig(episodes=8),
    host=HostConfig(workers=2, image_size=64, horizon=200),
)

PRESETS: dict[str, Preset] = {
    "darkroom-dpt": Preset(
        DARKROOM,
        "ReLIC on DPT's Darkroom, tuned for two CPU cores",
        "about 9 min on 2 CPU cores",
        "held-out goals, 3 seeds: 29.6 in the first episode, 88.1 of 90.9 in episodes 2–40",
    ),
    "darkroom-relic-paper": Preset(
        RELIC_PAPER,
        "the original's Darkroom run, number for number",
        "hours on 2 CPU cores",
        "not run to its end yet",
    ),
    "extobjnav-soft": Preset(
        EXTOBJNAV_SOFT,
        "object navigation with simulators in worker processes, in houses that need no assets",
        "not measured yet on 2 CPU cores",
        "not run to its end yet",
    ),
    "darkroom-smoke": Preset(
        SMOKE, "does everything work: a minute from start to figure", "under a minute on 2 CPU cores", "nothing learned"
    ),
}


def get(name: str) -> Preset:
    """The preset called `name`. Raises ConfigError that offers the nearest names."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see relic-jax presets"
    raise ConfigError(f"preset is {name!r}; allowed: {', '.join(PRESETS)}; {hint}")
