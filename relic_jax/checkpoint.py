"""Save and load the checkpoints of a run. No other module imports orbax. Nothing here reads or writes a pickle.

A checkpoint is a folder `<step>/` with `arrays/params/` and `arrays/rest/` (orbax; the parameters can be read
separately), `meta.json` (format, counters, the complete config) and `checksums.json` (SHA-256 of every file). It is
written under a temporary name and then renamed. A folder whose name is a number is therefore complete, even if the
process was killed. If several processes train a run, all must call `save` and `load_state`, and see the same files.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax import prng, process, processes, trust
from relic_jax.config import ConfigError, TrainConfig, from_json, to_json
from relic_jax.files import remove_unfinished, sync, sync_entries, write_checksums
from relic_jax.parameters import with_current_names, with_legacy_names
from relic_jax.rl.state import TrainState
from relic_jax.rl.steps import StepCount
from relic_jax.runtime.files import read_record, verify_files
from relic_jax.stored_state import compact, expanded, with_renamed, with_typed_key, without_params, without_typed_keys
from relic_jax.types import Params, PyTree

FORMAT = "relic-jax-checkpoint-3"
FORMAT_2 = "relic-jax-checkpoint-2"
"""An earlier format that can be read. Parameters have the names that `with_legacy_names` returns."""
FORMAT_1 = "relic-jax-checkpoint-1"
"""Like format 2, but `env_steps` is one int32, the random number settings are not recorded (`prng.ORIGINAL`), and
checksums can be missing."""
KEEP = 2  # complete checkpoints to keep: the newest, and the one before in case the newest is damaged


def orbax() -> Any:
    """Return `orbax.checkpoint.v1`. The first call imports it, which takes most of a second."""
    with process.unconfigured_root_logger():  # orbax logs while it is imported
        from orbax.checkpoint import v1

    return v1


def save(
    folder: Path,
    step: int,
    state: TrainState,
    config: TrainConfig,
    counters: dict[str, Any],
    spaces: dict[str, Any] | None = None,
    kernels: dict[str, str] | None = None,
    device_keys: bool = False,
) -> Path:
    """Write the checkpoint `folder/step` atomically and remove old checkpoints.

    Args:
        folder: The checkpoint folder of a run.
        step: Number of the checkpoint.
        state: The whole state of training.
        config: Configuration of the run.
        counters: Plain numbers, which `load_meta` returns.
        spaces: The environment's spaces from `spaces_to_json`. With them, the policy can be built without the
            environment.
        kernels: Names of the attention kernels that the run uses, which `load_kernels` returns.
        device_keys: `Setup.device_keys`, which `has_device_keys` returns.

    Returns:
        The folder of the checkpoint.
    """
    arrays = without_typed_keys(compact(state))
    both = {"params": arrays.params, "rest": without_params(arrays)}
    with _all_or_nothing(folder / f"{step}.tmp"):
        about: dict[str, Any] = {} if kernels is None else {"kernels": kernels}
        about |= {"keys": "device" if device_keys else "environment"}
        return _write(folder, step, both, config, counters, spaces, about)


def save_params(
    folder: Path,
    step: int,
    params: Params,
    config: TrainConfig,
    counters: dict[str, Any],
    spaces: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint that holds only parameters, such as imported ones. See `save` for the arguments.

    The policy can be evaluated and played, but training cannot be resumed from it.
    """
    with _all_or_nothing(folder / f"{step}.tmp"):
        return _write(folder, step, {"params": params}, config, counters, spaces)


@contextmanager
def _all_or_nothing(temporary: Path) -> Iterator[None]:
    """Remove the temporary folder if writing fails, which frees the disk, and hide what orbax prints about it."""
    failure: Exception | None = None
    with process.without_orbax_messages():
        try:
            yield
        except Exception as error:
            failure = error
            if processes.is_first():
                remove_unfinished(temporary)  # waits for orbax's threads, which still write and print while they end
    if failure is not None:
        raise failure


def _write(
    folder: Path,
    step: int,
    arrays: dict[str, PyTree],
    config: TrainConfig,
    counters: dict[str, Any],
    spaces: dict[str, Any] | None,
    about: dict[str, Any] | None = None,
) -> Path:
    folder = folder.absolute()  # orbax requires it
    temporary = folder / f"{step}.tmp"
    if processes.is_first():
        for unfinished in folder.glob("*.tmp"):  # left by a process that was killed while it wrote
            shutil.rmtree(unfinished, ignore_errors=True)
        temporary.mkdir(parents=True)
    processes.wait_for_all("checkpoint folder exists")
    with process.unconfigured_root_logger():
        orbax().save_checkpointables(temporary / "arrays", arrays)  # each process writes its part
    if processes.is_first():
        _complete(folder, step, config, counters, spaces, about)
    processes.wait_for_all("checkpoint is complete")
    return folder / str(step)


def _complete(
    folder: Path,
    step: int,
    config: TrainConfig,
    counters: dict[str, Any],
    spaces: dict[str, Any] | None,
    about: dict[str, Any] | None,
) -> None:
    """Write the other files beside the arrays of a checkpoint, and give it its final name."""
    final, temporary = folder / str(step), folder / f"{step}.tmp"
    meta = {"format": FORMAT, "step": step, "counters": counters, "prng": prng.current()}
    meta |= {"config": json.loads(to_json(config)), "owner": trust.sign(config)}
    meta |= ({} if spaces is None else {"spaces": spaces}) | (about or {})
    (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    write_checksums(temporary)
    sync(temporary)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    sync_entries(folder)
    for old in complete_steps(folder)[:-KEEP]:
        os.replace(folder / str(old), folder / f"{old}.tmp")  # a kill leaves no partial checkpoint
        shutil.rmtree(folder / f"{old}.tmp")


def write_params(folder: Path, params: Params) -> None:
    """Write only parameters, which `read_params` reads, into a folder. The folder is removed if that fails."""
    with _all_or_nothing(folder), process.unconfigured_root_logger():
        orbax().save_checkpointables(folder.absolute() / "arrays", {"params": params})


def complete_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a run's checkpoint folder in ascending order.

    Every folder whose name is a number counts. `verify` checks whether a checkpoint is damaged.
    """
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(int(name) for name in names if str(int(name)) == name)


def find(path: Path) -> Path:
    """Return the checkpoint that a path refers to: the checkpoint folder itself, or the newest one of a run folder.

    Raises:
        ConfigError: If there is no checkpoint.
    """
    if is_checkpoint(path):
        return path
    steps = complete_steps(path / "checkpoints")
    if not steps:
        reason = "no complete checkpoint in it" if path.is_dir() else "no such folder"
        raise ConfigError(f"checkpoint is '{path}'; allowed: a run folder or a checkpoint folder ({reason})")
    return path / "checkpoints" / str(steps[-1])


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a checkpoint, possibly an incomplete one."""
    numbered = path.name.isdecimal() and path.parent.name == "checkpoints"
    return path.is_dir() and (numbered or (path / "meta.json").exists() or (path / "arrays").is_dir())


def verify(path: Path) -> None:
    """Read all files of a checkpoint and compare them with their checksums.

    Raises:
        ConfigError: If a file is damaged. The message names the file and the newest undamaged checkpoint of the run,
            if there is one.
    """
    try:
        _verify(path)
    except ConfigError as error:
        good = _good_before(path)
        if good is None:
            raise
        advice = f"use '{good}' instead of the run, or move '{path}' away"
        raise ConfigError(f"{error}; the newest good checkpoint is '{good}': {advice}") from None


def _verify(path: Path) -> None:
    meta = _read_meta(path)
    verify_files(path, "checkpoint", required=meta["format"] != FORMAT_1)


def _good_before(path: Path) -> Path | None:
    """Return the newest undamaged checkpoint of the run that is older than `path`."""
    steps = complete_steps(path.parent)
    for step in reversed(steps[: steps.index(int(path.name))] if path.name.isdecimal() else []):
        try:
            _verify(path.parent / str(step))
        except ConfigError:
            continue
        return path.parent / str(step)
    return None


def set_newer_aside(path: Path) -> list[Path]:
    """Rename the checkpoints of a run that are newer than `path`, which makes `path` its newest.

    Args:
        path: A checkpoint folder.

    Returns:
        The new paths of the renamed checkpoints.
    """
    steps = complete_steps(path.parent)
    newer = [path.with_name(str(step)) for step in steps if step > int(path.name)]
    moved = []
    for old in newer:
        aside = (old.with_name(f"{old.name}.aside" + (f"-{n}" if n else "")) for n in itertools.count())
        moved.append(next(path for path in aside if not path.exists()))
        os.replace(old, moved[-1])
    sync_entries(path.parent)
    return moved


def load_spaces(path: Path) -> dict[str, Any] | None:
    """Return the saved spaces as JSON values. None for early checkpoints, which have none.

    Raises:
        ConfigError: If the folder is not a checkpoint.
    """
    return _read_meta(path).get("spaces")


def load_kernels(path: Path) -> dict[str, str] | None:
    """Return the names of the attention kernels that a run used, by their use. None if the checkpoint has none.

    Raises:
        ConfigError: If the folder is not a checkpoint.
    """
    kernels = _read_meta(path).get("kernels")
    if not isinstance(kernels, dict):
        return None
    return {use: name for use, name in kernels.items() if isinstance(name, str)}


def has_device_keys(path: Path) -> bool:
    """Return `Setup.device_keys` of a run. True for early checkpoints, which do not record it.

    Raises:
        ConfigError: If the folder is not a checkpoint.
    """
    return _read_meta(path).get("keys") != "environment"


def load_owner(path: Path) -> str | None:
    """Return the signature of the user who wrote the checkpoint (`relic_jax.trust`). See `load_spaces` for errors."""
    owner = _read_meta(path).get("owner")
    return owner if isinstance(owner, str) else None


def load_meta(path: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the config and the counters of a checkpoint.

    Raises:
        ConfigError: If the folder is foreign, of a newer format, or truncated.
    """
    meta = _read_meta(path)
    try:
        return from_json(json.dumps(meta["config"])), _counters(meta["counters"])
    except (KeyError, TypeError, ValueError) as error:  # ConfigError is a ValueError
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(f"checkpoint is '{path}'; its meta.json does not fit: {reason}") from None


def _read_meta(path: Path) -> dict[str, Any]:
    """Return the content of meta.json. Raises ConfigError if it is missing, foreign, of a newer format or truncated."""
    meta = read_record(path / "meta.json", "checkpoint", (FORMAT, FORMAT_2, FORMAT_1))
    if (meta["format"] != FORMAT_1 or "prng" in meta) and not prng.is_known(meta.get("prng")):
        raise ConfigError(f"checkpoint is '{path}'; its meta.json does not fit: prng is {meta.get('prng')!r}")
    return meta


def _counters(counters: Any) -> dict[str, Any]:
    for name, kinds in (("env_steps", (int,)), ("seconds", (int, float))):
        value = counters[name]
        if type(value) not in kinds or not 0 <= value < 2**63:
            raise ConfigError(f"counters.{name} is {value!r}; allowed: a number of 0 or more")
    return {"env_steps": counters["env_steps"], "seconds": counters["seconds"]}


def load_prng(path: Path) -> dict[str, Any]:
    """Return the settings of `relic_jax.prng` that a run uses. Call `load_meta` first, which checks the folder."""
    found: dict[str, Any] = _read_meta(path).get("prng", prng.ORIGINAL)
    return found


def load_state(path: Path, abstract: TrainState, shardings: TrainState) -> TrainState:
    """Load the whole state of training. States of earlier formats are converted.

    Call `load_meta` first, which checks the folder, and load under the settings that `load_prng` returns.

    Args:
        path: The checkpoint folder.
        abstract: The structure, shapes and dtypes, from `jax.eval_shape`.
        shardings: The sharding of every array, in the same structure.

    Returns:
        The state.

    Raises:
        ConfigError: If the checkpoint holds only parameters, is truncated, or does not fit `abstract`.
    """
    if not (path / "arrays" / "rest").is_dir():
        raise ConfigError(
            f"checkpoint '{path}' holds only parameters (imported or truncated); allowed: a checkpoint of a trained run"
        )
    plain = jax.eval_shape(lambda state: without_typed_keys(compact(state)), abstract)
    placed = jax.tree.map(_placed, plain, compact(shardings, lambda _: shardings.segment))
    file_format = _read_meta(path)["format"]
    if file_format != FORMAT:
        placed = with_renamed(placed, with_legacy_names)
    if file_format == FORMAT_1:
        where: Any = shardings.env_steps
        placed = replace(placed, env_steps=_placed(jax.ShapeDtypeStruct((), jnp.int32), where.low))
    loaded = _load(path, {"params": placed.params, "rest": without_params(placed)})
    state = with_renamed(TrainState(**{**loaded["rest"], "params": loaded["params"]}), with_current_names)
    state = expanded(state, abstract, shardings)
    if file_format == FORMAT_1:
        steps = StepCount.of(int(state.env_steps))
        state = replace(state, env_steps=jax.device_put(steps, shardings.env_steps))
    return jax.tree.map(with_typed_key, abstract, state)


def load_params(path: Path, abstract: Params) -> Params:
    """Load only the parameters, to the first device of this process. See `load_state` for the arguments and errors."""
    stored = abstract if _read_meta(path)["format"] == FORMAT else with_legacy_names(abstract)
    return with_current_names(read_params(path, stored))


def read_params(path: Path, abstract: Params) -> Params:
    """Load the parameters of a folder under the names in its files. See `load_params`."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with process.without_orbax_messages(), processes.loading_alone(orbax()):
        return _load(path, {"params": jax.tree.map(lambda x: _placed(x, device), abstract)})["params"]


def _placed(x: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _load(path: Path, wanted: dict[str, PyTree]) -> dict[str, Any]:
    reason = ""
    with process.without_orbax_messages(), process.unconfigured_root_logger():
        try:
            loaded = orbax().load_checkpointables(path.absolute() / "arrays", wanted)
        except Exception as error:  # orbax and tensorstore raise many classes; report one line
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            time.sleep(0.5)  # its threads print while they end
    if reason:
        raise ConfigError(f"checkpoint '{path}' is truncated or does not fit its config: {reason}")
    for expected, found in zip(jax.tree.leaves(wanted), jax.tree.leaves(loaded), strict=True):
        if expected.shape != found.shape or expected.dtype != found.dtype:
            raise ConfigError(
                f"checkpoint '{path}' holds an array {found.dtype}{list(found.shape)}; allowed by its config: "
                f"{expected.dtype}{list(expected.shape)}"
            )
    # copy: on CPU, loaded arrays can be in memory that cannot be donated
    return jax.tree.map(jnp.copy, loaded)
