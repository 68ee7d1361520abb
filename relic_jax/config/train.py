"""Configuration of a training run."""

from __future__ import annotations

import dataclasses
from typing import Literal

from relic_jax.config.environment import EnvConfig, WorkerConfig
from relic_jax.config.sections import EvalConfig, PPOConfig, TrialConfig
from relic_jax.models.policy import PolicyConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    """The environment; a string is its name."""
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
    host: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)

    def __post_init__(self) -> None:
        if isinstance(self.env, str):
            object.__setattr__(self, "env", EnvConfig(self.env))

    @property
    def trials(self) -> int:
        """Trials of the run."""
        return -(-self.total_steps // (self.trial.environments * self.trial.steps))
