"""Configuration: frozen dataclasses with every default stated, `validate()`, JSON in and out.

Defaults are the paper's Darkroom numbers (Elawady et al. 2024, arXiv 2410.02751).
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, Literal

import numpy as np

from relic_jax.models.flash import MAX_WIDTH
from relic_jax.models.native import WIDTHS
from relic_jax.models.policy import PolicyConfig
from relic_jax.runtime import ConfigError

MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class TrialConfig:
    """Shape of the data: N environments, each in trials of T steps cut into U segments."""

    environments: int = 8
    """N, environments that run in parallel."""
    steps: int = 4096
    """T, steps of a trial: many episodes of one task."""
    updates: int = 16
    """U, policy updates per trial; each follows a segment of T/U new steps."""
    show_last_reward: bool = False
    """Show an episode's last reward with the first observation of the next (the original hides it)."""
    action_repeat: int = 1
    """Environment steps that each action lasts; their rewards are summed, and a step here is so many there."""

    @property
    def segment(self) -> int:
        """K = T/U, steps per segment."""
        return self.steps // self.updates


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO with partial updates."""

    lr: float = 2e-4
    """Peak learning rate of Adam."""
    lr_final: float = 1e-5
    """Learning rate at the end of the run (cosine from the peak)."""
    warmup_steps: int = 10_000
    """Environment steps of linear warm-up from 1e-3 of the peak."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 0.2
    """Global norm clip over everything but the critic head, which is not clipped."""
    epochs: int = 4
    """Passes over the data per update."""
    minibatches: int = 8
    """Minibatches per epoch, split by environment; must divide environments."""
    accumulate: int = 4
    """Minibatches whose gradients make one optimiser step; must divide minibatches."""
    gradient_reduction: Literal["sum", "mean"] = "sum"
    """How accumulated gradients combine (the original sums)."""
    clip: float = 0.2
    """Clip of the probability ratio."""
    value_clip: float | None = 0.2
    """Clip of the value around its old prediction; None: no clip."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus at the start of the run."""
    entropy_coef_final: float | None = None
    """Weight of the entropy bonus at the end (linear in environment steps); None: constant."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    reward_scale: float = 1.0
    """Rewards are multiplied by it for learning (not in what the policy sees, nor in what is reported)."""
    normalize_advantages: bool = False
    """Normalise advantages, over the trial so far of all environments."""
    context_gradient: Literal["full", "stopped"] = "full"
    """full: gradients flow through the whole context; stopped: only through the segment, which reads the context from
    the cache (far cheaper)."""
    last_update: Literal["full", "partial"] = "full"
    """The trial's last update: loss over all its steps (full), or over the newest segment like the others (the only way
    where an image encoder is trained: images are kept for a segment, for the trial there are features)."""
    time_limit: Literal["terminal", "bootstrap"] = "terminal"
    """Episodes cut by the time limit: as if terminal (the original), or bootstrapped from the value of what follows."""
    credit: Literal["episode", "trial"] = "episode"
    """Returns stop at episode ends (the original), or go on through resets to the end of the trial."""
    shuffle: bool = True
    """After an update, shuffle the order of the complete episodes in the context."""
    refresh_every: int | None = 1
    """After every n-th update of a trial (and its shuffle), recompute the context's keys, values and value predictions
    with the new weights; None: never, nor shuffle."""
    refresh_segments: int | None = None
    """A refresh recomputes only that many last segments; older keys and values stay stale. None: all."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """In-context evaluation at the end of a run."""

    episodes: int = 40
    """Episodes per task, in one context."""
    repeats: int = 1
    """Trials per task."""
    tasks: int | None = None
    """Only that many tasks, the first of the split; None: all."""
    expert_episodes: int = 0
    """First episodes that the scripted expert acts (few-shot imitation)."""
    context_limit: int | None = None
    """The policy sees at most that many last steps; None: all."""


@dataclasses.dataclass(frozen=True)
class HostConfig:
    """Simulators in worker processes; of environments that run inside jit, `horizon` is for those of other suites."""

    workers: int = 2
    """Processes; must divide trial.environments. Habitat: one simulator each, so as many as environments."""
    backend: Literal["soft", "habitat"] = "soft"
    """What simulates object navigation: our software simulator, or habitat-sim."""
    python: str | None = None
    """The workers' interpreter; None: this one."""
    dataset: str | None = None
    """JSON file with the tasks of both splits: an episode dataset (relic-jax habitat-dataset), or for gym:ID
    {"train": [task, …], "test": [task, …]}; None: procedural houses of the software simulator, or seeds. For
    habitat-lab:CONFIG the path of its episodes, with {split} in it; None: the config's."""
    scene_dataset: str = "default"
    """Scene dataset configuration of habitat-sim, where the episode dataset is not given."""
    objects: str = ""
    """Folder with habitat-sim's object templates."""
    image_size: int = 64
    """Pixels of a side of the camera's square image."""
    horizon: int | None = None
    """Steps of the longest episode, also of other JAX suites' environments; None: the environment's own limit (object
    navigation: 500)."""
    gpus: int = 0
    """GPUs that render, one worker after the other; 0: in software."""
    start_timeout: float = 120.0
    """Seconds for a worker to start or to load a scene."""
    step_timeout: float = 60.0
    """Seconds without an answer after which a worker is restarted."""
    max_restarts: int = 100
    """Restarts of workers after which the run stops, with a checkpoint."""
    ray: str | None = None
    """Address of a Ray cluster whose machines run the workers ("auto", HOST:PORT); None: they run on this machine."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    env: str = "darkroom-dpt"
    """Environment, by its registered name."""
    seed: int = 0
    """Seeds parameters, tasks, environments and actions."""
    total_steps: int = 5_000_000
    """Environment steps of the run, rounded up to whole trials."""
    chunk: Literal["trial", "segment"] = "trial"
    """What one jitted call does: a whole trial, or one segment with its update (long trials: progress and checkpoints
    in between)."""
    devices: int | None = None
    """Devices that share the environments; on CPU, cores. None: as many as there are and as divide a minibatch, or the
    minibatches of an optimiser step."""
    checkpoint_minutes: float = 1.0
    """Minutes between checkpoints."""
    start_from: str | None = None
    """Run, checkpoint or exported policy whose parameters the run begins with (longer trials, other tasks); its network
    must be of the same shapes. Read once, when the run starts; checkpoints then hold them."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    trial: TrialConfig = dataclasses.field(default_factory=TrialConfig)
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    host: HostConfig = dataclasses.field(default_factory=HostConfig)

    @property
    def trials(self) -> int:
        """Trials of the run."""
        return -(-self.total_steps // (self.trial.environments * self.trial.steps))


def validate(config: TrainConfig, *, horizon: int, images: bool = False) -> None:
    """Raises ConfigError at the first field that cannot work. horizon: steps of the environment's longest episode.
    images: whether there are any in its observations."""
    trial, ppo, evaluation = config.trial, config.ppo, config.eval
    _check_finite(config)
    _validate_memory(config, horizon)
    _check_positive(config.policy.encoder, "policy.encoder", "features")
    _check_positive(trial, "trial", "environments", "steps", "updates", "action_repeat")
    _validate_head(config.policy.head)
    _check_positive(ppo, "ppo", "lr", "adam_eps", "max_grad_norm", "epochs", "minibatches", "accumulate", "clip")
    _check_positive(ppo, "ppo", "reward_scale")
    _check_positive(config, "", "total_steps", "checkpoint_minutes")
    _check_positive(evaluation, "eval", "episodes", "repeats")
    validate_host(config.host)
    _require(0 <= config.seed < 2**32, "seed", config.seed, "0 … 2^32−1")
    whole = config.trials * trial.environments * trial.steps
    _require(whole < 2**31, "total_steps", config.total_steps, "less than 2^31 when rounded up to whole trials")
    name, updates = "trial.steps", trial.updates
    _require(trial.steps % updates == 0, name, trial.steps, f"a multiple of trial.updates ({updates})")
    environments = f"a divisor of trial.environments ({trial.environments})"
    _require(trial.environments % ppo.minibatches == 0, "ppo.minibatches", ppo.minibatches, environments)
    minibatches = f"a divisor of ppo.minibatches ({ppo.minibatches})"
    _require(ppo.minibatches % ppo.accumulate == 0, "ppo.accumulate", ppo.accumulate, minibatches)
    per_minibatch = trial.environments // ppo.minibatches
    allowed = (
        f"a divisor of trial.environments / ppo.minibatches ({per_minibatch}) or of ppo.accumulate ({ppo.accumulate}), "
        "or None"
    )
    fits = config.devices is None or (config.devices > 0 and devices_fit(config, config.devices))
    _require(fits, "devices", config.devices, allowed)
    for field in ("gamma", "gae_lambda"):
        _require(0 <= getattr(ppo, field) <= 1, f"ppo.{field}", getattr(ppo, field), "0 … 1")
    for field in ("lr_final", "warmup_steps", "value_coef", "entropy_coef", "entropy_coef_final"):
        value = getattr(ppo, field)
        _require(value is None or value >= 0, f"ppo.{field}", value, "0 or more")
    _require(ppo.value_clip is None or ppo.value_clip > 0, "ppo.value_clip", ppo.value_clip, "more than 0, or None")
    _require(
        not (ppo.credit == "trial" and ppo.shuffle and ppo.last_update == "full"),
        "ppo.credit",
        ppo.credit,
        "'trial' only with ppo.shuffle False or ppo.last_update 'partial' (a full update needs the episodes in order)",
    )
    encoder = config.policy.encoder
    vit = images and encoder.image == "vit-b16"
    _require(not vit or encoder.freeze, "policy.encoder.freeze", encoder.freeze, "True, with a vit-b16")
    allowed = "'partial' where an image encoder is trained: images are kept for a segment (or policy.encoder.freeze)"
    learned_whole = images and not config.policy.encoder.freeze and ppo.last_update == "full" and trial.updates > 1
    _require(not learned_whole, "ppo.last_update", ppo.last_update, allowed)
    for field in ("refresh_every", "refresh_segments"):
        value = getattr(ppo, field)
        _require(value is None or value > 0, f"ppo.{field}", value, "more than 0, or None")
    allowed = "None where ppo.shuffle is on (a shuffled context is recomputed whole)"
    _require(ppo.refresh_segments is None or not ppo.shuffle, "ppo.refresh_segments", ppo.refresh_segments, allowed)
    allowed = "1 or more where ppo.shuffle is on (a shuffled context has to be recomputed)"
    _require(ppo.refresh_every is not None or not ppo.shuffle, "ppo.refresh_every", ppo.refresh_every, allowed)
    for field in ("context_limit", "tasks"):
        limit = getattr(evaluation, field)
        _require(limit is None or limit > 0, f"eval.{field}", limit, "more than 0, or None")
    experts = evaluation.expert_episodes
    _require(0 <= experts < evaluation.episodes, "eval.expert_episodes", experts, "0 … eval.episodes − 1")


def validate_host(host: HostConfig) -> None:
    """Raises ConfigError at the first field of `host` that cannot work with any environment."""
    _check_finite(host, "host.")
    _check_positive(host, "host", "workers", "image_size", "start_timeout", "step_timeout")
    _require(host.horizon is None or host.horizon > 0, "host.horizon", host.horizon, "more than 0")
    for field in ("gpus", "max_restarts"):
        _require(getattr(host, field) >= 0, f"host.{field}", getattr(host, field), "0 or more")


def devices_fit(config: TrainConfig, devices: int) -> bool:
    """Whether `devices` can share each minibatch, or the minibatches of each optimiser step, equally."""
    per_minibatch = config.trial.environments // config.ppo.minibatches
    return per_minibatch % devices == 0 or config.ppo.accumulate % devices == 0


def _validate_memory(config: TrainConfig, horizon: int) -> None:
    """Only the memory that is used has to fit."""
    kind, ppo = config.policy.memory, config.ppo
    if kind == "transformer":
        _validate_transformer(config.policy.transformer, horizon)
        return
    _check_positive(config.policy.recurrent, "policy.recurrent", "layers", "width")
    allowed = f"where policy.memory is {kind!r}"
    _require(not ppo.shuffle, "ppo.shuffle", True, f"False {allowed} (its state depends on the order of the steps)")
    whole = f"None {allowed} (its state can only be recomputed from the trial's beginning)"
    _require(ppo.refresh_segments is None, "ppo.refresh_segments", ppo.refresh_segments, whole)
    limit = config.eval.context_limit
    _require(limit is None, "eval.context_limit", limit, f"None {allowed} (a state cannot forget single steps)")


def _validate_transformer(cfg: Any, horizon: int) -> None:
    field = "policy.transformer"
    _check_positive(cfg, field, "layers", "heads", "width", "mlp_width", "max_positions")
    _require(cfg.width % cfg.heads == 0, f"{field}.heads", cfg.heads, f"a divisor of {field}.width ({cfg.width})")
    if cfg.episode_rope:
        allowed = f"an even width per head (it is {cfg.head_width}: rotation works on pairs)"
        _require(cfg.head_width % 2 == 0, f"{field}.heads", cfg.heads, allowed)
    if cfg.attention == "flash":
        _require(cfg.dtype == "bfloat16", f"{field}.dtype", cfg.dtype, f"'bfloat16' with {field}.attention 'flash'")
        allowed = f"a width per head (it is {cfg.head_width}) that is a multiple of 8, at most {MAX_WIDTH}, with flash"
        _require(cfg.head_width % 8 == 0 and cfg.head_width <= MAX_WIDTH, f"{field}.heads", cfg.heads, allowed)
    if cfg.attention == "native":
        _require(cfg.dtype == "float32", f"{field}.dtype", cfg.dtype, f"'float32' with {field}.attention 'native'")
        _require(
            cfg.cache_format == "float32", f"{field}.cache", cfg.cache, f"'float32' with {field}.attention 'native'"
        )
        allowed = f"a width per head (it is {cfg.head_width}) of {', '.join(map(str, WIDTHS))} with native"
        _require(cfg.head_width in WIDTHS, f"{field}.heads", cfg.heads, allowed)
    _require(0 <= cfg.depth_dropout < 1, f"{field}.depth_dropout", cfg.depth_dropout, "0 or more and less than 1")
    if cfg.step_embedding:
        needed = horizon + 1 + cfg.first_index  # the observation after a time limit is valued too
        allowed = f"at least {needed} (an episode of {horizon} steps, what follows it, the sink)"
        _require(cfg.max_positions >= needed, f"{field}.max_positions", cfg.max_positions, allowed)


def _validate_head(head: Any) -> None:
    low, high = head.log_std_min, head.log_std_max
    _require(low < high, "policy.head.log_std_max", high, f"more than policy.head.log_std_min ({low})")
    allowed = f"more than policy.head.log_std_min ({low}) and less than policy.head.log_std_max ({high})"
    _require(low < head.log_std < high, "policy.head.log_std", head.log_std, allowed)
    limit = math.log(2) if head.action == "tanh" else 10.0
    allowed = f"at most {limit:.4g} with policy.head.action {head.action!r}"
    _require(high <= limit, "policy.head.log_std_max", high, allowed)
    _require(low >= -10, "policy.head.log_std_min", low, "-10 or more")


def _check_finite(config: Any, path: str = "") -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check_finite(value, f"{path}{field.name}.")
        elif isinstance(value, float):
            _require(math.isfinite(value), path + field.name, value, "a finite number")
            computed = path.startswith(("policy.", "trial.", "ppo."))  # in float32; the others are the host's
            within = not computed or abs(value) <= MAX_FLOAT32
            _require(within, path + field.name, value, f"at most {MAX_FLOAT32:.3g}, the largest float32")


def _check_positive(config: Any, prefix: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        _require(value > 0, f"{prefix}.{field}" if prefix else field, value, "more than 0")


def _require(condition: bool, field: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{field} is {value!r}; allowed: {allowed}")


def to_json(config: Any) -> str:
    """The config as readable JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> TrainConfig:
    """Inverse of `to_json` for TrainConfig. Raises ConfigError on unknown fields and impossible values."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config is not JSON: {error}") from None
    return _build(TrainConfig, data, "")


def _build(cls: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{path.rstrip('.') or 'config'} is {data!r}; allowed: an object")
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - fields)
    if unknown:
        raise ConfigError(f"{path}{unknown[0]} is unknown; allowed: {', '.join(sorted(fields))}")
    values = {}
    for name, value in data.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _build(hint, value, f"{path}{name}.")
        else:
            values[name] = _checked(hint, value, path + name)
    return cls(**values)


def _checked(hint: Any, value: Any, field: str) -> Any:
    """Checks a JSON value against a field's type: scalars, Literal and unions of them."""
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        _require(value in allowed, field, value, ", ".join(map(repr, allowed)))
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in options and type(value) is int and abs(value) < 2**53:
        return float(value)
    exact = any(type(value) is option for option in options)
    _require(exact, field, value, " or ".join(option.__name__ for option in options))
    return value


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Names of the fields in which two configs of the same class differ."""
    found = []
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(left):
            found += differences(left, right, f"{path}{field.name}.")
        elif left != right:
            found.append(path + field.name)
    return found
