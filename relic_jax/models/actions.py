"""Embeddings of the previous action and heads for the next action, for each kind of action space."""

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
    """A learned vector per action and one for the start token."""

    def __call__(self, previous: jax.Array, first: jax.Array) -> jax.Array:  # type: ignore[override]
        """Embed int32 [...], −1 for the start token, as float32 [..., features]. `first` is ignored."""
        del first
        return super().__call__(previous + 1)


class MultiDiscreteEmbedding(nn.Module):
    """The sum over components of a learned vector per choice. Each component has a separate start token."""

    nvec: tuple[int, ...]
    features: int
    std: float

    @nn.compact
    def __call__(self, previous: jax.Array, first: jax.Array) -> jax.Array:
        """Embed int32 [..., n], −1 for the start tokens, as float32 [..., features]. `first` is ignored."""
        del first
        init = nn.initializers.normal(self.std / math.sqrt(len(self.nvec)))
        table = self.param("embedding", init, (sum(self.nvec) + len(self.nvec), self.features))
        return table[previous + token_offsets(self.nvec)].sum(-2)


def token_offsets(nvec: tuple[int, ...]) -> np.ndarray:
    """Return the row of choice 0 of each component, int32 [n], in a table with a start token before each component."""
    sizes = np.asarray(nvec, np.int32) + 1
    return np.cumsum(sizes, dtype=np.int32) - sizes + 1


class BoxEmbedding(nn.Module):
    """A linear map of the action and a learned vector for the start token, initialized at the same scale."""

    features: int
    std: float

    @nn.compact
    def __call__(self, previous: jax.Array, first: jax.Array) -> jax.Array:
        """Embed float32 [..., n], or the start token if `first` (bool [...]), as float32 [..., features]."""
        init = nn.initializers.normal(self.std)
        start = self.param("start", init, (self.features,))
        linear = Linear(self.features, use_bias=False, kernel_init=init, name="linear")
        return jnp.where(first[..., None], start, linear(previous))


class CategoricalHead(Linear):
    """Linear layer that returns the logits of a `Categorical`."""

    def __call__(self, hidden: jax.Array) -> Categorical:  # type: ignore[override]
        """Map float32 [..., width] to a distribution with leading axes [...]."""
        return Categorical(super().__call__(hidden), finite=True)


class MultiCategoricalHead(Linear):
    """Linear layer that returns the logits of all components, concatenated."""

    nvec: tuple[int, ...] = ()

    def __call__(self, hidden: jax.Array) -> MultiCategorical:  # type: ignore[override]
        """Map float32 [..., width] to a distribution over int32 [..., len(nvec)]."""
        return MultiCategorical(super().__call__(hidden), self.nvec)


class BoxHead(nn.Module):
    """Means from a linear layer and standard deviations as configured, both of the normal before any squashing.

        log σ = m + h·tanh(x)

    lies between its bounds m − h and m + h. x is a parameter, plus an output of the network for `std="state"`. Clipping
    to the bounds instead would have no gradient there.
    """

    components: int
    config: HeadConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> Gaussian | TanhGaussian:
        """Map float32 [..., width] to a distribution over float32 [..., components]."""
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
    """Return the module that embeds the previous action.

    Args:
        space: the set of actions.
        width: width of the embedding.
        std: standard deviation of its initial components.
    """
    if isinstance(space, Box):
        return BoxEmbedding(width, std)
    if isinstance(space, MultiDiscrete):
        return MultiDiscreteEmbedding(space.nvec, width, std)
    return DiscreteEmbedding(space.n + 1, width, embedding_init=nn.initializers.normal(std))


def head(space: ActionSpace, config: HeadConfig) -> Head:
    """Return the module that maps a hidden vector to a distribution over actions."""
    if isinstance(space, Box):
        return BoxHead(space.n, config)
    small = nn.initializers.orthogonal(0.01)
    if isinstance(space, MultiDiscrete):
        return MultiCategoricalHead(space.mask_size, kernel_init=small, nvec=space.nvec)
    return CategoricalHead(space.n, kernel_init=small)


def parameters(distribution: Distribution) -> dict[str, jax.Array]:
    """Return the parameters of a distribution by name, the inverse of `distribution_of`."""
    if isinstance(distribution, Categorical | MultiCategorical):
        return {"logits": distribution.logits}
    assert isinstance(distribution, Gaussian | TanhGaussian)
    return {"mean": distribution.mean, "log_std": distribution.log_std}


def distribution_of(space: ActionSpace, config: HeadConfig, parameters: Mapping[str, jax.Array]) -> Distribution:
    """Return the distribution over actions that has these parameters."""
    if isinstance(space, Box):
        kind = TanhGaussian if config.action == "tanh" else Gaussian
        return kind(parameters["mean"], parameters["log_std"])
    if isinstance(space, MultiDiscrete):
        return MultiCategorical(parameters["logits"], space.nvec)
    return Categorical(parameters["logits"])
