"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464), step by step and in chunks.

The state of a head is a matrix S that maps keys to values. A step reads the value of its key, moves it towards the new
value by the rate β, and scales the whole state by α:

    S_t = α_t S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ,    o_t = S_t q_t
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.config.linear_rnn import LinearRNNConfig
from relic_jax.models.transformer import Linear, RMSNorm

CHUNK = 32
"""Steps of a chunk: each replaces this many dependent steps by a few matrix products."""


class Steps(NamedTuple):
    """Inputs of the rule for a block of Q steps.

    Attributes:
        query: ``[B, H, Q, D]``.
        key: ``[B, H, Q, D]``, of unit length.
        value: ``[B, H, Q, D]``.
        log_keep: ``[B, H, Q]``, log α.
        rate: ``[B, H, Q]``, β, from 0 to 1.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    log_keep: jax.Array
    rate: jax.Array


def delta_step(state: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Compute one step of the rule.

    Args:
        state: ``[B, H, D, D]``, rows for values and columns for keys.
        steps: The step, without the axis Q.

    Returns:
        The next state and the output ``[B, H, D]``.
    """
    kept = jnp.exp(steps.log_keep)[..., None, None] * state
    error = steps.value - jnp.einsum("bhvk,bhk->bhv", kept, steps.key)
    state = kept + (steps.rate[..., None] * error)[..., None] * steps.key[..., None, :]
    return state, jnp.einsum("bhvk,bhk->bhv", state, steps.query)


def delta_scan(state: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Apply the rule step by step, see `delta_chunks`."""
    by_step = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), steps)
    state, outputs = lax.scan(delta_step, state, by_step)
    return state, jnp.moveaxis(outputs, 0, 2)


def delta_chunks(state: jax.Array, steps: Steps, chunk: int = CHUNK) -> tuple[jax.Array, jax.Array]:
    """Apply the rule to Q steps, in matrix products over chunks of steps.

    Let γ_t be the product of α from the start of the chunk to step t, and S the state before the chunk. The weighted
    errors u_t = β_t (v_t − α_t S_{t−1} k_t) of a chunk solve a triangular system, the WY representation of the paper:

        (I + A) U = β (V − γ K Sᵀ),    A_ti = β_t γ_t/γ_i k_t·k_i for i < t, else 0

    The system is solved for all chunks at once. Only its dependence on S is left for the scan over the chunks.

    Args:
        state: ``[B, H, D, D]``.
        steps: The steps.
        chunk: Steps of a chunk.

    Returns:
        The state after the steps and the outputs ``[B, H, Q, D]``.
    """
    length = steps.rate.shape[2]
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def split(x: jax.Array) -> jax.Array:
        """Return ``[chunks, B, H, chunk, …]``. A step of zeros leaves the state unchanged."""
        x = jnp.pad(x, [(0, 0), (0, 0), (0, count * chunk - length), *[(0, 0)] * (x.ndim - 3)])
        return jnp.moveaxis(x.reshape(*x.shape[:2], count, chunk, *x.shape[3:]), 2, 0)

    q, k, v, log_keep, rate = map(split, steps)
    total = jnp.cumsum(log_keep, axis=-1)  # log γ
    before = jnp.tril(jnp.ones((chunk, chunk), bool), -1)
    between = total[..., :, None] - total[..., None, :]  # log γ_t/γ_i; it overflows after step t
    keep = jnp.exp(jnp.where(before, between, -jnp.inf))
    system = jnp.eye(chunk) + rate[..., None] * keep * jnp.einsum("cbhtd,cbhid->cbhti", k, k)
    keys = jnp.exp(total)[..., None] * k
    right = rate[..., None] * jnp.concatenate([v, keys], axis=-1)
    own, of_state = jnp.split(lax.linalg.triangular_solve(system, right, left_side=True, lower=True), 2, axis=-1)
    scores = (keep + jnp.eye(chunk)) * jnp.einsum("cbhtd,cbhid->cbhti", q, k)
    queries = jnp.exp(total)[..., None] * q
    last = jnp.exp(total[..., -1:] - total)[..., None] * k
    decay = jnp.exp(total[..., -1])[..., None, None]

    def step(state: jax.Array, x: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        own, of_state, scores, queries, last, decay = x
        errors = own - jnp.einsum("bhtk,bhvk->bhtv", of_state, state)
        output = jnp.einsum("bhtk,bhvk->bhtv", queries, state) + scores @ errors
        return decay * state + jnp.einsum("bhtv,bhtk->bhvk", errors, last), output

    state, outputs = lax.scan(step, state, (own, of_state, scores, queries, last, decay))
    outputs = jnp.moveaxis(outputs, 0, 2)
    return state, outputs.reshape(*outputs.shape[:2], count * chunk, -1)[:, :, :length]


def unit(x: jax.Array) -> jax.Array:
    """Scale vectors ``[..., D]`` to unit length."""
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


class GatedDelta(nn.Module):
    """The mixer of a Gated DeltaNet block: projections, the rule per head, a norm and an output gate.

    The original convolves queries, keys and values over 4 steps. The input of a step of reinforcement learning contains
    the previous action and reward, so there is no convolution here. log α is −softplus of a linear function, without
    the original's additional factor per head.
    """

    config: LinearRNNConfig

    @nn.compact
    def __call__(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Apply the mixer to Q steps.

        Args:
            x: ``[B, Q, d]``.
            state: ``[B, H, D, D]``.

        Returns:
            ``[B, Q, d]`` and the state after the steps.
        """
        cfg = self.config

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], cfg.heads, -1).swapaxes(1, 2)

        def project(name: str) -> jax.Array:
            kernel_init = nn.initializers.lecun_normal()
            return Linear(cfg.width, use_bias=False, kernel_init=kernel_init, name=name)(x)

        def forget_bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            del key, shape
            memory = jnp.geomspace(cfg.shortest_memory, cfg.longest_memory, cfg.heads, dtype=dtype)
            return jnp.log(jnp.expm1(1 / memory))  # the inverse of softplus

        q, k, v = (heads(nn.silu(project(name))) for name in ("q_proj", "k_proj", "v_proj"))
        small = nn.initializers.normal(0.1 * cfg.width**-0.5)
        forget = Linear(cfg.heads, kernel_init=small, bias_init=forget_bias, name="forget")(x)
        rate = nn.sigmoid(Linear(cfg.heads, kernel_init=small, name="rate")(x))
        steps = Steps(unit(q), unit(k), v, -nn.softplus(forget).swapaxes(1, 2), rate.swapaxes(1, 2))
        if x.shape[1] == 1:
            state, output = delta_scan(state, steps)
        else:
            state, output = delta_chunks(state, steps)
        output = RMSNorm(name="norm")(output).swapaxes(1, 2).reshape(x.shape)
        output = output * nn.silu(project("gate_proj"))
        return Linear(cfg.width, use_bias=False, kernel_init=nn.initializers.lecun_normal(), name="o_proj")(
            output
        ), state
