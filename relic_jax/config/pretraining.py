"""Configuration of the supervised training before PPO."""

from __future__ import annotations

import dataclasses

from relic_jax.validation import LARGEST, check_positive, require


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Supervised training before PPO on trials of a scripted agent (`Environment.reference_agents`).

    The recall head learns the environment's labels (`Environment.recall_labels`), and with `action_coef` the actor
    learns the agent's actions.
    """

    steps: int = 0
    """Optimizer steps, a multiple of `minibatches` times `epochs`. 0: no pretraining. Their environment steps are not
    part of `total_steps`."""
    agent: str = "remembering searcher"
    """The scripted agent whose trials are recorded, a name in `Environment.reference_agents`."""
    trials: int = 64
    """Trials recorded at a time, each in a new training task."""
    trial_steps: int = 400
    """Steps of a recorded trial."""
    relabel: bool = False
    """Add the recall loss of a copy of each recorded trial, in which the target of each step is replaced with a random
    one that has been observed so far (`Environment.relabel`). The trial itself has one target per episode."""
    random_actions: float = 0.2
    """Share of the agent's actions that are replaced with random ones, excluding `Environment.ending_actions`."""
    action_coef: float = 0.0
    """Weight of the behavior cloning loss, which is added to the recall loss: the cross-entropy of the policy's actions
    against the distribution of the agent (`Teacher.action_probabilities`) at all steps. If it is more than 0,
    `policy.recall` can be (), which means no recall loss."""
    value_coef: float = 0.0
    """Weight of a value loss, which is added to the other losses: the squared error of the value against the discounted
    return of the recorded episode, with PPO's discount and reward scale; 0 with `ppo.credit` trial. If it is 0, PPO
    starts with an untrained critic."""
    minibatches: int = 4
    """Optimizer steps of an epoch on the trials recorded at a time, each on a share of them; must divide `trials`."""
    epochs: int = 1
    """Passes over the trials recorded at a time."""
    lr: float = 1e-3
    """Learning rate of Adam, after 100 steps of linear warm-up."""
    lr_final: float | None = None
    """Learning rate at the end of pretraining, to which `lr` decreases linearly. None: it remains constant."""
    adam_eps: float = 1e-8
    """Epsilon of Adam."""
    max_grad_norm: float = 1.0
    """Maximum global norm of the gradient."""
    segment: int | None = 100
    """The gradient is stopped between segments of this many steps, which read earlier ones from the memory; must divide
    `trial_steps`. None: the gradient flows through the whole trial."""

    @property
    def iteration_steps(self) -> int:
        """Optimizer steps on the trials recorded at a time."""
        return self.minibatches * self.epochs

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        require(self.steps >= 0, "pretrain.steps", self.steps, "0 or more")
        check_positive(
            self, "pretrain", "trials", "trial_steps", "minibatches", "epochs", "lr", "adam_eps", "max_grad_norm"
        )
        require(0 <= self.random_actions <= 1, "pretrain.random_actions", self.random_actions, "0 … 1")
        for field in ("action_coef", "value_coef"):
            require(getattr(self, field) >= 0, f"pretrain.{field}", getattr(self, field), "0 or more")
        final = self.lr_final
        require(
            final is None or 0 <= final <= self.lr, "pretrain.lr_final", final, f"0 … pretrain.lr ({self.lr}), or None"
        )
        allowed = f"a divisor of pretrain.trials ({self.trials})"
        require(self.trials % self.minibatches == 0, "pretrain.minibatches", self.minibatches, allowed)
        times = f" times pretrain.epochs ({self.epochs})" if self.epochs > 1 else ""
        allowed = f"a multiple of pretrain.minibatches ({self.minibatches}){times}"
        require(self.steps % self.iteration_steps == 0, "pretrain.steps", self.steps, allowed)
        allowed = f"less than 2^31 / pretrain.trial_steps ({self.trial_steps})"
        require(self.trials * self.trial_steps <= LARGEST, "pretrain.trials", self.trials, allowed)
        allowed = f"a divisor of pretrain.trial_steps ({self.trial_steps}), or None"
        fits = self.segment is None or (self.segment > 0 and self.trial_steps % self.segment == 0)
        require(fits, "pretrain.segment", self.segment, allowed)
