"""Action distributions: one small interface, `sample`, `log_prob`, `entropy`, `mode`, over pytrees of parameters."""

from __future__ import annotations

import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class Distribution(Protocol):
    """Batched over every leading axis of its parameters; heads for continuous actions implement the same."""

    def sample(self, key: jax.Array) -> jax.Array:
        """One action per leading index. key: typed PRNG key []."""
        ...

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability (or density) of `action`: float32 [...]."""
        ...

    def entropy(self) -> jax.Array:
        """Entropy in nats: float32 [...]."""
        ...

    def mode(self) -> jax.Array:
        """The most likely action."""
        ...


MASKED = -1e30  # the logit of what cannot be chosen: finite, and so are sums of such log-probabilities
# Above it are all legal choices (from MASKED / 2 on), below it the padding of components (2 · MASKED), and below that
# what stands for −inf (4 · MASKED): exp of every such difference is exactly 0.


def masked(logits: jax.Array, legal: jax.Array) -> jax.Array:
    """Logits of which only the legal choices have a probability above 0. Both [..., n]; legal: bool.

    Where nothing is legal, all choices are equally likely. No gradient goes to what is not legal.
    """
    return jnp.where(legal, jnp.maximum(logits, MASKED / 2), MASKED)


@struct.dataclass
class Categorical:
    """logits: float32 [..., n], not necessarily normalised, −inf for an action of probability 0.

    Actions are int32 [...]. Log-probabilities, entropies and their gradients are finite, also with −inf and with masks.
    finite: no logit is −inf, as known of a network's; what is compiled is then the plain formula.
    """

    logits: jax.Array
    finite: bool = struct.field(pytree_node=False, default=False)

    def masked(self, legal: jax.Array) -> Categorical:
        """The same among the legal actions only. legal: bool [..., n]."""
        return Categorical(masked(self.logits, legal), finite=True)

    @property
    def log_p(self) -> jax.Array:
        """Log-probabilities of all actions: float32 [..., n]."""
        return jax.nn.log_softmax(self.logits if self.finite else jnp.maximum(self.logits, 4 * MASKED))

    def sample(self, key: jax.Array) -> jax.Array:
        """int32 [...]. key: typed PRNG key []."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """float32 [...]; action: int32 [...]."""
        return jnp.take_along_axis(self.log_p, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        """In nats: float32 [...]."""
        log_p = self.log_p
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def mode(self) -> jax.Array:
        """The most likely action: int32 [...]."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


@struct.dataclass
class MultiCategorical:
    """Independent categorical components. logits: float32 [..., sum(nvec)], those of one component after the other's.

    Actions are int32 [..., len(nvec)]. Log-probabilities and entropies are the components' sums.
    """

    logits: jax.Array
    nvec: tuple[int, ...] = struct.field(pytree_node=False)

    def masked(self, legal: jax.Array) -> MultiCategorical:
        """The same among the legal choices only. legal: bool [..., sum(nvec)]."""
        return MultiCategorical(masked(self.logits, legal), self.nvec)

    @property
    def components(self) -> Categorical:
        """All of them as one: leading axes [..., len(nvec)], over as many actions as the largest has."""
        sizes = np.asarray(self.nvec)
        choice = np.arange(sizes.max())
        index = (np.cumsum(sizes) - sizes)[:, None] + np.minimum(choice, sizes[:, None] - 1)
        logits = jnp.maximum(self.logits[..., index], 1.5 * MASKED)
        return Categorical(jnp.where(choice < sizes[:, None], logits, 2 * MASKED), finite=True)

    def sample(self, key: jax.Array) -> jax.Array:
        """int32 [..., len(nvec)]. key: typed PRNG key []."""
        return self.components.sample(key)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """float32 [...]; action: int32 [..., len(nvec)]."""
        return self.components.log_prob(action).sum(-1)

    def entropy(self) -> jax.Array:
        """In nats: float32 [...]."""
        return self.components.entropy().sum(-1)

    def mode(self) -> jax.Array:
        """The most likely action: int32 [..., len(nvec)]."""
        return self.components.mode()


@struct.dataclass
class Gaussian:
    """Independent normal components. mean, log_std: float32 [..., A]. Actions are float32 [..., A], unbounded.

    An environment with bounds clips what it is given; the density stays that of the unclipped action, so the policy
    gradient is unbiased for the clipped environment (Fujita & Maeda 2018, arXiv 1802.07564, section 2).
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """float32 [..., A]. key: typed PRNG key []."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density, float32 [...]; action: float32 [..., A]."""
        return _normal_log_density((action - self.mean) * jnp.exp(-self.log_std), self.log_std).sum(-1)

    def entropy(self) -> jax.Array:
        """In nats: float32 [...]."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def mode(self) -> jax.Array:
        """The mean: float32 [..., A]."""
        return self.mean


@struct.dataclass
class TanhGaussian:
    """tanh of a `Gaussian`: actions in (−1, 1), float32 [..., A] (Haarnoja et al. 2018, arXiv 1801.01290, appendix C).

    mean, log_std: float32 [..., A], of the normal before the squashing. The entropy has no closed form; it is the
    normal's plus the expected log-derivative of tanh, by Gauss–Hermite quadrature: within 1e-3 nats a component for
    standard deviations up to 2, and differentiable.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """float32 [..., A], never ±1 itself, where the density is not finite. key: typed PRNG key []."""
        return jnp.clip(jnp.tanh(Gaussian(self.mean, self.log_std).sample(key)), -_LARGEST, _LARGEST)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density, float32 [...]; action: float32 [..., A], taken as the nearest inside of the bounds."""
        before = jnp.arctanh(jnp.clip(action, -_LARGEST, _LARGEST))
        normal = _normal_log_density((before - self.mean) * jnp.exp(-self.log_std), self.log_std)
        return (normal - _log_derivative_of_tanh(before)).sum(-1)

    def entropy(self) -> jax.Array:
        """In nats: float32 [...]."""
        before = self.mean[..., None] + jnp.exp(self.log_std)[..., None] * _NODES
        expected = (_log_derivative_of_tanh(before) * _WEIGHTS).sum(-1)
        return Gaussian(self.mean, self.log_std).entropy() + expected.sum(-1)

    def mode(self) -> jax.Array:
        """tanh of the mean, as is usual (the density's own maximum has no closed form): float32 [..., A]."""
        return jnp.tanh(self.mean)


_LARGEST = 1 - 2.0**-20  # of a squashed action; float32 rounds tanh to 1 where it is closer
_HERMITE = np.polynomial.hermite_e.hermegauss(32)  # nodes and weights for the density exp(−x²/2)
_NODES = np.asarray(_HERMITE[0], np.float32)
_WEIGHTS = np.asarray(_HERMITE[1] / math.sqrt(2 * math.pi), np.float32)


def _normal_log_density(z: jax.Array, log_std: jax.Array) -> jax.Array:
    return -0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)


def _log_derivative_of_tanh(x: jax.Array) -> jax.Array:
    """log(1 − tanh²x) without the cancellation at large |x|."""
    return 2 * (math.log(2) - x - jax.nn.softplus(-2 * x))
