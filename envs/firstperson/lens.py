"""The image that a camera produces: its size, field of view and sampling."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from relic_jax.envs.firstperson.scene import ResolutionError

SAMPLES = {1: ((0.5, 0.5),), 4: ((0.375, 0.875), (0.875, 0.625), (0.125, 0.375), (0.625, 0.125))}
"""Sample positions in a pixel, (right, down) from its top left corner: the center, or the standard four of MSAA."""


@dataclasses.dataclass(frozen=True)
class Lens:
    """The image of a camera.

    Attributes:
        width: Pixels.
        height: Pixels.
        field_of_view: Vertical field of view, in degrees.
        samples: Samples per pixel, 1 or 4.
        layers: Maximum number of solids drawn behind one another in a column, nearest first.
        solids: Maximum number of solids drawn, nearest first.
    """

    width: int = 80
    height: int = 60
    field_of_view: float = 60.0
    samples: int = 1
    layers: int = 8
    solids: int = 16

    def __post_init__(self) -> None:
        """Raise ResolutionError if a value is out of range."""
        for name in ("width", "height"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
                raise ResolutionError(f"{name} is {value!r}; allowed: whole numbers of pixels from 1 to 4096")
        if self.samples not in SAMPLES:
            raise ResolutionError(f"samples is {self.samples!r}; allowed: {sorted(SAMPLES)}")
        if not 1.0 <= self.field_of_view <= 170.0:
            raise ResolutionError(f"field_of_view is {self.field_of_view!r}; allowed: 1 to 170 degrees")
        for name in ("layers", "solids"):
            if getattr(self, name) < 1:
                raise ResolutionError(f"{name} is {getattr(self, name)!r}; allowed: 1 or more")

    @property
    def edge(self) -> float:
        """Largest u = right / forward in view: the tangent of half the horizontal field of view."""
        return math.tan(math.radians(self.field_of_view) / 2) * self.width / self.height

    def columns(self, offset: float) -> np.ndarray:
        """Return u = right / forward of each column, float32 [W], for a sample `offset` from its left edge."""
        return (self.edge * (2 * (np.arange(self.width) + offset) / self.width - 1)).astype(np.float32)

    def rows(self, offset: float) -> np.ndarray:
        """Return v = up / forward of each row, top row first, float32 [H], for a sample `offset` below its top edge.

        The rise of the camera is not included.
        """
        half = math.tan(math.radians(self.field_of_view) / 2)
        return (half * (1 - 2 * (np.arange(self.height) + offset) / self.height)).astype(np.float32)
