"""Records that are shared by the whole library. B is the number of environments, T the number of steps in a trial."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct

PyTree = Any
Params = Any


class Span(struct.PyTreeNode):
    """The steps start, …, start + size − 1 of a block. start: int32 []; size is static."""

    start: jax.Array | int
    size: int = struct.field(pytree_node=False)

    def of(self, x: jax.Array) -> jax.Array:
        """Return the steps of this span: [B, Q, …] → [B, size, …]."""
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.size, axis=1)


class StepInput(struct.PyTreeNode):
    """Inputs of the policy at one step, with leading axis [B], or at a block of steps, with leading axes [B, Q].

    Attributes:
        observation: pytree of arrays [B, (Q,) ...]. Images can be replaced by features (`Policy.encode_images`).
        previous_action: int32 [B, (Q)] or [B, (Q), n], −1 at the first step of an episode. For a `Box`, float32
          [B, (Q), n] in [−1, 1], ignored at the first step of an episode.
        previous_reward: float32 [B, (Q)].
        first: bool [B, (Q)], whether an episode starts at this step (the negation of `not_done` in the paper's code).
        legal: bool [B, (Q), mask_size], the actions that are legal, or None if all are. It affects only the
            distribution over actions.
    """

    observation: PyTree
    previous_action: jax.Array
    previous_reward: jax.Array
    first: jax.Array
    legal: jax.Array | None = None


class Trajectory(struct.PyTreeNode):
    """The steps of a trial so far, in buffers for T steps. All arrays have leading axes [B, T].

    Attributes:
        inputs: inputs of the policy, with features in place of images (`Policy.encode_images`).
        action: the sampled action, int32 [B, T] or [B, T, n]; for a `Box`, float32 [B, T, n] before clipping.
        log_prob: float32, log-probability of the action under the acting policy.
        value: float32, the most recent value prediction.
        reward: float32.
        terminated: bool.
        truncated: bool.
        final_value: float32. If truncated, the value of the observation from which the episode would have continued;
          otherwise 0.
        valid: bool, or None if all steps are valid. The result of an invalid step is unknown, so it has no loss.
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
