"""What a policy sees and does, apart from any environment: enough to build it, and JSON in and out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import PolicyConfig
from relic_jax.environment.base import ActionSpace, Box, Discrete, Environment, Image, MultiDiscrete
from relic_jax.models.encoders import IMAGE_RANK
from relic_jax.models.policy import Policy, policy_for
from relic_jax.runtime import ConfigError, check_spaces
from relic_jax.types import Params, PyTree

NAMES = ("action_names", "observation_names")
"""Fields of `Spaces` that describe and decide nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spaces:
    """observation: jax.ShapeDtypeStructs of one observation, in its tree. low, high: range of each of its vector
    components, in tree order. action_space: what is chosen from. horizon: steps of the longest episode. masked: every
    step comes with a mask of legal actions. action_names, observation_names: the environment's, None where it has none.
    """

    observation: PyTree
    low: tuple[float, ...]
    high: tuple[float, ...]
    action_space: ActionSpace
    horizon: int
    masked: bool = False
    action_names: tuple[str, ...] | None = None
    observation_names: tuple[str, ...] | None = None

    def policy(self, config: PolicyConfig) -> Policy:
        """The policy that fits."""
        return Policy(config, self.action_space, self.low, self.high, self.observation, self.masked)


def spaces_of(env: Environment) -> Spaces:
    """An environment's."""
    policy = policy_for(env, PolicyConfig())
    return Spaces(
        observation=env.observation_spec,
        low=policy.low,
        high=policy.high,
        action_space=env.action_space,
        horizon=env.horizon,
        masked=env.masks_actions,
        action_names=env.action_names,
        observation_names=env.observation_names,
    )


def spaces_to_json(spaces: Spaces) -> dict[str, Any]:
    """As plain values. Raises ConfigError where an observation is no tree of dictionaries, tuples and arrays."""
    return {
        "observation": _tree_to_json(spaces.observation),
        "low": list(spaces.low),
        "high": list(spaces.high),
        "action": {**action_to_json(spaces.action_space), **({"masked": True} if spaces.masked else {})},
        "horizon": spaces.horizon,
        **{name: list(found) for name in NAMES if (found := getattr(spaces, name))},
    }


def spaces_from_json(data: dict[str, Any]) -> Spaces:
    """The inverse of `spaces_to_json`. Raises ConfigError where it cannot be one."""
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
    numbers = sum(x.size for x in leaves if not isinstance(x, Image))
    for name in ("low", "high"):
        if len(getattr(spaces, name)) != numbers:
            found = len(getattr(spaces, name))
            raise ConfigError(f"{name} has {found} numbers; allowed: {numbers}, as the observation's vectors")
    return spaces


def _names_from_json(names: Any, field: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{field} is {names!r}; allowed: a list of names")
    return tuple(names)


def action_to_json(space: ActionSpace) -> dict[str, Any]:
    """An action space as plain values."""
    if isinstance(space, Box):
        return {"type": "box", "low": list(space.low), "high": list(space.high)}
    if isinstance(space, MultiDiscrete):
        return {"type": "multi_discrete", "nvec": list(space.nvec)}
    return {"type": "discrete", "n": space.n}


def action_from_json(data: dict[str, Any]) -> ActionSpace:
    """The inverse of `action_to_json`; what else is in `data` is not read."""
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
    """Whether an array of an observation is an image. data: its JSON, `{"shape": …, "dtype": …, "image": …}`.

    Files from before `image` was written have no such field: there, arrays of rank 3 were images. Raises ConfigError.
    """
    rank = len(data["shape"])
    found = data.get("image", rank == IMAGE_RANK)
    if not isinstance(found, bool) or (found and rank != IMAGE_RANK):
        raise ConfigError(f"image is {found!r}, of an array {data['shape']}; allowed: true for rank 3, or false")
    return found


def named_leaves_of(params: Params) -> dict[str, Any]:
    """Parameters by their path in the tree, `encoder/action/embedding` and so on, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def fingerprint(params: Params) -> str:
    """SHA-256 over all parameters in float32: two equal ones are the same policy, whatever file it came from."""
    digest = hashlib.sha256()
    for name, x in sorted(named_leaves_of(params).items()):
        digest.update(f"{name}{tuple(x.shape)}".encode())
        digest.update(np.ascontiguousarray(x, np.float32).tobytes())
    return "sha256:" + digest.hexdigest()
