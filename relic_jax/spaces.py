"""The observation and action spaces that a policy is built for, and their JSON form.

`Spaces` holds everything that a policy needs to know about an environment, so a saved policy can be rebuilt without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.environment.base import ActionSpace, Box, Discrete, Environment, Image, MultiDiscrete
from relic_jax.runtime import ConfigError, check_spaces
from relic_jax.types import PyTree

NAMES = ("action_names", "observation_names")
"""Fields of `Spaces` that only describe and do not affect the policy."""

IMAGE_RANK = 3
"""Number of axes of an image: height, width and channels (`relic_jax.environment.base.Image`)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spaces:
    """Observation and action spaces of an environment."""

    observation: PyTree
    """One observation: a pytree of `jax.ShapeDtypeStruct`, with `Image` for the arrays that are images."""
    low: tuple[float, ...]
    """Lower bound of each vector component of the observation, concatenated in tree order. Images have no bounds."""
    high: tuple[float, ...]
    """Upper bound of each vector component, in the same order."""
    action_space: ActionSpace
    """The set of actions."""
    horizon: int
    """Length of the longest episode in steps."""
    masked: bool = False
    """Whether each step comes with a mask of legal actions (`StepInput.legal`). The parameters do not depend on it."""
    action_names: tuple[str, ...] | None = None
    """Names of the actions or of their components. None if the environment has none."""
    observation_names: tuple[str, ...] | None = None
    """Names of the observation's components. None if the environment has none."""

    @property
    def images(self) -> tuple[bool, ...]:
        """For each array of an observation, in tree order, whether it is an image."""
        return image_mask(self.observation)


def image_mask(observation: PyTree) -> tuple[bool, ...]:
    """For each array of an observation spec, in tree order, return whether it is an image (declared as `Image`)."""
    return tuple(isinstance(x, Image) for x in jax.tree.leaves(observation))


def spaces_of(env: Environment) -> Spaces:
    """Return the spaces of an environment.

    An environment without an `observation_range` has bounds of −1 and 1, so scaling leaves its observations unchanged.
    """
    spec = env.observation_spec
    unit = tuple(jax.tree.map(lambda x, end=end: np.full(x.shape, end), spec) for end in (-1.0, 1.0))
    low, high = (_vector_components(end, spec) for end in env.observation_range or unit)
    return Spaces(
        observation=spec,
        low=low,
        high=high,
        action_space=env.action_space,
        horizon=env.horizon,
        masked=env.masks_actions,
        action_names=env.action_names,
        observation_names=env.observation_names,
    )


def vector_spaces(
    low: tuple[float, ...], high: tuple[float, ...], action_space: ActionSpace, *, horizon: int = 1
) -> Spaces:
    """Return spaces whose observation is one float32 vector with the given bounds."""
    return Spaces(jax.ShapeDtypeStruct((len(low),), jnp.float32), low, high, action_space, horizon)


def _vector_components(values: PyTree, spec: PyTree) -> tuple[float, ...]:
    """Concatenate the components of all arrays that are not images. values: arrays in the tree of `spec`."""
    vectors = [x for x, is_image in zip(jax.tree.leaves(values), image_mask(spec), strict=True) if not is_image]
    return tuple(float(component) for x in vectors for component in np.ravel(x))


def spaces_to_json(spaces: Spaces) -> dict[str, Any]:
    """Convert spaces to JSON values.

    Raises:
        ConfigError: if the observation is not a tree of dictionaries, tuples and arrays.
    """
    return {
        "observation": _tree_to_json(spaces.observation),
        "low": list(spaces.low),
        "high": list(spaces.high),
        "action": {**action_to_json(spaces.action_space), **({"masked": True} if spaces.masked else {})},
        "horizon": spaces.horizon,
        **{name: list(names) for name in NAMES if (names := getattr(spaces, name))},
    }


def differences(a: Spaces, b: Spaces) -> tuple[str, str]:
    """Return as text what the observations and actions of each spaces have that those of the other do not."""
    left, right = _entries(a), _entries(b)
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]

    def text(entries: dict[str, str]) -> str:
        found = [f"{name} {entries[name]}" for name in names if name in entries]
        return ", ".join(found) or f"without {', '.join(names)}"

    return text(left), text(right)


def _entries(spaces: Spaces) -> dict[str, str]:
    """Return the arrays of an observation, and the actions, as text by their names."""
    leaves = jax.tree_util.tree_leaves_with_path(spaces.observation)
    kinds = {True: "image ", False: ""}
    found = {jax.tree_util.keystr(path): f"{kinds[isinstance(x, Image)]}{x.dtype}{list(x.shape)}" for path, x in leaves}
    return {f"observation{name}": x for name, x in found.items()} | {"action": str(spaces_to_json(spaces)["action"])}


def spaces_from_json(data: dict[str, Any]) -> Spaces:
    """Convert JSON values to spaces, the inverse of `spaces_to_json`.

    Raises:
        ConfigError: if a field is missing or has an invalid value.
    """
    check_spaces(data)
    try:
        spaces = Spaces(
            observation=_tree_from_json(data["observation"]),
            low=tuple(map(float, data["low"])),
            high=tuple(map(float, data["high"])),
            action_space=action_from_json(data["action"]),
            horizon=int(data["horizon"]),
            masked=bool(data["action"].get("masked", False)),
            **{name: _names_from_json(data[name], name) for name in NAMES if name in data},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # ConfigError is a ValueError
        raise ConfigError(f"spaces do not fit: {type(error).__name__} {error}") from None
    leaves = jax.tree.leaves(spaces.observation)
    expected = sum(x.size for x in leaves if not isinstance(x, Image))
    for name in ("low", "high"):
        count = len(getattr(spaces, name))
        if count != expected:
            raise ConfigError(f"{name} has {count} numbers; allowed: {expected}, as the observation's vectors")
    return spaces


def _names_from_json(names: Any, field: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{field} is {names!r}; allowed: a list of names")
    return tuple(names)


def action_to_json(space: ActionSpace) -> dict[str, Any]:
    """Convert an action space to JSON values."""
    if isinstance(space, Box):
        return {"type": "box", "low": list(space.low), "high": list(space.high)}
    if isinstance(space, MultiDiscrete):
        return {"type": "multi_discrete", "nvec": list(space.nvec)}
    return {"type": "discrete", "n": space.n}


def action_from_json(data: dict[str, Any]) -> ActionSpace:
    """Convert JSON values to an action space, the inverse of `action_to_json`. Other keys of `data` are ignored."""
    if data["type"] == "box":
        return Box(tuple(map(float, data["low"])), tuple(map(float, data["high"])))
    if data["type"] == "discrete":
        return Discrete(int(data["n"]))
    if data["type"] == "multi_discrete":
        return MultiDiscrete(tuple(map(int, data["nvec"])))
    raise ConfigError(f"action.type is {data['type']!r}; allowed: 'discrete', 'multi_discrete', 'box'")


def _tree_to_json(tree: PyTree) -> dict[str, Any]:
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {"keys": {key: _tree_to_json(tree[key]) for key in sorted(tree)}}
    if type(tree) in (tuple, list):
        return {"items": [_tree_to_json(item) for item in tree]}
    if not hasattr(tree, "shape"):
        raise ConfigError(f"observation is a {type(tree).__name__}; allowed: arrays in dictionaries and tuples")
    return {"shape": list(tree.shape), "dtype": jnp.dtype(tree.dtype).name, "image": isinstance(tree, Image)}


def _tree_from_json(data: dict[str, Any]) -> PyTree:
    if "keys" in data:
        return {key: _tree_from_json(item) for key, item in data["keys"].items()}
    if "items" in data:
        return tuple(_tree_from_json(item) for item in data["items"])
    kind = Image if is_image(data) else jax.ShapeDtypeStruct
    return kind(tuple(map(int, data["shape"])), jnp.dtype(data["dtype"]))


def is_image(data: Mapping[str, Any]) -> bool:
    """Return whether an array of an observation is an image.

    Files written before the field `image` existed do not have it. In those files the images are the arrays of rank 3.

    Args:
        data: JSON form of the array: `{"shape": …, "dtype": …, "image": …}`.

    Raises:
        ConfigError: if `image` is not a boolean, or is true for an array that is not of rank 3.
    """
    rank = len(data["shape"])
    value = data.get("image", rank == IMAGE_RANK)
    if not isinstance(value, bool) or (value and rank != IMAGE_RANK):
        raise ConfigError(f"image is {value!r}, of an array {data['shape']}; allowed: true for rank 3, or false")
    return value
