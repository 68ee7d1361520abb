"""Recurrent memory: a GRU or an LSTM over the whole trial, the network of RL².

Duan et al. 2016, arXiv 1611.02779; Wang et al. 2016, arXiv 1611.05763. The state is kept across episodes and reset at
the end of a trial. The start of an episode is an input.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from relic_jax.config.policy import RecurrentConfig
from relic_jax.models.transformer import Linear
from relic_jax.types import Span

CellKind = Literal["gru", "lstm"]
States = tuple[jax.Array, jax.Array]
Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


class Carry(struct.PyTreeNode):
    """A memory of fixed size, however long the trial (see `memory.Memory`).

    Attributes:
        state: float32 ``[B, layers, parts, width]``. The parts are the output and, of an LSTM, the cell.
        length: int32 ``[B]``, number of steps so far. It is the same for every environment.
    """

    state: jax.Array
    length: jax.Array

    @property
    def filled(self) -> jax.Array:
        """int32 ``[]``: the number of steps, which is `length` of any environment."""
        return self.length[0]

    @property
    def capacity(self) -> int:
        """Unlimited."""
        return sys.maxsize

    def prefix(self, capacity: int) -> Carry:
        """Return this memory. It holds no steps that could be left out."""
        del capacity
        return self

    def grown(self, capacity: int) -> Carry:
        """Return this memory."""
        del capacity
        return self

    def last_steps(self, steps: int) -> Carry:
        """Return this memory, the state after those steps."""
        del steps
        return self

    def append(self, added: Carry) -> Carry:
        """Return ``added``, the state after the continuation."""
        return added

    def as_of(self, earlier: Carry) -> Carry:
        """Return ``earlier``."""
        return earlier

    def rewound(self, first: jax.Array, length: jax.Array | int) -> Carry:
        """Return the initial state. Earlier states are not kept, so ``length`` must be 0."""
        del first
        return Carry(jnp.zeros_like(self.state), jnp.full_like(self.length, length))


def empty_carry(cfg: RecurrentConfig, kind: CellKind, batch: int) -> Carry:
    """Return the state at the start of a trial: zeros."""
    parts = {"gru": 1, "lstm": 2}[kind]
    return Carry(jnp.zeros((batch, cfg.layers, parts, cfg.width), jnp.float32), jnp.zeros((batch,), jnp.int32))


def gru(state: jax.Array, inputs: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Compute one step of a GRU (Cho et al. 2014, arXiv 1406.1078, in the variant of cuDNN, PyTorch and Flax).

    Args:
        state: ``[B, 1, W]``.
        inputs: ``[B, 3W]``, projections of the step for the reset gate, the update gate and the candidate.
        recurrent: ``[B, 3W]``, projections of the state, in the same order.

    Returns:
        The next state ``[B, 1, W]``.
    """
    x, h = (jnp.split(gates, 3, axis=-1) for gates in (inputs, recurrent))
    reset, update = nn.sigmoid(x[0] + h[0]), nn.sigmoid(x[1] + h[1])
    candidate = jnp.tanh(x[2] + reset * h[2])
    return ((1 - update) * candidate + update * state[:, 0])[:, None]


def lstm(state: jax.Array, inputs: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Compute one step of an LSTM (Hochreiter & Schmidhuber 1997, with a forget gate).

    Args:
        state: ``[B, 2, W]``, output and cell.
        inputs: ``[B, 4W]``, projections of the step for the input gate, the forget gate, the candidate and the output
            gate.
        recurrent: ``[B, 4W]``, projections of the output, in the same order.

    Returns:
        The next state ``[B, 2, W]``.
    """
    i, f, g, o = jnp.split(inputs + recurrent, 4, axis=-1)
    cell = nn.sigmoid(f) * state[:, 1] + nn.sigmoid(i) * jnp.tanh(g)
    return jnp.stack([nn.sigmoid(o) * jnp.tanh(cell), cell], axis=1)


CELLS: dict[CellKind, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {"gru": gru, "lstm": lstm}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_cell(kind: CellKind, state: jax.Array, inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> States:
    """Apply a cell to Q steps.

    The gradient of the kernel is one matrix product over all steps. That of a plain scan adds a product to the whole
    kernel at every step, which moves far more memory than a small batch needs for its arithmetic.

    Args:
        kind: The cell.
        state: ``[B, parts, W]``.
        inputs: ``[Q, B, gates · W]``, projections of the steps.
        kernel: ``[W, gates · W]``, weights of the state's output.
        bias: ``[gates · W]``, added to the projections of the state.

    Returns:
        The state after the block, and the state after every step ``[Q, B, parts, W]``.
    """
    return _scan_cell(kind, state, inputs, kernel, bias)[0]


def _scan_cell(
    kind: CellKind, state: jax.Array, inputs: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[States, Residuals]:
    """Return the result of `scan_cell` and what its gradient needs."""

    def step(state: jax.Array, inputs: jax.Array) -> tuple[jax.Array, States]:
        projected = state[:, 0] @ kernel + bias
        new = CELLS[kind](state, inputs, projected)
        return new, (new, projected)

    last, (states, projected) = lax.scan(step, state, inputs)
    return (last, states), (state, states, inputs, projected, kernel)


def _scan_cell_gradient(kind: CellKind, residuals: Residuals, cotangents: States) -> tuple[jax.Array, ...]:
    """Return the gradients of `scan_cell` for its last four arguments."""
    start, states, inputs, projected, kernel = residuals
    before = jnp.concatenate([start[None], states[:-1]])

    def step(later: jax.Array, x: tuple[jax.Array, ...]) -> tuple[jax.Array, States]:
        state, inputs, projected, cotangent = x
        direct, of_inputs, of_projected = jax.vjp(CELLS[kind], state, inputs, projected)[1](later + cotangent)
        return direct.at[:, 0].add(of_projected @ kernel.T), (of_inputs, of_projected)

    of_start, (of_inputs, of_projected) = lax.scan(
        step, cotangents[0], (before, inputs, projected, cotangents[1]), reverse=True
    )
    rows = of_projected.reshape(-1, of_projected.shape[-1])
    of_kernel = before[:, :, 0].reshape(len(rows), -1).T @ rows
    return of_start, of_inputs, of_kernel, rows.sum(0)


scan_cell.defvjp(_scan_cell, _scan_cell_gradient)


def orthogonal_blocks(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """Initialize weights ``[W, n·W]`` with an orthogonal matrix for each of the n gates."""
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
        """Apply the cell to Q steps.

        Args:
            x: ``[B, Q, d]``.
            state: ``[B, parts, W]``.

        Returns:
            Outputs ``[B, Q, W]`` and the state after the block.
        """
        width, gates = self.width, {"gru": 3, "lstm": 4}[self.kind]

        def keep(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            del key  # in both cells, the second gate is the one that keeps the state
            return jnp.zeros(shape, dtype).at[width : 2 * width].set(self.keep_bias)

        lecun = nn.initializers.lecun_normal()
        inputs = Linear(gates * width, kernel_init=lecun, bias_init=keep, name="input")(x)  # all steps at once
        recurrent = self.param("recurrent", orthogonal_blocks, (width, gates * width), jnp.float32)
        bias = jnp.zeros((gates * width,), jnp.float32)
        if self.kind == "gru":
            candidate = self.param("candidate_bias", nn.initializers.zeros, (width,), jnp.float32)
            bias = bias.at[2 * width :].set(candidate)
        state, states = scan_cell(self.kind, state, inputs.swapaxes(0, 1), recurrent, bias)
        return states[:, :, 0].swapaxes(0, 1), state


class Recurrent(nn.Module):
    """Layers of cells. Whether a step is the first of its episode is an additional input."""

    config: RecurrentConfig
    kind: CellKind

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
            Hidden states ``[B, Q or q, width]`` and the memory after the steps.
        """
        del options
        below = jnp.concatenate([x, first[..., None].astype(x.dtype)], axis=-1)
        begin = lax.stop_gradient(memory.state)
        outputs, states = [], []
        for layer in range(self.config.layers):
            cell = Cell(self.kind, self.config.width, self.config.keep_bias, name=f"layers_{layer}")
            below, state = cell(below, begin[:, layer])
            outputs.append(below)
            states.append(state)
        hidden = jnp.sum(jnp.stack(outputs), axis=0)
        hidden = hidden if query_span is None else query_span.of(hidden)
        return hidden, Carry(jnp.stack(states, axis=1), memory.length + first.shape[1])
