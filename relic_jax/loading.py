"""From a folder to a working policy: runs, checkpoints, exports, and what is shipped. There is no other loader."""

from __future__ import annotations

import dataclasses
import json
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
from relic_jax.parameters import named_parameters
from relic_jax.results import check_training
from relic_jax.rl.memory_budget import available_bytes, tree_bytes
from relic_jax.runtime import Autoreset, Full, open_export, read_json, read_safetensors
from relic_jax.spaces import Spaces, spaces_from_json, spaces_of
from relic_jax.types import Params
from relic_jax.validation import shown

FLOATS = ("float32", "float16", "bfloat16")
SHIPPED = Path(__file__).resolve().parent / "pretrained"


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """A trained policy, whatever it was loaded from. No environment is needed to use it.

    config: of its training. spaces: what it sees and does. training: environment steps, seconds, and where known the
    command, the commit and the versions. evaluation: the report in its curve.json. None without one. path: of
    the checkpoint or the export. own: whether this user trained it here, see `relic_jax.trust`; the environment and the
    workers that `config` names can be any program where it is not.
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
        """Steps that the policy was seen to handle: a trial of its training, or its evaluation where that is longer."""
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
        """One that acts with this policy; see `Agent`."""
        options: Any = {"batch": batch, "capacity": capacity, "full": full, "seed": seed, "greedy": greedy}
        return Agent(self, autoreset=autoreset, env=env, **options)


@settings.with_standard
def load_policy(path: str | Path, *, trust: bool = False) -> LoadedPolicy:
    """The policy in a run folder (its newest checkpoint), a checkpoint folder, or a folder that was exported.

    Starts no program and imports no module that the folder names, unless `trust` allows it for a checkpoint of before
    spaces were saved, whose environment has to be made. Raises ConfigError, in one line, where there is no policy, or
    where a file is truncated, damaged, foreign or of a newer format.
    """
    path = Path(path)
    if is_export(path):
        return _load_export(path)
    from relic_jax import checkpoint  # orbax takes most of a second to import

    return _load_checkpoint(checkpoint.find(path), trust)


def start_params(path: str | Path, like: Params) -> Params:
    """The parameters at a path that `load_policy` takes, for a run to begin with: float32, in the tree of `like`.

    like: the run's own parameters or their shapes. Raises ConfigError where they are of other shapes.
    """
    try:
        found = named_parameters(load_policy(path).params)
    except ConfigError as error:
        raise ConfigError(f"start_from: {error}") from None
    except OSError as error:
        reason = f"a run, checkpoint or exported policy that can be read ({error.strerror})"
        raise ConfigError(f"start_from is {shown(str(path))}; allowed: {reason}") from None
    for name, leaf in named_parameters(like).items():
        given = found[name].shape if name in found else "nothing"
        if given != leaf.shape:
            raise ConfigError(f"start_from is '{path}', its {name} is {given}; allowed in this run: {leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in named_parameters(like)])


def pretrained(name: str) -> LoadedPolicy:
    """A policy that is shipped with this library. Raises ConfigError where there is none of that name."""
    return load_policy(pretrained_path(name))


def pretrained_names() -> list[str]:
    """The names of what is shipped."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def pretrained_path(name: str) -> Path:
    """The folder of a policy that is shipped. Raises ConfigError where there is none of that name."""
    if name not in pretrained_names():
        raise ConfigError(f"pretrained is {name!r}; allowed: {', '.join(map(repr, pretrained_names()))}")
    return SHIPPED / name


def is_export(path: Path) -> bool:
    """Whether a folder is meant to be an export: its config.json is none of a run, nor are there checkpoints."""
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
        raise ConfigError(f"export is '{path}'; its config.json does not fit: {told(error)}") from None
    if (path / "arrays").is_dir():
        from relic_jax import checkpoint

        params = checkpoint.load_params(path, abstract)
    else:
        params = params_from_arrays(read_safetensors(path / "model.safetensors", "weights")[0], abstract, path)
    training = {name: value for name, value in about["training"].items() if name != "config"}
    own = trust.is_own(config, about.get("owner"))
    return LoadedPolicy(policy, params, config, spaces, training, report, path, own)


def _load_checkpoint(path: Path, trusted: bool) -> LoadedPolicy:
    from relic_jax import checkpoint

    checkpoint.verify(path)
    config, counters = checkpoint.load_meta(path)
    saved = checkpoint.load_spaces(path)
    own = trust.is_own(config, checkpoint.load_owner(path))
    if saved is None and not (trusted or own):
        trust.check_buildable(config, path)
    try:
        spaces = _spaces_of_env(config) if saved is None else spaces_from_json(saved)
        policy, abstract = policy_of(config, spaces)
    except ConfigError as error:
        raise ConfigError(f"checkpoint is '{path}'; its meta.json does not fit: {error}") from None
    params = checkpoint.load_params(path, abstract)
    folder = path.parent.parent
    training = {**_origin(folder / "origin.json"), **counters, "run": folder.name}
    evaluation = _read_json(folder / "curve.json") or {}
    checkpoints = evaluation.get("checkpoints")
    newest = str(checkpoints[-1]) if isinstance(checkpoints, list) and checkpoints else ""
    of_this = evaluation.get("seeds") == 1 and Path(newest).name == path.name and is_report(evaluation)
    report = Report.from_json(evaluation) if of_this else None
    return LoadedPolicy(policy, params, config, spaces, training, report, path, own)


def policy_of(config: TrainConfig, spaces: Spaces) -> tuple[Policy, Params]:
    """The policy that a config and spaces describe, and the shapes of its parameters. Raises ConfigError."""
    check_acting_fields(config)
    try:
        policy = Policy(config.policy, spaces)
        abstract = jax.eval_shape(policy.init, jax.random.key(0))
    except (TypeError, ValueError, ArithmeticError, AssertionError, LookupError, FlaxError) as error:
        raise ConfigError(f"no policy fits its config and its spaces ({told(error)})") from None
    needed, available = tree_bytes(abstract), available_bytes(1)
    if available is not None and needed > available:
        allowed = f"a size that fits into {available / 2**20:,.0f} MiB of memory"
        raise ConfigError(f"policy takes {needed / 2**20:,.0f} MiB by its config; allowed: {allowed}")
    return policy, abstract


def told(error: Exception) -> str:
    """An error in one line: its text, behind its class where it is none of ours."""
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {line}"


def _origin(file: Path) -> dict[str, Any]:
    """The text in a run's origin.json, but for the signature; nothing of what else may stand there."""
    found = _read_json(file) or {}
    return {name: x for name, x in found.items() if name != "owner" and (x is None or isinstance(x, str))}


def _spaces_of_env(config: TrainConfig) -> Spaces:
    """Of a checkpoint from before spaces were saved in it: those of its environment, by name."""
    from relic_jax.environment.repeat import repeated
    from relic_jax.envs.registry import UnknownEnvironmentError, make

    try:
        return spaces_of(repeated(make(config.env, config.host), config.trial.action_repeat))
    except UnknownEnvironmentError as error:
        raise ConfigError(f"env is {config.env.name!r}; allowed: a name that relic-jax envs lists; {error}") from None


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def params_from_arrays(arrays: dict[str, np.ndarray], abstract: Params, path: Path) -> Params:
    """The tree of float32 parameters. abstract: its shapes. path: named in errors."""
    for name, array in arrays.items():
        if array.dtype.name not in FLOATS:
            raise ConfigError(f"weights of '{path}': {name} is {array.dtype.name}; allowed: {', '.join(FLOATS)}")
    expected = named_parameters(abstract)
    for name in sorted({*expected, *arrays}):
        given, allowed = (x[name].shape if name in x else "nothing" for x in (arrays, expected))
        if given != allowed:
            raise ConfigError(f"weights of '{path}': {name} is {given}; allowed by its config.json: {allowed}")
    leaves = [jnp.array(arrays[name], jnp.float32) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)
