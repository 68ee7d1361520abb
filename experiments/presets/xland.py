"""Presets on XLand-MiniGrid."""

from __future__ import annotations

from dataclasses import replace

from relic_jax.config import (
    EncoderConfig,
    EnvConfig,
    EvalConfig,
    PolicyConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
)
from relic_jax.experiments.presets.base import Preset, rl2
from relic_jax.experiments.presets.darkroom import DARKROOM

XLAND = TrainConfig(
    env=EnvConfig("xland-trivial"),
    total_steps=8_000_000,
    policy=PolicyConfig(
        transformer=TransformerConfig(layers=2, heads=2, width=64, mlp_width=256, max_positions=256),
        encoder=EncoderConfig(observation="scaled", image="cells"),
    ),
    trial=TrialConfig(environments=64, steps=1000, updates=4),
    ppo=replace(
        DARKROOM.ppo,
        lr=4e-4,
        lr_final=4e-5,
        warmup_steps=300_000,  # it starts from a policy of `xland-anyside`
        minibatches=8,
        normalize_advantages=True,  # an episode has at most one reward, which is rare
        reward_scale=1.0,
        value_coef=0.5,
        entropy_coef=0.01,
        entropy_coef_final=0.003,
        context_gradient="full",
    ),
    eval=EvalConfig(episodes=10, tasks=256),
)

XLAND_ANYSIDE = replace(  # easier: far more episodes have a reward
    XLAND,
    env=EnvConfig("xland-anyside"),
    total_steps=4_000_000,
    trial=replace(XLAND.trial, steps=800),
    ppo=replace(XLAND.ppo, lr_final=1e-4, warmup_steps=10_000, entropy_coef=0.02, entropy_coef_final=0.01),
)

XLAND_RL2_1024 = replace(  # the numbers of XLand-MiniGrid's RL² trainer, as far as they have a counterpart
    rl2(XLAND, width=1024, narrow=128),
    total_steps=100_000_000,
    trial=TrialConfig(environments=8192, steps=4096, updates=128),
    ppo=replace(
        rl2(XLAND).ppo,
        lr=1e-3,
        lr_final=0.0,
        warmup_steps=0,
        adam_eps=1e-8,
        max_grad_norm=0.5,
        epochs=1,
        minibatches=16,
        accumulate=1,
        value_clip=0.2,
        entropy_coef_final=None,
        credit="trial",
    ),
)

PRESETS: dict[str, Preset] = {
    "xland-trivial": Preset(
        XLAND,
        "XLand-MiniGrid's trivial recipe, 9×9, rulesets held out; continues a run of xland-anyside",
        "48 min on one CPU core",
        "held-out rulesets, one seed: return 0.35 in the first episode, 0.39 in episodes 3–10",
        "--start-from runs/xland-anyside-seed0",
    ),
    "xland-anyside": Preset(
        XLAND_ANYSIDE,
        "XLand-MiniGrid, the goals of xland-trivial that have no direction: what to learn before it",
        "31 min on one CPU core",
        "held-out rulesets, one seed: return 0.53 in the first episode, 0.57 in episodes 3–10",
    ),
    "xland-anyside-rl2": Preset(
        rl2(XLAND_ANYSIDE),
        "RL²: a GRU in place of ReLIC's transformer, on the budget of xland-anyside",
        "about 10 min on one CPU core, by the rate of xland-trivial-rl2",
        "held-out rulesets, one seed: return 0.56 in the first episode, 0.59 in episodes 3–10",
    ),
    "xland-trivial-rl2": Preset(
        rl2(XLAND),
        "RL²: a GRU in place of ReLIC's transformer, on the budget of xland-trivial",
        "20 min on one CPU core",
        "held-out rulesets, one seed: return 0.48 in the first episode, 0.49 in episodes 3–10",
    ),
    "xland-trivial-rl2-1024": Preset(
        XLAND_RL2_1024,
        "RL² with a GRU of 1024 and the numbers of XLand-MiniGrid's own trainer",
    ),
    **{
        env: Preset(
            replace(
                XLAND,
                env=EnvConfig(env),
                total_steps=100_000_000,
                policy=replace(XLAND.policy, transformer=transformer),
            ),
            f"XLand-MiniGrid's {env.removeprefix('xland-')} recipe, rulesets held out",
            "a GPU",
        )
        for env, transformer in (
            ("xland-small", XLAND.policy.transformer),
            ("xland-medium", replace(XLAND.policy.transformer, max_positions=512)),
        )
    },
}
