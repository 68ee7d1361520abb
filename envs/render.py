"""Writes frames as a GIF."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from relic_jax.files import replacing

SIDE = 200  # pixels; minimum of the shorter side
LONGEST = 1000  # pixels; the longer side is not enlarged beyond it


def enlarge(frame: np.ndarray) -> np.ndarray:
    """Enlarge a small image, uint8 [H, W, 3], by an integer factor, until both sides have SIDE pixels or more."""
    height, width = frame.shape[:2]
    times = max(1, min(-(-SIDE // min(height, width)), LONGEST // max(height, width)))
    return frame if times == 1 else frame.repeat(times, axis=0).repeat(times, axis=1)


def write_gif(path: str | os.PathLike[str], frames: np.ndarray, fps: float = 12.0) -> None:
    """Write frames as an endlessly repeating GIF.

    Small frames are enlarged. The file is written atomically. Equal consecutive frames are stored as one frame with
    a longer duration. GIF durations are multiples of 10 ms, so the frame rate is approximate.

    Args:
        path: The file.
        frames: Uint8 [n, H, W, 3], n ≥ 1.
        fps: Frames per second.
    """
    path = Path(path)
    first, *others = (Image.fromarray(enlarge(frame)) for frame in frames)
    with replacing(path) as partial:
        first.save(
            partial, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, disposal=1
        )
