"""Islands of the navmesh: which one episodes take place on, and where objects stand on it."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from relic_jax.bridge.worker import SetupError
from relic_jax.envs.habitat import dataset, islands, overlap, soft
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.configuration import Settings
from relic_jax.envs.habitat.soft import house
from relic_jax.envs.habitat.soft.islands import ROOF, Parts
from relic_jax.envs.habitat.soft.navmesh import PathFinder
from relic_jax.envs.habitat.worker import ExtObjNav
from relic_jax.experiments.habitat_dataset import describe

WALL = [3.0, 0, 0, 3.2, 2.5, 10, 9, 9, 9]  # from side to side: 3 m of the house to its left, 6.8 m to its right


def scene(folder, *boxes, name="room", roof=True, size=(10.0, 10.0), tables=()):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"size": size, "boxes": list(boxes), "roof": roof, "tables": list(tables)}))
    return str(path)


@pytest.fixture
def loaded():
    """Load a scene in a simulation that is closed after the test."""
    opened = []

    def load(path, **settings):
        opened.append(Simulation(Settings(size=8, radius=0.2, **settings)))
        opened[-1].load(path)
        return opened[-1]

    yield load
    for simulation in opened:
        simulation.close()


def test_parts_of_a_divided_floor_by_hand(tmp_path):
    space = house.FreeSpace(house.load_scene(scene(tmp_path, WALL)), 0.2)
    parts = Parts(space)
    np.testing.assert_allclose(parts.areas, [2.8 * 10, 6.6 * 10], rtol=1e-3)
    cases = [([1.0, 5.0], 0), ([8.0, 5.0], 1), ([3.1, 5.0], -1), ([2.8, 5.0], 0), ([3.4, 0.0], 1), ([0.0, 0.0], 0)]
    for point, part in cases:
        assert parts.of(np.array(point)) == part, point


@pytest.mark.parametrize("seed", range(3))
def test_points_of_a_part_reach_each_other_and_no_other_part(seed):
    """Parts from the grid of sides agree with shortest paths from the visibility graph."""
    rng = np.random.RandomState(seed)
    low = rng.uniform(0, 7, (14, 2))
    high = low + rng.uniform(0.1, 3, (14, 2)) * [[1.6, 0.3]] if seed else low + rng.uniform(0.1, 3, (14, 2))
    boxes = house.Boxes(np.insert(low, 1, 0, 1), np.insert(high, 1, 2, 1), np.zeros((14, 3), np.uint8))
    space = house.FreeSpace(house.House((8.0, 8.0), boxes, ()), 0.2)
    parts, points = Parts(space), rng.uniform(0, 8, (60, 2))
    points = points[space.is_free(points)]
    labels = [parts.of(point) for point in points]
    for i, end in enumerate(points):
        to_end = space.paths_to(end)
        for j in range(i):
            assert math.isfinite(space.distance(points[j], end, to_end)) == (labels[i] == labels[j])


def test_the_roof_is_an_island_that_is_not_chosen(tmp_path, loaded):
    sim = loaded(scene(tmp_path))
    roof, floor = sim.islands
    assert (roof.area, floor.area) == (pytest.approx(100), pytest.approx(100))
    assert sorted([(roof.low, roof.indoors), (floor.low, floor.indoors)]) == [(0, 1), (pytest.approx(ROOF), 0)]
    finder = sim._simulator.pathfinder
    finder.seed(0)
    everywhere = [finder.get_random_navigable_point(100)[1] > 1 for _ in range(100)]
    assert 25 < sum(everywhere) < 75, "without an island, half of the points are on the roof"
    sim.seed(0)
    assert {float(sim.random_point()[1]) for _ in range(100)} == {0.0}
    assert sim.snap(np.array([5.0, 2.9, 5.0]))[1] == 0
    assert sim.distance(np.array([5.0, 0, 5.0]), [np.array([5.0, ROOF, 6.0])]) == math.inf
    assert sim.distance(np.array([5.0, ROOF, 5.0]), [np.array([5.0, ROOF, 6.0])]) == pytest.approx(1)


def test_points_without_a_roof_are_those_of_the_navmesh(tmp_path, loaded):
    """The island does not change the random points of houses with one island."""
    sim = loaded("house-3")
    sim.seed(4)
    mine = [sim.random_point() for _ in range(20)]
    sim.seed(4)
    for point in mine:
        np.testing.assert_array_equal(point, sim._simulator.pathfinder.get_random_navigable_point(100))


def test_the_largest_island_under_a_ceiling_is_chosen(tmp_path, loaded):
    sim = loaded(scene(tmp_path, WALL))
    assert sim.island.area == pytest.approx(66, rel=1e-3) and sim.island.indoors == 1
    for _ in range(50):
        assert sim.random_point()[0] >= 3.4 - 1e-3
    assert sim.snap(np.array([1.0, 0.4, 5.0]))[0] == pytest.approx(3.4, abs=1e-3)
    assert sim.reach(np.array([1.0, 0.4, 5.0])) is None, "more than 2 m away"
    assert sim.reach(np.array([5.0, 2.6, 5.0])) is None, "on the roof"
    np.testing.assert_allclose(sim.reach(np.array([5.0, 1.0, 5.0])), [5, 0, 5])


def test_without_rays_a_ceiling_is_an_island_above(tmp_path, loaded):
    """habitat-sim without Bullet casts no rays."""
    sim = loaded(scene(tmp_path, WALL))
    blind = SimpleNamespace(pathfinder=sim._simulator.pathfinder, cast_ray=lambda *a, **k: SimpleNamespace(hits=[]))
    assert islands.choose(islands.survey(blind, soft)) == sim.island


def test_the_choice_by_hand():
    def island(index, area, indoors):
        return islands.Island(index, area, 0.0, 0.0, indoors)

    assert islands.choose([island(0, 90, 0.1), island(1, 40, 0.9), island(2, 30, 1.0)]).number == 1
    assert islands.choose([island(0, 90, 0.1), island(1, 40, 0.2)]).number == 0, "a courtyard: the largest"
    assert islands.choose([]) is None


@pytest.mark.parametrize(("height", "indoors"), [(1.4, 0), (1.6, 1), (4.9, 1), (5.1, 0)])
def test_a_ceiling_is_from_one_and_a_half_to_five_meters_high(height, indoors):
    finder = PathFinder()
    finder.build(house.House((4.0, 4.0), house.Boxes(np.zeros((0, 3)), np.zeros((0, 3)), None), ()), 0.2)

    def cast_ray(ray, max_distance):
        distance = height - ray.origin[1] if ray.direction[1] > 0 else ray.origin[1]
        return SimpleNamespace(hits=[SimpleNamespace(ray_distance=distance)] if distance <= max_distance else [])

    (found,) = islands.survey(SimpleNamespace(pathfinder=finder, cast_ray=cast_ray), soft)
    assert found.indoors == indoors


def test_rays_by_hand(tmp_path, loaded):
    sim = loaded(scene(tmp_path, [4, 0, 4, 6, 0.8, 6, 9, 9, 9]))._simulator
    hits = sim.cast_ray(soft.geo.Ray([5.0, 2.0, 5.0], [0.0, -1.0, 0.0])).hits
    assert [hit.ray_distance for hit in hits] == pytest.approx([1.2, 2.0])
    assert [hit.point.tolist() for hit in hits] == [pytest.approx([5, 0.8, 5]), pytest.approx([5, 0, 5])]
    assert [h.ray_distance for h in sim.cast_ray(soft.geo.Ray([5, 1, 5], [0, 2, 0])).hits] == pytest.approx([0.75])
    assert not sim.cast_ray(soft.geo.Ray([5, 1, 5], [0, 1, 0]), max_distance=1.0).has_hits()
    (side,) = sim.cast_ray(soft.geo.Ray([1, 0.5, 5], [1, 0, 0])).hits
    assert side.ray_distance == pytest.approx(3)


BARE = {"layouts": 1, "objects": 1, "categories": ("mug",)}


def test_a_divided_bare_room_has_places(tmp_path):
    """Random starts used to lie on both sides, so that no place was reached from most of them."""
    table = [7.6, 0, 5, 8.4, 0.7, 6, 9, 9, 9]
    halved = [4.3, 0, 0, 4.5, 2.5, 10, 9, 9, 9]
    paths = [scene(tmp_path, halved, table, name=name, tables=[1]) for name in ("a", "b")]
    report = []
    scenes = {"train": paths[:1], "test": paths[1:]}
    for seed in range(6):
        data = dataset.generate(Settings(), scenes, seed=seed, report=report, **BARE)
        (thing,) = data["train"][0]["objects"]
        assert thing["position"] == [8.0, 0.7, 5.5]
    assert all((scene["objects"], scene["starts"], scene["tried"]) == (1, 8, 8) for scene in report)


def test_objects_in_a_room_without_tables_are_apart_on_the_floor(tmp_path):
    """Half of the points of the whole navmesh are on the roof."""
    scenes = {"train": [scene(tmp_path, WALL)], "test": ["house-1"]}
    data = dataset.generate(Settings(), scenes, objects=6, layouts=3, categories=dataset.CATEGORIES[:6])
    for task in data["train"]:
        places = np.array([thing["position"] for thing in task["objects"]])
        assert len(places) == 6 and (places[:, 1] == 0).all() and (places[:, 0] > 3.3).all()
        assert np.linalg.norm(places[:, None] - places, axis=-1)[~np.eye(6, dtype=bool)].min() >= 0.6 - 1e-3


def test_a_small_scene_is_refused_by_name_and_number(tmp_path):
    path = scene(tmp_path, [4, 0, 4, 5, 0.7, 5, 9, 9, 9], tables=[0])
    scenes = {"train": [path], "test": ["house-1"]}
    with pytest.raises(SetupError, match=r"min_area is 99 m²; allowed: at most 98\.\d\d m², which scene '.*room.json'"):
        dataset.generate(Settings(), scenes, min_area=99, **BARE)


@pytest.mark.parametrize("alias", ["house-01", "house-1"])
def test_a_training_scene_under_another_name_is_not_held_out(alias):
    words = "scene '.*house-0?1'.* (of the test split is the training scene 'house-1'|is in both splits)"
    with pytest.raises(SetupError, match=words):
        dataset.generate(Settings(), {"train": ["house-1"], "test": [alias]}, **BARE)


def test_another_path_to_a_training_scene_is_not_held_out(tmp_path):
    path = scene(tmp_path, [4, 0, 4, 5, 0.7, 5, 9, 9, 9], tables=[0])
    (tmp_path / "link.json").symlink_to(path)
    with pytest.raises(SetupError, match="is the training scene"):
        dataset.generate(Settings(), {"train": [path], "test": [str(tmp_path / "link.json")]}, **BARE)


def test_the_report_names_islands_counts_and_objects_inside_furniture(tmp_path):
    table, shelf = [7.0, 0, 5, 8.0, 0.7, 6, 9, 9, 9], [7.2, 0.6, 5.2, 7.8, 1.4, 5.8, 9, 9, 9]
    path = scene(tmp_path, WALL, table, shelf, tables=[1])
    report = []
    dataset.generate(Settings(), {"train": [path], "test": ["house-1"]}, report=report, **BARE)
    first, second = (describe(summary).splitlines() for summary in report)
    assert first[0].startswith(f"{path} (train): island 1, 6")
    assert first[0].endswith("100% indoors; 1 objects of at most 1, which 8 of 8 random starts reach")
    assert "y = 0.0 m" in first[0] and any("100.0 m² at y = 2.6 m, 0% indoors" in line for line in first[1:])
    assert first[-1] == "  warning: mug at [7.5, 0.7, 5.5] is inside box 2"
    assert len(second) == 1 and second[0].startswith("house-1 (test): island 0, ")


def test_objects_stand_on_the_bottom_of_their_bounding_box(loaded, monkeypatch):
    """A template whose origin is at its center, as by default in habitat-sim."""
    sim = loaded("house-0")
    box = soft.objects.Range3D(np.array([-0.1, -0.2, 0.0]), np.array([0.3, 0.2, 0.4]))
    monkeypatch.setattr(soft.objects.RigidObject, "aabb", box)
    sim.place([("mug", np.array([1.0, 0.5, 2.0]), 7)])
    (item,) = sim._simulator.get_rigid_object_manager().objects.values()
    np.testing.assert_allclose(item.translation, [0.9, 0.7, 1.8], atol=1e-6)


def test_objects_inside_others(loaded):
    sim = loaded("house-0")
    positions = [np.array(p, np.float32) for p in ([1, 3, 1], [1.1, 3.1, 1], [4, 3, 4])]
    sim.place([(name, position, number) for number, (name, position) in enumerate(zip("abc", positions, strict=True))])
    assert sim.containers(positions) == [None, "a_:0000", None]


def test_a_turned_box_contains_its_points_only():
    half = math.sqrt(0.5)
    turned = np.array([[half, 0, half, 2], [0, 1, 0, 0], [-half, 0, half, 3], [0, 0, 0, 1]])
    box = overlap.Box("sofa", 3, np.array([-1.0, 0, -0.3]), np.array([1.0, 1, 0.3]), np.linalg.inv(turned))
    assert overlap.container([box], np.array([2.5, 0.2, 2.5]), 0) == "sofa"
    assert overlap.container([box], np.array([2.5, 0.2, 3.5]), 0) is None, "inside the box about the turned one"
    assert overlap.container([box], np.array([2.5, 0.2, 2.5]), 3) is None, "the object itself"


def test_an_object_on_the_roof_is_refused_at_reset(tmp_path):
    env = ExtObjNav(size=8, border=0)
    task = {"scene": scene(tmp_path), "objects": [{"category": "mug", "position": [5.0, ROOF, 5.0]}]}
    with pytest.raises(SetupError, match=r"object 1 of scene .* allowed: within 2.0 m of the floor"):
        env.reset(task, 0)
