"""The linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349).

A layer has a complex state x with a diagonal recurrence. λ, B, C, D and γ are learned:

    x_t = λ ⊙ x_{t−1} + γ ⊙ B u_t,    y_t = Re(C x_t) + D ⊙ u_t,    λ = exp(−exp(ν) + i·exp(θ))

Complex numbers are stored as real and imaginary parts.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.config.linear_rnn import LinearRNNConfig
from relic_jax.models.transformer import Linear


def diagonal_scan(state: jax.Array, factor: jax.Array, drive: jax.Array) -> jax.Array:
    """Compute x_t = λ ⊙ x_{t−1} + d_t step by step, see `diagonal_parallel`."""

    def step(x: jax.Array, drive: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = times(factor, x) + drive
        return x, x

    return lax.scan(step, state, drive.swapaxes(0, 1))[1].swapaxes(0, 1)


def diagonal_parallel(state: jax.Array, factor: jax.Array, drive: jax.Array) -> jax.Array:
    """Compute x_t = λ ⊙ x_{t−1} + d_t by an associative scan, in log Q passes over the steps.

    Args:
        state: ``[B, 2, S]``, x before the first step: real and imaginary part.
        factor: ``[2, S]``, λ.
        drive: ``[B, Q, 2, S]``, d.

    Returns:
        The states ``[B, Q, 2, S]``.
    """
    drive = drive.at[:, 0].add(times(factor, state))
    factors = jnp.broadcast_to(factor, (1, *drive.shape[1:]))

    def combine(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return times(left[0], right[0]), times(right[0], left[1]) + right[1]

    return lax.associative_scan(combine, (factors, drive), axis=1)[1]


def times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply complex numbers ``[..., 2, S]``."""
    real = a[..., 0, :] * b[..., 0, :] - a[..., 1, :] * b[..., 1, :]
    return jnp.stack([real, a[..., 0, :] * b[..., 1, :] + a[..., 1, :] * b[..., 0, :]], axis=-2)


class LRU(nn.Module):
    """The mixer of an LRU block."""

    config: LinearRNNConfig

    @nn.compact
    def __call__(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Apply the unit to Q steps.

        Args:
            x: ``[B, Q, d]``.
            state: ``[B, 2, S]``.

        Returns:
            ``[B, Q, d]`` and the state after the steps.
        """
        cfg, size = self.config, state.shape[-1]

        def decay_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            """Return ν with the memories 1 / exp(ν) of units log-uniform between the limits of the config."""
            low, high = jnp.log(cfg.shortest_memory), jnp.log(cfg.longest_memory)
            return -jax.random.uniform(key, shape, dtype, low, high)

        def phase_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jnp.log(cfg.largest_phase * jax.random.uniform(key, shape, dtype, 1e-3, 1.0))

        decay = self.param("decay", decay_init, (size,), jnp.float32)
        phase = self.param("phase", phase_init, (size,), jnp.float32)
        radius = jnp.exp(-jnp.exp(decay))
        scale = self.param("scale", lambda key: 0.5 * jnp.log1p(-(radius**2)))  # log γ; unit variance for white input
        factor = radius * jnp.stack([jnp.cos(jnp.exp(phase)), jnp.sin(jnp.exp(phase))])
        half = nn.initializers.variance_scaling(0.5, "fan_in", "normal")  # real and imaginary part: half each
        drive = Linear(2 * size, use_bias=False, kernel_init=half, name="input")(x).reshape(*x.shape[:2], 2, size)
        drive = jnp.exp(scale) * drive
        states = diagonal_parallel(state, factor, drive) if x.shape[1] > 1 else diagonal_scan(state, factor, drive)
        rows = states.reshape(*x.shape[:2], 2 * size)  # the weights of the imaginary part are those of −Im C
        output = Linear(x.shape[-1], use_bias=False, kernel_init=nn.initializers.lecun_normal(), name="output")(rows)
        skip = self.param("skip", nn.initializers.normal(1.0), (x.shape[-1],), jnp.float32)
        return output + skip * x, states[:, -1]
