"""Writes frames to a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 200  # pixels of a picture's shorter side, at least
LONGEST = 1000  # pixels that the longer side is not enlarged beyond


def enlarged(frame: np.ndarray) -> np.ndarray:
    """A small picture, uint8 [H, W, 3], with every pixel a square of them; one of SIDE or more on both sides itself."""
    height, width = frame.shape[:2]
    times = max(1, min(-(-SIDE // min(height, width)), LONGEST // max(height, width)))
    return frame if times == 1 else frame.repeat(times, axis=0).repeat(times, axis=1)


def write_gif(path: str | os.PathLike[str], frames: np.ndarray, fps: float = 12.0) -> None:
    """Writes frames (uint8 [n, H, W, 3], n ≥ 1) as an endlessly repeating GIF of `fps` frames a second.

    Small frames are `enlarged`. The file appears complete or not at all. A run of equal frames is stored as one frame
    shown for longer; GIF times are whole hundredths of a second, so the rate is approximate.
    """
    path = Path(path)
    first, *others = (Image.fromarray(enlarged(frame)) for frame in frames)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        first.save(
            partial, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, disposal=1
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
