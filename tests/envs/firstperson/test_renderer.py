"""The renderer is compared with hand-computed images and with a ray caster in numpy that works per pixel."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.paint import BACKGROUND, FIRST_SOLID, MAX_SOLIDS, WALL
from relic_jax.envs.firstperson.renderer import render, render_depth, render_objects
from relic_jax.envs.firstperson.resize import resize, resize_matrix
from relic_jax.envs.firstperson.scene import (
    BOX,
    CYLINDER,
    EYE_HEIGHT,
    SKY,
    SPHERE,
    WALL_HEIGHT,
    Camera,
    ResolutionError,
    Scene,
    SceneError,
    Solids,
    TooManyObjectsError,
    cubes,
    plain_walls,
    rectangle_walls,
    shade,
)

WHITE = np.ones(3, np.float32)
ROOM = rectangle_walls(0, 6, 0, 6)
LENS = Lens(41, 31)  # odd: a column and a row lie exactly in the middle
SHAPES = (BOX, CYLINDER, SPHERE)
EMPTY = Solids(
    centre=np.zeros((0, 2), np.float32),
    yaw=np.zeros(0, np.float32),
    half=np.zeros((0, 2), np.float32),
    bottom=np.zeros(0, np.float32),
    top=np.zeros(0, np.float32),
    colour=np.zeros((0, 3), np.float32),
    shape=np.zeros(0, np.int32),
    shapes=(),
)


def looking(x, z, degrees, **options):
    angle = np.radians(degrees)
    direction = np.array([np.cos(angle), np.sin(angle)], np.float32)
    return Camera(np.array([x, z], np.float32), direction, **options)


def room(solids=None, **options):
    solids = EMPTY if solids is None else solids
    return Scene(plain_walls(ROOM), solids, WHITE, WHITE, **options)


def solids(rows):
    """rows: (x, z, yaw, half x, half z, bottom, top, shape) of each, in different colours."""
    table = np.array(rows, np.float32).reshape(-1, 8)
    shades = 0.2 + 0.6 * np.random.RandomState(0).uniform(size=(len(table), 3))
    return Solids(
        centre=table[:, :2],
        yaw=table[:, 2],
        half=table[:, 3:5],
        bottom=table[:, 5],
        top=table[:, 6],
        colour=shades.astype(np.float32),
        shape=table[:, 7].astype(np.int32),
        shapes=SHAPES,
    )


@functools.cache
def drawer(lens, function=render_objects):
    return jax.jit(lambda scene, camera: function(scene, camera, lens))


def test_shades_are_miniworlds():
    normals = {
        "up": (0, 1, 0),
        "down": (0, -1, 0),
        "+x": (1, 0, 0),
        "-x": (-1, 0, 0),
        "+z": (0, 0, 1),
        "-z": (0, 0, -1),
    }
    found = {name: float(shade(jnp.array(normal, jnp.float32))) for name, normal in normals.items()}
    expected = {"up": 1.0, "down": 0.65, "+x": 0.835, "-x": 0.65, "+z": 0.835, "-z": 0.65}
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("heading, level", [(0, 166), (90, 213), (180, 213), (270, 166)])
def test_a_wall_straight_ahead(heading, level):
    """From the middle of a 6 m room the wall is 3 m away: its top at slope 1.24/3, its foot at −1.5/3."""
    image = np.asarray(drawer(LENS, render)(room(), looking(3, 3, heading))).astype(int)
    middle = image[:, LENS.width // 2, 0]
    slopes = LENS.rows(0.5)
    expected = np.where(slopes >= 1.24 / 3, 166, np.where(slopes < -0.5, 255, level))
    np.testing.assert_array_equal(middle, expected)
    assert (image == image[..., :1]).all()


def test_headings_turn_to_the_left():
    """Heading 90° looks along −z, so the wall x = 6 is then on the right; a cube on the right is in the right half."""
    cube = cubes(np.array([[4.0, 1.0]], np.float32), np.zeros(1, np.float32), np.array([[1.0, 0, 0]], np.float32))
    objects = np.asarray(drawer(LENS)(room(cube), looking(3, 3, 90)).objects)
    columns = np.flatnonzero((objects == FIRST_SOLID).any(0))
    assert len(columns) and columns.min() > LENS.width // 2


def test_depth_of_level_and_upright_surfaces():
    depth = np.asarray(drawer(LENS, render_depth)(room(), looking(2, 3, 0)))
    slopes = LENS.rows(0.5)
    middle = depth[:, LENS.width // 2]
    with np.errstate(divide="ignore"):
        expected = np.where(slopes < -1.5 / 4, -1.5 / slopes, np.where(slopes > 1.24 / 4, 1.24 / slopes, 4.0))
    np.testing.assert_allclose(middle, expected, rtol=1e-4)


def test_the_sky_is_infinitely_far_and_of_its_own_colour():
    scene = room(open_sky=True).replace(ceiling=np.asarray(SKY, np.float32))
    image, objects = drawer(LENS)(scene, looking(3, 3, 0))
    assert image[0, 20].tolist() == [64, 209, 255] and objects[0, 20] == BACKGROUND
    assert np.isinf(np.asarray(drawer(LENS, render_depth)(scene, looking(3, 3, 0)))[0, 20])


def test_rise_moves_the_picture_by_whole_rows():
    """A picture whose plane is moved up by ten rows' slopes is the other one, ten rows further down."""
    scene, row = room(cubes(np.array([[5.0, 3.0]]), np.zeros(1), np.array([[1.0, 0, 0]]))), 2 * np.tan(np.pi / 6) / 31
    level = np.asarray(drawer(LENS, render)(scene, looking(2, 2.9, 0)))
    risen = np.asarray(drawer(LENS, render)(scene, looking(2, 2.9, 0, rise=np.float32(10 * row))))
    np.testing.assert_array_equal(risen[10:], level[:-10])


def reference_ids(scene, camera, lens):
    """Object ids by intersecting one ray per pixel with everything, in float64."""
    u, v = np.meshgrid(lens.columns(0.5).astype(float), lens.rows(0.5).astype(float))
    cos, sin = np.asarray(camera.direction, float)
    ray = np.stack([cos + u * sin, v, u * cos - sin], -1)  # of forward length 1
    eye = np.array([camera.position[0], EYE_HEIGHT, camera.position[1]], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.where(v < 0, -EYE_HEIGHT / v, (WALL_HEIGHT - EYE_HEIGHT) / v)
        ids = np.full(u.shape, BACKGROUND)
        for axis, wall in ((0, 0.0), (0, 6.0), (2, 0.0), (2, 6.0)):
            t = (wall - eye[axis]) / ray[..., axis]
            hit = (t > 0) & (t < nearest)
            nearest, ids = np.where(hit, t, nearest), np.where(hit, WALL, ids)
        for k in range(len(scene.solids.top)):
            t = reference_hit(scene.solids, k, eye, ray)
            hit = (t > 0) & (t < nearest)
            nearest, ids = np.where(hit, t, nearest), np.where(hit, FIRST_SOLID + k, ids)
    return ids


def reference_hit(solids, k, eye, ray):
    """Return where rays meet solid k; NaN or infinite for rays that miss it."""
    bottom, top, yaw = float(solids.bottom[k]), float(solids.top[k]), float(solids.yaw[k])
    x, z = np.asarray(solids.centre[k], float)
    half = np.asarray(solids.half[k], float)
    if solids.shape[k] == SPHERE:
        offset = eye - np.array([x, bottom + half[0], z])
        return quadratic(ray, offset, half[0])
    low, high = slab(eye[1] - bottom, ray[..., 1], 0, top - bottom)
    if solids.shape[k] == CYLINDER:
        flat, offset = ray * np.array([1, 0, 1]), (eye - np.array([x, 0, z])) * np.array([1, 0, 1])
        near = quadratic(flat, offset, half[0])
        far = quadratic(flat, offset, half[0], sign=1)
        low, high = np.maximum(low, near), np.minimum(high, far)
        return np.where(np.isfinite(near) & (low < high), low, np.inf)
    for axis, extent in (
        (np.array([np.cos(yaw), -np.sin(yaw)]), half[0]),
        (np.array([np.sin(yaw), np.cos(yaw)]), half[1]),
    ):
        a, b = slab((eye[[0, 2]] - np.array([x, z])) @ axis, ray[..., [0, 2]] @ axis, -extent, extent)
        low, high = np.maximum(low, a), np.minimum(high, b)
    return np.where(low < high, low, np.inf)


def slab(start, speed, low, high):
    a, b = (low - start) / speed, (high - start) / speed
    return np.minimum(a, b), np.maximum(a, b)


def quadratic(ray, offset, radius, sign=-1):
    a, b, c = (ray**2).sum(-1), (ray * offset).sum(-1), (offset**2).sum() - radius**2
    root = b**2 - a * c
    return np.where(root > 0, (-b + sign * np.sqrt(np.maximum(root, 0))) / a, np.inf)


# Places of five solids that never touch one another or the agent in the middle, whatever their sizes and yaws.
PLACES = ((1.0, 1.0), (5.0, 1.2), (4.9, 3.2), (1.1, 5.0), (4.6, 5.1))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_seen_where_agrees_with_a_ray_caster(data):
    def number(low, high):
        return data.draw(st.floats(low, high, width=32))

    rows = []
    for x, z in PLACES:
        shape, radius, bottom = data.draw(st.sampled_from(SHAPES)), number(0.125, 0.5), number(0, 1.75)
        height = 2 * radius if shape == SPHERE else number(0.125, 0.875)
        rows.append((x, z, number(-4, 4), radius, number(0.125, 0.5), bottom, bottom + height, shape))
    scene = room(solids(rows))
    camera = looking(number(2.5, 3.5), number(2.0, 4.0), number(-180, 180))
    ours = np.asarray(drawer(LENS)(scene, camera).objects)
    theirs = reference_ids(scene, camera, LENS)
    # Rays that graze an edge may go either way in single precision: fewer than one pixel in a hundred.
    assert (ours != theirs).mean() < 0.01


def test_nearer_solids_hide_farther_ones_in_any_order():
    rows = [(x, 3.0, 0.3, 0.15, 0.15, 0.0, 0.5 + 0.2 * x, BOX) for x in (5.0, 3.0, 4.0, 2.0)]
    camera = looking(0.53, 2.97, 1.3)  # no ray meets an edge exactly
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 0, 1]):
        scene = room(solids([rows[i] for i in order]))
        ours = np.asarray(drawer(LENS)(scene, camera).objects)
        assert set(np.unique(ours)) > {FIRST_SOLID + i for i in range(4)}
        np.testing.assert_array_equal(ours, reference_ids(scene, camera, LENS))


def test_of_many_solids_those_in_view_are_drawn_under_their_own_ids():
    rows = [(0.5 + 0.5 * (k % 10), 0.5 + 0.5 * (k // 10), 0.0, 0.05, 0.05, 0.0, 1.2, BOX) for k in range(40)]
    scene, camera = room(solids(rows)), looking(0.5, 5.0, 45)
    wide = dataclasses.replace(LENS, solids=64, layers=16)
    everything = np.asarray(drawer(wide)(scene, camera).objects)
    np.testing.assert_array_equal(everything, reference_ids(scene, camera, LENS))
    nearest = np.asarray(drawer(dataclasses.replace(wide, solids=12))(scene, camera).objects)
    shown = np.unique(nearest)[2:]
    assert 3 < len(shown) <= 12
    for identity in shown:  # absent solids are not drawn, nor those beyond the nearest twelve
        np.testing.assert_array_equal((nearest == identity) & (everything == identity), everything == identity)


def test_absent_solids_and_walls_are_not_drawn():
    scene = room(solids([(4.5, 3.0, 0.0, 0.3, 0.3, 0.0, 0.0, BOX)]))
    more = np.concatenate([ROOM, np.zeros((20, 2, 2), np.float32)])
    padded = dataclasses.replace(scene, walls=plain_walls(more))
    empty = drawer(LENS)(room(), looking(3, 3, 0))
    for variant in (scene, padded):
        np.testing.assert_array_equal(drawer(LENS)(variant, looking(3, 3, 0)).image, empty.image)


def test_textures_are_drawn_on_floor_and_walls_only_where_asked_for():
    plain, textured = (
        np.asarray(drawer(LENS, render)(room(textured=on), looking(2.2, 3.1, 20))) for on in (False, True)
    )
    assert len(np.unique(plain[-1])) == 1 and len(np.unique(textured[-1])) == 2
    middle = plain[15] != textured[15]  # a row of wall
    assert 0.2 < middle.mean() < 0.8
    np.testing.assert_array_equal(plain[0], textured[0])  # the ceiling


def test_four_samples_are_the_mean_of_four_pixels_of_a_finer_image():
    """The samples of a pixel are centers of four of the sixteen pixels that cover it in an image with 4× resolution."""
    scene, camera = room(cubes(np.array([[4.5, 3.2]]), np.full(1, 0.4), np.array([[1.0, 0, 0]]))), looking(2, 3, 5)
    fine = np.asarray(drawer(Lens(80, 60), render)(scene, camera)).astype(int).reshape(15, 4, 20, 4, 3)
    mean = sum(fine[:, row, :, column] for column, row in ((1, 3), (3, 2), (0, 1), (2, 0))) / 4
    coarse = np.asarray(drawer(Lens(20, 15, samples=4), render)(scene, camera))
    # Exact: colors are flat, so each sample has the bytes of its fine pixel, and the mean is rounded half up.
    np.testing.assert_array_equal(coarse, np.floor(mean + 0.5))
    assert (mean % 1 != 0).any()


@pytest.mark.parametrize(
    "options, text",
    [
        ({"width": 0}, "width is 0"),
        ({"height": -3}, "height is -3"),
        ({"width": 25.0}, "width is 25.0"),
        ({"height": 10_000}, "height is 10000"),
        ({"samples": 3}, r"samples is 3; allowed: \[1, 4\]"),
        ({"field_of_view": 180.0}, "field_of_view is 180.0"),
        ({"layers": 0}, "layers is 0"),
    ],
)
def test_odd_resolutions_are_refused_by_name(options, text):
    with pytest.raises(ResolutionError, match=text) as error:
        Lens(**options)
    assert isinstance(error.value, SceneError) and isinstance(error.value, ValueError)


def test_more_solids_than_ids_are_refused():
    count = MAX_SOLIDS + 1
    scene = room(cubes(np.zeros((count, 2), np.float32), np.zeros(count, np.float32), np.zeros((count, 3), np.float32)))
    with pytest.raises(TooManyObjectsError, match=f"{count} solids; allowed: at most {MAX_SOLIDS}"):
        render(scene, looking(3, 3, 0), LENS)


def test_resizing_is_blur_and_linear_interpolation_as_scipy_does_it():
    ndimage = pytest.importorskip("scipy.ndimage")
    image = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)
    blurred = ndimage.gaussian_filter(image / 255.0, ((60 / 25 - 1) / 2, (80 / 25 - 1) / 2, 0), mode="mirror")
    expected = ndimage.zoom(blurred, (25 / 60, 25 / 80, 1), order=1, mode="mirror", grid_mode=True)
    np.testing.assert_allclose(resize(jnp.asarray(image), 25, 25), expected, atol=1e-5)


def test_resize_matrices_keep_what_is_constant_and_what_is_not_resized():
    for size, new_size in ((60, 25), (25, 60), (7, 7)):
        np.testing.assert_allclose(resize_matrix(size, new_size).sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(resize_matrix(7, 7), np.eye(7), atol=1e-6)
