"""Gates in place of residual connections, of the gated Transformer-XL.

Parisotto et al. 2020, "Stabilizing Transformers for Reinforcement Learning", arXiv 1910.06764, section 3.2.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

IDENTITY_BIAS = 2.0
"""Initial bias b of the update gate. The block is then close to the identity, as in the paper."""


class Gate(nn.Module):
    """A gate like a GRU's, which decides how much of a branch replaces the residual stream.

        r = σ(W_r·y + U_r·x),    z = σ(W_z·y + U_z·x − b),    h = tanh(W_h·y + U_h·(r ⊙ x))
        x ← (1 − z) ⊙ x + z ⊙ h

    y is the output of the branch after a ReLU. The computation is in the dtype of x, the parameters are float32.
    """

    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return the new residual stream.

        Args:
            x: The residual stream ``[..., d]``.
            y: Output of the branch ``[..., d]``.
        """
        width = x.shape[-1]

        def linear(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=x.dtype, kernel_init=self.kernel_init, name=name)

        bias = self.param("bias", nn.initializers.constant(IDENTITY_BIAS), (width,), jnp.float32)
        y_r, y_z, y_h = jnp.split(linear(3 * width, "branch")(nn.relu(y)), 3, axis=-1)
        x_r, x_z = jnp.split(linear(2 * width, "stream")(x), 2, axis=-1)
        update = nn.sigmoid(y_z + x_z - bias.astype(x.dtype))
        candidate = jnp.tanh(y_h + linear(width, "candidate")(nn.sigmoid(y_r + x_r) * x))
        return (1 - update) * x + update * candidate
