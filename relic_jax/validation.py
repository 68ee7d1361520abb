"""What a configuration may hold. `check_fields` needs only the config, `validate` also knows the environment.

Values that compiled code cannot hold are refused here: sizes and counters of a trial are int32 there, real numbers
float32. Steps of a run are counted in two words (`relic_jax.rl.steps`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from relic_jax.models.attention.select import CPU_WIDTHS, CUDNN_MAX_WIDTH
from relic_jax.runtime import ConfigError

if TYPE_CHECKING:
    from relic_jax.config import EnvConfig, TrainConfig

LARGEST = 2**31 - 1
"""Largest size or counter in compiled code (int32)."""
MAX_STEPS = 10**15
"""Of a run, in environment steps: integers that JSON readers keep exactly."""
UNSIGNED = frozenset({"seed", "total_steps", "ppo.warmup_steps"})
"""Integer fields with limits of their own."""
TINY, HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Smallest and largest magnitude of a normal float32; anything smaller becomes 0 in compiled code."""
MAX_LAYERS, MAX_EPOCHS, MAX_WORKERS, MAX_SECONDS = 256, 10_000, 10_000, 1_000_000
"""Beyond these a run cannot end: every layer is traced by itself, every worker is a process."""


def validate(config: TrainConfig, *, horizon: int, images: bool = False) -> None:
    """Raises ConfigError at the first field that cannot work.

    horizon: steps of the environment's longest episode. images: whether its observations contain any.
    """
    check_fields(config)
    transformer, ppo, encoder = config.policy.transformer, config.ppo, config.policy.encoder
    if config.policy.memory == "transformer" and transformer.step_embedding:
        needed = horizon + 1 + transformer.first_index  # the observation after a time limit is valued too
        allowed = f"at least {needed} (an episode of {horizon} steps in {config.env.name!r}, what follows it, the sink)"
        name, positions = "policy.transformer.max_positions", transformer.max_positions
        require(positions >= needed, name, positions, allowed)
    vit = images and encoder.image == "vit-b16"
    require(not vit or encoder.freeze, "policy.encoder.freeze", encoder.freeze, "True, with a vit-b16")
    allowed = "'partial' where an image encoder is trained: images are kept for a segment (or policy.encoder.freeze)"
    learned_whole = images and not encoder.freeze and ppo.last_update == "full" and config.trial.updates > 1
    require(not learned_whole, "ppo.last_update", ppo.last_update, allowed)
    longest, episodes = LARGEST // max(horizon, 1), config.eval.episodes
    allowed = f"at most {longest:,}: 2^31 − 1 steps in all, of {horizon:,} an episode"
    require(episodes <= longest, "eval.episodes", episodes, allowed)


def check_fields(config: TrainConfig) -> None:
    """Raises ConfigError at the first field that cannot work in any environment."""
    check_acting_fields(config)
    _check_positive(config, "", "total_steps", "checkpoint_minutes")
    if config.policy.memory != "transformer":
        _check_recurrent_training(config)
    _check_ppo(config.ppo)
    _check_sizes(config)
    _check_context(config.ppo)


def check_acting_fields(config: TrainConfig) -> None:
    """As `check_fields`, only what acting and evaluating read: a trained policy needs no more."""
    _check_representable(config)
    require(0 <= config.seed < 2**32, "seed", config.seed, "0 … 2^32−1")
    _check_positive(config.trial, "trial", "environments", "steps", "updates", "action_repeat")
    _check_positive(config.policy.encoder, "policy.encoder", "features")
    _check_memory(config.policy)
    _check_head(config.policy.head)
    _check_eval(config.eval)
    validate_env(config.env)
    validate_workers(config.host)


def validate_workers(host: Any) -> None:
    """Raises ConfigError at the first field of a WorkerConfig that cannot work with any environment."""
    _check_representable(host, "host.")
    _check_positive(host, "host", "workers", "start_timeout", "step_timeout")
    for field in ("gpus", "max_restarts"):
        require(getattr(host, field) >= 0, f"host.{field}", getattr(host, field), "0 or more")
    limits = {"workers": MAX_WORKERS, "start_timeout": MAX_SECONDS, "step_timeout": MAX_SECONDS}
    for field, limit in limits.items():
        _check_most(f"host.{field}", getattr(host, field), limit)


def validate_env(env: EnvConfig) -> None:
    """Raises ConfigError at the first field that no environment can have. Its family checks the options."""
    for name, value in env.leaves():
        _check_number(name, value)
    require(env.horizon is None or env.horizon > 0, "env.horizon", env.horizon, "more than 0, or None")


def devices_fit(config: TrainConfig, devices: int) -> bool:
    """Whether `devices` can share each minibatch, or the minibatches of each optimiser step, equally."""
    per_minibatch = config.trial.environments // config.ppo.minibatches
    return per_minibatch % devices == 0 or config.ppo.accumulate % devices == 0


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises ConfigError where the condition does not hold."""
    if not condition:
        raise ConfigError(f"{field} is {shown(value)}; allowed: {allowed}")


def shown(value: Any) -> str:
    """A value as errors show it: the middle of a long one is left out."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]} … {text[-50:]}"


def _check_representable(config: Any, path: str = "") -> None:
    """Numbers that compiled code can hold, text that the operating system can."""
    from relic_jax.config.serialization import leaves

    for name, value in leaves(config, path):
        _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, float):
        require(math.isfinite(value), name, value, "a finite number")
        require(abs(value) <= HUGE, name, value, f"at most {HUGE:.3g}, the largest float32")
        require(value == 0 or abs(value) >= TINY, name, value, f"0, or at least {TINY:.3g}, the smallest float32")
    elif isinstance(value, int) and name not in UNSIGNED:
        require(abs(value) <= LARGEST, name, value, "less than 2^31")
    elif isinstance(value, str):
        require("\0" not in value, name, value, "text without NUL")


def _check_memory(policy: Any) -> None:
    """Only the memory that is used has to fit."""
    if policy.memory == "transformer":
        _check_transformer(policy.transformer)
        return
    _check_positive(policy.recurrent, "policy.recurrent", "layers", "width")
    _check_most("policy.recurrent.layers", policy.recurrent.layers, MAX_LAYERS)


def _check_recurrent_training(config: TrainConfig) -> None:
    """What a recurrent memory cannot be trained or evaluated with."""
    ppo, allowed = config.ppo, f"where policy.memory is {config.policy.memory!r}"
    require(not ppo.shuffle, "ppo.shuffle", True, f"False {allowed} (its state depends on the order of the steps)")
    whole = f"None {allowed} (its state can only be recomputed from the trial's beginning)"
    require(ppo.refresh_segments is None, "ppo.refresh_segments", ppo.refresh_segments, whole)
    limit = config.eval.context_limit
    require(limit is None, "eval.context_limit", limit, f"None {allowed} (a state cannot forget single steps)")


def _check_transformer(cfg: Any) -> None:
    field = "policy.transformer"
    _check_positive(cfg, field, "layers", "heads", "width", "mlp_width", "max_positions")
    _check_most(f"{field}.layers", cfg.layers, MAX_LAYERS)
    require(cfg.width % cfg.heads == 0, f"{field}.heads", cfg.heads, f"a divisor of {field}.width ({cfg.width})")
    if cfg.episode_rope:
        allowed = f"an even width per head (it is {cfg.head_width}: rotation works on pairs)"
        require(cfg.head_width % 2 == 0, f"{field}.heads", cfg.heads, allowed)
    if cfg.attention == "flash":
        require(cfg.dtype == "bfloat16", f"{field}.dtype", cfg.dtype, f"'bfloat16' with {field}.attention 'flash'")
        allowed = (
            f"a width per head (it is {cfg.head_width}) that is a multiple of 8, at most {CUDNN_MAX_WIDTH}, with flash"
        )
        require(cfg.head_width % 8 == 0 and cfg.head_width <= CUDNN_MAX_WIDTH, f"{field}.heads", cfg.heads, allowed)
    if cfg.attention == "native":
        allowed = f"'float32' with {field}.attention 'native'"
        require(cfg.dtype == "float32", f"{field}.dtype", cfg.dtype, allowed)
        require(cfg.cache_format == "float32", f"{field}.cache", cfg.cache, allowed)
        allowed = f"a width per head (it is {cfg.head_width}) of {', '.join(map(str, CPU_WIDTHS))} with native"
        require(cfg.head_width in CPU_WIDTHS, f"{field}.heads", cfg.heads, allowed)
    kept = bool(np.float32(cfg.depth_dropout) < 1)  # what is just below 1 rounds to it
    require(cfg.depth_dropout >= 0 and kept, f"{field}.depth_dropout", cfg.depth_dropout, "0 or more and less than 1")


def _check_head(head: Any) -> None:
    low, high, start = head.log_std_min, head.log_std_max, head.log_std
    lowest, first, highest = (float(np.float32(x)) for x in (low, start, high))
    require(lowest < highest, "policy.head.log_std_max", high, f"more than policy.head.log_std_min ({low})")
    allowed = f"more than policy.head.log_std_min ({low}) and less than policy.head.log_std_max ({high})"
    require(lowest < first < highest, "policy.head.log_std", start, allowed)
    limit = math.log(2) if head.action == "tanh" else 10.0
    allowed = f"at most {limit:.4g} with policy.head.action {head.action!r}"
    require(high <= limit, "policy.head.log_std_max", high, allowed)
    require(low >= -10, "policy.head.log_std_min", low, "-10 or more")


def _check_ppo(ppo: Any) -> None:
    _check_positive(ppo, "ppo", "lr", "adam_eps", "max_grad_norm", "epochs", "minibatches", "accumulate", "clip")
    _check_positive(ppo, "ppo", "reward_scale")
    _check_most("ppo.epochs", ppo.epochs, MAX_EPOCHS)
    for field in ("gamma", "gae_lambda"):
        require(0 <= getattr(ppo, field) <= 1, f"ppo.{field}", getattr(ppo, field), "0 … 1")
    for field in ("lr_final", "warmup_steps", "value_coef", "entropy_coef", "entropy_coef_final"):
        value = getattr(ppo, field)
        require(value is None or value >= 0, f"ppo.{field}", value, "0 or more")
    allowed = f"at most {HUGE:.3g} times ppo.lr ({ppo.lr:g})"
    require(ppo.lr_final / ppo.lr <= HUGE, "ppo.lr_final", ppo.lr_final, allowed)
    require(ppo.value_clip is None or ppo.value_clip > 0, "ppo.value_clip", ppo.value_clip, "more than 0, or None")


def _check_eval(evaluation: Any) -> None:
    _check_positive(evaluation, "eval", "episodes", "repeats")
    for field in ("context_limit", "tasks"):
        limit = getattr(evaluation, field)
        require(limit is None or limit > 0, f"eval.{field}", limit, "more than 0, or None")
    experts = evaluation.expert_episodes
    require(0 <= experts < evaluation.episodes, "eval.expert_episodes", experts, "0 … eval.episodes − 1")


def _check_sizes(config: TrainConfig) -> None:
    """How environments, steps, minibatches and devices divide each other."""
    trial, ppo = config.trial, config.ppo
    together = trial.environments * trial.steps
    larger, other = sorted(("environments", "steps"), key=lambda name: getattr(trial, name), reverse=True)
    allowed = f"less than 2^31 / trial.{other} ({getattr(trial, other)})"
    require(together <= LARGEST, f"trial.{larger}", getattr(trial, larger), allowed)
    _check_most("total_steps", config.total_steps, MAX_STEPS)
    _check_most("ppo.warmup_steps", ppo.warmup_steps, MAX_STEPS)
    allowed = f"a multiple of trial.updates ({trial.updates})"
    require(trial.steps % trial.updates == 0, "trial.steps", trial.steps, allowed)
    allowed = f"a divisor of trial.environments ({trial.environments})"
    require(trial.environments % ppo.minibatches == 0, "ppo.minibatches", ppo.minibatches, allowed)
    allowed = f"a divisor of ppo.minibatches ({ppo.minibatches})"
    require(ppo.minibatches % ppo.accumulate == 0, "ppo.accumulate", ppo.accumulate, allowed)
    per_minibatch = trial.environments // ppo.minibatches
    allowed = (
        f"a divisor of trial.environments / ppo.minibatches ({per_minibatch}) or of ppo.accumulate ({ppo.accumulate}), "
        "or None"
    )
    fits = config.devices is None or (config.devices > 0 and devices_fit(config, config.devices))
    require(fits, "devices", config.devices, allowed)


def _check_context(ppo: Any) -> None:
    """What shuffling and refreshing the context allow."""
    require(
        not (ppo.credit == "trial" and ppo.shuffle and ppo.last_update == "full"),
        "ppo.credit",
        ppo.credit,
        "'trial' only with ppo.shuffle False or ppo.last_update 'partial' (a full update needs the episodes in order)",
    )
    for field in ("refresh_every", "refresh_segments"):
        value = getattr(ppo, field)
        require(value is None or value > 0, f"ppo.{field}", value, "more than 0, or None")
    allowed = "None where ppo.shuffle is on (a shuffled context is recomputed whole)"
    require(ppo.refresh_segments is None or not ppo.shuffle, "ppo.refresh_segments", ppo.refresh_segments, allowed)
    allowed = "1 or more where ppo.shuffle is on (a shuffled context has to be recomputed)"
    require(ppo.refresh_every is not None or not ppo.shuffle, "ppo.refresh_every", ppo.refresh_every, allowed)


def _check_positive(config: Any, prefix: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        require(value > 0, f"{prefix}.{field}" if prefix else field, value, "more than 0")


def _check_most(field: str, value: float, limit: int) -> None:
    require(value <= limit, field, value, f"at most {limit:,}")
