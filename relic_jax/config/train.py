"""Configuration of a training run, and the checks that involve several of its sections."""

from __future__ import annotations

import dataclasses
from typing import Literal

from relic_jax.config.curriculum import CurriculumConfig
from relic_jax.config.environment import EnvConfig, WorkerConfig
from relic_jax.config.fields import leaves
from relic_jax.config.policy import PolicyConfig
from relic_jax.config.pretraining import PretrainConfig
from relic_jax.config.sections import EvalConfig, PPOConfig, TrialConfig
from relic_jax.validation import LARGEST, MAX_STEPS, check_most, check_positive, check_value, require


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    """The environment. A string is the name of one with its default options."""
    seed: int = 0
    """Seed of parameters, tasks, environments and actions."""
    total_steps: int = 5_000_000
    """Environment steps of the run, rounded up to whole trials."""
    chunk: Literal["trial", "segment"] = "trial"
    """Unit of one jitted call, after which progress is reported and checkpoints are saved. trial: a whole trial;
    segment: one segment with its update, for long trials."""
    devices: int | None = None
    """Number of devices that share the environments (on CPU: cores). None: the largest available number that divides
    the environments of a minibatch, or the minibatches of an optimizer step."""
    context_devices: int = 1
    """Number of devices that share the context of the same environments, for contexts that do not fit one device. Each
    holds an equal part of the keys and values. `devices` is a multiple of it."""
    checkpoint_minutes: float = 1.0
    """Minutes between checkpoints."""
    start_from: str | None = None
    """Run, checkpoint or exported policy with the initial parameters, e.g. to continue with longer trials or on other
    tasks. Its network must have the same shapes. Read when the run starts; checkpoints contain the parameters."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    trial: TrialConfig = dataclasses.field(default_factory=TrialConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    host: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)

    def __post_init__(self) -> None:
        if isinstance(self.env, str):
            object.__setattr__(self, "env", EnvConfig(self.env))

    @property
    def trials(self) -> int:
        """Number of trials of the run."""
        return -(-self.total_steps // (self.trial.environments * self.trial.steps))


def validate(config: TrainConfig, *, horizon: int, images: bool = False) -> None:
    """Check a configuration against its environment.

    Args:
        config: The configuration.
        horizon: Steps of the environment's longest episode.
        images: Whether the environment's observations contain images.

    Raises:
        ConfigError: Names the first field that cannot work.
    """
    check_fields(config)
    transformer, ppo, encoder = config.policy.transformer, config.ppo, config.policy.encoder
    if config.policy.architecture is transformer and transformer.step_embedding:
        needed = horizon + 1 + transformer.first_index  # the observation after a time limit is valued too
        allowed = (
            f"at least {needed} (an episode of {horizon} steps in {config.env.name!r}, the step after it, the sink)"
        )
        name, positions = "policy.transformer.max_positions", transformer.max_positions
        require(positions >= needed, name, positions, allowed)
    vit = images and encoder.image == "vit-b16"
    require(not vit or encoder.freeze, "policy.encoder.freeze", encoder.freeze, "True, with a vit-b16")
    learned_whole = images and not encoder.freeze and ppo.last_update == "full" and config.trial.updates > 1
    allowed = "'partial' if an image encoder is trained: images are stored for a segment (or policy.encoder.freeze)"
    require(not learned_whole, "ppo.last_update", ppo.last_update, allowed)
    longest, episodes = LARGEST // max(horizon, 1), config.eval.episodes
    allowed = f"at most {longest:,}: 2^31 − 1 steps in all, of {horizon:,} an episode"
    require(episodes <= longest, "eval.episodes", episodes, allowed)


def check_fields(config: TrainConfig) -> None:
    """Raise ConfigError at the first field that cannot work in any environment."""
    check_acting_fields(config)
    check_positive(config, "", "total_steps", "checkpoint_minutes")
    _check_memory(config)
    config.curriculum.validate()
    config.ppo.validate()
    config.pretrain.validate()
    _check_context_devices(config)
    _check_sizes(config)


def check_acting_fields(config: TrainConfig) -> None:
    """As `check_fields`, for the fields that acting and evaluation read; a trained policy needs no others."""
    for name, value in leaves(config):
        check_value(name, value)
    require(0 <= config.seed < 2**32, "seed", config.seed, "0 … 2^32−1")
    for section in (config.trial, config.policy, config.eval, config.env, config.host):
        section.validate()


def devices_fit(config: TrainConfig, devices: int) -> bool:
    """Whether `devices` can share each minibatch, or the minibatches of each optimizer step, equally.

    With `context_devices`, groups of that many devices share them.
    """
    groups, rest = divmod(devices, config.context_devices)
    per_minibatch = config.trial.environments // config.ppo.minibatches
    return not rest and (per_minibatch % groups == 0 or config.ppo.accumulate % groups == 0)


def _check_memory(config: TrainConfig) -> None:
    """Check what the memory cannot be trained or evaluated with."""
    ppo, traits, allowed = config.ppo, config.policy.traits, f"if policy.memory is {config.policy.memory!r}"
    order = f"False {allowed} (its state depends on the order of the steps)"
    require(traits.shuffles or not ppo.shuffle, "ppo.shuffle", ppo.shuffle, order)
    if traits.keeps_steps:
        return
    whole = f"None {allowed} (its state can only be recomputed from the start of the trial)"
    require(ppo.refresh_segments is None, "ppo.refresh_segments", ppo.refresh_segments, whole)
    limit = config.eval.context_limit
    require(limit is None, "eval.context_limit", limit, f"None {allowed} (a state cannot forget single steps)")


def _check_context_devices(config: TrainConfig) -> None:
    """Check what does not support a context that is split over devices."""
    check_positive(config, "", "context_devices")
    if config.context_devices == 1:
        return
    policy, trial = config.policy, config.trial
    suffix = f"if context_devices is {config.context_devices}"
    require(policy.memory == "transformer", "policy.memory", policy.memory, f"'transformer' {suffix}")
    kernel, field = policy.transformer.attention, "policy.transformer.attention"
    require(kernel in ("auto", "blocked"), field, kernel, f"'auto' or 'blocked' {suffix}")
    allowed = f"a multiple of trial.updates · context_devices ({trial.updates} · {config.context_devices})"
    require(trial.steps % (trial.updates * config.context_devices) == 0, "trial.steps", trial.steps, allowed)


def _check_sizes(config: TrainConfig) -> None:
    """Check how environments, steps, minibatches and devices divide each other."""
    trial, ppo = config.trial, config.ppo
    together = trial.environments * trial.steps
    larger, other = sorted(("environments", "steps"), key=lambda name: getattr(trial, name), reverse=True)
    allowed = f"less than 2^31 / trial.{other} ({getattr(trial, other)})"
    require(together <= LARGEST, f"trial.{larger}", getattr(trial, larger), allowed)
    check_most("total_steps", config.total_steps, MAX_STEPS)
    allowed = f"a multiple of trial.updates ({trial.updates})"
    require(trial.steps % trial.updates == 0, "trial.steps", trial.steps, allowed)
    allowed = f"a divisor of trial.environments ({trial.environments})"
    require(trial.environments % ppo.minibatches == 0, "ppo.minibatches", ppo.minibatches, allowed)
    allowed = f"a divisor of ppo.minibatches ({ppo.minibatches})"
    require(ppo.minibatches % ppo.accumulate == 0, "ppo.accumulate", ppo.accumulate, allowed)
    per_minibatch = trial.environments // ppo.minibatches
    allowed = f"a divisor of trial.environments / ppo.minibatches ({per_minibatch}) or of ppo.accumulate "
    times = "" if config.context_devices == 1 else f", times context_devices ({config.context_devices})"
    allowed += f"({ppo.accumulate}){times}, or None"
    fits = config.devices is None or (config.devices > 0 and devices_fit(config, config.devices))
    require(fits, "devices", config.devices, allowed)
