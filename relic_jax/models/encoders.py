"""Encoders: from what the policy reads at a step to one vector.

Images become features first (`encode_images`); everything else reads features. Each image is encoded once, when the
policy acts; later passes reuse its features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from relic_jax.config.policy import EncoderConfig
from relic_jax.environment.base import ActionSpace, Image
from relic_jax.models import actions, vision
from relic_jax.models.grids import CELL_WIDTH, PATCH_WIDTH, CellEmbedding, shrunk, split_cells
from relic_jax.models.statistics import normalized, nothing_seen
from relic_jax.types import PyTree, StepInput

IMAGE_RANK = 3
"""Of an image, [height, width, channels] (`relic_jax.environment.base.Image`)."""

IMAGE_ENCODER = "image_"
"""Parameters of the n-th image's encoder are called this and n."""

CONVOLUTIONS = {
    "small": ((16, 4, 4), (32, 3, 2)),
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
}
"""Channels, kernel and stride of each layer. small: patches of 4×4 first, an eighth of the cost of nature."""

PATCHES = ((32, 4, 4), (64, 3, 2), (64, 3, 1))
"""The same, of `Patches`: places of 8×8 pixels, of which the last layer sees the neighbours too."""

GRIDS = {"cells": CELL_WIDTH, "patches": PATCH_WIDTH}
"""Encoders that keep places apart, so many numbers each, for the policy to glance at (`grids`)."""

SHORT, SHORT_WIDTH = 4, 32
"""Vectors of up to SHORT numbers are embedded into SHORT_WIDTH."""


def image_mask(spec: PyTree) -> tuple[bool, ...]:
    """For each array of an observation, in tree order, whether it is an image. spec: `Environment.observation_spec`."""
    return tuple(isinstance(x, Image) for x in jax.tree.leaves(spec))


def patches(x: jax.Array, kernel: int, stride: int) -> jax.Array:
    """What each step of a convolution with padding "SAME" reads: [N, H, W, C] → [N, ⌈H/stride⌉, ⌈W/stride⌉, kernel²·C].

    A linear layer on it is the convolution. XLA on CPU is slow at the gradient of its own convolution inside a loop.
    """
    sizes = [-(-side // stride) for side in x.shape[1:3]]
    reach = [(size - 1) * stride + 1 for size in sizes]
    missing = [max(r - 1 + kernel - side, 0) for r, side in zip(reach, x.shape[1:3], strict=True)]
    x = jnp.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
    offsets = [(i, j) for i in range(kernel) for j in range(kernel)]
    return jnp.concatenate([x[:, i : i + reach[0] : stride, j : j + reach[1] : stride] for i, j in offsets], axis=-1)


class Convolutions(nn.Module):
    """Convolutions and one linear layer, each with a ReLU; orthogonal weights, no normalisation."""

    layers: tuple[tuple[int, int, int], ...]
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 [N, H, W, C] of about unit scale. Returns float32 [N, features]."""
        init = nn.initializers.orthogonal(2**0.5)
        for channels, kernel, stride in self.layers:
            x = nn.relu(nn.Dense(channels, kernel_init=init)(patches(x, kernel, stride)))
        return nn.relu(nn.Dense(self.features, kernel_init=init)(x.reshape(x.shape[0], -1)))


class Patches(nn.Module):
    """Convolutions with a ReLU each, and a linear layer for each place alone: what is where, as if it were a grid."""

    layers: tuple[tuple[int, int, int], ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 [N, H, W, C] of about unit scale. Returns float32 [N, places·PATCH_WIDTH]."""
        init = nn.initializers.orthogonal(2**0.5)
        for channels, kernel, stride in self.layers:
            x = nn.relu(nn.Dense(channels, kernel_init=init)(patches(x, kernel, stride)))
        x = nn.Dense(PATCH_WIDTH, kernel_init=nn.initializers.orthogonal())(x)
        return x.reshape(x.shape[0], -1)


def places(kind: str, height: int, width: int) -> int:
    """How many places an encoder of GRIDS keeps apart in an image of that size."""
    for _, _, stride in PATCHES if kind == "patches" else ():
        height, width = -(-height // stride), -(-width // stride)
    return height * width


def image_encoder(config: EncoderConfig) -> nn.Module:
    """The network for one image: [N, H, W, C] → float32 [N, features]."""
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
    """image: [..., H, W, C], uint8, or float of about unit scale. Returns float32 [..., features]."""
    x = image.reshape(-1, *image.shape[-IMAGE_RANK:])
    if config.image == "vit-b16":
        x = vision.vit_pixels(x, vision.VIT_B16.size)
    else:
        x = x.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else x.astype(jnp.float32)
    features = encoder(x)
    return features.reshape(*image.shape[:-IMAGE_RANK], -1)


class VectorEmbedding(nn.Module):
    """A linear layer: up to SHORT numbers (a position, a heading) → SHORT_WIDTH, more (a one-hot goal) → width."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 [..., n] → float32 [..., SHORT_WIDTH or width]."""
        return nn.Dense(SHORT_WIDTH if x.shape[-1] <= SHORT else self.width, name="linear")(x)


def vector_part(observation: PyTree, images: tuple[bool, ...], leading: int) -> jax.Array:
    """What is no image, one after the other in tree order: float32 [..., D]. leading: number of axes before it."""
    leaves = [x for x, is_image in zip(jax.tree.leaves(observation), images, strict=True) if not is_image]
    flat = [x.reshape(*x.shape[:leading], -1).astype(jnp.float32) for x in leaves]
    return jnp.concatenate(flat, axis=-1)


def split_like(arrays: Sequence[jax.Array], joined: jax.Array) -> list[jax.Array]:
    """`joined`, which is as long as the arrays one after the other, cut as they are along the last axis."""
    ends = itertools.accumulate(x.shape[-1] for x in arrays)
    return jnp.split(joined, list(ends)[:-1], axis=-1)


class StepEncoder(nn.Module):
    """Concatenates [observation, previous reward, embedding of the previous action].

    The embedding has a start token of its own, used at the first step of each episode. Of an observation of several
    arrays, the features of images come first, then the other arrays in tree order, flattened.

    low, high: of the vector components, one after the other. images: `image_mask` of the observation.
    """

    config: EncoderConfig
    action_space: ActionSpace
    width: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    images: tuple[bool, ...]

    def setup(self) -> None:
        """Declares the parameters."""
        std = 1.0 if self.config.observation == "raw" else self.width**-0.5
        self.action = actions.embedding(self.action_space, self.width, std)
        if self.config.observation == "normalized":
            self.statistics = self.param("statistics", lambda _: nothing_seen(len(self.low)))
        self.image = [image_encoder(self.config) for _ in range(sum(self.images))]
        if self.config.vectors == "embedded":
            self.visual = [nn.Dense(self.width) for _ in range(sum(self.images))]
            self.vector = [VectorEmbedding(self.width) for _ in range(len(self.images) - sum(self.images))]

    def encode_images(self, inputs: StepInput) -> StepInput:
        """The same inputs with float32 [..., features] in place of every image; what is features already stays."""
        leaves, tree = jax.tree.flatten(inputs.observation)
        encoders = iter(self.image)
        for index in (index for index, is_image in enumerate(self.images) if is_image):
            encode = next(encoders)
            if leaves[index].ndim == inputs.first.ndim + IMAGE_RANK:
                features = encode_image(self.config, encode, leaves[index])
                leaves[index] = jax.lax.stop_gradient(features) if self.config.freeze else features
        return inputs.replace(observation=jax.tree.unflatten(tree, leaves))

    def cells(self, inputs: StepInput) -> jax.Array:
        """Of all images of cells: float32 [..., n, w], w of GRIDS. inputs: encoded."""
        leaves, width = jax.tree.leaves(inputs.observation), GRIDS[self.config.image]
        views = [split_cells(x, width) for x, is_image in zip(leaves, self.images, strict=True) if is_image]
        return jnp.concatenate(views, axis=-2)

    def goal(self, inputs: StepInput) -> jax.Array | None:
        """What the step says is wanted: its vectors of more than SHORT numbers, flattened, float32 [..., g]. None where
        there are none, and with `cells`, whose goals are in the view or have to be found out.
        """
        shape, leaves = inputs.first.shape, jax.tree.leaves(inputs.observation)
        flat = [x.reshape(*shape, -1) for x, is_image in zip(leaves, self.images, strict=True) if not is_image]
        vectors = [x for x in flat if x.shape[-1] > SHORT]
        if self.config.image == "cells" or not vectors:
            return None
        return jnp.concatenate([x.astype(jnp.float32) for x in vectors], axis=-1)

    def __call__(self, inputs: StepInput) -> jax.Array:
        """inputs: leading axes [...], with images or their features. Returns float32 [..., width of all]."""
        leaves = jax.tree.leaves(self.encode_images(inputs).observation)
        shape = inputs.first.shape
        flat = [x.reshape(*shape, -1).astype(jnp.float32) for x in leaves]
        features = [x for x, is_image in zip(flat, self.images, strict=True) if is_image]
        if self.config.image in GRIDS:
            features = [shrunk(x, GRIDS[self.config.image]) for x in features]
        vectors = [x for x, is_image in zip(flat, self.images, strict=True) if not is_image]
        if vectors and self.config.observation == "scaled":
            low, high = jnp.asarray(self.low), jnp.asarray(self.high)
            vectors = split_like(vectors, 2 * (jnp.concatenate(vectors, axis=-1) - low) / (high - low) - 1)
        if vectors and self.config.observation == "normalized":
            vectors = split_like(vectors, normalized(self.statistics, jnp.concatenate(vectors, axis=-1)))
        if self.config.vectors == "embedded":
            features = [nn.relu(embed(x)) for embed, x in zip(self.visual, features, strict=True)]
            vectors = [embed(x) for embed, x in zip(self.vector, vectors, strict=True)]
        reward = [inputs.previous_reward[..., None].astype(jnp.float32)] if self.config.reward else []
        previous = self.action(inputs.previous_action, inputs.first)
        return jnp.concatenate([*features, *vectors, *reward, previous], axis=-1)
