"""Flips single bits in every file of checkpoints and exports, which must then be refused."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relic_jax import checkpoint, export, runtime
from relic_jax.config import ConfigError
from relic_jax.envs.registry import make
from relic_jax.experiments import folders
from relic_jax.experiments.faults.small import small_config
from relic_jax.loading import load_policy
from relic_jax.rl.train import prepare, restore, save


def begun_run(folder: Path) -> Path:
    """Return a run folder with one checkpoint, from before the first update."""
    config = small_config()
    setup = prepare(config, make(config.env))
    folders.create_folder(folder, setup.config)
    save(setup, folder / "checkpoints", *restore(setup, folder / "checkpoints"))
    return folder


def flipped_bits(folder: Path, load: Callable[[Path], Any], each: int, seed: int = 0) -> tuple[int, list[str]]:
    """Flip random bits, one at a time, of every file in a folder. `load` must raise a one-line ConfigError.

    The model card (README.md) and the figure are not read by programs and are skipped.

    Args:
        folder: A checkpoint or an export.
        load: Loads the folder.
        each: Number of bits to flip in each file.
        seed: Random seed.

    Returns:
        The number of flips, and a message for each failure.
    """
    rng, count, failures = random.Random(seed), 0, []
    load(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        if path.name in ("README.md", "curve.png"):
            continue
        data = path.read_bytes()
        for place in (rng.randrange(len(data)) for _ in range(each)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
            failure = _failure(folder, load)
            failures += [f"{path.relative_to(folder)}, byte {place}: {failure}"] if failure else []
            count += 1
        path.write_bytes(data)
    return count, failures


def _failure(folder: Path, load: Callable[[Path], Any]) -> str:
    """Return how loading a damaged folder failed to be refused, or ""."""
    try:
        load(folder)
    except ConfigError as error:
        return "" if "\n" not in str(error) else "the error has several lines"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "loaded silently"


def damaged_folders(folder: Path, each: int, formats: tuple[str, ...]) -> dict[str, tuple[int, list[str]]]:
    """Return the results of `flipped_bits` on a checkpoint and on an export in each format, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = checkpoint.find(begun_run(folder / "run"))
    alone = shutil.copytree(newest, folder / "checkpoint")
    results = {"checkpoint": flipped_bits(alone, load_policy, each)}
    for name in formats:
        to, kind = folder / name, name
        export.export_policy(load_policy(newest), to, format=kind)  # type: ignore[arg-type]
        load: Callable[[Path], Any] = runtime.load if name in ("stablehlo", "onnx") else load_policy
        results[f"export, {name}"] = flipped_bits(to, load, each)
    return results
