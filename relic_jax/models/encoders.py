"""Encoders, which turn the inputs of a step into one vector.

Images are first encoded as features (`StepEncoder.encode_images`). Each image is encoded once, when the policy acts.
Later passes over the step reuse its features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from relic_jax.config.policy import EncoderConfig
from relic_jax.environment.base import ActionSpace
from relic_jax.models import actions, vision
from relic_jax.models.grids import CELL_WIDTH, PATCH_WIDTH, CellEmbedding, rescale, split_cells
from relic_jax.models.statistics import initial_statistics, normalize
from relic_jax.spaces import IMAGE_RANK
from relic_jax.types import PyTree, StepInput

IMAGE_ENCODER = "image_"
"""Prefix of the parameters of image encoders. The encoder of the n-th image is `image_n`."""

CONVOLUTIONS = {
    "small": ((16, 4, 4), (32, 3, 2)),
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
}
"""Channels, kernel size and stride of each layer. `small` costs an eighth of `nature`: its first layer has 4×4 patches.
"""

PATCHES = ((32, 4, 4), (64, 3, 2), (64, 3, 1))
"""The same for `Patches`. A cell of the result covers 8×8 pixels; the last layer also reads the neighbouring cells."""

GRIDS = {"cells": CELL_WIDTH, "patches": PATCH_WIDTH}
"""Encoders that keep a feature vector per cell, for `grids.SpatialAttention`, and the width of that vector."""

SHORT, SHORT_WIDTH = 4, 32
"""With embedded vectors, a vector of up to `SHORT` components is mapped to `SHORT_WIDTH`."""


def extract_patches(x: jax.Array, kernel: int, stride: int) -> jax.Array:
    """Extract the input patches of a convolution with padding "SAME".

    A linear layer applied to the patches computes the convolution. On CPU, XLA's own convolution has a slow gradient
    inside a loop.

    Args:
        x: [N, H, W, C].
        kernel: side of the square kernel.
        stride: stride along both axes.

    Returns:
        [N, ⌈H/stride⌉, ⌈W/stride⌉, kernel²·C].
    """
    sizes = [-(-side // stride) for side in x.shape[1:3]]
    reach = [(size - 1) * stride + 1 for size in sizes]
    missing = [max(r - 1 + kernel - side, 0) for r, side in zip(reach, x.shape[1:3], strict=True)]
    x = jnp.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
    offsets = [(i, j) for i in range(kernel) for j in range(kernel)]
    return jnp.concatenate([x[:, i : i + reach[0] : stride, j : j + reach[1] : stride] for i, j in offsets], axis=-1)


class Convolutions(nn.Module):
    """Convolutions and one linear layer, each followed by a ReLU, with orthogonal initialization and no norm."""

    layers: tuple[tuple[int, int, int], ...]
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float32 [N, H, W, C] of about unit scale to float32 [N, features]."""
        init = nn.initializers.orthogonal(2**0.5)
        for channels, kernel, stride in self.layers:
            x = nn.relu(nn.Dense(channels, kernel_init=init)(extract_patches(x, kernel, stride)))
        return nn.relu(nn.Dense(self.features, kernel_init=init)(x.reshape(x.shape[0], -1)))


class Patches(nn.Module):
    """Convolutions, each followed by a ReLU, and a linear layer per cell. Keeps a feature vector for each cell."""

    layers: tuple[tuple[int, int, int], ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float32 [N, H, W, C] of about unit scale to float32 [N, cells·PATCH_WIDTH]."""
        init = nn.initializers.orthogonal(2**0.5)
        for channels, kernel, stride in self.layers:
            x = nn.relu(nn.Dense(channels, kernel_init=init)(extract_patches(x, kernel, stride)))
        x = nn.Dense(PATCH_WIDTH, kernel_init=nn.initializers.orthogonal())(x)
        return x.reshape(x.shape[0], -1)


def num_cells(kind: str, height: int, width: int) -> int:
    """Return the number of cells for which an encoder of `GRIDS` keeps a feature vector. kind: a key of `GRIDS`."""
    for _, _, stride in PATCHES if kind == "patches" else ():
        height, width = -(-height // stride), -(-width // stride)
    return height * width


def image_encoder(config: EncoderConfig) -> nn.Module:
    """Return the network that encodes one image: [N, H, W, C] → float32 [N, features]."""
    if config.image == "vit-b16":
        return vision.VisionTransformer(vision.VIT_B16, config.vit_dtype)
    if config.image == "cells":
        return CellEmbedding()
    if config.image == "patches":
        return Patches(PATCHES)
    if config.image == "resnet18":
        return vision.ResNet18(config.features)
    return Convolutions(CONVOLUTIONS[config.image], config.features)


def encode_image(config: EncoderConfig, encoder: nn.Module, image: jax.Array) -> jax.Array:
    """Encode an image: [..., H, W, C], uint8 or float of about unit scale → float32 [..., features]."""
    x = image.reshape(-1, *image.shape[-IMAGE_RANK:])
    if config.image == "vit-b16":
        x = vision.vit_pixels(x, vision.VIT_B16.size)
    else:
        x = x.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else x.astype(jnp.float32)
    features = encoder(x)
    return features.reshape(*image.shape[:-IMAGE_RANK], -1)


class VectorEmbedding(nn.Module):
    """Linear layer. Short vectors, such as a position, map to `SHORT_WIDTH`; long ones, such as a goal, to `width`."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float32 [..., n] to float32 [..., SHORT_WIDTH or width]."""
        return nn.Dense(SHORT_WIDTH if x.shape[-1] <= SHORT else self.width, name="linear")(x)


def concatenate_vectors(observation: PyTree, images: tuple[bool, ...], leading: int) -> jax.Array:
    """Concatenate the arrays of an observation that are not images, in tree order.

    Args:
        observation: pytree of arrays with the same `leading` leading axes.
        images: for each array, whether it is an image.
        leading: number of leading axes.

    Returns:
        float32 [..., D].
    """
    leaves = [x for x, is_image in zip(jax.tree.leaves(observation), images, strict=True) if not is_image]
    flat = [x.reshape(*x.shape[:leading], -1).astype(jnp.float32) for x in leaves]
    return jnp.concatenate(flat, axis=-1)


def split_like(arrays: Sequence[jax.Array], joined: jax.Array) -> list[jax.Array]:
    """Split `joined` along its last axis into parts of the same sizes as `arrays`."""
    ends = itertools.accumulate(x.shape[-1] for x in arrays)
    return jnp.split(joined, list(ends)[:-1], axis=-1)


class StepEncoder(nn.Module):
    """Concatenates the observation, the previous reward and an embedding of the previous action.

    The embedding has a separate start token for the first step of each episode. If an observation has several arrays,
    the image features come first, followed by the other arrays in tree order, flattened.

    Attributes:
        config: architecture.
        action_space: the set of actions.
        width: width of the policy.
        low: lower bounds of the vector components, concatenated in tree order.
        high: upper bounds, in the same order.
        images: for each array of the observation, whether it is an image.
    """

    config: EncoderConfig
    action_space: ActionSpace
    width: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    images: tuple[bool, ...]

    def setup(self) -> None:
        """Declare the parameters."""
        std = 1.0 if self.config.observation == "raw" else self.width**-0.5
        self.action = actions.embedding(self.action_space, self.width, std)
        if self.config.observation == "normalized":
            self.statistics = self.param("statistics", lambda _: initial_statistics(len(self.low)))
        self.image = [image_encoder(self.config) for _ in range(sum(self.images))]
        if self.config.vectors == "embedded":
            self.visual = [nn.Dense(self.width) for _ in range(sum(self.images))]
            self.vector = [VectorEmbedding(self.width) for _ in range(len(self.images) - sum(self.images))]

    def encode_images(self, inputs: StepInput) -> StepInput:
        """Replace every image by its features, float32 [..., features]. Images that are already encoded are kept."""
        leaves, tree = jax.tree.flatten(inputs.observation)
        encoders = iter(self.image)
        for index in (index for index, is_image in enumerate(self.images) if is_image):
            encode = next(encoders)
            # `images` says which arrays are images. An image has three axes of its own, its features have one.
            if leaves[index].ndim == inputs.first.ndim + IMAGE_RANK:
                features = encode_image(self.config, encode, leaves[index])
                leaves[index] = jax.lax.stop_gradient(features) if self.config.freeze else features
        return inputs.replace(observation=jax.tree.unflatten(tree, leaves))

    def cells(self, inputs: StepInput) -> jax.Array:
        """Return the cells of all images, float32 [..., n, w] with w of `GRIDS`. The inputs must be encoded."""
        leaves, width = jax.tree.leaves(inputs.observation), GRIDS[self.config.image]
        views = [split_cells(x, width) for x, is_image in zip(leaves, self.images, strict=True) if is_image]
        return jnp.concatenate(views, axis=-2)

    def goal(self, inputs: StepInput) -> jax.Array | None:
        """Return the goal of the step: its vectors of more than `SHORT` components, concatenated, float32 [..., g].

        Returns None if there are no such vectors, and for the encoder `cells`, whose observations contain no goal
        vector.
        """
        shape, leaves = inputs.first.shape, jax.tree.leaves(inputs.observation)
        flat = [x.reshape(*shape, -1) for x, is_image in zip(leaves, self.images, strict=True) if not is_image]
        vectors = [x for x in flat if x.shape[-1] > SHORT]
        if self.config.image == "cells" or not vectors:
            return None
        return jnp.concatenate([x.astype(jnp.float32) for x in vectors], axis=-1)

    def __call__(self, inputs: StepInput) -> jax.Array:
        """Encode inputs with leading axes [...], with images or their features. Returns float32 [..., total width]."""
        leaves = jax.tree.leaves(self.encode_images(inputs).observation)
        shape = inputs.first.shape
        flat = [x.reshape(*shape, -1).astype(jnp.float32) for x in leaves]
        features = [x for x, is_image in zip(flat, self.images, strict=True) if is_image]
        if self.config.image in GRIDS:
            features = [rescale(x, GRIDS[self.config.image]) for x in features]
        vectors = [x for x, is_image in zip(flat, self.images, strict=True) if not is_image]
        if vectors and self.config.observation == "scaled":
            low, high = jnp.asarray(self.low), jnp.asarray(self.high)
            vectors = split_like(vectors, 2 * (jnp.concatenate(vectors, axis=-1) - low) / (high - low) - 1)
        if vectors and self.config.observation == "normalized":
            vectors = split_like(vectors, normalize(self.statistics, jnp.concatenate(vectors, axis=-1)))
        if self.config.vectors == "embedded":
            features = [nn.relu(embed(x)) for embed, x in zip(self.visual, features, strict=True)]
            vectors = [embed(x) for embed, x in zip(self.vector, vectors, strict=True)]
        reward = [inputs.previous_reward[..., None].astype(jnp.float32)] if self.config.reward else []
        previous = self.action(inputs.previous_action, inputs.first)
        return jnp.concatenate([*features, *vectors, *reward, previous], axis=-1)
