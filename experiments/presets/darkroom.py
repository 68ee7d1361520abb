"""Presets on Darkroom."""

from __future__ import annotations

from dataclasses import replace

from relic_jax.config import (
    EncoderConfig,
    EnvConfig,
    EvalConfig,
    PolicyConfig,
    PPOConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
)
from relic_jax.experiments.presets.base import SMALL, TINY, Preset, linear_rnn, rl2

RELIC_PAPER = TrainConfig(env=EnvConfig("darkroom-dpt"), chunk="segment", policy=PolicyConfig(transformer=TINY))

DARKROOM = TrainConfig(
    env=EnvConfig("darkroom-dpt"),
    total_steps=10_000_000,
    policy=PolicyConfig(transformer=replace(TINY, heads=2), encoder=EncoderConfig(observation="scaled")),
    trial=TrialConfig(environments=64, steps=500, updates=4),
    ppo=PPOConfig(
        lr=1e-3,
        lr_final=1e-4,
        epochs=3,
        minibatches=4,
        accumulate=1,
        value_clip=None,
        value_coef=0.2,
        reward_scale=0.2,
        entropy_coef=0.1,
        entropy_coef_final=0.0005,
        credit="trial",
        context_gradient="stopped",
        last_update="partial",
    ),
    eval=EvalConfig(repeats=5),
)

DARKROOM_GPU = replace(  # minibatches of as many trials as there, a quarter of the steps that follow on one another
    DARKROOM,
    total_steps=5_120_000,
    trial=replace(DARKROOM.trial, environments=256),
    ppo=replace(DARKROOM.ppo, minibatches=16),
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

DARKROOM_4K = replace(DARKROOM, trial=TrialConfig(environments=32, steps=4000, updates=20))

DARKROOM_64K = TrainConfig(
    env=EnvConfig("darkroom-dpt"),
    chunk="segment",
    total_steps=100 * 4 * 65_536,
    checkpoint_minutes=30.0,
    policy=PolicyConfig(transformer=replace(SMALL, max_positions=2048), encoder=EncoderConfig(observation="scaled")),
    trial=TrialConfig(environments=4, steps=65_536, updates=256),
    ppo=replace(DARKROOM.ppo, lr=2e-4, lr_final=1e-5, minibatches=4, accumulate=4, refresh_every=4),
    eval=EvalConfig(episodes=650),
)

DARKROOM_64K_INT8 = replace(
    DARKROOM_64K,
    policy=replace(DARKROOM_64K.policy, transformer=replace(DARKROOM_64K.policy.transformer, cache="int8")),
)

PRESETS: dict[str, Preset] = {
    "darkroom-dpt": Preset(
        DARKROOM,
        "ReLIC on DPT's Darkroom, tuned for two CPU cores",
        "about 7 min on 2 idle CPU cores",
        "held-out goals, 3 seeds: 36.7 in the first episode, 89.6 of 90.9 in episodes 2–40",
    ),
    "darkroom-dpt-gpu": Preset(
        DARKROOM_GPU,
        "darkroom-dpt with 256 environments and half the steps, for a GPU",
        "32 s on one H200, of which 24 compilation",
        "held-out goals, 3 seeds: 37.9 in the first episode, 89.2 of 90.9 in episodes 2–40",
    ),
    "darkroom-rl2": Preset(
        rl2(DARKROOM),
        "RL²: a GRU in place of ReLIC's transformer, on the budget of darkroom-dpt",
    ),
    "darkroom-gated-delta": Preset(
        linear_rnn(DARKROOM, "gated-delta"),
        "the gated delta rule in place of ReLIC's transformer, on the budget of darkroom-dpt",
    ),
    "darkroom-lru": Preset(
        linear_rnn(DARKROOM, "lru"),
        "linear recurrent units in place of ReLIC's transformer, on the budget of darkroom-dpt",
    ),
    "darkroom-4k": Preset(
        DARKROOM_4K,
        "darkroom-dpt with trials of 40 episodes instead of 5",
        "24 min on one CPU core for 2M steps from a trained policy; from nothing, more than was tried",
        "2M steps from the shipped policy (results/darkroom-4k): optimal from episode 2 to 650 on ten held-out goals",
    ),
    "darkroom-64k": Preset(
        DARKROOM_64K,
        "trials of 65,536 steps and 256 updates: a context of 655 episodes for the small model",
        "about a minute a trial on one H200 in bfloat16, 2.3 GiB",
    ),
    "darkroom-64k-int8": Preset(
        DARKROOM_64K_INT8,
        "the same with keys and values stored in int8: 0.6 instead of 2 GiB",
        "for a GPU with 16 GiB",
    ),
    "darkroom-relic-paper": Preset(
        RELIC_PAPER,
        "the original's Darkroom run, number for number",
        "hours on 2 CPU cores",
    ),
    "darkroom-smoke": Preset(
        SMOKE, "does everything work: a minute from start to figure", "under a minute on 2 CPU cores", "nothing learned"
    ),
}
