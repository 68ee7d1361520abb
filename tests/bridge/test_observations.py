"""What gymnasium's observation spaces become: one array for each part, with a meaning that the space gives it."""

import textwrap

import jax
import numpy as np
import pytest

from relic_jax.bridge.gym.observations import BUCKETS, Observations, SpaceError
from relic_jax.config import ConfigError, EnvConfig
from relic_jax.environment.base import Image
from relic_jax.envs.registry import make

gymnasium = pytest.importorskip("gymnasium")
S = gymnasium.spaces
PHOTO = {"low": 0, "high": 255, "dtype": np.uint8}


def encoded(space, value, **options):
    encode = Observations(space, **options)
    found = encode(value)
    for name, spec in encode.specs.items():
        assert found[name].shape == spec.shape and np.can_cast(found[name].dtype, spec.dtype, "same_kind")
    return encode, found


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (S.Discrete(3), np.int64(1), [0, 1, 0]),
        (S.Discrete(3, start=-1), -1, [1, 0, 0]),
        (S.Discrete(2, start=5), 6, [0, 1]),
        (S.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (S.MultiDiscrete([2, 2], start=[3, -1]), np.array([4, -1]), [0, 1, 1, 0]),
        (S.MultiDiscrete(np.array([[2, 2], [1, 2]])), np.array([[1, 0], [0, 1]]), [0, 1, 1, 0, 1, 0, 1]),
        (S.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (S.MultiBinary((2, 2)), np.array([[1, 0], [0, 1]], np.int8), [[1, 0], [0, 1]]),
        (S.Box(0, 1000, (2,), np.int32), np.array([0, 750], np.int32), [-1, 0.5]),
        (S.Box(0, 255, (3,), np.uint8), np.array([0, 51, 255], np.uint8), [-1, -0.6, 1]),
        (S.Box(-2, 6, (), np.float64), np.float64(0), -0.5),
        # infinite, half-bounded, as good as infinite, of one value
        (
            S.Box(np.array([-np.inf, 0, -1e6, 3, -1]), np.array([np.inf, np.inf, 1e6, 3, 3]), dtype=np.float64),
            np.full(5, 2.0),
            [2, 2, 2, 2, 0.5],
        ),
        (S.Box(-(2**31), 2**31 - 1, (1,), np.int32), np.array([7], np.int32), [7]),
    ],
)
def test_numbers_and_categories(space, value, expected):
    encode, found = encoded(space, value)
    np.testing.assert_allclose(found["observation"], expected, rtol=1e-6)
    assert encode.images == () and bool(encode.bits) == (not isinstance(space, S.Box))
    many = encode(np.stack([value, value]))["observation"]  # as a vector environment gives them
    np.testing.assert_array_equal(many, np.stack([found["observation"]] * 2))


@pytest.mark.parametrize("space", [S.Discrete(3), S.Discrete(3, start=2), S.MultiDiscrete([3, 2]), S.MultiBinary(2)])
def test_a_value_outside_of_its_space_is_an_error(space):
    with pytest.raises(ValueError, match="observation 'a' is "):
        Observations(S.Dict(a=space))({"a": np.full(space.shape, 7)})


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((84, 84), (84, 84, 1)),
        ((4, 84, 84), (84, 84, 4)),
        ((84, 84, 4), (84, 84, 4)),
        ((3, 64, 48), (64, 48, 3)),
        ((64, 48, 3), (64, 48, 3)),
        ((8, 9, 3), (8, 9, 3)),
        ((4, 84, 60, 3), (84, 60, 12)),
        ((4, 3, 84, 60), (84, 60, 12)),
        ((7, 7, 3), None),
        ((84,), None),
        ((84, 84, 40), None),
        ((9, 9, 9), None),
        ((2, 2, 2, 2), None),
    ],
)
def test_images_are_known_by_their_space(shape, expected):
    space = S.Box(shape=shape, **PHOTO)
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    encode, found = encoded(space, frame)
    assert (encode.specs["observation"].shape if encode.images else None) == expected
    if expected is None:
        assert encode.specs["observation"] == ("float32", shape)
        return
    array = found["observation"]
    assert array.dtype == np.uint8 and array.shape == expected and sorted(array.flat) == sorted(frame.flat)
    if shape[-2:] == (84, 84) and len(shape) == 3:
        np.testing.assert_array_equal(array[:, :, 1], frame[1])
    if shape == (4, 3, 84, 60):
        np.testing.assert_array_equal(array[:, :, 3 * 2 + 1], frame[2, 1])
    np.testing.assert_array_equal(encode(np.stack([frame, frame]))["observation"], np.stack([array, array]))
    for other in ({"low": 0, "high": 10, "dtype": np.uint8}, {"low": 0, "high": 255, "dtype": np.int32}):
        assert Observations(S.Box(shape=shape, **other)).images == ()


def test_trees_are_flat_by_the_path_of_their_parts():
    space = S.Dict(
        {
            "pair": S.Tuple([S.Discrete(2), S.Dict(x=S.Box(-1, 1, (2,)))]),
            "camera": S.Dict(left=S.Box(shape=(16, 16, 3), **PHOTO), right=S.Box(shape=(3, 16, 16), **PHOTO)),
        }
    )
    encode, found = encoded(space, space.sample())
    assert list(found) == ["camera.left", "camera.right", "pair.0", "pair.1.x"] == sorted(encode.specs)
    assert encode.images == ("camera.left", "camera.right") and encode.bits == ("pair.0",)
    assert found["camera.right"].shape == (16, 16, 3)
    assert list(Observations(S.Tuple([S.Discrete(2), S.Discrete(3)])).specs) == ["0", "1"]
    with pytest.raises(SpaceError, match=r"two parts of the observation are called 'a\.b'"):
        Observations(S.Dict({"a.b": S.Discrete(2), "a": S.Dict(b=S.Discrete(2))}))


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (S.Sequence(S.Discrete(2)), "Sequence"),
        (S.Graph(S.Discrete(2), None), "Graph"),
        (S.OneOf([S.Discrete(2)]), "OneOf"),
    ],
)
def test_what_has_no_fixed_size_is_refused_by_name(space, kind):
    for whole, name in ((space, "observation"), (S.Tuple([S.Discrete(2), S.Dict(bag=space)]), "1.bag")):
        with pytest.raises(SpaceError, match=f"observation '{name}' is a {kind} space; allowed: Box, Discrete"):
            Observations(whole)
    with pytest.raises(SpaceError, match="one-hot in 1000000 numbers; allowed: at most 65536"):
        Observations(S.Discrete(1_000_000))


def test_texts_are_left_out_or_read_as_their_words():
    space = S.Dict(mission=S.Text(50), room=S.Discrete(2))
    value = {"mission": "Go to the RED ball, to the ball", "room": 1}
    encode, found = encoded(space, value)
    assert encode.left_out == ("mission",) and list(found) == ["room"]
    encode, found = encoded(space, value, text="words", words=("ball", "red", "blue"))
    assert found["mission"].shape == (3 + BUCKETS,) and found["mission"][:3].tolist() == [1, 1, 0]
    assert found["mission"].sum() == 2 + 3 and encode.left_out == ()
    np.testing.assert_array_equal(found["mission"], encode({**value, "mission": "ball RED the go to"})["mission"])
    many = encode({"mission": (value["mission"],) * 2, "room": np.array([1, 1])})
    assert many["mission"].shape == (2, 3 + BUCKETS) and many["room"].shape == (2, 2)
    with pytest.raises(SpaceError, match="no part to encode but observation"):
        Observations(S.Text(5))


PACKAGE = """
    import gymnasium, numpy as np
    S = gymnasium.spaces
    class Env(gymnasium.Env):
        action_space = S.Discrete(2)
        observation_space = S.Dict(
            goal=S.Discrete(3, start=1), speed=S.Box(0, 10, (2,), np.int64), said=S.Text(9),
            camera=S.Dict(left=S.Box(0, 255, (16, 12, 3), np.uint8), right=S.Box(0, 255, (1, 16, 12), np.uint8)))
        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.goal = int(self.np_random.integers(1, 4))
            return self.look(), {}
        def step(self, action):
            return self.look(), float(action), False, False, {}
        def look(self):
            left, right = np.full((16, 12, 3), 7, np.uint8), np.full((1, 16, 12), 9, np.uint8)
            camera = {"left": left, "right": right}
            return {"goal": self.goal, "speed": np.array([0, 10]), "said": "hm", "camera": camera}
    class Hidden(Env):
        "The goal shows in rewards alone."
        observation_space = S.Box(0, 1, (1,), np.float32)
        def look(self):
            return np.zeros(1, np.float32)
        def step(self, action):
            return self.look(), float(action == self.goal), False, False, {}
    class SwallowsSeed(gymnasium.Wrapper):
        def reset(self, seed=None, options=None):
            return self.env.reset(options=options)
    class Small(gymnasium.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = S.Dict(goal=env.observation_space["goal"])
        def observation(self, observation):
            return {"goal": observation["goal"]}
    gymnasium.register("Parts-v0", Env, max_episode_steps=9)
    gymnasium.register("Hidden-v0", Hidden, max_episode_steps=9)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "parts_package.py").write_text(textwrap.dedent(PACKAGE))
    monkeypatch.chdir(tmp_path)  # workers find modules there
    return "gym:parts_package:"


def test_all_images_of_an_observation_are_kept(package, caplog):
    env = make(package + "Parts-v0")
    right = Image((16, 12, 1), np.uint8)
    vector = jax.ShapeDtypeStruct((5,), np.float32)
    images = {"camera.left": Image((16, 12, 3), np.uint8), "camera.right": right}
    assert env.observation_spec == {"image": images, "vector": vector}
    assert "without the text said" in caplog.text and "without the text said" in env.note
    low, high = env.observation_range
    assert jax.tree.map(np.shape, low) == jax.tree.map(lambda x: x.shape, env.observation_spec)
    assert low["vector"].tolist() == [0, 0, 0, -1, -1] and high["vector"].tolist() == [1] * 5
    with env.start(2) as pool:
        seen = env.observe(pool.reset([{"seed": 0}, {"seed": 1}], [0, 0]).observation)
    spec = jax.tree.map(lambda x: (x.shape[1:], x.dtype), seen)
    assert spec == jax.tree.map(lambda x: (x.shape, x.dtype), env.observation_spec)
    assert seen["vector"][:, 3:].tolist() == [[-1, 1]] * 2 and (seen["vector"][:, :3].sum(1) == 1).all()

    class Trajectory:
        observation = seen

    frames = env.render_trial(Trajectory)
    assert frames.shape == (2, 16, 24, 3) and (frames[:, :, :12] == 7).all() and (frames[:, :, 12:] == 9).all()


def test_wrappers_come_from_the_command_line(package, cli):
    options = ("--no-reference-returns", "--env.wrappers=parts_package:Small")
    code, out, err = cli("envs", package + "Parts-v0", *options)
    assert code == 0 and "observation float32 [3]" in out, err
    code, _, err = cli("train", "darkroom-smoke", "--env", "darkroom-dpt", "--env.wrappers", "parts_package:Small")
    assert code == 2 and "env.wrappers is 'parts_package:Small'; allowed with env 'darkroom-dpt': no " in err


@pytest.mark.parametrize(("id", "what"), [("Parts-v0", "at reset in observation 'goal'"), ("Hidden-v0", "the reward")])
def test_an_environment_that_swallows_its_seed_is_refused(package, id, what, tmp_path):
    assert make(package + id).horizon == 9
    wrappers = {"wrappers": "parts_package:SwallowsSeed"}
    with pytest.raises(ConfigError) as error:
        make(EnvConfig(package + id, options=wrappers))
    said = str(error.value)
    assert f"env '{package}{id}' was reset twice with seed " in said and what in said and "\n" not in said
    tasks = tmp_path / "tasks.json"
    tasks.write_text('{"train": [{}], "test": [{"options": {}}]}')
    make(EnvConfig(package + id, options={**wrappers, "dataset": str(tasks)}))  # tasks without seeds


@pytest.mark.parametrize(
    ("id", "options", "shape"),
    [
        ("MiniGrid-Empty-5x5-v0", {}, (4 + 49 * (11 + 6 + 4),)),
        ("minigrid:MiniGrid-DoorKey-5x5-v0", {"wrappers": "minigrid.wrappers:FullyObsWrapper"}, (4 + 25 * 21,)),
        ("BabyAI-GoToRedBallGrey-v0", {"text": "words"}, (4 + 49 * 21 + 51 + BUCKETS,)),
    ],
)
def test_minigrid_is_read_one_hot(id, options, shape):
    pytest.importorskip("minigrid")
    env = make(EnvConfig(f"gym:{id}", options=options))
    assert env.observation_spec.shape == shape and env.horizon > 1
    with env.start(1) as pool:
        seen = env.observe(pool.reset([{"seed": 0}], [0]).observation)[0]
    cells = shape[0] - (51 + BUCKETS if options.get("text") else 0)
    assert set(seen.tolist()) == {0.0, 1.0} and seen[:cells].sum() == 1 + 3 * (cells - 4) / 21


@pytest.mark.parametrize("wrapper", ["RGBImgObsWrapper", "RGBImgPartialObsWrapper"])
def test_photos_of_minigrid_are_images(wrapper):
    pytest.importorskip("minigrid")
    env = make(EnvConfig("gym:MiniGrid-Empty-5x5-v0", options={"wrappers": f"minigrid.wrappers:{wrapper}"}))
    assert isinstance(env.observation_spec["image"], Image)
