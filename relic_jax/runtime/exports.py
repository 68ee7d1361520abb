"""Exported policies: reading a folder that `relic-jax export` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .agent import Agent, Full
from .autoreset import Autoreset
from .backends import Backend, Onnx, stable_hlo
from .errors import ConfigError, require
from .files import read_record, verify_files
from .spaces import DTYPES, UNBOUNDED, check_spaces, is_integer

POLICY_FORMAT = "relic-jax-policy-2"
POLICY_FORMATS = (POLICY_FORMAT, "relic-jax-policy-1")
"""Formats that can be read. In format 1, parameters have the names in `relic_jax.parameters.LEGACY_NAMES`."""
_REQUIRED = {
    "weights": ("dtype", "fingerprint"),
    "spaces": ("observation", "low", "high", "action", "horizon", "show_last_reward"),
    "step": ("memory", "first_index", "max_episode_steps", "context"),
}


def read_about(folder: Path) -> dict[str, Any]:
    """Return the config.json of an export. Raises ConfigError if it is missing, foreign, newer or truncated."""
    return read_record(folder / "config.json", "export", POLICY_FORMATS)


def open_export(folder: Path) -> dict[str, Any]:
    """Return the config.json of an export after checking all of its files.

    Exports that were written before checksums were introduced have none to check.

    Raises:
        ConfigError: As `read_about`, and if a file is damaged or a section of config.json is missing or invalid.
    """
    about = read_about(folder)
    verify_files(folder, "export", required="checksums" in about)
    for section, names in _REQUIRED.items():
        content = about.get(section)
        missing = [name for name in names if not isinstance(content, dict) or name not in content]
        if missing:
            raise ConfigError(f"export is '{folder}'; its config.json lacks {section}.{missing[0]}")
    try:
        check_spaces(about["spaces"])
        show = about["spaces"]["show_last_reward"]
        require(isinstance(show, bool), "spaces.show_last_reward", show, "true or false")
        _check_step(about["step"])
        require(isinstance(about["weights"]["fingerprint"], str), "weights.fingerprint", about["weights"], "text")
    except ConfigError as error:
        raise ConfigError(f"export is '{folder}'; its config.json does not fit: {error}") from None
    return about


def _check_step(step: Mapping[str, Any]) -> None:
    """Raise ConfigError if the `step` section of a config.json is invalid."""
    require(step["first_index"] in (0, 1), "step.first_index", step["first_index"], "0 or 1")
    for name in ("context", "max_episode_steps"):
        unlimited = name == "max_episode_steps" and step[name] is None
        require(unlimited or is_integer(step[name], 1, UNBOUNDED), f"step.{name}", step[name], "1 … 2^31 − 1")
    memory = step["memory"]
    require(isinstance(memory, list) and 0 < len(memory) < 10_000, "step.memory", memory, "a list of arrays")
    for array in memory:
        named = isinstance(array, dict) and isinstance(array.get("name"), str) and array.get("dtype") in DTYPES
        require(named, "step.memory", array, "objects with name, shape and dtype")
        shape = array.get("shape")
        sizes = isinstance(shape, list) and all(x in ("batch", "context") or is_integer(x, 1, 2**24) for x in shape)
        require(sizes and 0 < len(shape) <= 8 and shape[0] == "batch", f"{array['name']}.shape", shape, '["batch", …]')


def load(
    folder: str | Path,
    *,
    batch: int | None = None,
    capacity: int | None = None,
    full: Full = "drop",
    seed: int = 0,
    greedy: bool = False,
    autoreset: Autoreset | None = None,
    env: Any = None,
) -> Agent:
    """Return the agent of a folder that `relic-jax export` wrote with `--format stablehlo` or `--format onnx`.

    Args:
        folder: The export.
        batch: See `Agent`, also for the other arguments.
        capacity: Steps in the context; None for the capacity that the policy was exported with.
        full: What happens when the context is full.
        seed: Seed of the sampled actions.
        greedy: Whether to take the most likely action.
        autoreset: What the environment does after the end of an episode.
        env: A gymnasium environment to read `batch` and `autoreset` from.

    Raises:
        ConfigError: If the folder is not such an export or is damaged, if jax or onnxruntime is not installed, or for
            the reasons that `Agent` states.
    """
    folder = Path(folder)
    about = open_export(folder)
    capacity = int(about["step"]["context"]) if capacity is None else capacity
    backend: Backend
    if (folder / "policy.onnx").is_file():
        backend, slots = Onnx(folder / "policy.onnx", about), None
    elif (folder / "policy.stablehlo").is_file():
        backend, slots = stable_hlo(folder / "policy.stablehlo", about), int(about["step"]["context"])
    else:
        raise ConfigError(f"export is '{folder}'; allowed: one with a policy.stablehlo or a policy.onnx")
    options: Any = {"batch": batch, "full": full, "seed": seed, "greedy": greedy, "autoreset": autoreset, "env": env}
    return Agent(about, backend, capacity=capacity, slots=slots, **options)
