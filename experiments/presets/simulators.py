"""Presets on simulators in worker processes."""

from __future__ import annotations

from dataclasses import replace

from relic_jax.config import EnvConfig, EvalConfig, TrialConfig, WorkerConfig
from relic_jax.experiments.presets.base import Preset
from relic_jax.experiments.presets.continuous import BRAX
from relic_jax.experiments.presets.navigation import LONG_EPISODES, MINIWORLD

EXTOBJNAV_SOFT = replace(
    MINIWORLD,
    env=EnvConfig("extobjnav", horizon=200),
    policy=replace(MINIWORLD.policy, transformer=replace(MINIWORLD.policy.transformer, max_positions=512)),
    ppo=LONG_EPISODES,
    total_steps=480_000,
    chunk="segment",
    trial=TrialConfig(environments=16, steps=1000, updates=10),
    eval=EvalConfig(episodes=8),
)

METAWORLD = replace(
    BRAX,
    env=EnvConfig("metaworld:ml1:reach-v3"),
    chunk="segment",
    total_steps=10_000_000,
    policy=replace(BRAX.policy, transformer=replace(BRAX.policy.transformer, max_positions=512)),
    trial=TrialConfig(environments=32, steps=2500, updates=10),
    host=WorkerConfig(workers=8),
    eval=EvalConfig(episodes=5, tasks=50),
)

REAL_MINIWORLD = replace(
    MINIWORLD,
    env=EnvConfig("gym:miniworld:MiniWorld-OneRoom-v0"),
    chunk="segment",
    policy=replace(MINIWORLD.policy, transformer=replace(MINIWORLD.policy.transformer, max_positions=512)),
    trial=TrialConfig(environments=16, steps=1000, updates=10),
    ppo=LONG_EPISODES,
    host=WorkerConfig(workers=8),
)

PRESETS: dict[str, Preset] = {
    "extobjnav-soft": Preset(
        EXTOBJNAV_SOFT,
        "object navigation with simulators in worker processes, in houses that need no assets",
        "18 min on one CPU core beside other work",
        "success of training episodes, one seed: 6% in the first tenth of the run, 46% in the last",
    ),
    **{
        f"metaworld-{name}": Preset(
            replace(METAWORLD, env=EnvConfig(env)),
            f"Meta-World's {name.upper()}: a robot arm whose goal is not seen; needs the extra metaworld",
        )
        for name, env in (
            ("ml1-reach", METAWORLD.env.name),
            ("ml10", "metaworld:ml10"),
            ("ml45", "metaworld:ml45"),
        )
    },
    "miniworld-real": Preset(
        REAL_MINIWORLD,
        "the real Farama MiniWorld in worker processes (--env gym:miniworld:ID for others); needs the extra miniworld",
    ),
}
