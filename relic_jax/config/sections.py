"""Configuration of the data, the optimiser and the evaluation. Defaults are the paper's Darkroom experiment.

Paper: Elawady et al. 2024, arXiv 2410.02751.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


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
