"""The record of a preset, the paper's model sizes, and the RL² baseline of any configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Literal

from relic_jax.config import LinearRNNConfig, PolicyConfig, RecurrentConfig, TrainConfig, TransformerConfig

TINY = TransformerConfig(layers=2, heads=8, width=64, mlp_width=256, max_positions=2048)
SMALL = TransformerConfig(layers=4, heads=8, width=256, mlp_width=1024, max_positions=32_768, depth_dropout=0.1)
LARGE = TransformerConfig(layers=8, heads=24, width=768, mlp_width=3072, max_positions=32_768, depth_dropout=0.1)
"""The three sizes of the paper's transformer."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        config: The configuration.
        summary: One-line description.
        cost: Time on a named machine. None: not measured.
        expected: Result to expect, and the number of seeds that it was measured with. None: untested, there is no
            committed result.
        options: Options that the result was measured with, after `relic-jax train NAME`.
    """

    config: TrainConfig
    summary: str
    cost: str | None = None
    expected: str | None = None
    options: str = ""

    def command(self, name: str) -> str:
        """Return the command that trains the preset called `name`."""
        return f"relic-jax train {name} {self.options}".rstrip()


def rl2(config: TrainConfig, width: int | None = None, narrow: int | None = None) -> TrainConfig:
    """Return the RL² baseline of a configuration: a GRU in place of the transformer, all else equal.

    As RL² is usually trained, it continues after an update with its present state: no refresh, no shuffle
    (docs/baselines.md).

    Args:
        config: A ReLIC configuration.
        width: Width of the GRU's state. None: the multiple of 32 that gives it about as many weights as the
            transformer's blocks have.
        narrow: Width of the layers before and after the GRU. None: `width`.

    Returns:
        The configuration of the baseline.
    """
    transformer = config.policy.transformer
    weights = transformer.layers * transformer.width * (4 * transformer.width + 3 * transformer.mlp_width)
    width = width or 32 * max(1, round((weights / 6) ** 0.5 / 32))  # a GRU of width w has 6w²
    recurrent = RecurrentConfig(1, width, narrow, narrow)
    return _with_state(config, replace(config.policy, memory="gru", recurrent=recurrent))


def linear_rnn(config: TrainConfig, memory: Literal["gated-delta", "lru"]) -> TrainConfig:
    """Return a configuration with a linear recurrent network in place of the transformer, all else as in `rl2`.

    The network has as many blocks of the same widths as the transformer.

    Args:
        config: A ReLIC configuration.
        memory: The kind of network.

    Returns:
        The configuration.
    """
    size = config.policy.transformer
    network = LinearRNNConfig(size.layers, size.width, size.mlp_width, size.heads)
    return _with_state(config, replace(config.policy, memory=memory, linear_rnn=network))


def _with_state(config: TrainConfig, policy: PolicyConfig) -> TrainConfig:
    """Return the configuration with a policy whose memory is a state, which depends on the order of the steps."""
    return replace(
        config,
        policy=policy,
        ppo=replace(
            config.ppo,
            context_gradient="stopped",
            last_update="partial",
            shuffle=False,
            refresh_every=None,
            refresh_segments=None,
        ),
        eval=replace(config.eval, context_limit=None),
    )
