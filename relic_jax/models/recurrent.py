"""Recurrent memory: a GRU or an LSTM over the whole trial, the network of RL².

Duan et al. 2016, arXiv 1611.02779; Wang et al. 2016, arXiv 1611.05763. The state goes on through the ends of episodes,
which the network is told of, and is emptied at the end of the trial.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from relic_jax.config.policy import RecurrentConfig
from relic_jax.models.transformer import Linear

CellKind = Literal["gru", "lstm"]


class Carry(struct.PyTreeNode):
    """A memory (`memory.Memory`) of fixed size, however long the trial.

    state: float32 [B, layers, parts, width]; parts: the output, and of an LSTM the cell as well.
    length: int32 [B]; steps that went in, the same number for every environment.
    """

    state: jax.Array
    length: jax.Array

    @property
    def filled(self) -> jax.Array:
        """int32 []: the number of steps, `length` of any environment."""
        return self.length[0]

    @property
    def capacity(self) -> int:
        """There is always room."""
        return sys.maxsize

    def prefix(self, capacity: int) -> Carry:
        """The same: there are no steps to leave out."""
        del capacity
        return self

    def grown(self, capacity: int) -> Carry:
        """The same."""
        del capacity
        return self

    def last_steps(self, steps: int) -> Carry:
        """The state after them."""
        del steps
        return self

    def append(self, added: Carry) -> Carry:
        """The continuation itself."""
        return added

    def as_of(self, earlier: Carry) -> Carry:
        """The earlier state itself."""
        return earlier

    def rewound(self, first: jax.Array, length: jax.Array | int) -> Carry:
        """The empty state: what came between is not kept, so `length` must be 0."""
        del first
        return Carry(jnp.zeros_like(self.state), jnp.full_like(self.length, length))


def empty_carry(cfg: RecurrentConfig, kind: CellKind, batch: int) -> Carry:
    """The state at the start of a trial: zeros."""
    parts = {"gru": 1, "lstm": 2}[kind]
    return Carry(jnp.zeros((batch, cfg.layers, parts, cfg.width), jnp.float32), jnp.zeros((batch,), jnp.int32))


def gru(state: jax.Array, inputs: jax.Array, recurrent: jax.Array, candidate_bias: jax.Array) -> jax.Array:
    """One step of a GRU (Cho et al. 2014, in the variant of cuDNN, PyTorch and Flax). state: [B, 1, W].

    inputs: [B, 3W], the step's share of the reset gate, the update gate and the candidate; recurrent: [W, 3W].
    """
    old = state[:, 0]
    x, h = (jnp.split(gates, 3, axis=-1) for gates in (inputs, old @ recurrent))
    reset, update = nn.sigmoid(x[0] + h[0]), nn.sigmoid(x[1] + h[1])
    candidate = jnp.tanh(x[2] + reset * (h[2] + candidate_bias))
    return ((1 - update) * candidate + update * old)[:, None]


def lstm(state: jax.Array, inputs: jax.Array, recurrent: jax.Array) -> jax.Array:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997, with a forget gate). state: [B, 2, W], output and cell.

    inputs: [B, 4W], the step's share of the input gate, the forget gate, the candidate and the output gate.
    """
    i, f, g, o = jnp.split(inputs + state[:, 0] @ recurrent, 4, axis=-1)
    cell = nn.sigmoid(f) * state[:, 1] + nn.sigmoid(i) * jnp.tanh(g)
    return jnp.stack([nn.sigmoid(o) * jnp.tanh(cell), cell], axis=1)


def orthogonal_blocks(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """An initializer: [W, n·W], an orthogonal matrix for each gate."""
    blocks = jax.random.split(key, shape[1] // shape[0])
    square = (shape[0], shape[0])
    return jnp.concatenate([nn.initializers.orthogonal()(block, square, dtype) for block in blocks], axis=1)


class Cell(nn.Module):
    """One recurrent layer over a block of steps."""

    kind: CellKind
    width: int
    keep_bias: float

    @nn.compact
    def __call__(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: [B, Q, d]; state: [B, parts, W]. Returns (outputs [B, Q, W], the state after the block)."""
        width, gates = self.width, {"gru": 3, "lstm": 4}[self.kind]

        def keep(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            del key  # in both cells, the second gate is the one that keeps
            return jnp.zeros(shape, dtype).at[width : 2 * width].set(self.keep_bias)

        lecun = nn.initializers.lecun_normal()
        inputs = Linear(gates * width, kernel_init=lecun, bias_init=keep, name="input")(x)  # of the whole block at once
        recurrent = self.param("recurrent", orthogonal_blocks, (width, gates * width), jnp.float32)
        if self.kind == "gru":
            bias = self.param("candidate_bias", nn.initializers.zeros, (width,), jnp.float32)

        def step(state: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = gru(state, inputs, recurrent, bias) if self.kind == "gru" else lstm(state, inputs, recurrent)
            return new, new[:, 0]

        state, outputs = lax.scan(step, state, inputs.swapaxes(0, 1))
        return outputs.swapaxes(0, 1), state


class Recurrent(nn.Module):
    """Layers of cells. Whether a step opens an episode is an input of its own."""

    config: RecurrentConfig
    kind: CellKind

    @nn.compact
    def __call__(self, x: jax.Array, first: jax.Array, memory: Carry) -> tuple[jax.Array, Carry]:
        """Q steps after those in `memory`, which gets no gradient. x: [B, Q, d] embedded steps; first: bool [B, Q].

        Returns (hidden [B, Q, width], the memory with the steps in it).
        """
        below = jnp.concatenate([x, first[..., None].astype(x.dtype)], axis=-1)
        begin = lax.stop_gradient(memory.state)
        outputs, states = [], []
        for layer in range(self.config.layers):
            cell = Cell(self.kind, self.config.width, self.config.keep_bias, name=f"layers_{layer}")
            below, state = cell(below, begin[:, layer])
            outputs.append(below)
            states.append(state)
        return jnp.sum(jnp.stack(outputs), axis=0), Carry(jnp.stack(states, axis=1), memory.length + first.shape[1])
