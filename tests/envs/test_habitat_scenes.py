"""Scenes for habitat-sim: geometry against the plans of `house-objnav`, files, and the command that writes them."""

import contextlib
import io
import json
import os

import houses
import jax
import numpy as np
import pytest
from glb_reader import array, image, parsed

from relic_jax.envs.firstperson.house_plan import CATEGORIES, CATEGORY_SIZE, CELL
from relic_jax.envs.firstperson.houses import PRESETS
from relic_jax.envs.firstperson.scene import WALL_HEIGHT
from relic_jax.envs.habitat import dataset
from relic_jax.envs.habitat.receptacles import read as read_receptacles
from relic_jax.envs.habitat.scenes import meshes, rooms, write
from relic_jax.envs.habitat.scenes.furniture import KINDS, build
from relic_jax.envs.habitat.scenes.glb import Part, glb
from relic_jax.envs.habitat.scenes.textures import DRAWN
from relic_jax.envs.habitat.soft.house import FreeSpace
from relic_jax.envs.habitat.soft.islands import Parts
from relic_jax.envs.habitat.worker import ExtObjNav
from relic_jax.experiments.habitat_scenes import SETTINGS, _plan, main

CONFIG = houses.TINY.config
N = CONFIG.cells
CENTERS = (np.indices((N, N)).reshape(2, -1).T + 0.5) * CELL


@pytest.fixture(scope="module")
def made():
    """(plan, furnished house) of a dozen plans."""
    plans = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), houses.houses()) for i in range(12)]
    return [(plan, rooms.furnish(plan, CONFIG, seed)) for seed, plan in enumerate(plans)]


def triangles_of(data):
    """The corners of all triangles of a file, float64 [n, 3, 3]."""
    content, binary = parsed(data)
    corners = []
    for primitive in content["meshes"][0]["primitives"]:
        positions = array(content, binary, primitive["attributes"]["POSITION"])
        corners.append(positions[array(content, binary, primitive["indices"]).ravel()].reshape(-1, 3, 3))
    return np.concatenate(corners).astype(np.float64)


def heights_over(triangles, points):
    """For each point (x, z), the heights of the surfaces over or under it that face (up, down), rounded."""
    across = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])[:, 1]
    level = triangles[np.abs(across) > 1e-9]
    faces_up = across[np.abs(across) > 1e-9] > 0
    a, b, c = np.moveaxis(level[:, :, [0, 2]], 1, 0)
    inside = np.ones((len(points), len(level)), bool)
    for start, end in ((a, b), (b, c), (c, a)):
        edge, offset = end - start, points[:, None] - start
        side = edge[:, 0] * offset[..., 1] - edge[:, 1] * offset[..., 0]
        inside &= np.where(faces_up, side < 0, side > 0)
    heights = np.round(level[:, 0, 1], 3)
    return [(set(heights[row & faces_up]), set(heights[row & ~faces_up])) for row in inside]


def cells_of(rectangles):
    """The cells whose centers are in (x, z, half x, half z), bool [N, N]."""
    inside = [(np.abs(CENTERS - row[:2]) < np.asarray(row[2:4])).all(-1) for row in rectangles]
    return np.any([np.zeros(N * N, bool), *inside], axis=0).reshape(N, N)


@pytest.mark.parametrize("index", range(4))
def test_walls_floor_and_ceiling_are_those_of_the_plan(made, index):
    """Surfaces over each cell of the meshes, against the cells that are free in the plan."""
    plan, house = made[index]
    furniture = cells_of([row for row in plan.furniture if row[4] > 0])
    objects = cells_of([(*place, CELL, CELL) for place, there in zip(plan.place, plan.present, strict=True) if there])
    inner = house._replace(furniture=[])
    top, lintel = round(WALL_HEIGHT, 3), rooms.DOOR_TOP
    doors = 0
    points = CENTERS + np.array([0.01, 0.017])  # off the diagonals of the boxes' sides
    for cell, (up, down) in enumerate(heights_over(triangles_of(glb(write.parts_of(inner))), points)):
        x, z = divmod(cell, N)
        assert 0.0 in up and top in down, "a floor and a ceiling everywhere"
        if plan.free[x, z] or furniture[x, z] or objects[x, z]:
            assert down - {top, -0.1} in (set(), {lintel}), "nothing below the ceiling except the lintels of doors"
            doors += lintel in down
        else:
            assert top in up and 0.0 in down, "a wall from the floor to the ceiling"
    walls = len({tuple(box.low[[0, 2]]) for box in house.boxes if box.kind == "lintel"})
    assert doors == 4 * walls > 0


def rooms_of(plan):
    """The cells of each room: connected free cells without those of doors. (The doors are those of the boxes.)"""
    house = rooms.furnish(plan, CONFIG, 0)
    doors = [box for box in house.boxes if box.kind == "lintel"]
    middles = [(*((box.low + box.high) / 2)[[0, 2]], *((box.high - box.low) / 2)[[0, 2]]) for box in doors]
    left = {tuple(cell) for cell in np.argwhere(plan.free & ~cells_of(middles)).tolist()}
    found = []
    while left:
        queue, room = [left.pop()], []
        while queue:
            x, z = queue.pop()
            room.append((x, z))
            near = {(x - 1, z), (x + 1, z), (x, z - 1), (x, z + 1)} & left
            left -= near
            queue += near
        found.append(room)
    return [room for room in found if len(room) > 12]


def test_every_room_is_reached_through_its_doors(made):
    for plan, house in made:
        space = FreeSpace(rooms.soft_house(house), 0.18)
        parts = Parts(space)
        largest = int(parts.areas.argmax())
        assert parts.areas[largest] / parts.areas.sum() > rooms.CONNECTED and house.share > rooms.CONNECTED
        found = rooms_of(plan)
        assert len(found) == 1 + sum(box.kind == "lintel" for box in house.boxes)
        for room in found:
            centers = (np.array(room) + 0.5) * CELL
            assert max(parts.of(center) == largest for center in centers[space.is_free(centers)])


def test_furniture_stays_in_its_cells_and_carries_objects_on_its_surface(made):
    for plan, house in made:
        rows = [row for row in plan.furniture if row[4] > 0]
        assert len(rows) == len(house.furniture)
        for row, (piece, _) in zip(rows, house.furniture, strict=True):
            low, high = piece.extent
            assert (low[[0, 2]] >= row[:2] - row[2:4]).all() and (high[[0, 2]] <= row[:2] + row[2:4]).all()
            assert low[1] == 0 and high[1] == pytest.approx(row[4])
            bottom, top = piece.surface
            middle = (bottom + top) / 2
            covering = (piece.low <= middle + 1e-9).all(-1) & (piece.high >= middle - 1e-9).all(-1)
            assert (piece.high[covering, 1] == middle[1]).any(), "a board under the objects"
            assert not ((piece.low < middle + 0.01) & (piece.high > middle + 0.01)).all(-1).any(), "nothing above them"


@pytest.mark.parametrize("kind", KINDS)
def test_furniture_has_boxes_with_positive_sides(kind):
    for half in ([0.5, 0.25], [0.25, 0.5], [0.375, 0.375]):
        for gap in rooms.GAPS:
            piece = build(kind, np.array([2.0, 3.0]), np.array(half) - gap, 0.4)
            assert (piece.high - piece.low > 0.005).all()


SHAPES = {
    "box": (meshes.boxes(np.array([[-0.2, 0, -0.1]]), np.array([[0.2, 0.5, 0.1]])), 0.4 * 0.5 * 0.2),
    "cylinder": (meshes.cylinder(0.2, 0.6), np.pi * 0.04 * 0.6),
    "sphere": (meshes.sphere(0.24), 4 / 3 * np.pi * 0.24**3),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_meshes_are_closed_and_face_outwards(shape):
    mesh, volume = SHAPES[shape]
    corners = triangles_of(glb([Part(mesh, np.array([1.0, 0.5, 0.0]), "wood")]))
    a, b, c = np.moveaxis(corners, 1, 0)
    signed = (a * np.cross(b, c)).sum() / 6  # divergence theorem: correct only if all sides face outwards
    assert 0.95 * volume <= signed <= volume * (1 + 1e-6)
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-6)
    across = np.cross(b - a, c - a)
    normals = mesh.normals[mesh.indices.reshape(-1, 3)].mean(1)
    assert ((across * normals).sum(-1) > 0).all()
    edges = np.round(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]]), 5) + 0.0
    forward, backward = ({tuple(edge.ravel()) for edge in half} for half in (edges, edges[:, ::-1]))
    assert forward == backward, "every edge has a neighbor"
    assert corners[..., 1].min() == pytest.approx(0, abs=1e-6)


def test_colors_are_tinted_textures(made):
    _, house = made[0]
    content, binary = parsed(glb(write.parts_of(house)))
    textures = [image(content, binary, index) for index in range(len(content["images"]))]
    assert len(textures) >= 4 and all(texture.shape == (64, 64, 3) for texture in textures)
    assert len({texture.tobytes() for texture in textures}) == len(textures)
    ceiling = next(box for box in house.boxes if box.kind == "ceiling")
    found = set()
    for primitive in content["meshes"][0]["primitives"]:
        attributes = primitive["attributes"]
        positions, colors = (array(content, binary, attributes[name]) for name in ("POSITION", "COLOR_0"))
        found |= {tuple(color) for color in colors[np.isclose(positions[:, 1], ceiling.high[1])]}
    assert (255, 255, 255, 255) in found and (166, 166, 166, 255) in found, "white, and shaded at the sides"
    assert set(DRAWN) >= {box.texture for box in house.boxes}


def test_names_of_categories_are_not_parts_of_each_other():
    names = write.CATEGORIES
    assert len(set(names)) == CATEGORIES
    assert not [(a, b) for a in names for b in names if a != b and a in b]


SMALL = ("--scenes", 3, "--test-scenes", 1, "--seed", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, printed = tmp_path_factory.mktemp("scenes") / "set", io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["--out", str(path), *map(str, SMALL)])
    out = printed.getvalue()
    assert "scene 3 of 4: objnav-small-00005 (train), " in out and f"wrote {path}: 3 training and 1 held-out" in out
    return path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_scene_dataset_names_files_that_are_there(folder):
    config = json.loads((folder / write.CONFIG).read_text())
    for part, count in (("stages", 4), ("objects", CATEGORIES), ("scene_instances", 4)):
        (pattern,) = config[part]["paths"][".json"]
        found = sorted(folder.glob(pattern))
        assert len(found) == count
        for path in found:
            content = json.loads(path.read_text())
            if part == "scene_instances":
                assert (folder / (content["stage_instance"]["template_name"] + ".stage_config.json")).is_file()
            else:
                assert parsed((path.parent / content["render_asset"]).read_bytes())
                assert (content["up"], content["front"]) == ([0, 1, 0], [0, 0, -1])
    for index, category in enumerate(write.CATEGORIES):
        corners = triangles_of((folder / "objects" / f"{category}.glb").read_bytes())
        size = corners.max((0, 1)) - corners.min((0, 1))
        np.testing.assert_allclose(size, (2 * CATEGORY_SIZE[index])[[0, 2, 1]] * [1, 0.5, 1], rtol=0.03)
    assert not [path for path in folder.rglob("*") if path.suffix in (".part", ".tmp")]


def test_tasks_are_those_of_house_objnav(folder):
    env = PRESETS["house-objnav-small"]
    data = json.loads((folder / "tasks.json").read_text())
    seeds = {"train": env.tasks("train")[3:6], "test": env.tasks("test")[3:4]}
    for split, numbers in seeds.items():
        assert [task["scene"] for task in data[split]] == [f"objnav-small-{seed:05d}" for seed in numbers]
    assert data["scene_dataset"] == str(folder / write.CONFIG)
    plan = _plan(seeds["test"][0], env.config)
    things = data["test"][0]["objects"]
    places = np.asarray(plan.place)[np.asarray(plan.present)]
    np.testing.assert_allclose([thing["position"] for thing in things], np.insert(places, 1, 0, 1), atol=1e-4)
    categories = [write.CATEGORIES[i] for i in np.repeat(plan.categories, env.config.instances)]
    assert [thing["category"] for thing in things] == categories
    receptacles = read_receptacles(str(folder / "receptacles.json"))
    assert set(receptacles) == {task["scene"] for split in seeds for task in data[split]}
    config = json.loads((folder / "stages" / "objnav-small-00003.stage_config.json").read_text())
    assert len(receptacles["objnav-small-00003"]) == len(config["user_defined"]) > 0


def test_the_software_simulator_plays_the_tasks(folder):
    data = dataset.read(str(folder / "tasks-soft.json"))
    env = ExtObjNav(size=32, border=1, horizon=200, categories=data["categories"])
    task = data["test"][0]
    env.reset(task, 0)
    ended = False
    while not ended:
        _, _, terminated, truncated, metrics = env.step(env.expert())
        ended = terminated or truncated
    assert metrics["success"] == 1 and env.simulation.island.indoors == 1 and len(env.simulation.islands) >= 2


def test_episode_datasets_are_made_from_the_scenes(folder, tmp_path, cli):
    scenes = [folder / "soft" / f"objnav-small-{seed:05d}.json" for seed in (3, 10_003)]
    out = tmp_path / "tasks.json"
    options = ("--train", scenes[0], "--test", scenes[1], "--categories", "red_box", "pink_cup")
    code, said, err = cli("habitat-dataset", "--out", out, *options)
    assert code == 0, err
    lines = [line for line in said.splitlines() if str(folder) in line and "m² at y = 0.0 m, 100% indoors" in line]
    assert len(lines) == 2 and all("8 of 8 random starts" in line for line in lines)
    assert sum("not used: " in line and "y = 2.6 m, 0% indoors" in line for line in said.splitlines()) == 2
    code, _, err = cli("habitat-dataset", "--out", out, *options, "--min-area", 200)
    assert code == 2 and "min_area is 200.0 m²; allowed: at most " in err and str(scenes[0]) in err


def test_an_interrupted_command_is_completed_with_the_same_files(folder, tmp_path, cli):
    """A second run writes the same bytes, and only the scenes that are missing."""
    whole = contents(folder)
    again = tmp_path / "set"
    again.mkdir()
    (again / SETTINGS).write_bytes(whole[next(path for path in whole if path.name == SETTINGS)])
    kept = "objnav-small-00003"
    for path, data in whole.items():
        if path.stem.startswith(kept):
            (again / path.parent).mkdir(exist_ok=True)
            (again / path).write_bytes(data)
    glb_file = again / "stages" / f"{kept}.glb"
    os.utime(glb_file, (0, 0))
    code, out, err = cli("habitat-scenes", "--out", again, *SMALL)
    assert code == 0, err
    assert glb_file.stat().st_mtime == 0 and out.count("(already there)") == 1
    rewritten = contents(again)
    assert set(rewritten) == set(whole)
    named = {path for path in whole if whole[path] != rewritten[path]}
    assert {path.name for path in named} == {"tasks.json", "tasks-soft.json"}, "these name their folder"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scenes", 2), "the options that it was started with"),
        (("--scenes", 0), "scenes is 0; allowed: 1 … 10,000"),
        (("--seed", 1000), "seed is 1000; allowed: 0 … 999, for these numbers of scenes"),
    ],
)
def test_other_options_are_refused(folder, cli, options, words):
    before = contents(folder)
    code, _, err = cli("habitat-scenes", "--out", folder, *SMALL, *options)
    assert code == 2 and words in err and err.count("\n") == 1
    assert contents(folder) == before


def test_a_folder_of_other_files_is_refused(tmp_path, cli):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = cli("habitat-scenes", "--out", tmp_path, *SMALL)
    assert code == 2 and f"out is '{tmp_path}'; allowed: a new folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
