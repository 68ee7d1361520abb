"""The few records that flow through everything. B environments, T steps of a trial."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct

PyTree = Any
Params = Any


class Span(struct.PyTreeNode):
    """Steps start … start + size − 1 of a block. start: int32 []; size is static."""

    start: jax.Array | int
    size: int = struct.field(pytree_node=False)

    def of(self, x: jax.Array) -> jax.Array:
        """[B, Q, …] → [B, size, …]."""
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.size, axis=1)


class StepInput(struct.PyTreeNode):
    """What the policy reads at one step ([B] leading) or at a block of steps ([B, Q] leading).

    observation: pytree of arrays [B, (Q,) ...].
    previous_action: int32 [B, (Q)] or [B, (Q), n], −1 at the first step of an episode; or of a Box float32 [B, (Q), n]
      in −1 … 1, which is not read there.
    previous_reward: float32 [B, (Q)].
    first: bool [B, (Q)]; the step opens an episode (`not_done` of the paper's code is its negation).
    legal: bool [B, (Q), mask_size], which actions can be taken; None: all. Only the distribution over actions
      depends on it.
    """

    observation: PyTree
    previous_action: jax.Array
    previous_reward: jax.Array
    first: jax.Array
    legal: jax.Array | None = None


class Trajectory(struct.PyTreeNode):
    """The steps of a trial so far, batch-major, preallocated for T steps. All leaves [B, T, ...].

    inputs: what the policy read, with features in place of images (`Policy.encode_images`). action: the sample,
    int32 [B, T] or [B, T, n], or for a Box float32 [B, T, n] before it is clipped. log_prob: float32, of the acting
    policy. value: float32, the newest prediction. reward: float32. terminated, truncated: bool.
    final_value: float32, where truncated the value of the observation that the episode would have gone on from, else 0.
    valid: bool; False: what the step led to is unknown, it does not count in the loss. None: all are valid.
    """

    inputs: StepInput
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_value: jax.Array
    valid: jax.Array | None = None
