"""Binary glTF 2.0 files with one primitive per texture and colors at the vertices."""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

import numpy as np

from relic_jax.envs.habitat.scenes.meshes import Mesh
from relic_jax.envs.habitat.scenes.textures import texture

SHADE = np.array([0.8, 1.0, 0.65])  # of faces across x, y and z, because habitat-sim draws these scenes without lights
FLOAT, SHORT, BYTE = 5126, 5123, 5121
REPEAT, LINEAR = 10497, 9729


class Part(NamedTuple):
    """A mesh with a texture.

    Attributes:
        mesh: The mesh.
        color: Float [3], or [n, 3] for each vertex; red, green and blue from 0 to 1, which multiply the texture.
        texture: A name in `textures.DRAWN`.
    """

    mesh: Mesh
    color: np.ndarray
    texture: str


def glb(parts: list[Part]) -> bytes:
    """Return a binary glTF file of the parts."""
    names = sorted({part.texture for part in parts})
    merged = [_merged([part for part in parts if part.texture == name]) for name in names]
    data = [array.tobytes() for arrays in merged for array in arrays] + [texture(name) for name in names]
    offsets = np.cumsum([0, *(-(-len(content) // 4) * 4 for content in data)]).tolist()
    views = [
        {"buffer": 0, "byteOffset": offset, "byteLength": len(content)}
        for offset, content in zip(offsets, data, strict=False)
    ]
    accessors = [accessor for index, arrays in enumerate(merged) for accessor in _accessors(index, arrays)]
    images = len(data) - len(names)
    content = {
        "asset": {"version": "2.0", "generator": "relic-jax"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [_primitive(index) for index in range(len(names))]}],
        "materials": [_material(index) for index in range(len(names))],
        "textures": [{"source": index, "sampler": 0} for index in range(len(names))],
        "samplers": [{"magFilter": LINEAR, "minFilter": LINEAR, "wrapS": REPEAT, "wrapT": REPEAT}],
        "images": [{"bufferView": images + index, "mimeType": "image/png"} for index in range(len(names))],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offsets[-1]}],
    }
    return framed(content, b"".join(part + b"\0" * (-len(part) % 4) for part in data))


def framed(content: dict[str, Any], binary: bytes) -> bytes:
    """Return the GLB file of a JSON part and a binary part, whose length is a multiple of 4."""
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    parts = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(parts)) + parts


def _merged(parts: list[Part]) -> list[np.ndarray]:
    """Return positions, normals, texture coordinates, colors (uint8 [n, 4]) and indices of parts of one texture."""
    meshes, first = [part.mesh for part in parts], 0
    colors, indices = [], []
    for mesh, color, _ in parts:
        shade = (mesh.normals**2) @ SHADE
        tinted = np.broadcast_to(color, mesh.positions.shape) * shade[:, None]
        rgba = np.full((len(mesh.positions), 4), 255, np.uint8)
        rgba[:, :3] = np.round(255 * np.clip(tinted, 0, 1))
        colors.append(rgba)
        indices.append(mesh.indices.astype(np.int64) + first)
        first += len(mesh.positions)
    if first > np.iinfo(np.uint16).max:
        raise ValueError(f"a texture has {first} vertices; allowed: at most {np.iinfo(np.uint16).max}")
    arrays = [np.concatenate([getattr(mesh, name) for mesh in meshes]) for name in ("positions", "normals", "places")]
    return [*arrays, np.concatenate(colors), np.concatenate(indices).astype(np.uint16)]


def _accessors(index: int, arrays: list[np.ndarray]) -> list[dict[str, Any]]:
    positions, _, _, _, indices = arrays
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    kinds = [("VEC3", FLOAT, bounds), ("VEC3", FLOAT, {}), ("VEC2", FLOAT, {}), ("VEC4", BYTE, {"normalized": True})]
    accessors: list[dict[str, Any]] = [
        {"bufferView": 5 * index + offset, "componentType": kind, "count": len(positions), "type": shape, **extra}
        for offset, (shape, kind, extra) in enumerate(kinds)
    ]
    order = {"bufferView": 5 * index + 4, "componentType": SHORT, "count": len(indices), "type": "SCALAR"}
    return [*accessors, order]


def _primitive(index: int) -> dict[str, Any]:
    names = ("POSITION", "NORMAL", "TEXCOORD_0", "COLOR_0")
    attributes = {name: 5 * index + offset for offset, name in enumerate(names)}
    return {"attributes": attributes, "indices": 5 * index + 4, "material": index}


def _material(index: int) -> dict[str, Any]:
    rough = {"metallicFactor": 0.0, "roughnessFactor": 1.0, "baseColorTexture": {"index": index}}
    return {"pbrMetallicRoughness": rough}
