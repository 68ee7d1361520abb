"""Presets on gridworlds whose episodes end at the goal: object navigation, key to door, and the hard Darkroom."""

from __future__ import annotations

from dataclasses import replace

from relic_jax.config import (
    CurriculumConfig,
    EnvConfig,
    EvalConfig,
    Options,
    PretrainConfig,
    TrainConfig,
    TrialConfig,
)
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

WITHOUT_ROTARY = replace(GRIDOBJ.policy, transformer=replace(GRIDOBJ.policy.transformer, episode_rope=False))
"""The policy without rotary angles by episode. They have no measured effect (experiments/results/recall/table.md)."""


def recall(size: int, steps: int) -> TrainConfig:
    """Return the recipe of docs/recall.md for all kinds on a grid of `size` × `size`, in trials of `steps` steps.

    Longer trials spend most of their steps where the policy knows the places, and search is learned slowly.
    """
    return replace(
        GRIDOBJ,
        env=EnvConfig(f"gridobj-{size}"),
        total_steps=3_000_000,
        trial=TrialConfig(environments=64, steps=steps, updates=steps // 100),
        policy=replace(WITHOUT_ROTARY, recall=(size, size)),
        ppo=replace(GRIDOBJ.ppo, lr=5e-4, max_grad_norm=1.0, recall_coef=1.0),
        pretrain=PretrainConfig(steps=1200, trial_steps=steps * 4 // 3, segment=steps // 3, action_coef=1.0),
    )


def with_pretrained_critic(config: TrainConfig) -> TrainConfig:
    """Return a recipe that pretrains the critic too and uses a lower learning rate and entropy bonus for PPO.

    With the settings of `gridobj-9`, PPO degrades the pretrained policy on larger grids before it recovers
    (experiments/results/gridobj-13/README.md).
    """
    ppo = replace(config.ppo, lr=1e-4, lr_final=1e-4, entropy_coef=0.005)
    return replace(config, ppo=ppo, pretrain=replace(config.pretrain, value_coef=1.0))


PRESETS: dict[str, Preset] = {
    "gridobj-9-two": Preset(
        replace(
            GRIDOBJ,
            env=EnvConfig("gridobj-9", options=Options(asked=2)),
            trial=TrialConfig(environments=64, steps=200, updates=1),
            policy=WITHOUT_ROTARY,
        ),
        "object navigation on a 9×9 grid; a trial asks for two of the six kinds of objects",
        "6 min on one idle CPU core",
        "held-out layouts, 5 seeds: 18.9 steps in the first episode, 7.8 in episodes 6–20; remembering searcher 5.7",
    ),
    "gridobj-9": Preset(
        recall(9, 300),
        "object navigation on a 9×9 grid with six kinds of objects",
        "15 min on one CPU core",
        "held-out layouts, 5 seeds: 19.9 steps in the first episode, 6.2 in episodes 6–20; remembering searcher 5.8",
    ),
    "gridobj-13": Preset(
        with_pretrained_critic(recall(13, 600)),
        "object navigation on a 13×13 grid with eight kinds of objects",
        "14 min on one CPU core",
        "held-out layouts, 3 seeds: 63.5 steps in the first episode, 11.2 in episodes 6–20; remembering searcher 8.7",
    ),
    "gridobj-21": Preset(
        with_pretrained_critic(recall(21, 1200)), "object navigation on a 21×21 grid with twelve kinds of objects"
    ),
    "gridobj-9-curriculum": Preset(
        replace(
            GRIDOBJ,
            total_steps=8_000_000,
            trial=TrialConfig(environments=64, steps=200, updates=1),
            policy=WITHOUT_ROTARY,
            curriculum=CurriculumConfig(option="asked", threshold=0.1, window=512),
        ),
        "gridobj-9 by reinforcement learning alone: trials ask for more kinds as the in-context gain rises",
        "9–19 min on one CPU core",
        "held-out layouts, 5 seeds: 15.5 steps in the first episode, 7.1 in episodes 6–20; remembering searcher 5.8",
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
