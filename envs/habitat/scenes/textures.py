"""Gray textures of floors, walls and furniture, drawn procedurally. Colors of vertices tint them."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIZE = 64  # pixels per meter


def texture(name: str) -> bytes:
    """Return a texture of `DRAWN`, which repeats every meter, as PNG."""
    index = list(DRAWN).index(name)
    y, x = np.indices((SIZE, SIZE)) / SIZE
    noise = np.random.RandomState(index).uniform(-1, 1, (SIZE, SIZE))
    return png(np.clip(DRAWN[name](x, y, noise), 0, 255).astype(np.uint8))


def _planks(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    row = np.floor(8 * y)
    seam = ((8 * y) % 1 < 0.13) | ((x + 0.37 * row) % 1 < 0.02)
    tone = 215 + 20 * np.sin(5 * row)
    return np.where(seam, 120, tone + 12 * np.sin(40 * y + 3 * np.sin(6 * np.pi * x)) + 8 * noise)


def _tiles(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    seam = ((4 * x) % 1 < 0.08) | ((4 * y) % 1 < 0.08)
    odd = (np.floor(4 * x) + np.floor(4 * y)) % 2
    return np.where(seam, 130, 215 + 35 * odd + 5 * noise)


def _carpet(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return 205 + 30 * noise + 15 * np.sin(8 * np.pi * x) * np.sin(8 * np.pi * y)


def _plaster(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return 238 + 8 * noise + 0 * x * y


def _bricks(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    row = np.floor(8 * y)
    seam = ((8 * y) % 1 < 0.15) | ((4 * x + 0.5 * row) % 1 < 0.08)
    return np.where(seam, 150, 225 + 15 * np.sin(3 * row + np.floor(4 * x + 0.5 * row)) + 8 * noise)


def _stripes(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return np.where((5 * x) % 1 < 0.5, 245, 205) + 4 * noise + 0 * y


def _wood(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return 210 + 25 * np.sin(10 * np.pi * y + 1.2 * np.sin(2 * np.pi * x)) + 8 * noise


def _fabric(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return 215 + 25 * np.sign(np.sin(32 * np.pi * x) * np.sin(32 * np.pi * y)) + 10 * noise


def _speckles(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return np.where(noise > 0.85, 190, 248) + 0 * x * y


DRAWN = {
    "planks": _planks, "tiles": _tiles, "carpet": _carpet, "plaster": _plaster, "bricks": _bricks,
    "stripes": _stripes, "wood": _wood, "fabric": _fabric, "speckles": _speckles,
}  # fmt: skip
FLOORS = ("planks", "tiles", "carpet")
WALLS = ("plaster", "bricks", "stripes")


def png(gray: np.ndarray) -> bytes:
    """Return a gray image, uint8 [H, W], as RGB PNG."""
    lines = b"".join(b"\0" + line.tobytes() for line in np.repeat(gray[..., None], 3, -1))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
