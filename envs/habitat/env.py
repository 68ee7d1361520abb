"""The learner's side of ExtObjNav, `extobjnav`; by default in procedural houses of the software simulator."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

from relic_jax.bridge.protocol import Spec
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs.habitat import dataset
from relic_jax.envs.habitat.configuration import ON_SOFT, Settings
from relic_jax.envs.habitat.worker import ExtObjNav
from relic_jax.validation import require

SOFT_CATEGORIES = dataset.CATEGORIES[:6]
HORIZON = 500
MAX_SIDE = 4096  # pixels


@functools.lru_cache(maxsize=1)
def soft_dataset() -> dict[str, Any]:
    """Return 37 training and 12 held-out houses with objects of six categories on their tables."""
    return dataset.generate(Settings(), dataset.soft_scenes(), categories=SOFT_CATEGORIES)


@dataclasses.dataclass(frozen=True)
class HabitatOptions:
    """Options of `extobjnav`."""

    backend: Literal["soft", "habitat"] = "soft"
    """The simulator: soft (the software simulator) or habitat (habitat-sim)."""
    dataset: str | None = None
    """Episode dataset, a JSON file that `relic-jax habitat-dataset` writes. None: procedural houses of the software
    simulator."""
    scene_dataset: str = "default"
    """Scene dataset configuration of habitat-sim, which replaces that of `dataset`. "default": that of `dataset`."""
    objects: str = ""
    """Folder with the object templates of habitat-sim: NAME.object_config.json for the template NAME."""
    image_size: int = 64
    """Side of the camera's square image, in pixels."""

    def validate(self) -> None:
        """Raise ConfigError at the first option that cannot work."""
        check_side(self.image_size)
        if self.backend == "soft":
            allowed = f"'default' with env.{ON_SOFT}"
            require(self.scene_dataset == "default", "env.scene_dataset", self.scene_dataset, allowed)
            require(not self.objects, "env.objects", self.objects, f"'' with env.{ON_SOFT}")


def check_side(pixels: int) -> None:
    """Raise ConfigError if an image of this side cannot be rendered."""
    require(pixels > 0, "env.image_size", pixels, "more than 0")
    require(pixels <= MAX_SIDE, "env.image_size", pixels, f"at most {MAX_SIDE:,}")


def make(env: EnvConfig, workers: WorkerConfig) -> HostEnvironment:
    """Make ExtObjNav.

    Args:
        env: Its horizon and options.
        workers: Options of the workers.

    Raises:
        ConfigError: The dataset or the backend is not available.
    """
    typed = env.typed(HabitatOptions)
    typed.validate()
    horizon = env.horizon or HORIZON
    if typed.backend == "habitat" and typed.dataset is None:
        allowed = "an episode dataset of habitat's scenes, made with relic-jax habitat-dataset"
        _require_habitat(typed, horizon, workers)
        raise ConfigError(f"env.dataset is None; allowed with env.backend habitat: {allowed}")
    try:
        data = soft_dataset() if typed.dataset is None else dataset.read(typed.dataset)
    except SetupError as error:
        raise ConfigError(f"env.dataset is {typed.dataset!r}; {error}") from None
    if data["backend"] != typed.backend:
        raise ConfigError(
            f"env.backend is {typed.backend!r}; allowed: {data['backend']!r}, which the dataset is made for"
        )
    options = {
        "backend": typed.backend,
        "scene_dataset": data["scene_dataset"] if typed.scene_dataset == "default" else typed.scene_dataset,
        "objects": typed.objects,
        "size": typed.image_size,
        "border": 5 * typed.image_size // 256,
        "horizon": horizon,
        "categories": list(data["categories"]),
        "scenes": sorted({task["scene"] for split in ("train", "test") for task in data[split]}),
        "templates": sorted(dataset.templates(data)),
        "gpus": list(range(workers.gpus)),
    }
    return HostEnvironment(
        name="extobjnav",
        entry="relic_jax.envs.habitat.worker:make",
        options=options,
        spec=spec(typed.image_size, horizon, len(data["categories"])),
        splits={"train": data["train"], "test": data["test"]},
        image="rgb",
        per_worker=1 if typed.backend == "habitat" else None,  # a process can have only one of its renderers
        host=workers,
    )


def spec(size: int, horizon: int, categories: int) -> Spec:
    """Return the spec that the workers announce."""
    return ExtObjNav.announce(size, horizon, categories)


def _require_habitat(typed: HabitatOptions, horizon: int, workers: WorkerConfig) -> None:
    """Raise ConfigError if the workers' interpreter has no habitat_sim."""
    options = {"backend": "habitat", "size": typed.image_size, "horizon": horizon}
    expected = spec(typed.image_size, horizon, len(dataset.CATEGORIES))
    probe = HostEnvironment("extobjnav", "relic_jax.envs.habitat.worker:make", options, expected, {}, host=workers)
    probe.start(1).close()
