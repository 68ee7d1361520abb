"""Receptacles: their file, positions of objects on them, datasets that use them, bad input."""

import json

import numpy as np
import pytest

from relic_jax.bridge.worker import SetupError
from relic_jax.envs.habitat import dataset, receptacles
from relic_jax.envs.habitat.configuration import Settings
from relic_jax.envs.habitat.receptacles import Receptacle
from relic_jax.envs.habitat.soft.house import load_scene


def tables(scene):
    """The tables of a procedural house, as habitat-lab would describe them."""
    house, found = load_scene(scene), {}
    for number, table in enumerate(house.tables):
        low, high = house.boxes.low[table], house.boxes.high[table]
        middle, half = (low + high) / 2, (high - low) / 2
        top = [middle[0], high[1] + 0.1, middle[2]]
        found[f"receptacle_aabb_{number}"] = {"name": "top", "position": top, "scale": [half[0], 0.1, half[2]]}
    return {**found, "something_else": {"position": 3}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "receptacles.json"
    path.write_text(json.dumps({f"house-{seed}": tables(f"house-{seed}") for seed in range(3)}))
    return path


def test_the_file_is_habitat_labs_description(file):
    found = receptacles.read(str(file))
    assert set(found) == {"house-0", "house-1", "house-2"}
    house = load_scene("house-1")
    assert len(found["house-1"]) == len(house.tables)
    for receptacle, table in zip(found["house-1"], house.tables, strict=True):
        low, high = house.boxes.low[table], house.boxes.high[table]
        np.testing.assert_allclose(receptacle.low, [low[0], high[1], low[2]], atol=1e-9)  # scale is half the size
        np.testing.assert_allclose(receptacle.high, [high[0], high[1] + 0.2, high[2]], atol=1e-9)


def test_places_are_uniform_on_the_bottom_and_off_the_edges():
    made = [Receptacle("a", np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.5, 7.0]))]
    points = np.array([receptacles.places(made, np.random.RandomState(seed), 5)[0] for seed in range(400)])
    assert (points[:, 1] == 2.0).all()
    share = (points[:, [0, 2]] - [1, 3]) / [2, 4]
    np.testing.assert_allclose([share.min(), share.max()], [0.1, 0.9], atol=0.01)
    np.testing.assert_allclose(share.mean(0), 0.5, atol=4 * 0.8 / np.sqrt(12 * 400))
    two = [*made, Receptacle("b", np.array([9.0, 1.0, 9.0]), np.array([9.0, 1.0, 9.0]))]
    assert sorted(point[1] for point in receptacles.places(two, np.random.RandomState(0), 2)) == [1.0, 2.0]


def test_datasets_put_their_objects_on_them(file, cli, tmp_path):
    out = tmp_path / "tasks.json"
    scenes = ["--train", "house-0", "house-1", "--test", "house-2", "--categories", "mug", "bowl", "--objects", "2"]
    code, _, err = cli("habitat-dataset", "--out", out, "--receptacles", file, *scenes)
    assert code == 0, err
    data = dataset.read(str(out))
    found = receptacles.read(str(file))
    for task in data["train"] + data["test"]:
        used = set()
        for thing in task["objects"]:
            x, y, z = thing["position"]
            on = [r.low for r in found[task["scene"]] if r.low[0] <= x <= r.high[0] and r.low[2] <= z <= r.high[2]]
            assert len(on) == 1 and y == pytest.approx(on[0][1], abs=1e-3)
            used.add(tuple(on[0]))
        assert len(used) == len(task["objects"]) == 2, "each on a separate one"
    code, _, err = cli(
        "habitat-dataset", "--out", out, "--receptacles", file, "--train", "house-0", "--test", "house-7"
    )
    assert code == 2 and "scene 'house-7' has no receptacles" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    ["[", "[]", '{"a": 3}', '{"a": {"receptacle_x": {"position": [0, 0, 0]}}}',
     '{"a": {"receptacle_x": {"position": [0, 0], "scale": [1, 1, 1]}}}',
     '{"a": {"receptacle_x": {"position": [0, 0, 0], "scale": [1, -1, 1]}}}'],
)  # fmt: skip
def test_what_is_no_such_file_is_one_line(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(SetupError, match=r"receptacles is .*; allowed: a JSON file") as error:
        receptacles.read(str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(SetupError, match="FileNotFoundError"):
        receptacles.read(str(tmp_path / "absent.json"))


def test_a_scene_without_receptacles_is_refused_before_any_is_loaded():
    with pytest.raises(SetupError, match="scene 'nowhere' has no receptacles; there are some of: house-0"):
        dataset.generate(Settings(), {"train": ["house-0"], "test": ["nowhere"]}, surfaces={"house-0": [None]})
