"""A policy's actions: sampling, masks, and conversion to the environment's units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import ConfigError, short

MASKED = -1e30
"""Logit of an illegal action, as in `relic_jax.distributions`."""
_LARGEST = 1 - 2.0**-20  # of a squashed action, as relic_jax.distributions.TanhGaussian


class Actions:
    """The action space in the `action` section of a config.json.

    The policy's units of continuous actions are −1 … 1 in every component, whatever the bounds.

    Attributes:
        continuous: Whether actions are real vectors.
        masked: Whether the policy was trained with masks of legal actions.
        sizes: Choices of each discrete component; empty for continuous actions.
        shape: Shape of one action.
        dtype: Its dtype, float32 or int32.
        null_action: What the policy sees as the previous action if there is none.
    """

    def __init__(self, action: Mapping[str, Any]) -> None:
        """Create the space. Raises ConfigError if the type is unknown."""
        kinds = ("discrete", "multi_discrete", "box")
        if action.get("type") not in kinds:
            raise ConfigError(f"action.type is {action.get('type')!r}; allowed: {', '.join(map(repr, kinds))}")
        self.continuous = action["type"] == "box"
        self.masked = bool(action.get("masked", False))
        self.squashed = action.get("distribution") == "tanh"
        self.low, self.high = (np.asarray(action.get(end, ()), np.float32) for end in ("low", "high"))
        self.sizes: list[int] = []
        self.shape: tuple[int, ...] = self.low.shape
        if action["type"] == "discrete":
            self.sizes, self.shape = [action["n"]], ()
        elif action["type"] == "multi_discrete":
            self.sizes, self.shape = action["nvec"], (len(action["nvec"]),)
        self.dtype: Any = np.float32 if self.continuous else np.int32
        self.null_action = 0 if self.continuous else -1

    def draw(self, outputs: Mapping[str, np.ndarray], random: np.random.Generator | None) -> np.ndarray:
        """Return one action per row, in the policy's units.

        Args:
            outputs: Parameters of the distribution: `logits` [B, n], or `mean` and `log_std` [B, n].
            random: Source of randomness; None for the most likely action.
        """
        if not self.continuous:
            logits = outputs["logits"]
            scores = logits if random is None else logits + random.gumbel(size=logits.shape)
            choices = [part.argmax(-1) for part in self.parts(scores)]
            return (np.stack(choices, axis=-1) if self.shape else choices[0]).astype(np.int32)
        action = outputs["mean"]
        if random is not None:
            action = action + np.exp(outputs["log_std"]) * random.normal(size=action.shape)
        action = action.astype(np.float32)
        return np.tanh(action).clip(-_LARGEST, _LARGEST) if self.squashed else action

    def parts(self, choices: np.ndarray) -> list[np.ndarray]:
        """Split [..., sum(sizes)] into one array per discrete component."""
        return np.split(choices, np.cumsum(self.sizes)[:-1], axis=-1)

    def checked_mask(self, legal: Any, rows: int, batch: bool, acting: np.ndarray) -> dict[str, np.ndarray]:
        """Return the mask of legal actions as an input of the step: {"legal": bool [rows, n]}, or {} without masks.

        Args:
            legal: The user's mask, or None.
            rows: Rows of the batch.
            batch: Whether `legal` has a leading axis.
            acting: Rows whose mask is read, bool [rows].

        Raises:
            ConfigError: If the policy was trained with masks and there is none, or the reverse, if the mask has another
                shape or dtype, or if it leaves no action.
        """
        if not self.masked and legal is None:
            return {}
        size = sum(self.sizes)
        allowed = f"bool[{rows}, {size}]" if batch else f"bool[{size}]"
        if not self.masked:
            raise ConfigError("legal is given; allowed: None, the policy was trained without masks of legal actions")
        if legal is None:
            raise ConfigError(f"legal is None; allowed: {allowed}, the policy was trained with masks of legal actions")
        mask = np.asarray(legal)
        if mask.dtype != bool or mask.shape != ((rows, size) if batch else (size,)):
            raise ConfigError(f"legal is {mask.dtype}{list(mask.shape)}; allowed: {allowed}")
        mask = mask.reshape(rows, size) | ~acting[:, None]
        if not all(part.any(-1).all() for part in self.parts(mask)):
            component = " of every component" if self.shape else ""
            raise ConfigError(f"legal is {short(legal)}; allowed: one with a legal action{component} in every row")
        return {"legal": mask}

    def to_policy(self, action: np.ndarray) -> np.ndarray:
        """Return what the policy sees of its own action at the next step."""
        return action.clip(-1, 1) if self.continuous else action

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """Return an action in the environment's units, within its bounds."""
        if not self.continuous:
            return action
        return (self.low + (self.to_policy(action) + 1) * (0.5 * (self.high - self.low))).clip(self.low, self.high)
