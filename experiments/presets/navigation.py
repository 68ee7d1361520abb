"""Presets on first-person environments that run inside jit: MiniWorld and object navigation."""

from __future__ import annotations

from dataclasses import replace

from relic_jax.config import (
    EncoderConfig,
    EnvConfig,
    EvalConfig,
    Options,
    PolicyConfig,
    PPOConfig,
    PretrainConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
)
from relic_jax.experiments.presets.base import SMALL, Preset
from relic_jax.experiments.presets.darkroom import DARKROOM

MINIWORLD = TrainConfig(
    env=EnvConfig("miniworld-open"),
    total_steps=3_000_000,
    policy=PolicyConfig(
        transformer=TransformerConfig(layers=2, heads=2, width=64, mlp_width=256, max_positions=128),
        encoder=EncoderConfig(observation="scaled"),
    ),
    trial=TrialConfig(environments=64, steps=500, updates=5),
    ppo=DARKROOM.ppo,
    eval=EvalConfig(episodes=10),
)

# Credit ends with the episode. Otherwise stopping immediately, which starts a new episode, would be rewarded.
LONG_EPISODES = replace(
    MINIWORLD.ppo,
    credit="episode",
    time_limit="bootstrap",
    reward_scale=1.0,
    entropy_coef=0.02,
    entropy_coef_final=0.002,
)

HOUSE = replace(
    MINIWORLD,
    env=EnvConfig("house-objnav-small"),
    total_steps=1_500_000,
    policy=PolicyConfig(
        transformer=replace(MINIWORLD.policy.transformer, max_positions=512, init="fan_in"),
        encoder=EncoderConfig(  # without the reward, as in the original, because it would reveal the path
            observation="scaled", reward=False, vectors="embedded", image="patches", weights="houses", freeze=True
        ),
    ),
    trial=TrialConfig(environments=64, steps=2000, updates=20),
    ppo=replace(LONG_EPISODES, normalize_advantages=True, entropy_coef=0.01),
    eval=EvalConfig(episodes=10, tasks=64),
)


def symbols(name: str, squares: int, steps: int) -> TrainConfig:
    """Return the recipe of docs/recall.md for a house with symbols, in trials of `steps` steps and one update.

    Args:
        name: The environment.
        squares: Squares of 1 m along each side of the house.
        steps: Steps of a trial; those of pretraining have half as many.
    """
    transformer = replace(MINIWORLD.policy.transformer, max_positions=512, episode_rope=False)
    # Most components are one- or two-hot and zero at most steps. Networks learn faster if they have unit variance.
    encoder = EncoderConfig(observation="normalized", reward=False)
    return replace(
        HOUSE,
        env=EnvConfig(name, options=Options(view="symbols", pose="house", reward_to="reach")),
        total_steps=5_000_000,
        policy=PolicyConfig(transformer, encoder, recall=(squares, squares)),
        trial=TrialConfig(environments=64, steps=steps, updates=1),
        ppo=replace(HOUSE.ppo, lr=3e-4, max_grad_norm=1.0, minibatches=8, recall_coef=1.0),
        pretrain=PretrainConfig(
            steps=4800,
            trials=128,
            trial_steps=steps // 2,
            relabel=True,
            segment=None,
            minibatches=16,
            epochs=3,
            action_coef=1.0,
            lr=2e-3,
            value_coef=0.05,  # returns are about 5, so their squared error is large beside the other losses
            lr_final=0.0,
        ),
        eval=EvalConfig(episodes=12, tasks=100),
    )


def on_gpu(config: TrainConfig) -> TrainConfig:
    """Return a configuration with the paper's numbers for object navigation in place of those for two CPU cores.

    The paper: 20 environments, trials of 4096 steps in 16 updates, the small transformer with Sink-KV0, its optimizer.
    Ours: 100M steps, the encoder (trained convolutions, or the frozen one of `config`), a partial last update.
    """
    encoder = config.policy.encoder
    return replace(
        config,
        total_steps=100_000_000,
        chunk="segment",
        policy=PolicyConfig(
            replace(SMALL, sink="kv0"),
            encoder if encoder.freeze else EncoderConfig(image="nature", features=SMALL.width),
        ),
        trial=TrialConfig(environments=20, steps=4096, updates=16),
        ppo=PPOConfig(warmup_steps=100_000, minibatches=20, accumulate=10, last_update="partial"),
    )


PRESETS: dict[str, Preset] = {
    "miniworld-open": Preset(
        MINIWORLD,
        "which of four objects pays, from images, in rooms with held-out layouts",
        "21–46 min on 2 CPU cores shared with other work; 6–8 min at their best speed",
        "held-out layouts, 3 seeds: 30.9 in the first episode, 44.5 of 44.8 in the tenth",
    ),
    "miniworld-dpt4": Preset(
        replace(MINIWORLD, env=EnvConfig("miniworld-dpt4")),
        "DPT's Miniworld, for comparison with its curves; only four distinct tasks, none of them held out",
        "4 min on 2 CPU cores",
        "3 seeds: 26.5 in the first episode, 43.6 of 43.5 (the expert's) in episodes 2–10",
    ),
    "house-objnav-small": Preset(
        HOUSE,
        "object navigation from images, in houses of up to 4 rooms that are held out",
        "15 min on 2 CPU cores, 30 min on one of them",
        "held-out houses, 3 seeds: success 69.8% in the first episode, 3.1 points [0.0, 6.6] more from the third on",
    ),
    "house-symbols-small": Preset(
        symbols("house-objnav-small", 8, 800),
        "object navigation from sightings in numbers, in houses of up to 4 rooms that are held out",
        "26–34 min on one CPU core",
        "held-out houses, 3 seeds: 45 steps in the first episode, 37 in episodes 5–12; 45 without earlier episodes",
    ),
    "house-symbols-medium": Preset(
        symbols("house-objnav-medium", 12, 800),
        "house-symbols-small in houses of up to 8 rooms",
        "44 min on one CPU core",
        "held-out houses, 1 seed: 142 steps in the first episode, 138 in episodes 5–12: no gain shown",
    ),
    **{
        f"{config.env.name}-gpu": Preset(
            on_gpu(config),
            f"{config.env.name} with the paper's numbers for object navigation",
            "a GPU",
        )
        for config in (MINIWORLD, replace(MINIWORLD, env=EnvConfig("miniworld-dpt4")), HOUSE)
    },
}
