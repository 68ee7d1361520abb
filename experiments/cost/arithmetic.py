"""Operations and bytes of a run, counted from its config.

B environments act and learn together. A step attends to S steps of context, a segment has K steps, the transformer has
L layers of width d. A multiplication and an addition are two operations.
"""

from __future__ import annotations

import math

from relic_jax.config import EncoderConfig, PolicyConfig
from relic_jax.models.encoders import CONVOLUTIONS, PATCHES
from relic_jax.models.grids import PATCH_WIDTH
from relic_jax.models.vision import VIT_B16

ImageShape = tuple[int, int, int]
"""Height, width and channels of an image."""
ENCODERS = ("small", "nature", "patches", "vit-b16")
"""Image encoders whose operations are counted."""


def block_weights(policy: PolicyConfig) -> int:
    """Return P, the weights of the blocks that every step is multiplied by: L(4d² + 3dm)."""
    size = policy.transformer
    return size.layers * (4 * size.width**2 + 3 * size.width * size.mlp_width)


def weights(policy: PolicyConfig) -> int:
    """Return P with the layers before and after the blocks, 2d². Heads and embeddings are not included."""
    return block_weights(policy) + 2 * policy.transformer.width**2


def forward(policy: PolicyConfig, rows: int, keys: float) -> float:
    """Return the operations of a pass over `rows` steps in all, each of which sees `keys` keys.

    Every weight is used once per step, and scores and outputs take two products with each key: 2·P + 4·S·d·L a step.
    """
    size = policy.transformer
    return 2.0 * rows * (weights(policy) + 2 * keys * size.width * size.layers)


def attention_update(policy: PolicyConfig, batch: int, steps: int, context: float) -> float:
    """Return the operations of attention in the gradient of a segment, with the gradient stopped at the context.

    Five products with the context (scores and outputs; scores again, gradients of weights and queries) and seven with
    the half of the block that is visible: 2·B·K·d·L·(5S + 3.5K).
    """
    size = policy.transformer
    return 2.0 * batch * steps * size.width * size.layers * (5 * context + 3.5 * steps)


def attention_full(policy: PolicyConfig, batch: int, steps: float, queries: float) -> float:
    """Return the operations of attention in the gradient through `steps` steps, of which the last have a loss.

    All layers but the last have a query for every step: 2·B·d·S·(3.5·(L−1)·S + 7K).
    """
    size = policy.transformer
    inner = 3.5 * (size.layers - 1) * steps
    last = 3.5 * steps if queries == steps else 7 * queries
    return 2.0 * batch * size.width * steps * (inner + last)


def dense_update(policy: PolicyConfig, rows: float) -> float:
    """Return the operations of all other products in the gradient of `rows` steps: 6·P a step."""
    return 6.0 * weights(policy) * rows


def attention_refresh(policy: PolicyConfig, batch: int, steps: float) -> float:
    """Return the operations of attention when the keys and values of `steps` steps are recomputed: 2·L·S²·d each."""
    size = policy.transformer
    return 2.0 * batch * size.layers * steps**2 * size.width


def context_bytes(policy: PolicyConfig, batch: int, steps: float) -> float:
    """Return the bytes of the keys and values of `steps` steps, which acting reads in every step."""
    return float(batch * steps * policy.transformer.cache_bytes_per_step)


def encoder_forward(encoder: EncoderConfig, shape: ImageShape) -> float:
    """Return the operations of encoding one image.

    Raises:
        KeyError: If the operations of the encoder are not counted (`ENCODERS`).
    """
    if encoder.image == "vit-b16":
        vit = VIT_B16
        tokens = (vit.size // vit.patch) ** 2 + 1
        block = 12 * vit.width**2 + 2 * tokens * vit.width  # projections and MLP (4 times as wide), two products
        return 2.0 * tokens * (vit.layers * block + 3 * vit.patch**2 * vit.width)
    height, width, channels = shape
    total = 0.0
    for features, kernel, stride in PATCHES if encoder.image == "patches" else CONVOLUTIONS[encoder.image]:
        height, width = math.ceil(height / stride), math.ceil(width / stride)
        total += 2.0 * height * width * kernel**2 * channels * features
        channels = features
    cells = height * width
    return total + 2.0 * cells * channels * (PATCH_WIDTH if encoder.image == "patches" else encoder.features)
