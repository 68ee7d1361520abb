"""Load policies from run folders, checkpoints and exports, and the included policies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from relic_jax import settings, trust
from relic_jax.agent import Agent
from relic_jax.config import ConfigError, TrainConfig, check_acting_fields, from_json
from relic_jax.evaluation.report import Report, is_report
from relic_jax.models.policy import Policy
from relic_jax.parameters import named_parameters, with_current_names, with_legacy_names
from relic_jax.rl.memory_budget import available_bytes, tree_bytes
from relic_jax.runtime import POLICY_FORMAT, Autoreset, Full, open_export, read_json, read_safetensors
from relic_jax.spaces import Spaces, spaces_from_json
from relic_jax.types import Params
from relic_jax.validation import require, shown

FLOATS = ("float32", "float16", "bfloat16")
SHIPPED = Path(__file__).resolve().parent / "pretrained"
SpacesOf = Callable[[TrainConfig], Spaces]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """A trained policy. Using it needs no environment.

    Attributes:
        policy: The network.
        params: Its parameters, float32.
        config: Configuration of the training run.
        spaces: Observations and actions.
        training: Environment steps and seconds, and the command, commit and versions if they are known.
        evaluation: The report in its curve.json; None if there is none.
        path: The checkpoint or the export.
        own: Whether this user trained it here, see `relic_jax.trust`. The environment and the workers that the config
            of any other policy names can be arbitrary programs.
    """

    policy: Policy
    params: Params
    config: TrainConfig
    spaces: Spaces
    training: dict[str, Any]
    evaluation: Report | None
    path: Path
    own: bool = False

    @property
    def default_context(self) -> int:
        """Steps in a trial of its training, or of its evaluation if that is longer."""
        horizon = self.spaces.horizon
        return max(self.config.trial.steps, self.config.eval.episodes * horizon, horizon)

    def agent(
        self,
        *,
        batch: int | None = None,
        capacity: int | None = None,
        full: Full = "drop",
        seed: int = 0,
        greedy: bool = False,
        autoreset: Autoreset | None = None,
        env: Any = None,
    ) -> Agent:
        """Return an agent that acts with this policy; see `Agent` for the arguments."""
        options: Any = {"batch": batch, "capacity": capacity, "full": full, "seed": seed, "greedy": greedy}
        return Agent(self, autoreset=autoreset, env=env, **options)


@settings.with_standard
def load_policy(path: str | Path, *, trust: bool = False, spaces_of: SpacesOf | None = None) -> LoadedPolicy:
    """Load a policy.

    Loading starts no program and imports no module that the folder names, except with `trust` and `spaces_of`, for a
    checkpoint that has no saved spaces.

    Args:
        path: A run folder (its newest checkpoint is loaded), a checkpoint folder, or an export.
        trust: Whether the environment that a config names can be created if another user wrote it.
        spaces_of: Returns the spaces of a config's environment. Only called for checkpoints of early versions, which
            did not save their spaces.

    Raises:
        ConfigError: If there is no policy at `path`, or a file is truncated, damaged, of another kind or of a newer
            format.
    """
    path = Path(path)
    if is_export(path):
        return _load_export(path)
    from relic_jax import checkpoint  # importing orbax takes most of a second

    return _load_checkpoint(checkpoint.find(path), trust, spaces_of)


def start_params(path: str | Path, like: Params) -> Params:
    """Load the parameters that a run starts with (`start_from`).

    Args:
        path: As for `load_policy`.
        like: The run's parameters, or their shapes.

    Returns:
        float32 parameters with the structure of `like`.

    Raises:
        ConfigError: If they cannot be loaded or have other shapes.
    """
    try:
        leaves = named_parameters(load_policy(path).params)
    except ConfigError as error:
        raise ConfigError(f"start_from: {error}") from None
    except OSError as error:
        reason = f"a run, checkpoint or exported policy that can be read ({error.strerror})"
        raise ConfigError(f"start_from is {shown(str(path))}; allowed: {reason}") from None
    for name, leaf in named_parameters(like).items():
        shape = leaves[name].shape if name in leaves else "nothing"
        if shape != leaf.shape:
            raise ConfigError(f"start_from is '{path}', its {name} is {shape}; allowed in this run: {leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in named_parameters(like)])


def pretrained(name: str) -> LoadedPolicy:
    """Load a policy that is included in this library. Raises ConfigError if there is none with that name."""
    return load_policy(pretrained_path(name))


def pretrained_names() -> list[str]:
    """Return the names of the included policies."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def pretrained_path(name: str) -> Path:
    """Return the folder of an included policy. Raises ConfigError if there is none with that name."""
    if name not in pretrained_names():
        raise ConfigError(f"pretrained is {name!r}; allowed: {', '.join(map(repr, pretrained_names()))}")
    return SHIPPED / name


def is_export(path: Path) -> bool:
    """Return whether a folder looks like an export: it has a config.json of no run, and no checkpoints."""
    if not (path / "config.json").is_file() or (path / "checkpoints").is_dir() or (path / "meta.json").is_file():
        return False
    try:
        content = read_json(path / "config.json")
    except (ValueError, OSError):
        return True
    return not (isinstance(content, dict) and "total_steps" in content)


def _load_export(path: Path) -> LoadedPolicy:
    about = open_export(path)
    try:
        config = from_json(json.dumps({**about["training"]["config"], "policy": about["architecture"]}))
        spaces = spaces_from_json(about["spaces"])
        policy, abstract = policy_of(config, spaces)
        check_training(about["training"])
        evaluation = about.get("evaluation")
        report = None if evaluation is None else Report.from_json(evaluation)
    except (KeyError, TypeError, ValueError) as error:  # ConfigError is a ValueError
        raise ConfigError(f"export is '{path}'; its config.json does not fit: {error_line(error)}") from None
    stored = abstract if about["format"] == POLICY_FORMAT else with_legacy_names(abstract)
    if (path / "arrays").is_dir():
        from relic_jax import checkpoint

        params = checkpoint.read_params(path, stored)
    else:
        params = params_from_arrays(read_safetensors(path / "model.safetensors", "weights")[0], stored, path)
    training = {name: value for name, value in about["training"].items() if name != "config"}
    own = trust.is_own(config, about.get("owner"))
    params = with_current_names(params)
    return LoadedPolicy(policy, params, config, spaces, training=training, evaluation=report, path=path, own=own)


def check_training(training: dict[str, Any]) -> None:
    """Raise ConfigError if a field of the `training` record in an export's config.json is invalid."""
    for name in ("env_steps", "seconds"):
        number = training.get(name)
        valid = number is None or (type(number) in (int, float) and 0 <= number < 2**63)
        require(valid, f"training.{name}", number, "a number, 0 or more and below 2^63")
    for name in ("command", "commit", "device", "jax", "run", "preset"):
        text = training.get(name)
        require(text is None or isinstance(text, str), f"training.{name}", text, "text")


def _load_checkpoint(path: Path, trusted: bool, spaces_of: SpacesOf | None) -> LoadedPolicy:
    from relic_jax import checkpoint

    checkpoint.verify(path)
    config, counters = checkpoint.load_meta(path)
    saved = checkpoint.load_spaces(path)
    own = trust.is_own(config, checkpoint.load_owner(path))
    if saved is None and not (trusted or own):
        trust.check_buildable(config, path)
    try:
        spaces = _spaces_without_file(config, spaces_of) if saved is None else spaces_from_json(saved)
        policy, abstract = policy_of(config, spaces)
    except ConfigError as error:
        raise ConfigError(f"checkpoint is '{path}'; its meta.json does not fit: {error}") from None
    params = checkpoint.load_params(path, abstract)
    folder = path.parent.parent
    training = {**_origin(folder / "origin.json"), **counters, "run": folder.name}
    evaluation = _read_object(folder / "curve.json") or {}
    checkpoints = evaluation.get("checkpoints")
    newest = str(checkpoints[-1]) if isinstance(checkpoints, list) and checkpoints else ""
    of_this = evaluation.get("seeds") == 1 and Path(newest).name == path.name and is_report(evaluation)
    report = Report.from_json(evaluation) if of_this else None
    return LoadedPolicy(policy, params, config, spaces, training=training, evaluation=report, path=path, own=own)


def _spaces_without_file(config: TrainConfig, spaces_of: SpacesOf | None) -> Spaces:
    if spaces_of is None:
        allowed = "spaces, or load_policy(path, spaces_of=relic_jax.experiments.run.spaces_of_config)"
        raise ConfigError(f"spaces is missing (an early version did not save them); allowed: {allowed}")
    return spaces_of(config)


def policy_of(config: TrainConfig, spaces: Spaces) -> tuple[Policy, Params]:
    """Return the policy of a config and spaces, and the shapes of its parameters.

    Raises:
        ConfigError: If no policy fits them, or it needs more memory than is available.
    """
    check_acting_fields(config)
    try:
        policy = Policy(config.policy, spaces)
        abstract = jax.eval_shape(policy.init, jax.random.key(0))
    except (TypeError, ValueError, ArithmeticError, AssertionError, LookupError, FlaxError) as error:
        raise ConfigError(f"no policy fits its config and its spaces ({error_line(error)})") from None
    needed, available = tree_bytes(abstract), available_bytes(1)
    if available is not None and needed > available:
        allowed = f"a size that fits into {available / 2**20:,.0f} MiB of memory"
        raise ConfigError(f"policy takes {needed / 2**20:,.0f} MiB by its config; allowed: {allowed}")
    return policy, abstract


def error_line(error: Exception) -> str:
    """Return an error's message as one line; after the name of its class unless it is a ConfigError."""
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {line}"


def _origin(file: Path) -> dict[str, Any]:
    """Return the texts in a run's origin.json, except for the signature."""
    origin = _read_object(file) or {}
    return {name: x for name, x in origin.items() if name != "owner" and (x is None or isinstance(x, str))}


def _read_object(file: Path) -> dict[str, Any] | None:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def params_from_arrays(arrays: dict[str, np.ndarray], abstract: Params, path: Path) -> Params:
    """Return the tree of float32 parameters.

    Args:
        arrays: Arrays by name, of a floating dtype.
        abstract: The shapes that the tree must have.
        path: Where the arrays come from, for errors.

    Raises:
        ConfigError: If an array is missing, unknown, or of another shape or dtype.
    """
    for name, array in arrays.items():
        if array.dtype.name not in FLOATS:
            raise ConfigError(f"weights of '{path}': {name} is {array.dtype.name}; allowed: {', '.join(FLOATS)}")
    expected = named_parameters(abstract)
    for name in sorted({*expected, *arrays}):
        shape, allowed = (x[name].shape if name in x else "nothing" for x in (arrays, expected))
        if shape != allowed:
            raise ConfigError(f"weights of '{path}': {name} is {shape}; allowed by its config.json: {allowed}")
    leaves = [jnp.array(arrays[name], jnp.float32) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)
