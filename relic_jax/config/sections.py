"""Configuration of the data, the optimizer and the evaluation. Defaults are the paper's Darkroom experiment.

Elawady et al. 2024, arXiv 2410.02751.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from relic_jax.validation import HUGE, MAX_EPOCHS, MAX_STEPS, check_most, check_positive, require


@dataclasses.dataclass(frozen=True)
class TrialConfig:
    """Shape of the data: N environments, each in trials of T steps that are divided into U segments."""

    environments: int = 8
    """Number of parallel environments, N."""
    steps: int = 4096
    """Steps of a trial, T. A trial is many episodes of one task."""
    updates: int = 16
    """Policy updates per trial, U, one after each segment of T / U steps; must divide `steps`."""
    show_last_reward: bool = False
    """Feed the last reward of an episode with the first observation of the next. The original does not."""
    action_repeat: int = 1
    """Environment steps per action. Their rewards are summed; every other count of steps is in actions."""

    @property
    def segment(self) -> int:
        """K = T / U, steps per segment."""
        return self.steps // self.updates

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        check_positive(self, "trial", "environments", "steps", "updates", "action_repeat")


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO with partial updates."""

    lr: float = 2e-4
    """Peak learning rate of Adam."""
    lr_final: float = 1e-5
    """Learning rate at the end of the run, after cosine decay from the peak."""
    warmup_steps: int = 10_000
    """Environment steps of linear warm-up, from 1e-3 of the peak."""
    adam_eps: float = 1e-5
    """Epsilon of Adam."""
    max_grad_norm: float = 0.2
    """Maximum global norm of the gradient. The critic head is not clipped and not counted."""
    epochs: int = 4
    """Passes over the data per update."""
    minibatches: int = 8
    """Minibatches per epoch, divided by environment; must divide `trial.environments`."""
    accumulate: int = 4
    """Minibatches whose gradients are accumulated for one optimizer step; must divide `minibatches`."""
    gradient_reduction: Literal["sum", "mean"] = "sum"
    """How accumulated gradients are combined. The original sums them."""
    clip: float = 0.2
    """Clip range of the probability ratio."""
    value_clip: float | None = 0.2
    """Clip range of the value around its old prediction. None: no clipping."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus at the start of the run."""
    entropy_coef_final: float | None = None
    """Weight of the entropy bonus at the end of the run, reached linearly in environment steps. None: constant."""
    recall_coef: float = 0.0
    """Weight of the auxiliary recall loss at the start of the run: the cross-entropy of the answers that the
    environment labels (`Environment.recall_labels`), which `policy.recall` predicts from the last hidden state."""
    recall_coef_final: float | None = None
    """Weight of the recall loss at the end of the run, reached linearly in environment steps. None: constant."""
    teacher_coef: float = 0.0
    """Weight of the teacher loss at the start of the run: the cross-entropy of the policy's actions against the
    distribution of a scripted agent in the same states (DAgger, Ross et al. 2011, arXiv 1011.0686)."""
    teacher_coef_final: float | None = None
    """Weight of the teacher loss at the end of the run, reached linearly in environment steps. None: constant."""
    teacher: str = "remembering searcher"
    """The scripted agent of the teacher loss, a name in `Environment.reference_agents`. It must give a distribution
    (`Teacher.action_probabilities`)."""
    teacher_where: Literal["all", "recall"] = "all"
    """Steps with a teacher loss. recall: only steps at which the trial has already shown the answer
    (`Environment.recall_labels`). The policy then learns the rest, such as search, by reinforcement learning."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation."""
    reward_scale: float = 1.0
    """Factor of rewards in the loss. The policy's inputs and all reported returns are not scaled."""
    normalize_advantages: bool = False
    """Normalize advantages over the trial so far of all environments."""
    context_gradient: Literal["full", "stopped"] = "full"
    """full: gradients flow through the whole context; stopped: only through the newest segment, which reads the context
    from the cache (far cheaper)."""
    last_update: Literal["full", "partial"] = "full"
    """Loss of a trial's last update. full: over all its steps; partial: over the newest segment, as in other updates.
    A trained image encoder needs partial, because images are stored for one segment only."""
    time_limit: Literal["terminal", "bootstrap"] = "terminal"
    """Value after an episode is truncated. terminal: zero, as in the original; bootstrap: that of the next state."""
    credit: Literal["episode", "trial"] = "episode"
    """Where returns end. episode: at the end of the episode, as in the original; trial: at the end of the trial."""
    shuffle: bool = True
    """Shuffle the complete episodes of the context after an update."""
    refresh_every: int | None = 1
    """Refresh the context after every n-th update of a trial (and its shuffle): recompute its keys, values and value
    predictions with the new weights. None: never; `shuffle` must be off."""
    refresh_segments: int | None = None
    """Number of newest segments that a refresh recomputes; older keys and values stay stale. None: all."""

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher loss."""
        return bool(self.teacher_coef or self.teacher_coef_final)

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        check_positive(self, "ppo", "lr", "adam_eps", "max_grad_norm", "epochs", "minibatches", "accumulate", "clip")
        check_positive(self, "ppo", "reward_scale")
        check_most("ppo.epochs", self.epochs, MAX_EPOCHS)
        check_most("ppo.warmup_steps", self.warmup_steps, MAX_STEPS)
        for field in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, field) <= 1, f"ppo.{field}", getattr(self, field), "0 … 1")
        weights = [f"{name}_coef{end}" for name in ("entropy", "recall", "teacher") for end in ("", "_final")]
        for field in ("lr_final", "warmup_steps", "value_coef", *weights):
            value = getattr(self, field)
            require(value is None or value >= 0, f"ppo.{field}", value, "0 or more")
        allowed = f"at most {HUGE:.3g} times ppo.lr ({self.lr:g})"
        require(self.lr_final / self.lr <= HUGE, "ppo.lr_final", self.lr_final, allowed)
        for field in ("value_clip", "refresh_every", "refresh_segments"):
            value = getattr(self, field)
            require(value is None or value > 0, f"ppo.{field}", value, "more than 0, or None")
        self._validate_context()

    def _validate_context(self) -> None:
        """Check what shuffling and refreshing the context require of each other."""
        ordered = not self.shuffle or self.last_update == "partial"
        allowed = (
            "'trial' only with ppo.shuffle False or ppo.last_update 'partial' (a full update needs the episodes in "
        )
        require(self.credit == "episode" or ordered, "ppo.credit", self.credit, f"{allowed}order)")
        if self.shuffle:
            allowed = "None if ppo.shuffle is on (a shuffled context is recomputed whole)"
            require(self.refresh_segments is None, "ppo.refresh_segments", self.refresh_segments, allowed)
            allowed = "1 or more if ppo.shuffle is on (a shuffled context has to be recomputed)"
            require(self.refresh_every is not None, "ppo.refresh_every", self.refresh_every, allowed)


MAX_EVERY_EPISODES = 10
"""Largest number of episodes per task in an evaluation during training, unless `eval.every_episodes` is set."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """In-context evaluation at the end of a run, and during training."""

    episodes: int = 40
    """Episodes per task, in one context."""
    repeats: int = 1
    """Trials per task."""
    tasks: int | None = None
    """Number of tasks, the first of the split. None: all."""
    expert_episodes: int = 0
    """Number of first episodes in which the scripted expert acts (few-shot imitation)."""
    expert_quality: float = 1.0
    """Share of the expert's steps that take its action. The others take uniformly random legal actions. Less than 1
    shows the policy a worse expert."""
    context_limit: int | None = None
    """Number N of last steps that each layer attends to. L layers reach back L · (N − 1) + 1 steps, through keys and
    values of earlier steps. 0: those of the current episode. None: all."""
    change_task_at: int | None = None
    """Episode, counted from 1, from which each trial continues in another task of the split, without notice and with
    the context kept. None: one task per trial."""
    every: int | None = None
    """Environment steps between evaluations on held-out tasks during training. None: only at the end."""
    every_episodes: int | None = None
    """Episodes per task of the evaluations during training. None: `episodes`, at most 10."""
    every_tasks: int = 20
    """Number of tasks of the evaluations during training, the first of the split, at most `tasks`. One trial each."""

    @property
    def during_training(self) -> EvalConfig:
        """The settings of one evaluation during training."""
        episodes = min(self.episodes, MAX_EVERY_EPISODES) if self.every_episodes is None else self.every_episodes
        tasks = self.every_tasks if self.tasks is None else min(self.tasks, self.every_tasks)
        return EvalConfig(episodes=episodes, tasks=tasks, context_limit=self.context_limit)

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        check_positive(self, "eval", "episodes", "repeats", "every_tasks")
        for field in ("tasks", "every", "every_episodes"):
            limit = getattr(self, field)
            require(limit is None or limit > 0, f"eval.{field}", limit, "more than 0, or None")
        limit, allowed = self.context_limit, "0 (the current episode), more than 0, or None"
        require(limit is None or limit >= 0, "eval.context_limit", limit, allowed)
        experts, change = self.expert_episodes, self.change_task_at
        require(0 <= experts < self.episodes, "eval.expert_episodes", experts, "0 … eval.episodes − 1")
        require(0 <= self.expert_quality <= 1, "eval.expert_quality", self.expert_quality, "0 … 1")
        allowed = "1.0 if eval.expert_episodes is 0"
        require(experts > 0 or self.expert_quality == 1, "eval.expert_quality", self.expert_quality, allowed)
        allowed = f"2 … eval.episodes ({self.episodes}), or None"
        require(change is None or 2 <= change <= self.episodes, "eval.change_task_at", change, allowed)
