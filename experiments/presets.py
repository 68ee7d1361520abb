"""Named configurations. Each states its command, its cost and the result to expect."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import replace

from relic_jax.config import (
    ConfigError,
    EncoderConfig,
    EnvConfig,
    EvalConfig,
    HeadConfig,
    PolicyConfig,
    PPOConfig,
    RecurrentConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
    WorkerConfig,
    differences,
)

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

LONG_EPISODES = replace(  # credit ends with the episode: else stopping at once, and so starting anew, would pay
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
        encoder=EncoderConfig(  # no reward, as in the original: it would show the way, step by step
            observation="scaled", reward=False, vectors="embedded", image="patches", weights="houses", freeze=True
        ),
    ),
    trial=TrialConfig(environments=64, steps=2000, updates=20),
    ppo=replace(LONG_EPISODES, normalize_advantages=True, entropy_coef=0.01),
    eval=EvalConfig(episodes=10, tasks=64),
)

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
        warmup_steps=300_000,  # it is to start from a policy of `xland-anyside`
        minibatches=8,
        normalize_advantages=True,  # the one reward of an episode is rare
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


def on_gpu(config: TrainConfig) -> TrainConfig:
    """The paper's object-navigation run in place of the numbers for two cores: 20 environments, trials of 4096 steps in
    16 updates, the small transformer with Sink-KV0, its optimiser. Three things are ours: 100M steps, the encoder
    (convolutions that are trained, or what is frozen in `config`), and a trial's last update that is partial.
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


def rl2(config: TrainConfig, width: int | None = None) -> TrainConfig:
    """The RL² baseline beside a ReLIC run: all numbers the same, but a GRU remembers the trial (docs/baselines.md).

    width: of its state; None: a multiple of 32 that gives it about as many weights as the transformer's blocks have. As
    RL² is usually trained, it goes on after an update with the state that it has; nothing is recomputed or shuffled.
    """
    transformer = config.policy.transformer
    weights = transformer.layers * transformer.width * (4 * transformer.width + 3 * transformer.mlp_width)
    width = width or 32 * max(1, round((weights / 6) ** 0.5 / 32))  # a GRU of width w has 6w²
    return replace(
        config,
        policy=replace(config.policy, memory="gru", recurrent=RecurrentConfig(layers=1, width=width)),
        ppo=replace(
            config.ppo,
            context_gradient="stopped",
            last_update="partial",
            shuffle=False,
            refresh_every=None,
            refresh_segments=None,
        ),
        eval=replace(config.eval, context_limit=None),
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
        "not measured yet",
        "not run to its end yet",
    ),
    "darkroom-4k": Preset(
        DARKROOM_4K,
        "darkroom-dpt with trials of 40 episodes instead of 5",
        "24 min on one CPU core for 2M steps from a trained policy; from nothing, more than was tried",
        "2M steps from the shipped policy (experiments/README.md): optimal from episode 2 to 650 on ten held-out goals",
    ),
    "darkroom-64k": Preset(
        DARKROOM_64K,
        "trials of 65,536 steps and 256 updates: a context of 655 episodes for the small model",
        "about a minute a trial on one H200 in bfloat16, 2.3 GiB; in float32 not measured yet",
        "not run to its end yet",
    ),
    "darkroom-64k-int8": Preset(
        DARKROOM_64K_INT8,
        "the same with keys and values stored in int8: 0.6 instead of 2 GiB",
        "for a GPU with 16 GiB; not measured yet",
        "not run to its end yet",
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
        "18 min on one CPU core beside other work",
        "success of training episodes, one seed: 6% in the first tenth of the run, 46% in the last",
    ),
    **{
        f"metaworld-{name}": Preset(
            replace(METAWORLD, env=EnvConfig(env)),
            f"Meta-World's {name.upper()}: a robot arm whose goal is not seen; needs the extra metaworld",
            "not measured",
            "not run",
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
        "not measured",
        "not run",
    ),
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
    "xland-trivial": Preset(
        XLAND,
        "XLand-MiniGrid's trivial recipe, 9×9, rulesets held out; with --start-from a run of xland-anyside",
        "48 min on one CPU core",
        "held-out rulesets, one seed: return 0.35 in the first episode, 0.39 in episodes 3–10",
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
    **{
        env: Preset(
            replace(
                XLAND,
                env=EnvConfig(env),
                total_steps=100_000_000,
                policy=replace(XLAND.policy, transformer=transformer),
            ),
            f"XLand-MiniGrid's {env.removeprefix('xland-')} recipe, rulesets held out",
            "a GPU; not run",
            "not run",
        )
        for env, transformer in (
            ("xland-small", XLAND.policy.transformer),
            ("xland-medium", replace(XLAND.policy.transformer, max_positions=512)),
        )
    },
    "house-objnav-small": Preset(
        HOUSE,
        "object navigation from images, in houses of up to 4 rooms that are held out",
        "15 min on 2 CPU cores, 30 min on one of them",
        "held-out houses, 3 seeds: success 69.8% in the first episode, 3.1 points [0.6, 6.1] more from the third on",
    ),
    **{
        f"{config.env.name}-gpu": Preset(
            on_gpu(config),
            f"{config.env.name} with the paper's numbers for object navigation",
            "a GPU; not run",
            "not run",
        )
        for config in (MINIWORLD, replace(MINIWORLD, env=EnvConfig("miniworld-dpt4")), HOUSE)
    },
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
            "a GPU; not run",
            "not run",
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


def name_of(config: TrainConfig) -> str | None:
    """The preset that a config is of, whatever its seed and devices; None where fields were changed."""
    for name, preset in PRESETS.items():
        if not {*differences(config, preset.config)} - {"seed", "devices"}:
            return name
    return None
