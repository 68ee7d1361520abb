"""Memories with a linear recurrence: the gated delta rule and the linear recurrent unit."""

from relic_jax.models.linear_rnn.blocks import LinearRNN as LinearRNN
from relic_jax.models.linear_rnn.blocks import empty_state as empty_state
