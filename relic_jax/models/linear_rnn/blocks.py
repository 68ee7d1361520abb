"""Networks of residual blocks whose mixer is a linear recurrence, comparable with the blocks of the transformer."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.config.linear_rnn import LinearRNNConfig
from relic_jax.models.linear_rnn.delta import GatedDelta
from relic_jax.models.linear_rnn.lru import LRU
from relic_jax.models.recurrent import Carry
from relic_jax.models.transformer import Linear, RMSNorm
from relic_jax.types import Span

MixerKind = Literal["gated-delta", "lru"]
MIXERS: dict[MixerKind, type[nn.Module]] = {"gated-delta": GatedDelta, "lru": LRU}


def empty_state(cfg: LinearRNNConfig, kind: MixerKind, batch: int) -> Carry:
    """Return the state at the start of a trial: zeros.

    Its shape is ``[B, layers, heads, D, D]`` (gated-delta: rows for values, columns for keys) or ``[B, layers, 2, S]``
    (lru: real and imaginary part).
    """
    head = cfg.width // cfg.heads
    shape = {"gated-delta": (cfg.heads, head, head), "lru": (2, cfg.state_width or cfg.width)}[kind]
    return Carry(jnp.zeros((batch, cfg.layers, *shape), jnp.float32), jnp.zeros((batch,), jnp.int32))


class Block(nn.Module):
    """A pre-norm block: RMSNorm → mixer → residual → RMSNorm → gated MLP → residual."""

    config: LinearRNNConfig
    kind: MixerKind

    @nn.compact
    def __call__(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Apply the block to Q steps ``[B, Q, d]``. Returns them and the state after them."""
        cfg = self.config

        def linear(features: int, name: str) -> Linear:
            return Linear(features, use_bias=False, kernel_init=nn.initializers.lecun_normal(), name=name)

        mixed, state = MIXERS[self.kind](cfg, name="mixer")(RMSNorm(name="mixer_norm")(x), state)
        x = x + mixed
        y = RMSNorm(name="mlp_norm")(x)
        gate = nn.gelu(linear(cfg.mlp_width, "gate_proj")(y), approximate=True)
        return x + linear(cfg.width, "down_proj")(gate * linear(cfg.mlp_width, "up_proj")(y)), state


class LinearRNN(nn.Module):
    """Blocks and a last norm. The first step of an episode adds a learned vector to its input."""

    config: LinearRNNConfig
    kind: MixerKind

    @nn.compact
    def __call__(
        self, x: jax.Array, first: jax.Array, memory: Carry, *, query_span: Span | None = None, **options: Any
    ) -> tuple[jax.Array, Carry]:
        """Apply the network to Q steps that follow those in the memory.

        Args:
            x: Embedded steps ``[B, Q, d]``.
            first: bool ``[B, Q]``, whether a step is the first of its episode.
            memory: The state before. It gets no gradient.
            query_span: The steps whose hidden states are returned, q of them. None for all.
            options: The other options of `memories.MemoryNetwork`, which do not affect the result.

        Returns:
            Hidden states ``[B, Q or q, d]`` and the memory after the steps.
        """
        del options
        width = self.config.width
        start = self.param("first_step", nn.initializers.normal(width**-0.5), (width,), jnp.float32)
        x = x + first[..., None] * start
        before, states = lax.stop_gradient(memory.state), []
        for layer in range(self.config.layers):
            x, state = Block(self.config, self.kind, name=f"blocks_{layer}")(x, before[:, layer])
            states.append(state)
        hidden = RMSNorm(name="norm")(x if query_span is None else query_span.of(x))
        return hidden, Carry(jnp.stack(states, axis=1), memory.length + first.shape[1])
