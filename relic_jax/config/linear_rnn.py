"""Configuration of the memories with a linear recurrence."""

from __future__ import annotations

import dataclasses

from relic_jax.validation import MAX_LAYERS, check_most, check_positive, require


@dataclasses.dataclass(frozen=True)
class LinearRNNConfig:
    """Architecture of the linear recurrent networks, `policy.memory gated-delta` or `lru`."""

    layers: int = 2
    """Number of blocks."""
    width: int = 64
    """Width of the residual stream."""
    mlp_width: int = 256
    """Hidden width of the gated MLP."""
    heads: int = 2
    """Number of heads of gated-delta; must divide `width`. The state of a head is a matrix of width / heads rows and
    columns."""
    state_width: int | None = None
    """Number of complex numbers in the state of an lru layer. None: `width`."""
    shortest_memory: float = 10.0
    """Steps in which the state of the most forgetful unit (lru) or head (gated-delta) decays to 1/e at the start of
    training."""
    longest_memory: float = 1000.0
    """The same for the least forgetful unit or head."""
    largest_phase: float = 0.314
    """Largest initial rotation of the state of lru per step, in radians. Small phases favor long memories."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        field = "policy.linear_rnn"
        check_positive(self, field, "layers", "width", "mlp_width", "heads", "shortest_memory")
        check_most(f"{field}.layers", self.layers, MAX_LAYERS)
        allowed = f"a divisor of {field}.width ({self.width})"
        require(self.width % self.heads == 0, f"{field}.heads", self.heads, allowed)
        fits = self.state_width is None or self.state_width > 0
        require(fits, f"{field}.state_width", self.state_width, "more than 0, or None")
        longest, allowed = self.longest_memory, f"at least {field}.shortest_memory ({self.shortest_memory:g})"
        require(self.shortest_memory <= longest <= 1e6, f"{field}.longest_memory", longest, f"{allowed}, at most 1e6")
        require(0 < self.largest_phase <= 6.2832, f"{field}.largest_phase", self.largest_phase, "more than 0, up to 2π")
