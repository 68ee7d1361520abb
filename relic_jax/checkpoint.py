"""Checkpoints of a run. The only file that imports orbax. Nothing here reads or writes a pickle.

A checkpoint is a folder `<step>/` with `params/` and `rest/` (orbax; the parameters can be read alone) and `meta.json`
(format, counters, the whole config). It is written beside its final name and renamed into place, so a folder with a
number for a name is complete, whenever the process was killed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from relic_jax.config import ConfigError, TrainConfig, from_json, to_json
from relic_jax.rl.state import TrainState
from relic_jax.types import Params, PyTree

FORMAT = "relic-jax-checkpoint-1"
KEEP = 2  # complete checkpoints kept: the newest, and one before it in case the newest turns out to be bad


def save(folder: Path, step: int, state: TrainState, config: TrainConfig, counters: dict[str, Any]) -> Path:
    """Writes `folder/step` atomically and prunes old checkpoints. counters: plain numbers, returned by `load_meta`."""
    folder = folder.absolute()  # orbax insists
    final, temporary = folder / str(step), folder / f"{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    arrays = _without_typed_keys(state)
    ocp.save_checkpointables(temporary / "arrays", {"params": arrays.params, "rest": arrays.replace(params={})})
    meta = {"format": FORMAT, "step": step, "counters": counters, "config": json.loads(to_json(config))}
    (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    _sync(temporary)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for old in complete_steps(folder)[:-KEEP]:
        shutil.rmtree(folder / str(old))
    return final


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a run's checkpoint folder, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and (path / "meta.json").is_file())


def find(path: Path) -> Path:
    """The checkpoint that a user means: a checkpoint folder itself, or the newest of a run folder."""
    if (path / "meta.json").is_file():
        return path
    steps = complete_steps(path / "checkpoints")
    if not steps:
        reason = "no complete checkpoint in it" if path.is_dir() else "no such folder"
        raise ConfigError(f"checkpoint is '{path}'; allowed: a run folder or a checkpoint folder ({reason})")
    return path / "checkpoints" / str(steps[-1])


def load_meta(path: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """Config and counters of a checkpoint. Raises ConfigError where the folder is foreign, newer or truncated."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        found = meta["format"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise ConfigError(f"checkpoint is '{path}'; allowed: a folder with a readable meta.json of ours") from None
    if found != FORMAT:
        raise ConfigError(f"checkpoint '{path}' has format {found!r}; allowed: {FORMAT!r}")
    return from_json(json.dumps(meta["config"])), meta["counters"]


def load_state(path: Path, abstract: TrainState) -> TrainState:
    """The whole state. abstract: from `jax.eval_shape`; decides structure, shapes and dtypes."""
    plain = jax.eval_shape(_without_typed_keys, abstract)
    wanted = {"params": plain.params, "rest": plain.replace(params={})}
    loaded = _load(path, wanted)
    state = loaded["rest"].replace(params=loaded["params"])
    return jax.tree.map(_with_typed_key, abstract, state)


def load_params(path: Path, abstract: Params) -> Params:
    """Only the parameters. abstract: from `jax.eval_shape`."""
    return _load(path, {"params": abstract})["params"]


def _load(path: Path, wanted: dict[str, PyTree]) -> dict[str, Any]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # orbax prints pages of tracebacks from its threads before it raises
    try:
        loaded = ocp.load_checkpointables(path.absolute() / "arrays", wanted)
    except Exception as error:  # orbax and tensorstore raise many kinds; a user needs one line
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConfigError(f"checkpoint '{path}' is truncated or does not fit its config: {reason}") from error
    finally:
        logger.setLevel(level)
    for expected, found in zip(jax.tree.leaves(wanted), jax.tree.leaves(loaded), strict=True):
        if expected.shape != found.shape or expected.dtype != found.dtype:
            raise ConfigError(
                f"checkpoint '{path}' holds an array {found.dtype}{list(found.shape)}; allowed by its config: "
                f"{expected.dtype}{list(expected.shape)}"
            )
    # on CPU, loaded arrays may lie in memory that is not ours to donate
    return jax.tree.map(jnp.copy, loaded)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_typed_keys(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _with_typed_key(abstract: Any, x: Any) -> Any:
    return jax.random.wrap_key_data(x) if _is_key(abstract) else x


def _sync(folder: Path) -> None:
    """Flushes the files of a folder to disk, so that a rename never outlives its contents."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
