"""Spaces: what a policy knows about an environment, and their JSON form."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from relic_jax.config import ConfigError, PolicyConfig
from relic_jax.environment.base import Box, Discrete, Image, MultiDiscrete
from relic_jax.envs.registry import make
from relic_jax.models.policy import policy_for
from relic_jax.spaces import Spaces, is_image, spaces_from_json, spaces_of, spaces_to_json, vector_spaces

SHAPE = (4, 5, 3)
BOTH = {"board": jax.ShapeDtypeStruct(SHAPE, jnp.int8), "view": Image(SHAPE, jnp.uint8)}


def test_images_are_marked_by_type_and_not_by_rank():
    spaces = Spaces(BOTH, (0.0,) * 60, (1.0,) * 60, Discrete(2), horizon=7)
    assert spaces.images == (False, True)
    assert spaces_from_json(spaces_to_json(spaces)).images == (False, True)


def test_files_without_the_field_image_have_images_of_rank_3():
    assert is_image({"shape": [4, 5, 3]}) and not is_image({"shape": [4]})
    with pytest.raises(ConfigError, match=r"image is True, of an array .*; allowed: true for rank 3, or false"):
        is_image({"shape": [4], "image": True})


@pytest.mark.parametrize("actions", [Discrete(3), MultiDiscrete((2, 4)), Box((-1.0, 0.0), (1.0, 2.0))])
def test_json_keeps_every_field(actions):
    spaces = vector_spaces((-1.0, 0.5), (1.0, 2.0), actions, horizon=9)
    spaces = dataclasses.replace(spaces, masked=not isinstance(actions, Box), observation_names=("x", "y"))
    loaded = spaces_from_json(spaces_to_json(spaces))
    assert dataclasses.asdict(loaded) == dataclasses.asdict(spaces)


def test_bounds_must_fit_the_vectors_of_the_observation():
    about = spaces_to_json(vector_spaces((0.0,) * 2, (1.0,) * 2, Discrete(3)))
    with pytest.raises(ConfigError, match="low has 3 numbers; allowed: 2"):
        spaces_from_json({**about, "low": [0.0] * 3, "high": [1.0] * 3})


def test_a_policy_has_the_spaces_of_its_environment():
    env = make("darkroom-dpt")
    expected, spaces = spaces_of(env), policy_for(env, PolicyConfig()).spaces
    assert dataclasses.asdict(spaces) == dataclasses.asdict(expected)
    assert (spaces.horizon, spaces.action_space) == (env.horizon, env.action_space)
