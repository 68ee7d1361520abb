"""Presets with continuous actions: a point mass, and brax (an extra)."""

from __future__ import annotations

from dataclasses import replace

from relic_jax.config import (
    EncoderConfig,
    EnvConfig,
    EvalConfig,
    HeadConfig,
    PolicyConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
)
from relic_jax.experiments.presets.base import SMALL, Preset, rl2
from relic_jax.experiments.presets.darkroom import DARKROOM

POINTMASS = replace(
    DARKROOM,
    env=EnvConfig("pointmass-goal"),
    total_steps=8_000_000,
    policy=PolicyConfig(
        transformer=TransformerConfig(layers=2, heads=2, width=64, mlp_width=256, max_positions=128),
        encoder=EncoderConfig(observation="scaled"),
        head=HeadConfig(log_std=0.0),
    ),
    trial=TrialConfig(environments=64, steps=400, updates=4),
    ppo=replace(DARKROOM.ppo, lr=5e-4, lr_final=2e-5, entropy_coef=0.03, entropy_coef_final=0.0),
    eval=EvalConfig(episodes=15),
)

BRAX = TrainConfig(
    env=EnvConfig("halfcheetah-vel"),
    total_steps=100_000_000,
    policy=PolicyConfig(
        transformer=replace(SMALL, max_positions=256, depth_dropout=0.0),
        encoder=EncoderConfig(observation="normalized"),
    ),
    trial=TrialConfig(environments=512, steps=800, updates=8),
    ppo=replace(
        DARKROOM.ppo,
        lr=3e-4,
        lr_final=3e-5,
        minibatches=8,
        reward_scale=0.1,
        entropy_coef=0.003,
        entropy_coef_final=0.0,
    ),
    eval=EvalConfig(episodes=8),
)

BRAX_SMALL = replace(
    BRAX,
    total_steps=1_000_000,
    policy=replace(
        BRAX.policy, transformer=TransformerConfig(layers=2, heads=2, width=64, mlp_width=256, init="fan_in")
    ),
    trial=TrialConfig(environments=32, steps=400, updates=4),
    ppo=replace(BRAX.ppo, lr=1e-3, lr_final=1e-4, minibatches=4),
    eval=EvalConfig(episodes=4, tasks=20),
)

PRESETS: dict[str, Preset] = {
    "pointmass-goal": Preset(
        POINTMASS,
        "continuous actions: a point that must find a hidden goal on a half circle",
        "5 min on 2 idle CPU cores",
        "held-out goals, 3 seeds: 21.3 in the first episode, 32.5 of 34.8 in episodes 2–15",
    ),
    "pointmass-goal-rl2": Preset(
        rl2(POINTMASS),
        "RL²: a GRU in place of ReLIC's transformer, on the budget of pointmass-goal",
        "7 min on 2 CPU cores shared with other work",
        "held-out goals, 3 seeds: 19.2 in the first episode, 32.4 of 34.8 in episodes 2–15",
    ),
    **{
        name: Preset(
            replace(BRAX, env=EnvConfig(name)),
            f"{name} on brax (an extra), 512 environments, trials of 4 episodes; a backend: --env {name}:mjx",
            "a GPU",
        )
        for name in ("halfcheetah-vel", "halfcheetah-dir", "ant-dir", "ant-goal")
    },
    "halfcheetah-vel-small": Preset(
        BRAX_SMALL,
        "the same for two CPU cores: 32 environments, trials of 2 episodes, a small budget",
        "5–7 min on one CPU core",
        "held-out speeds, 3 seeds: −117 in every episode (random −254): it learns to run, not to adapt",
    ),
    "halfcheetah-vel-small-rl2": Preset(
        rl2(BRAX_SMALL),
        "RL²: a GRU in place of ReLIC's transformer, on the budget of halfcheetah-vel-small",
        "3–6 min on one CPU core",
        "held-out speeds, 3 seeds: −116 in the first episode, −111 in the others",
    ),
}
