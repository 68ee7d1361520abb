"""The networks of all kinds of memory, by the name in `policy.memory`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax

from relic_jax.config.memories import MemoryName
from relic_jax.config.policy import PolicyConfig, TransformerConfig
from relic_jax.models import memo, transformer_xl
from relic_jax.models.linear_rnn import LinearRNN, empty_state
from relic_jax.models.memo import Memo
from relic_jax.models.memory import Memory
from relic_jax.models.recurrent import Recurrent, empty_carry
from relic_jax.models.transformer import Transformer, empty_memory, kernel_init
from relic_jax.models.transformer_xl import TransformerXL
from relic_jax.types import Span


class MemoryNetwork(Protocol):
    """A Flax module that maps a block of embedded steps and the memory of earlier steps to hidden states."""

    def __call__(
        self,
        x: jax.Array,
        first: jax.Array,
        memory: Any,
        *,
        decode: bool = False,
        valid: jax.Array | None = None,
        window: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        query_span: Span | None = None,
    ) -> tuple[jax.Array, Any]:
        """Apply the network. See `Transformer.__call__`, also for the options that a network can ignore."""


class Kind(NamedTuple):
    """A kind of memory.

    Attributes:
        network: Creates the network, with the name of its parameters. Called in the `setup` of a Flax module.
        empty: Returns the empty memory of `batch` environments, with room for `capacity` steps.
        initializer: Returns the initializer of the linear layers before and after the network.
    """

    network: Callable[[PolicyConfig, str], nn.Module]
    empty: Callable[[PolicyConfig, int, int], Memory]
    initializer: Callable[[PolicyConfig], nn.initializers.Initializer]


def _recurrent(kind: Any) -> Kind:
    """Return a kind of recurrent memory. A recurrent network has no norm that would rescale small inputs."""
    return Kind(
        lambda cfg, name: Recurrent(cfg.recurrent, kind, name=name),
        lambda cfg, batch, capacity: empty_carry(cfg.recurrent, kind, batch),
        lambda cfg: nn.initializers.lecun_normal(),
    )


def _linear_rnn(kind: Any) -> Kind:
    """Return a kind of linear recurrent network."""
    return Kind(
        lambda cfg, name: LinearRNN(cfg.linear_rnn, kind, name=name),
        lambda cfg, batch, capacity: empty_state(cfg.linear_rnn, kind, batch),
        lambda cfg: nn.initializers.lecun_normal(),
    )


def _attention(
    network: type[Transformer] = Transformer, empty: Callable[[TransformerConfig, int, int], Memory] = empty_memory
) -> Kind:
    """Return a kind of memory that consists of attention."""
    return Kind(
        lambda cfg, name: network(cfg.attention, name=name),
        lambda cfg, batch, capacity: empty(cfg.attention, batch, capacity),
        lambda cfg: kernel_init(cfg.transformer),
    )


KINDS: dict[MemoryName, Kind] = {
    "transformer": _attention(),
    "window": _attention(),
    "transformer-xl": _attention(TransformerXL, transformer_xl.empty_memory),
    "memo": _attention(Memo, memo.empty_memory),
    "gru": _recurrent("gru"),
    "lstm": _recurrent("lstm"),
    "gated-delta": _linear_rnn("gated-delta"),
    "lru": _linear_rnn("lru"),
}
"""Every kind of memory, by its name. `relic_jax.config.memories` lists what each supports."""
