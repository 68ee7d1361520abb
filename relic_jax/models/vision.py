"""Image encoders with the architecture of published weights: ResNet-18 with GroupNorm, and ViT-B/16.

ResNet-18 is the one of habitat-baselines (He et al. 2016, arXiv 1512.03385; Wu & He 2018, arXiv 1803.08494): half the
usual channels, GroupNorm instead of BatchNorm, a last convolution with about 2048 outputs, and one linear layer.
ViT-B/16 (Dosovitskiy et al. 2021, arXiv 2010.11929) is vit_base_patch16_224 of timm, the architecture of VC-1. Its
feature is the class token. `relic_jax.interop.encoders` reads the weights.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MARGIN = 256 / 224
"""Images are resized to this multiple of the network's input size, then cropped to the input size."""
COMPRESSED = 2048
"""Approximate number of outputs of ResNet-18's last convolution."""


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer."""

    size: int = 224
    """Side of the square input image in pixels."""
    patch: int = 16
    """Side of a patch in pixels."""
    layers: int = 12
    """Number of blocks."""
    width: int = 768
    """Width of the residual stream and of the feature."""
    heads: int = 12
    """Attention heads."""
    mlp_width: int = 3072
    """Hidden width of the MLP."""

    @property
    def tokens(self) -> int:
        """Number of tokens: the patches and the class token."""
        return (self.size // self.patch) ** 2 + 1


VIT_B16 = ViTConfig()


def vit_pixels(image: jax.Array, size: int) -> jax.Array:
    """Preprocess images as VC-1 does.

    The shorter side is resized to 256/224 of `size` (bicubic with a = −1/2, antialiased), and the center is cropped.
    uint8 images are normalized with the mean and standard deviation of ImageNet. Float images must be normalized
    already.

    Args:
        image: [N, H, W, 3].
        size: side of the network's input in pixels.

    Returns:
        float32 [N, size, size, 3].
    """
    height, width = image.shape[1:3]
    x = image.astype(jnp.float32)
    if image.dtype == jnp.uint8:
        x = (x / 255 - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
    short = round(size * MARGIN)
    rows, columns = (
        jnp.asarray(resizing(side, int(short * side / min(height, width)), size), jnp.float32)
        for side in (height, width)
    )
    return jnp.einsum("ih,nhwc,jw->nijc", rows, x, columns, precision="highest")


def resizing(before: int, after: int, size: int) -> np.ndarray:
    """Return the matrix that resizes `before` pixels to `after` and crops the central `size`: float64 [size, before].

    Uses the cubic kernel of Keys (1981) with a = −1/2:

        k(x) = 1.5|x|³ − 2.5|x|² + 1 for |x| ≤ 1,    −0.5|x|³ + 2.5|x|² − 4|x| + 2 for 1 < |x| < 2

    The kernel is widened when shrinking, and its weights are normalized over the existing pixels.
    """
    pixel = np.arange(size) + round((after - size) / 2)
    centre = (pixel + 0.5) * before / after - 0.5
    x = np.abs(np.arange(before) - centre[:, None]) / max(before / after, 1.0)
    far = np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0.0)
    weights = np.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, far)
    return weights / weights.sum(axis=1, keepdims=True)


class ViTBlock(nn.Module):
    """LayerNorm → attention → residual → LayerNorm → MLP → residual, with float32 norms and residual stream."""

    config: ViTConfig
    dtype: Literal["float32", "bfloat16"]

    def linear(self, features: int, name: str) -> nn.Dense:
        """Return a linear layer with a bias, computed in `dtype`."""
        init = nn.initializers.xavier_uniform()
        return nn.Dense(features, dtype=jnp.dtype(self.dtype), kernel_init=init, name=name)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float32 [N, L, d] to float32 [N, L, d]."""
        cfg = self.config
        heads = (*x.shape[:2], 3, cfg.heads, cfg.width // cfg.heads)
        query, key, value = jnp.moveaxis(self.linear(3 * cfg.width, "qkv")(layer_norm("norm1")(x)).reshape(heads), 2, 0)
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + self.linear(cfg.width, "proj")(attended).astype(jnp.float32)
        y = nn.gelu(self.linear(cfg.mlp_width, "fc1")(layer_norm("norm2")(x)), approximate=False)
        return x + self.linear(cfg.width, "fc2")(y).astype(jnp.float32)


def layer_norm(name: str) -> nn.LayerNorm:
    """Return a float32 layer norm with timm's epsilon."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)


class VisionTransformer(nn.Module):
    """Patch embedding, class token, learned positions, blocks and a final norm."""

    config: ViTConfig
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Map normalized images float32 [N, size, size, 3] to the class token, float32 [N, width]."""
        cfg, count = self.config, self.config.size // self.config.patch
        x = pixels.reshape(-1, count, cfg.patch, count, cfg.patch, pixels.shape[-1]).swapaxes(2, 3)
        x = x.reshape(x.shape[0], count**2, -1)
        init = nn.initializers.xavier_uniform()
        x = nn.Dense(cfg.width, dtype=jnp.dtype(self.dtype), kernel_init=init, name="patch_embed")(x)
        token = self.param("cls_token", nn.initializers.normal(0.02), (cfg.width,), jnp.float32)
        position = self.param("pos_embed", nn.initializers.normal(0.02), (cfg.tokens, cfg.width), jnp.float32)
        token = jnp.broadcast_to(token, (x.shape[0], 1, cfg.width))
        x = jnp.concatenate([token, x.astype(jnp.float32)], axis=1) + position
        for layer in range(cfg.layers):
            x = ViTBlock(cfg, self.dtype, name=f"blocks_{layer}")(x)
        return layer_norm("norm")(x[:, 0])


def convolution(channels: int, kernel: int, stride: int, name: str) -> nn.Conv:
    """Return a convolution without bias, padded by half the kernel on all sides as in PyTorch."""
    padding = [(kernel // 2, kernel // 2)] * 2
    init = nn.initializers.he_normal()
    return nn.Conv(channels, (kernel, kernel), stride, padding, use_bias=False, kernel_init=init, name=name)


def group_norm(groups: int, name: str) -> nn.GroupNorm:
    """Return a group norm with PyTorch's epsilon."""
    return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, name=name)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution if the shape changes."""

    channels: int
    groups: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float32 [N, H, W, C] to float32 [N, ⌈H/stride⌉, ⌈W/stride⌉, channels]."""
        y = convolution(self.channels, 3, self.stride, "conv1")(x)
        y = nn.relu(group_norm(self.groups, "norm1")(y))
        y = group_norm(self.groups, "norm2")(convolution(self.channels, 3, 1, "conv2")(y))
        if x.shape[-1] != self.channels or self.stride != 1:
            x = convolution(self.channels, 1, self.stride, "shortcut")(x)
            x = group_norm(self.groups, "shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """The encoder of habitat-baselines: ResNet-18, a compressing convolution, and a linear layer with a ReLU."""

    features: int
    channels: int = 32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Map float32 [N, H, W, C] of about unit scale to float32 [N, features]."""
        height, width = image.shape[1:3]
        groups = self.channels // 2
        x = nn.relu(group_norm(groups, "norm1")(convolution(self.channels, 7, 2, "conv1")(image)))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        for stage in range(4):
            for index in range(2):
                stride = 2 if stage and not index else 1
                x = BasicBlock(self.channels * 2**stage, groups, stride, name=f"layer{stage + 1}_{index}")(x)
        channels = round(COMPRESSED / (math.ceil(height / 32) * math.ceil(width / 32)))
        x = nn.relu(group_norm(1, "compression_norm")(convolution(channels, 3, 1, "compression")(x)))
        x = jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)  # in PyTorch's order, channels first
        return nn.relu(nn.Dense(self.features, name="linear")(x))
