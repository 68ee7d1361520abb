"""From an action space to its two ends in the network: how the previous action is read, what the next is drawn from.

The only place that knows which network belongs to which space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config.policy import HeadConfig
from relic_jax.distributions import Categorical, Distribution, Gaussian, MultiCategorical, TanhGaussian
from relic_jax.environment.base import ActionSpace, Box, MultiDiscrete
from relic_jax.models.transformer import Linear


class DiscreteEmbedding(nn.Embed):
    """A learned vector per action, and a start token of its own."""

    def __call__(self, previous: jax.Array, first: jax.Array) -> jax.Array:  # type: ignore[override]
        """previous: int32 [...], −1 for the start token. first: not read. Returns float32 [..., features]."""
        del first
        return super().__call__(previous + 1)


class MultiDiscreteEmbedding(nn.Module):
    """The sum over components of a learned vector per choice; each component has a start token of its own."""

    nvec: tuple[int, ...]
    features: int
    std: float

    @nn.compact
    def __call__(self, previous: jax.Array, first: jax.Array) -> jax.Array:
        """previous: int32 [..., n], −1 for the start tokens. first: not read. Returns float32 [..., features]."""
        del first
        init = nn.initializers.normal(self.std / math.sqrt(len(self.nvec)))
        table = self.param("embedding", init, (sum(self.nvec) + len(self.nvec), self.features))
        return table[previous + token_offsets(self.nvec)].sum(-2)


def token_offsets(nvec: tuple[int, ...]) -> np.ndarray:
    """Rows of choice 0 of every component in a table with a start token before each component's choices: int32 [n]."""
    sizes = np.asarray(nvec, np.int32) + 1
    return np.cumsum(sizes, dtype=np.int32) - sizes + 1


class BoxEmbedding(nn.Module):
    """A linear map of the action, and a start token of its own: all of one scale."""

    features: int
    std: float

    @nn.compact
    def __call__(self, previous: jax.Array, first: jax.Array) -> jax.Array:
        """previous: float32 [..., n], not read where `first` (bool [...]). Returns float32 [..., features]."""
        init = nn.initializers.normal(self.std)
        start = self.param("start", init, (self.features,))
        linear = Linear(self.features, use_bias=False, kernel_init=init, name="linear")
        return jnp.where(first[..., None], start, linear(previous))


class CategoricalHead(Linear):
    """Logits."""

    def __call__(self, hidden: jax.Array) -> Categorical:  # type: ignore[override]
        """hidden: float32 [..., width]. Over actions, leading axes [...]."""
        return Categorical(super().__call__(hidden), finite=True)


class MultiCategoricalHead(Linear):
    """Logits of all components, one after the other."""

    nvec: tuple[int, ...] = ()

    def __call__(self, hidden: jax.Array) -> MultiCategorical:  # type: ignore[override]
        """hidden: float32 [..., width]. Over actions int32 [..., len(nvec)], leading axes [...]."""
        return MultiCategorical(super().__call__(hidden), self.nvec)


class BoxHead(nn.Module):
    """Means that depend on the state, deviations as configured, both of the normal before any squashing.

    The logarithm of the deviations is m + h·tanh(x), between its limits m − h and m + h; x is learned, or learned plus
    an output of the network. Limits by clipping would take the gradient away where they are reached.
    """

    components: int
    config: HeadConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> Gaussian | TanhGaussian:
        """hidden: float32 [..., width]. Over actions float32 [..., components], leading axes [...]."""
        cfg = self.config
        small = nn.initializers.orthogonal(0.01)
        mean = Linear(self.components, kernel_init=small, name="mean")(hidden)
        half, middle = (cfg.log_std_max - cfg.log_std_min) / 2, (cfg.log_std_max + cfg.log_std_min) / 2
        start = nn.initializers.constant(math.atanh((cfg.log_std - middle) / half))
        x = jnp.broadcast_to(self.param("log_std", start, (self.components,)), mean.shape)
        if cfg.std == "state":
            x = x + Linear(self.components, use_bias=False, kernel_init=small, name="state_log_std")(hidden)
        distribution = TanhGaussian if cfg.action == "tanh" else Gaussian
        return distribution(mean, middle + half * jnp.tanh(x))


Embedding = DiscreteEmbedding | MultiDiscreteEmbedding | BoxEmbedding
Head = CategoricalHead | MultiCategoricalHead | BoxHead


def embedding(space: ActionSpace, width: int, std: float) -> Embedding:
    """(previous action, first) → vector of `width`. std: its scale at the start."""
    if isinstance(space, Box):
        return BoxEmbedding(width, std)
    if isinstance(space, MultiDiscrete):
        return MultiDiscreteEmbedding(space.nvec, width, std)
    return DiscreteEmbedding(space.n + 1, width, embedding_init=nn.initializers.normal(std))


def head(space: ActionSpace, config: HeadConfig) -> Head:
    """Hidden vector → distribution over a policy's actions."""
    if isinstance(space, Box):
        return BoxHead(space.n, config)
    small = nn.initializers.orthogonal(0.01)
    if isinstance(space, MultiDiscrete):
        return MultiCategoricalHead(space.mask_size, kernel_init=small, nvec=space.nvec)
    return CategoricalHead(space.n, kernel_init=small)


def parameters(distribution: Distribution) -> dict[str, jax.Array]:
    """The arrays that describe a distribution, by name: what a policy's step puts out. Inverse of `distribution_of`."""
    if isinstance(distribution, Categorical | MultiCategorical):
        return {"logits": distribution.logits}
    assert isinstance(distribution, Gaussian | TanhGaussian)
    return {"mean": distribution.mean, "log_std": distribution.log_std}


def distribution_of(space: ActionSpace, config: HeadConfig, parameters: Mapping[str, jax.Array]) -> Distribution:
    """The distribution over a policy's actions that these arrays describe."""
    if isinstance(space, Box):
        kind = TanhGaussian if config.action == "tanh" else Gaussian
        return kind(parameters["mean"], parameters["log_std"])
    if isinstance(space, MultiDiscrete):
        return MultiCategorical(parameters["logits"], space.nvec)
    return Categorical(parameters["logits"])
