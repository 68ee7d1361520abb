"""A reader of binary glTF files that checks their framing."""

import io
import json
import struct

import numpy as np
from PIL import Image

FLOATS, SHORTS, BYTES = 5126, 5123, 5121


def parsed(data):
    """Check the framing of a GLB file and return (JSON part, binary part)."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    content = json.loads(data[20 : 20 + size])
    rest, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and rest == content["buffers"][0]["byteLength"] == len(data) - 28 - size
    return content, data[28 + size :]


def array(content, binary, index):
    """Return the array of an accessor, [n, width], after checking its bounds."""
    accessor = content["accessors"][index]
    view = content["bufferViews"][accessor["bufferView"]]
    width = {"VEC4": 4, "VEC3": 3, "VEC2": 2, "SCALAR": 1}[accessor["type"]]
    dtype = {FLOATS: np.float32, SHORTS: np.uint16, BYTES: np.uint8}[accessor["componentType"]]
    start, count = accessor.get("byteOffset", 0), accessor["count"] * width
    assert start + count * np.dtype(dtype).itemsize <= view["byteLength"]
    found = np.frombuffer(binary, dtype, count, view["byteOffset"] + start).reshape(-1, width)
    if "min" in accessor:
        np.testing.assert_allclose(found.min(0), accessor["min"], atol=1e-6)
        np.testing.assert_allclose(found.max(0), accessor["max"], atol=1e-6)
    return found


def image(content, binary, index):
    """Return an image of the file as an array."""
    view = content["bufferViews"][content["images"][index]["bufferView"]]
    data = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return np.array(Image.open(io.BytesIO(data)))
