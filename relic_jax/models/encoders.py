"""Encoders: from what the policy reads at a step to one vector.

Images become features first (`perceive`), everything else is done on features. So an image needs to be looked at once,
when acting; whoever keeps the features keeps what the image meant to the policy.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from envs.base import ActionSpace
from relic_jax.models import actions
from relic_jax.models.statistics import normalized, nothing_seen
from relic_jax.types import PyTree, StepInput

IMAGE_RANK = 3
"""Observation arrays of this rank, [height, width, channels], are images; all others are vectors."""

CONVOLUTIONS = {
    "small": ((16, 4, 4), (32, 3, 2)),
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
}
"""Channels, kernel and stride of each layer. small: patches of 4×4 first, an eighth of the cost of nature."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """How a step's inputs become one vector."""

    observation: Literal["raw", "scaled", "normalized"] = "raw"
    """raw: vector observations as they are, action embeddings N(0, 1) (the original); scaled: each component's range
    mapped to [−1, 1] and action embeddings of unit length, so that no input drowns the others at the start; normalized:
    the same embeddings, each component less its mean and over its deviation in training so far."""
    reward: bool = True
    """Feed the previous reward."""
    image: Literal["small", "nature"] = "small"
    """Convolutions for images, where there are any. small: two layers, for 2 cores; nature: the three of Mnih et al.
    2015."""
    features: int = 64
    """Features per image; kept for every step of a trial (float32)."""
    freeze: bool = False
    """Leave the image encoder as it is initialised or loaded. Its images need not be kept for the update."""


def image_mask(spec: PyTree) -> tuple[bool, ...]:
    """For each array of an observation, in tree order, whether it is an image. spec: their unbatched shapes."""
    return tuple(len(x.shape) == IMAGE_RANK for x in jax.tree.leaves(spec))


def patches(x: jax.Array, kernel: int, stride: int) -> jax.Array:
    """What each step of a convolution with padding "SAME" reads: [N, H, W, C] → [N, ⌈H/stride⌉, ⌈W/stride⌉, kernel²·C].

    A linear layer on it is the convolution. XLA on CPU needs nine times as long for the gradient of its own convolution
    where that is inside a loop.
    """
    sizes = [-(-side // stride) for side in x.shape[1:3]]
    reach = [(size - 1) * stride + 1 for size in sizes]
    missing = [max(r - 1 + kernel - side, 0) for r, side in zip(reach, x.shape[1:3], strict=True)]
    x = jnp.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
    offsets = [(i, j) for i in range(kernel) for j in range(kernel)]
    return jnp.concatenate([x[:, i : i + reach[0] : stride, j : j + reach[1] : stride] for i, j in offsets], axis=-1)


class ImageEncoder(nn.Module):
    """Convolutions and one linear layer, each with a ReLU; orthogonal weights, no normalisation."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """image: [..., H, W, C], uint8, or float of about unit scale. Returns float32 [..., features]."""
        x = image.astype(jnp.float32)
        if image.dtype == jnp.uint8:
            x = x / 127.5 - 1
        x, init = x.reshape(-1, *image.shape[-IMAGE_RANK:]), nn.initializers.orthogonal(2**0.5)
        for channels, kernel, stride in CONVOLUTIONS[self.config.image]:
            x = nn.relu(nn.Dense(channels, kernel_init=init)(patches(x, kernel, stride)))
        x = nn.relu(nn.Dense(self.config.features, kernel_init=init)(x.reshape(len(x), -1)))
        return x.reshape(*image.shape[:-IMAGE_RANK], -1)


def vector_part(observation: PyTree, images: tuple[bool, ...], leading: int) -> jax.Array:
    """What is no image, one after the other in tree order: float32 [..., D]. leading: number of axes before it."""
    leaves = [x for x, is_image in zip(jax.tree.leaves(observation), images, strict=True) if not is_image]
    flat = [x.reshape(*x.shape[:leading], -1).astype(jnp.float32) for x in leaves]
    return jnp.concatenate(flat, axis=-1)


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
        self.image = [ImageEncoder(self.config) for _ in range(sum(self.images))]

    def perceive(self, inputs: StepInput) -> StepInput:
        """The same inputs with float32 [..., features] in place of every image; what is features already stays."""
        leaves, tree = jax.tree.flatten(inputs.observation)
        encoders = iter(self.image)
        for index in (index for index, is_image in enumerate(self.images) if is_image):
            encode = next(encoders)
            if leaves[index].ndim == inputs.first.ndim + IMAGE_RANK:
                features = encode(leaves[index])
                leaves[index] = jax.lax.stop_gradient(features) if self.config.freeze else features
        return inputs.replace(observation=jax.tree.unflatten(tree, leaves))

    def __call__(self, inputs: StepInput) -> jax.Array:
        """inputs: leading axes [...], with images or their features. Returns float32 [..., width of all]."""
        leaves = jax.tree.leaves(self.perceive(inputs).observation)
        shape = inputs.first.shape
        flat = [x.reshape(*shape, -1).astype(jnp.float32) for x in leaves]
        features = [x for x, is_image in zip(flat, self.images, strict=True) if is_image]
        vectors = [x for x, is_image in zip(flat, self.images, strict=True) if not is_image]
        if vectors and self.config.observation == "scaled":
            low, high = jnp.asarray(self.low), jnp.asarray(self.high)
            vectors = [2 * (jnp.concatenate(vectors, axis=-1) - low) / (high - low) - 1]
        if vectors and self.config.observation == "normalized":
            vectors = [normalized(self.statistics, jnp.concatenate(vectors, axis=-1))]
        reward = [inputs.previous_reward[..., None].astype(jnp.float32)] if self.config.reward else []
        previous = self.action(inputs.previous_action, inputs.first)
        return jnp.concatenate([*features, *vectors, *reward, previous], axis=-1)
