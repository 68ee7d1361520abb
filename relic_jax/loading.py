"""From a folder to a working policy: runs, checkpoints, exports, and what is shipped. There is no other loader."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.agent import Agent
from relic_jax.config import ConfigError, TrainConfig, from_json
from relic_jax.models.policy import Policy
from relic_jax.runtime import Autoreset, Full, read_about, read_safetensors
from relic_jax.spaces import Spaces, named_leaves_of, spaces_from_json, spaces_of
from relic_jax.types import Params
from relic_jax.validation import shown

SHIPPED = Path(__file__).resolve().parent / "pretrained"


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """A trained policy, whatever it was loaded from. No environment is needed to use it.

    config: of its training. spaces: what it sees and does. training: environment steps, seconds, and where known the
    command, the commit and the versions. evaluation: the content of its curve.json, None where there was none. path: of
    the checkpoint or the export.
    """

    policy: Policy
    params: Params
    config: TrainConfig
    spaces: Spaces
    training: dict[str, Any]
    evaluation: dict[str, Any] | None
    path: Path

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


def load_policy(path: str | Path) -> LoadedPolicy:
    """The policy in a run folder (its newest checkpoint), a checkpoint folder, or a folder that was exported.

    Raises ConfigError, in one line, where there is none, or where a file is truncated, foreign or of a newer format.
    """
    path = Path(path)
    if is_export(path):
        return _load_export(path)
    from relic_jax import checkpoint  # orbax takes most of a second to import

    return _load_checkpoint(checkpoint.find(path))


def start_params(path: str | Path, like: Params) -> Params:
    """The parameters at a path that `load_policy` takes, for a run to begin with: float32, in the tree of `like`.

    like: the run's own parameters or their shapes. Raises ConfigError where they are of other shapes.
    """
    try:
        found = named_leaves_of(load_policy(path).params)
    except ConfigError as error:
        raise ConfigError(f"start_from: {error}") from None
    except OSError as error:
        reason = f"a run, checkpoint or exported policy that can be read ({error.strerror})"
        raise ConfigError(f"start_from is {shown(str(path))}; allowed: {reason}") from None
    for name, leaf in named_leaves_of(like).items():
        given = found[name].shape if name in found else "nothing"
        if given != leaf.shape:
            raise ConfigError(f"start_from is '{path}', its {name} is {given}; allowed in this run: {leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in named_leaves_of(like)])


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
        content = json.loads((path / "config.json").read_text())
    except (ValueError, OSError, RecursionError):
        return True
    return not (isinstance(content, dict) and "total_steps" in content)


def _load_export(path: Path) -> LoadedPolicy:
    about = read_about(path)
    try:
        config = from_json(json.dumps({**about["training"]["config"], "policy": about["architecture"]}))
        spaces = spaces_from_json(about["spaces"])
        policy = spaces.policy(config.policy)
        abstract = jax.eval_shape(policy.init, jax.random.key(0))
    except (KeyError, TypeError, ValueError) as error:  # ConfigError is a ValueError
        raise ConfigError(f"export is '{path}'; its config.json does not fit: {error}") from None
    if (path / "arrays").is_dir():
        from relic_jax import checkpoint

        params = checkpoint.load_params(path, abstract)
    else:
        params = params_from_arrays(read_safetensors(path / "model.safetensors", "weights")[0], abstract, path)
    training = {name: value for name, value in about["training"].items() if name != "config"}
    return LoadedPolicy(policy, params, config, spaces, training, about.get("evaluation"), path)


def _load_checkpoint(path: Path) -> LoadedPolicy:
    from relic_jax import checkpoint

    config, counters = checkpoint.load_meta(path)
    saved = checkpoint.load_spaces(path)
    spaces = spaces_from_json(saved) if saved else _spaces_of_env(config)
    policy = spaces.policy(config.policy)
    params = checkpoint.load_params(path, jax.eval_shape(policy.init, jax.random.key(0)))
    folder = path.parent.parent
    training = {**counters, **(_read_json(folder / "origin.json") or {}), "run": folder.name}
    evaluation = _read_json(folder / "curve.json") or {}
    newest = str((evaluation.get("checkpoints") or [""])[-1])
    of_this = evaluation.get("seeds") == 1 and Path(newest).name == path.name
    return LoadedPolicy(policy, params, config, spaces, training, evaluation if of_this else None, path)


def _spaces_of_env(config: TrainConfig) -> Spaces:
    """Of a checkpoint from before spaces were saved in it: those of its environment, by name."""
    from envs.registry import UnknownEnvironmentError, make
    from envs.repeat import repeated

    try:
        return spaces_of(repeated(make(config.env, config.host), config.trial.action_repeat))
    except UnknownEnvironmentError as error:
        raise ConfigError(f"env is {config.env!r}; allowed: a name that relic-jax envs lists; {error}") from None


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def params_from_arrays(arrays: dict[str, np.ndarray], abstract: Params, path: Path) -> Params:
    """The tree of float32 parameters. abstract: its shapes. path: named in errors."""
    expected = named_leaves_of(abstract)
    for name in sorted({*expected, *arrays}):
        given, allowed = (x[name].shape if name in x else "nothing" for x in (arrays, expected))
        if given != allowed:
            raise ConfigError(f"weights of '{path}': {name} is {given}; allowed by its config.json: {allowed}")
    leaves = [jnp.array(arrays[name], jnp.float32) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)
