"""Scene instances and object templates whose files are missing or ambiguous, and simulators without Bullet."""

import json
import os
import sys
from types import ModuleType, SimpleNamespace

import glb
import habitat_python
import pytest
from remote import Remote

from relic_jax.bridge import process
from relic_jax.bridge.worker import ACTIVITY, SetupError
from relic_jax.envs.habitat import dataset, soft
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.configuration import Settings
from relic_jax.envs.habitat.lab import worker as lab
from relic_jax.envs.habitat.scene_files import SceneDataset
from relic_jax.envs.habitat.soft import house
from relic_jax.envs.habitat.templates import Templates
from relic_jax.envs.habitat.worker import ExtObjNav


@pytest.fixture
def made(tmp_path):
    """A scene dataset with the scenes a and b, and the templates apple and mug."""
    return glb.write_set(str(tmp_path), {name: house.make_house(0) for name in "ab"}, ("apple", "mug"))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_fridge(made, folder, scene):
    """Put an articulated object with a door into a scene of the dataset."""
    (folder / "urdf").mkdir()
    link = "<link name='{}'><visual><geometry><mesh filename='../objects/mug.glb'/></geometry></visual></link>"
    hinge = "<parent link='body'/><child link='door'/><origin xyz='0 1 0'/><axis xyz='0 1 0'/>"
    limit = "<limit lower='0' upper='1.5' effort='1' velocity='1'/>"
    joint = f"<joint name='hinge' type='revolute'>{hinge}{limit}</joint>"
    text = f"<robot name='fridge'>{link.format('body')}{link.format('door')}{joint}</robot>"
    (folder / "urdf" / "fridge.urdf").write_text(text)
    edit(folder / os.path.basename(made), articulated_objects={"paths": {".urdf": ["urdf"]}})
    place = {"translation": [2.0, 1.0, 2.0], "fixed_base": True, "motion_type": "DYNAMIC"}
    instance = folder / "scene_instances" / f"{scene}.scene_instance.json"
    edit(instance, articulated_object_instances=[{"template_name": "fridge", **place}])


def refused(call, *words):
    with pytest.raises(SetupError) as raised:
        call()
    message = str(raised.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_complete_scenes_pass(made, tmp_path):
    instance = tmp_path / "scene_instances" / "a.scene_instance.json"
    named = [{"template_name": name} for name in ("objects/mug", "MUG", str(tmp_path / "objects" / "apple"))]
    edit(instance, object_instances=named)
    for scene in ("a", "b", str(instance), "house.glb"):
        assert SceneDataset(made).check(scene) == []
    refused(lambda: SceneDataset("default").check(str(instance)), "stage 'stages/a'", "not in scene dataset 'default'")


def test_a_name_is_not_a_part_of_another_scenes_folder(tmp_path):
    """habitat-sim takes the first scene instance whose path contains the name."""
    folder = tmp_path / "habitat"
    folder.mkdir()
    files = SceneDataset(glb.write_set(str(folder), {name: house.make_house(0) for name in ("a", "b", "bc")}, ()))
    (folder / "stages" / "only.stage_config.json").write_text("{}")
    assert files.handle("b") == str(folder / "scene_instances" / "b.scene_instance.json")
    assert files.handle("only") == str(folder / "stages" / "only.stage_config.json")
    assert files.handle("scene_instances/b") == "scene_instances/b" and files.handle("house.glb") == "house.glb"
    assert SceneDataset("default").handle("b") == "b"


@pytest.mark.parametrize("name", ["stages/a.stage_config.json", "stages/a.glb"])
def test_a_scene_whose_stage_is_missing(made, tmp_path, name):
    (tmp_path / name).unlink()
    files = SceneDataset(made)
    refused(lambda: files.check("a"), "scene 'a' has stage 'stages/a'", name if name.endswith("glb") else made)
    assert files.check("b") == []
    refused(lambda: Simulation(Settings(scene_dataset=made)).load("a"), "stages/a")


@pytest.mark.parametrize(
    ("extension", "pattern"), [(".json", "stages"), (".json", "stages/*.glb"), (".glb", "stages/*"), (".json", "st*")]
)
def test_stages_are_found_as_habitat_sim_finds_them(made, tmp_path, extension, pattern):
    edit(tmp_path / os.path.basename(made), stages={"paths": {extension: [pattern]}})
    files = SceneDataset(made)
    suffix = "stage_config.json" if extension == ".json" else "glb"
    assert files.handles("stages") == [str(tmp_path / "stages" / f"{name}.{suffix}") for name in "ab"]
    assert files.check("a") == []


def test_objects_of_a_scene_that_are_missing(made, tmp_path):
    instance = tmp_path / "scene_instances" / "a.scene_instance.json"
    edit(instance, object_instances=[{"template_name": "objects/mug"}, {"template_name": "objects/chair"}])
    refused(lambda: SceneDataset(made).check("a"), "scene 'a' has object 'objects/chair'", str(instance))
    edit(instance, object_instances=[{"template_name": "objects/mug"}])
    (tmp_path / "objects" / "mug.glb").unlink()
    refused(lambda: SceneDataset(made).check("a"), "object 'objects/mug'", "render_asset", "mug.glb' does not exist")
    edit(tmp_path / "objects" / "mug.object_config.json", render_asset="cubeSolid")
    assert SceneDataset(made).check("a") == [], "a primitive is not a file"


def test_templates_that_the_dataset_defines(made, tmp_path):
    instance = tmp_path / "scene_instances" / "a.scene_instance.json"
    edit(instance, object_instances=[{"template_name": "stool"}])
    refused(lambda: SceneDataset(made).check("a"), "stool")
    config = tmp_path / os.path.basename(made)
    objects = json.loads(config.read_text())["objects"]
    objects["configs"] = [{"template_handle": "stool", "original_file": "mug", "attributes": {"mass": 2}}]
    edit(config, objects=objects)
    assert SceneDataset(made).check("a") == []


def test_articulated_objects_need_bullet(made, tmp_path, monkeypatch):
    instance = tmp_path / "scene_instances" / "a.scene_instance.json"
    edit(instance, articulated_object_instances=[{"template_name": "fridge"}])
    refused(lambda: SceneDataset(made).check("a"), "articulated object 'fridge'")
    add_fridge(made, tmp_path, "a")
    assert SceneDataset(made).check("a") == ["fridge"]
    simulation = Simulation(Settings(scene_dataset=made))
    refused(lambda: simulation.load("a"), "1 articulated objects", "'fridge'", "without Bullet")
    assert Simulation(Settings()).configuration("house-0").sim_cfg.enable_physics is False
    monkeypatch.setattr(soft, "built_with_bullet", True, raising=False)
    assert Simulation(Settings()).configuration("house-0").sim_cfg.enable_physics is True


def test_a_scene_dataset_that_cannot_be_read(tmp_path):
    path = tmp_path / "set.scene_dataset_config.json"
    for text, words in (("[1]", "is not a JSON object"), ("{", "cannot be read")):
        path.write_text(text)
        refused(lambda: SceneDataset(str(path)), words)


def test_templates_are_found_by_their_whole_name():
    folder = "/data/apples_home/objects"
    names = ("pineapple", "apple_2", "apple", "mug")
    handles = [f"{folder}/{name}.object_config.json" for name in names] + ["cubeSolid"]
    templates = Templates(handles, folder)
    assert templates.find("apple") == f"{folder}/apple.object_config.json"
    assert templates.find(handles[0]) == handles[0] and templates.find("cubeSolid") == "cubeSolid"
    refused(lambda: templates.find("mugg"), "'mugg' is not in", "allowed: 'mug', ")
    refused(lambda: templates.find("Apple"), "'Apple' is not in", "'apple'")
    refused(lambda: Templates([]).find("mug"), "the scene dataset", "none, there are no templates")
    two = [*handles, "/other/mug.object_config.json"]
    assert Templates(two, folder).find("mug") == f"{folder}/mug.object_config.json", "the folder precedes the dataset"
    refused(lambda: Templates(two).find("mug"), "'mug' is ambiguous", *[h for h in two if "mug" in h])


def test_templates_are_checked_when_a_dataset_is_made_and_before_training(made, tmp_path):
    settings = Settings(objects=str(tmp_path / "objects"), size=8)
    scenes = {"train": ["house-0"], "test": ["house-1"]}
    data = dataset.generate(settings, scenes, categories=("apple", "mug"))
    assert dataset.templates(data) == {"apple", "mug"}
    refused(lambda: dataset.generate(settings, scenes, categories=("apple", "unicorn")), "'unicorn' is not in")
    options = {"objects": settings.objects, "size": 8, "border": 1, "scenes": ["house-0", "house-1"]}
    ExtObjNav(**options, templates=["mug"])
    refused(lambda: ExtObjNav(**options, templates=["mug", "mugg"]), "object template 'mugg'", "allowed: 'mug'")
    refused(lambda: Simulation(Settings(objects=str(tmp_path / "no"))), "does not exist; allowed: a folder")


def test_a_crash_names_the_activity():
    scene = ACTIVITY + "loading scene 'a'"
    assert process.last_words(f"{scene}\n\nwarning\n") == (" while loading scene 'a'", "warning")
    assert process.last_words(f"{scene}\n{ACTIVITY}\nbad\n") == ("", "bad"), "the activity is over"
    assert process.last_words("") == ("", "")


def test_a_call_reports_the_activities_of_its_function():
    scenes, found = {"train": ["house-0"], "test": ["house-1"]}, []
    settings = {"backend": "soft", "scene_dataset": "default", "template_folder": "", "scenes": scenes}
    settings |= {"categories": ["mug"], "layouts": 1, "objects": 1, "seed": 0}
    made = process.call(sys.executable, "relic_jax.envs.habitat.dataset:make", settings, found.append)
    assert len(made["data"]["train"]) == 1
    first, second = (f"arranging objects in scene {number} of 2" for number in (1, 2))
    assert found == [
        *(first, f"{first}, loading scene 'house-0'", first),
        *(second, f"{second}, loading scene 'house-1'", second),
    ]


def test_the_scene_dataset_of_the_options_is_that_of_the_episodes(made, tmp_path, monkeypatch):
    """habitat-lab replaces the scene dataset of its config by that of each episode."""
    episodes = [SimpleNamespace(scene_id="a", scene_dataset_config="own.json") for _ in range(2)]
    package, datasets = ModuleType("habitat"), ModuleType("habitat.datasets")
    datasets.make_dataset = lambda *_, **__: SimpleNamespace(episodes=episodes)
    monkeypatch.setitem(sys.modules, "habitat", package)
    monkeypatch.setitem(sys.modules, "habitat.datasets", datasets)
    config = SimpleNamespace(habitat=SimpleNamespace(dataset=SimpleNamespace(data_path="", split="val", type="")))
    lab.load_dataset(config)
    assert {episode.scene_dataset_config for episode in episodes} == {"own.json"}
    refused(lambda: lab._check_files(episodes, made), "'own.json' cannot be read")
    lab.load_dataset(config, made)
    assert {episode.scene_dataset_config for episode in episodes} == {made}
    lab._check_files(episodes, "other.json")
    (tmp_path / "stages" / "a.glb").unlink()
    refused(lambda: lab._check_files(episodes, "other.json"), "scene 'a' has stage", "a.glb")


@pytest.fixture
def habitat(made, tmp_path):
    """Opens a simulation of habitat-sim in its interpreter."""
    python, opened = habitat_python.find(), []
    if not python:
        pytest.skip(habitat_python.MISSING)

    def opening():
        options = {"backend": "habitat", "scene_dataset": made, "objects": str(tmp_path / "objects"), "size": 16}
        opened.append(Remote(python, "relic_jax.envs.habitat.api:open_simulation", options))
        return opened[-1]

    yield opening
    for simulation in opened:
        simulation.end()


@pytest.mark.habitat
def test_habitat_sim_has_the_articulated_objects(habitat, made, tmp_path):
    add_fridge(made, tmp_path, "a")
    simulation = habitat()
    simulation.load("a")
    objects = simulation._simulator.get_articulated_object_manager()
    (handle,) = objects.get_object_handles()
    fridge = objects.get_object_by_handle(handle)
    assert fridge.motion_type.name == "KINEMATIC"
    places = []
    for _ in range(2):
        places.append([fridge.translation.x, fridge.translation.y, *fridge.joint_positions])
        for _ in range(30):
            simulation.act(2)
    assert places[0] == places[1] and places[0][1] > 0.5, "it does not fall"


@pytest.mark.habitat
def test_habitat_sim_takes_the_template_of_the_name(habitat, tmp_path):
    for name in ("mug", "apple"):  # names that a search for parts of paths confuses
        for suffix in (".glb", ".object_config.json"):
            file = tmp_path / "objects" / (name + suffix)
            (tmp_path / "objects" / f"a_{name}{suffix}").write_bytes(file.read_bytes())
    simulation = habitat()
    simulation.load("b")
    assert simulation.template("mug") == str(tmp_path / "objects" / "mug.object_config.json")
    refused(lambda: simulation.template("mugg"), "object template 'mugg' is not in", "'mug'")


@pytest.mark.habitat
@pytest.mark.parametrize("name", ["stages/a.stage_config.json", "stages/a.glb"])
def test_habitat_sim_never_loads_a_scene_without_its_stage(habitat, tmp_path, name):
    """It would crash."""
    (tmp_path / name).unlink()
    simulation = habitat()
    refused(lambda: simulation.load("a"), "scene 'a' has stage 'stages/a'")
    simulation.load("b")
    refused(lambda: simulation.load("a"), "scene 'a' has stage 'stages/a'")
    simulation.load("b")
