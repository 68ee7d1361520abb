"""Grid observations: an embedding for each cell, and spatial attention over the cells.

In a grid world, a policy mostly has to find an object that it remembers in the current view. A linear layer over all
cells would have to learn this comparison separately for every object and every position. Attention over the cells, with
a query computed from the memory's output, learns it once. If the observation contains a goal vector, the query also
depends on the goal. Images can be used in the same way: their cells are the outputs of a convolutional network
(`encoders.Patches`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

CELL_WIDTH, PATCH_WIDTH = 16, 32
"""Width of the feature vector of a grid cell, and of an image patch."""
SPATIAL_HEADS = 4
"""Attention heads of `SpatialAttention`."""
SPATIAL_WIDTH = 128
"""Width of the hidden layer of `SpatialAttention`."""


class CellEmbedding(nn.Module):
    """Linear layer per cell. The embeddings initially have about unit length if a cell is two one-hot vectors."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float32 [N, H, W, C] in [−1, 1] to float32 [N, H·W·CELL_WIDTH]."""
        init = nn.initializers.normal((2 * CELL_WIDTH) ** -0.5)
        return nn.Dense(CELL_WIDTH, kernel_init=init, name="linear")((x + 1) / 2).reshape(x.shape[0], -1)


def split_cells(features: jax.Array, width: int) -> jax.Array:
    """Reshape [..., cells·width] to [..., cells, width]."""
    return features.reshape(*features.shape[:-1], -1, width)


def rescale(features: jax.Array, width: int) -> jax.Array:
    """Rescale the features of all cells to a length of about 2, independent of the number of cells.

    Without rescaling, the features of many cells would dominate the other inputs of a step.
    """
    return features * 2 / (features.shape[-1] // width) ** 0.5


class SpatialAttention(nn.Module):
    """Attention over the cells of the images, with a query from the memory's output, then a residual MLP.

        w = softmax(q·c),    y = h + W₂·relu(W₁·[h, Σ w·p, Σ w·c])

    for cells c, learned position embeddings p and one query q per head, a linear function of h and of the goal. If
    there is a goal, W₁ also reads log-mean-exp(q·c) of each head, which is large if some cells match the query.
    """

    @nn.compact
    def __call__(self, hidden: jax.Array, cells: jax.Array, goal: jax.Array | None = None) -> jax.Array:
        """Apply the module.

        Args:
            hidden: output of the memory, float32 [..., d].
            cells: feature vectors of the cells of all images, float32 [..., n, w].
            goal: goal vector, float32 [..., g], or None.

        Returns:
            float32 [..., d].
        """
        width = cells.shape[-1]
        query = nn.DenseGeneral((SPATIAL_HEADS, width), name="query")(hidden)
        if goal is not None:
            shape = (goal.shape[-1], SPATIAL_HEADS, width)
            names = self.param("names", nn.initializers.normal(1.0), shape, jnp.float32)
            query = query + jnp.einsum("...g,ghc->...hc", goal, names)
        places = self.param("places", nn.initializers.normal(1.0), cells.shape[-2:], jnp.float32)
        scores = jnp.einsum("...hc,...nc->...hn", query, cells)
        weights = nn.softmax(scores, axis=-1)
        position = jnp.einsum("...hn,nc->...hc", weights, places)
        content = jnp.einsum("...hn,...nc->...hc", weights, cells)
        attended = jnp.concatenate([position, content], axis=-1).reshape(*hidden.shape[:-1], -1)
        features = jnp.concatenate([hidden, attended], axis=-1)
        if goal is not None:
            match = nn.logsumexp(scores, axis=-1) - jnp.log(cells.shape[-2])
            features = jnp.concatenate([features, match], axis=-1)
        init = nn.initializers.orthogonal(2**0.5)
        mixed = nn.relu(nn.Dense(SPATIAL_WIDTH, kernel_init=init, name="mix")(features))
        return hidden + nn.Dense(hidden.shape[-1], name="out")(mixed)
