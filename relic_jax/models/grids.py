"""Views of grids, whose pixels say one-hot what a cell holds: an embedding for each cell, and a glance at them.

What a policy has to do in a grid is mostly of one form: "go to where that is". `that` comes out of memory, and where it
is has to be found in the view, wherever it may be and whatever it may be. A layer that mixes the cells first, as a
convolution's last does, would have to learn that comparison anew for every thing and every place; attention over the
cells, with the memory's output as its query, makes it by a product. Where a step says itself what to look for, as a
one-hot goal, every such name has queries of its own beside it. Pictures are grids too, of what convolutions say of each
of their patches (`encoders.Patches`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

CELL_WIDTH, PATCH_WIDTH = 16, 32
"""Numbers that a cell of a grid, and a patch of a picture, is embedded into."""
GLANCE_HEADS = 4
GLANCE_WIDTH = 128
"""Of the hidden layer that puts together what was looked for and what was found."""


class CellEmbedding(nn.Module):
    """One linear layer for each cell alone; of about unit length at the start where a cell is two one-hot codes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 [N, H, W, C] in −1 … 1. Returns float32 [N, H·W·CELL_WIDTH]."""
        init = nn.initializers.normal((2 * CELL_WIDTH) ** -0.5)
        return nn.Dense(CELL_WIDTH, kernel_init=init, name="linear")((x + 1) / 2).reshape(x.shape[0], -1)


def split_cells(features: jax.Array, width: int) -> jax.Array:
    """[..., cells·width] → [..., cells, width]."""
    return features.reshape(*features.shape[:-1], -1, width)


def shrunk(features: jax.Array, width: int) -> jax.Array:
    """The same at about length 2, however many cells there are, so that they do not drown a step's other inputs."""
    return features * 2 / (features.shape[-1] // width) ** 0.5


class SpatialAttention(nn.Module):
    """Attention over the cells of the views with a query from the memory's output, a hidden layer, and a residual."""

    @nn.compact
    def __call__(self, hidden: jax.Array, cells: jax.Array, goal: jax.Array | None = None) -> jax.Array:
        """hidden: float32 [..., d]; cells: float32 [..., n, w], of all views; goal: float32 [..., g], whose
        queries are added; how well the best cells match is then told too. Returns float32 [..., d].
        """
        width = cells.shape[-1]
        query = nn.DenseGeneral((GLANCE_HEADS, width), name="query")(hidden)
        if goal is not None:
            shape = (goal.shape[-1], GLANCE_HEADS, width)
            names = self.param("names", nn.initializers.normal(1.0), shape, jnp.float32)
            query = query + jnp.einsum("...g,ghc->...hc", goal, names)
        places = self.param("places", nn.initializers.normal(1.0), cells.shape[-2:], jnp.float32)
        scores = jnp.einsum("...hc,...nc->...hn", query, cells)
        weights = nn.softmax(scores, axis=-1)
        where = jnp.einsum("...hn,nc->...hc", weights, places)
        what = jnp.einsum("...hn,...nc->...hc", weights, cells)
        found = jnp.concatenate([where, what], axis=-1).reshape(*hidden.shape[:-1], -1)
        both = jnp.concatenate([hidden, found], axis=-1)
        if goal is not None:
            both = jnp.concatenate([both, nn.logsumexp(scores, axis=-1) - jnp.log(cells.shape[-2])], axis=-1)
        init = nn.initializers.orthogonal(2**0.5)
        mixed = nn.relu(nn.Dense(GLANCE_WIDTH, kernel_init=init, name="mix")(both))
        return hidden + nn.Dense(hidden.shape[-1], name="out")(mixed)
