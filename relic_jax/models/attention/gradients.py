"""Parts of the backward pass that kernels with a gradient of their own share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.models.attention.inputs import Sink
from relic_jax.models.attention.reference import einsum


def sink_gradients(
    query: jax.Array, d_out: jax.Array, lse: jax.Array, delta: jax.Array, sink: Sink
) -> tuple[jax.Array, Sink]:
    """Compute the gradients that come from the sink. It is one more key of the softmax.

    Args:
        query: Scaled queries ``[B, H, Q, D]``.
        d_out: Cotangent of the output ``[B, H, Q, D]``.
        lse: Log-sum-exp of the scores, the sink's included, ``[B, H, Q]``.
        delta: ``Σ d_out·out`` over D, ``[B, H, Q]``.
        sink: Key and value ``[H, D]``.

    Returns:
        The sink's part of the gradient of ``query``, float32 ``[B, H, Q, D]``, and the gradient of the sink itself,
        float32 ``[H, D]`` each.
    """
    weight = jnp.exp(einsum("bhqd,hd->bhq", query, sink.key) - lse)
    d_score = weight * (einsum("bhqd,hd->bhq", d_out, sink.value) - delta)
    d_key = jnp.einsum("bhq,bhqd->hd", d_score, query.astype(jnp.float32))
    d_value = jnp.einsum("bhq,bhqd->hd", weight, d_out.astype(jnp.float32))
    return d_score[..., None] * sink.key.astype(jnp.float32)[None, :, None, :], Sink(d_key, d_value)


def zero_cotangent(x: jax.Array):
    """Return the cotangent of an input that gets no gradient: zeros, of dtype float0 if the input is an integer."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
