"""Single wrong bits in every file of checkpoints and exports: they are refused, never loaded silently."""

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
    """A run folder whose one checkpoint is that of a run that has just begun."""
    config = small_config()
    setup = prepare(config, make(config.env))
    folders.create_folder(folder, setup.config)
    save(setup, folder / "checkpoints", *restore(setup, folder / "checkpoints"))
    return folder


def flipped_bits(folder: Path, load: Callable[[Path], Any], each: int, seed: int = 0) -> tuple[int, list[str]]:
    """Flips `each` random bits, one at a time, of every file in a folder; `load` must raise ConfigError, in one line.

    Returns (flips, what is wrong). The card (README.md) and the figure beside it are for people and are left out.
    """
    rng, count, wrong = random.Random(seed), 0, []
    load(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        if path.name in ("README.md", "curve.png"):
            continue
        data = path.read_bytes()
        for place in (rng.randrange(len(data)) for _ in range(each)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
            what = _how(folder, load)
            wrong += [f"{path.relative_to(folder)}, byte {place}: {what}"] if what else []
            count += 1
        path.write_bytes(data)
    return count, wrong


def _how(folder: Path, load: Callable[[Path], Any]) -> str:
    try:
        load(folder)
    except ConfigError as error:
        return "" if "\n" not in str(error) else "not one line"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "loaded silently"


def damaged_folders(folder: Path, each: int, formats: tuple[str, ...]) -> dict[str, tuple[int, list[str]]]:
    """`flipped_bits` of a checkpoint and of an export in every format: by name."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = checkpoint.find(begun_run(folder / "run"))
    alone = shutil.copytree(newest, folder / "checkpoint")
    found = {"checkpoint": flipped_bits(alone, load_policy, each)}
    for name in formats:
        to, kind = folder / name, name
        export.export_policy(load_policy(newest), to, format=kind)  # type: ignore[arg-type]
        load: Callable[[Path], Any] = runtime.load if name in ("stablehlo", "onnx") else load_policy
        found[f"export, {name}"] = flipped_bits(to, load, each)
    return found
