"""Scenes for habitat-sim: the meshes' geometry against closed forms, the texture, and the JSON that names them."""

import io
import json

import glb
import numpy as np
import pytest
from glb_reader import array, parsed
from PIL import Image

from relic_jax.envs.habitat.soft import house
from relic_jax.envs.habitat.soft.house import Boxes


def triangles(data):
    """For every primitive: corners [12, 3, 3], the vertices' normals [12, 3, 3], texture places [12, 3, 2], colour."""
    content, binary = parsed(data)
    for primitive in content["meshes"][0]["primitives"]:
        order = array(content, binary, primitive["indices"]).ravel()
        names = ("POSITION", "NORMAL", "TEXCOORD_0")
        arrays = (array(content, binary, primitive["attributes"][name])[order] for name in names)
        material = content["materials"][primitive["material"]]["pbrMetallicRoughness"]
        yield (*(value.reshape(12, 3, -1) for value in arrays), material["baseColorFactor"])


def test_boxes_are_closed_and_face_outwards():
    rng = np.random.RandomState(0)
    low = rng.uniform(-3, 3, (4, 3))
    boxes = Boxes(low, low + rng.uniform(0.2, 2, (4, 3)), rng.randint(0, 255, (4, 3)).astype(np.uint8))
    for index, (corners, normals, places, color) in enumerate(triangles(glb.box_glb(boxes))):
        a, b, c = np.moveaxis(corners.astype(np.float64), 1, 0)
        volume = (a * np.cross(b, c)).sum() / 6  # divergence theorem: correct only if all sides face outwards
        sides = boxes.high[index] - boxes.low[index]
        assert volume == pytest.approx(np.prod(sides), rel=1e-5)
        across = np.cross(b - a, c - a)
        area = np.linalg.norm(across, axis=-1)
        assert area.sum() / 2 == pytest.approx(2 * (sides * np.roll(sides, 1)).sum(), rel=1e-5)
        np.testing.assert_allclose(across / area[:, None], normals[:, 0], atol=1e-5)
        u, v = np.moveaxis(places.astype(np.float64), 1, 0)[1:] - places[:, 0]
        np.testing.assert_allclose(np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]), area, rtol=1e-4)  # metres
        np.testing.assert_allclose(color, [*(boxes.color[index] / 255), 1.0])


def test_the_texture_is_chequered():
    image = np.array(Image.open(io.BytesIO(glb.chequers(4))))
    assert image.shape == (8, 8, 3) and set(np.unique(image)) == {215, 255}
    assert (image[:4, :4] == 215).all() and (image[:4, 4:] == 255).all() and (image[4:, :4] == 255).all()


def test_a_house_is_closed_all_around():
    made = house.make_house(1)
    boxes = glb.closed(made)
    x, z = made.size
    for axis, bound in ((0, 0.0), (0, x), (1, 0.0), (1, house.WALL_HEIGHT), (2, 0.0), (2, z)):
        at = boxes.high if bound == 0 else boxes.low
        sides = [i for i in range(3) if i != axis]
        whole = np.array([x, house.WALL_HEIGHT, z])[sides]
        covers = (boxes.low[:, sides] <= 1e-9).all(-1) & (boxes.high[:, sides] >= whole - 1e-9).all(-1)
        assert (covers & np.isclose(at[:, axis], bound)).any()


def test_the_set_names_files_that_are_there(tmp_path):
    config = glb.write_set(str(tmp_path), {"a": house.make_house(0)}, ("mug",))
    with open(config) as file:
        parts = json.load(file)
    for part in ("stages", "objects", "scene_instances"):
        (pattern,) = parts[part]["paths"][".json"]
        (found,) = tmp_path.glob(pattern)
        content = json.loads(found.read_text())
        if part == "scene_instances":
            assert (tmp_path / (content["stage_instance"]["template_name"] + ".stage_config.json")).is_file()
        else:
            assert (found.parent / content["render_asset"]).is_file()
            assert (content["up"], content["front"]) == ([0, 1, 0], [0, 0, -1])
    corners = np.concatenate([c for c, *_ in triangles((tmp_path / "objects" / "mug.glb").read_bytes())])
    np.testing.assert_allclose(corners.min((0, 1)), [-0.15, 0, -0.15], atol=1e-6)  # it stands on its origin
    np.testing.assert_allclose(corners.max((0, 1)), [0.15, 0.3, 0.15], atol=1e-6)
    assert not list(tmp_path.rglob("*.part"))
