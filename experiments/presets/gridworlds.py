"""Presets on gridworlds whose episodes end at the goal: object navigation, key to door, and the hard Darkroom."""

from __future__ import annotations

from dataclasses import replace

from relic_jax.config import EnvConfig, EvalConfig, Options, TrialConfig
from relic_jax.experiments.presets.base import Preset
from relic_jax.experiments.presets.darkroom import DARKROOM

GRIDWORLD = replace(
    DARKROOM,
    total_steps=4_000_000,
    trial=TrialConfig(environments=64, steps=600, updates=6),
    ppo=replace(
        DARKROOM.ppo,
        reward_scale=1.0,
        normalize_advantages=True,
        entropy_coef=0.03,
        entropy_coef_final=0.002,
        time_limit="bootstrap",
        credit="episode",
    ),
    eval=EvalConfig(episodes=20, tasks=200),
)

GRIDOBJ = replace(GRIDWORLD, env=EnvConfig("gridobj-9"))

PRESETS: dict[str, Preset] = {
    "gridobj-9-two": Preset(
        replace(GRIDOBJ, env=EnvConfig("gridobj-9", options=Options(asked=2))),
        "object navigation on a 9×9 grid; a trial asks for two of the six kinds of objects",
    ),
    "gridobj-9": Preset(GRIDOBJ, "object navigation on a 9×9 grid with six kinds of objects"),
    "gridobj-13": Preset(
        replace(GRIDOBJ, env=EnvConfig("gridobj-13"), trial=TrialConfig(environments=64, steps=1200, updates=12)),
        "object navigation on a 13×13 grid with eight kinds of objects",
    ),
    "gridobj-21": Preset(
        replace(GRIDOBJ, env=EnvConfig("gridobj-21"), trial=TrialConfig(environments=64, steps=2400, updates=24)),
        "object navigation on a 21×21 grid with twelve kinds of objects",
    ),
    "key-to-door-9": Preset(
        replace(GRIDWORLD, env=EnvConfig("key-to-door-9")),
        "find a hidden key, then a hidden door, on a blind 9×9 grid; pairs of key and door are held out",
    ),
    "darkroom-hard-17": Preset(
        replace(
            GRIDWORLD,
            env=EnvConfig("darkroom-hard-17"),
            trial=TrialConfig(environments=64, steps=400, updates=4),
            eval=EvalConfig(episodes=40, repeats=5),
        ),
        "find a hidden goal on a blind 17×17 grid; one reward per episode, held-out goals",
    ),
}
