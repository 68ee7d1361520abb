"""Resizing with anti-aliasing by two fixed matrices, equal to the default of scikit-image's `resize`.

The image is blurred by a Gaussian with σ = (factor − 1) / 2 pixels, truncated at 4σ, then interpolated linearly at the
centers of the new pixels. Beyond its edges, the image is mirrored about its outermost pixels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def resize(image: jax.Array, height: int, width: int) -> jax.Array:
    """Resize an image, uint8 [H, W, 3], to float32 [height, width, 3] in [0, 1]."""
    down = jnp.asarray(resize_matrix(image.shape[0], height))
    across = jnp.asarray(resize_matrix(image.shape[1], width))
    return jnp.einsum("hH,HWc,wW->hwc", down, image.astype(jnp.float32), across) / 255.0


@functools.cache
def resize_matrix(size: int, new_size: int) -> np.ndarray:
    """Return the matrix, float32 [new_size, size], that resizes one axis. Its rows sum to 1."""
    return (_interpolation(size, new_size) @ _blur(size, max(0.0, (size / new_size - 1) / 2))).astype(np.float32)


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Reflect indices beyond the edges about the outermost pixels: … 2 1 | 0 1 2 … n−1 | n−2 …."""
    period = max(2 * (size - 1), 1)
    index = np.abs(index) % period
    return np.where(index < size, index, period - index)


def _blur(size: int, sigma: float) -> np.ndarray:
    radius = int(4.0 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / max(sigma, 1e-12)) ** 2)
    matrix = np.zeros((size, size))
    for row in range(size):
        np.add.at(matrix[row], _mirrored(row + offsets, size), weights / weights.sum())
    return matrix


def _interpolation(size: int, new_size: int) -> np.ndarray:
    centre = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    left = np.floor(centre).astype(int)
    matrix = np.zeros((new_size, size))
    rows = np.arange(new_size)
    np.add.at(matrix, (rows, _mirrored(left, size)), 1 - (centre - left))
    np.add.at(matrix, (rows, _mirrored(left + 1, size)), centre - left)
    return matrix
