"""Meshes of boxes, cylinders and spheres with normals and texture coordinates in meters. y is up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FACES = np.array(
    [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
)  # corners, numbered 4x + 2y + z, counter-clockwise from outside
AROUND, UPWARDS = 24, 12  # sides of a cylinder, and rings of a sphere


class Mesh(NamedTuple):
    """Triangles whose corners are counter-clockwise from outside.

    Attributes:
        positions: Float32 [n, 3].
        normals: Float32 [n, 3].
        places: Float32 [n, 2]; texture coordinates in meters.
        indices: Uint16 [3·m]; the vertices of each triangle.
    """

    positions: np.ndarray
    normals: np.ndarray
    places: np.ndarray
    indices: np.ndarray


def boxes(low: np.ndarray, high: np.ndarray) -> Mesh:
    """Return the mesh of n boxes with 24 vertices each, given their corners, [n, 3] each."""
    pick = np.indices((2, 2, 2)).reshape(3, 8).T.astype(bool)
    corners = np.where(pick, high[:, None], low[:, None])[:, FACES]  # [n, 6, 4, 3]
    outward = np.repeat(np.eye(3), 2, 0) * np.tile([[-1.0], [1.0]], (3, 1))
    normals = np.broadcast_to(outward[:, None], corners.shape)
    across = np.array([[2, 1], [2, 1], [0, 2], [0, 2], [0, 1], [0, 1]])  # the two axes that lie in each face
    places = np.take_along_axis(corners, np.broadcast_to(across[:, None], (*corners.shape[:-1], 2)), -1)
    indices = (np.arange(6 * len(low))[:, None] * 4 + [0, 1, 2, 0, 2, 3]).ravel()
    return _mesh(corners, normals, places, indices)


def cylinder(radius: float, height: float) -> Mesh:
    """Return an upright cylinder that stands on the origin."""
    angles = np.linspace(0, 2 * np.pi, AROUND + 1)
    ring = np.stack([np.sin(angles), np.zeros_like(angles), np.cos(angles)], -1)
    up = np.array([0.0, 1.0, 0.0])
    side = np.stack([radius * ring, radius * ring + height * up], 1)  # [AROUND + 1, 2, 3]
    places = np.stack(np.broadcast_arrays((radius * angles)[:, None], side[..., 1]), -1)
    lids = [np.concatenate([y * up[None], radius * ring + y * up]) for y in (0.0, height)]
    normals = [np.repeat(ring, 2, 0), *(np.broadcast_to(sign * up, lids[0].shape) for sign in (-1.0, 1.0))]
    k, first, second = np.arange(AROUND), side[..., 0].size, side[..., 0].size + len(lids[0])
    quads = np.stack([2 * k, 2 * k + 2, 2 * k + 3, 2 * k, 2 * k + 3, 2 * k + 1], -1)
    bottom = np.stack([np.full(AROUND, first), first + k + 2, first + k + 1], -1)
    top = np.stack([np.full(AROUND, second), second + k + 1, second + k + 2], -1)
    positions = np.concatenate([side.reshape(-1, 3), *lids])
    flat = np.concatenate([places.reshape(-1, 2), *(lid[:, [0, 2]] for lid in lids)])
    return _mesh(positions, np.concatenate(normals), flat, np.concatenate([i.ravel() for i in (quads, bottom, top)]))


def sphere(radius: float) -> Mesh:
    """Return a sphere that stands on the origin."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, UPWARDS + 1), np.linspace(0, 2 * np.pi, AROUND + 1))
    normals = np.stack([np.sin(polar) * np.sin(around), -np.cos(polar), np.sin(polar) * np.cos(around)], -1)
    corner = np.arange(AROUND)[:, None] * (UPWARDS + 1) + np.arange(UPWARDS)
    right = corner + UPWARDS + 1
    lower = np.stack([corner, right, right + 1], -1)[:, 1:]  # without the degenerate triangles at the poles
    upper = np.stack([corner, right + 1, corner + 1], -1)[:, :-1]
    indices = np.concatenate([lower.ravel(), upper.ravel()])
    places = radius * np.stack([around, polar], -1)
    return _mesh(radius * normals + np.array([0.0, radius, 0.0]), normals, places, indices)


def _mesh(positions: np.ndarray, normals: np.ndarray, places: np.ndarray, indices: np.ndarray) -> Mesh:
    positions, normals = (array.reshape(-1, 3).astype(np.float32) for array in (positions, normals))
    return Mesh(positions, normals, places.reshape(-1, 2).astype(np.float32), indices.astype(np.uint16))
