"""ExtObjNav as the learner sees it: `extobjnav`, by default on the software simulator in procedural houses."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

from relic_jax.bridge.protocol import Spec
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs.habitat import dataset
from relic_jax.envs.habitat.api import Settings
from relic_jax.envs.habitat.worker import ExtObjNav
from relic_jax.validation import require

SOFT_CATEGORIES = dataset.CATEGORIES[:6]
HORIZON = 500
MAX_SIDE = 4096  # pixels


@functools.lru_cache(maxsize=1)
def soft_dataset() -> dict[str, Any]:
    """37 train and 12 test houses with objects of six categories on their tables."""
    return dataset.generate(Settings(), dataset.soft_scenes(), categories=SOFT_CATEGORIES)


@dataclasses.dataclass(frozen=True)
class HabitatOptions:
    """Options of `extobjnav`."""

    backend: Literal["soft", "habitat"] = "soft"
    """Simulator: our software simulator (soft), or habitat-sim (habitat)."""
    dataset: str | None = None
    """Episode dataset, a JSON file that `relic-jax habitat-dataset` writes. None: procedural houses of the software
    simulator."""
    scene_dataset: str = "default"
    """Scene dataset configuration of habitat-sim, if `dataset` is None."""
    objects: str = ""
    """Folder with the object templates of habitat-sim."""
    image_size: int = 64
    """Side of the camera's square image, in pixels."""

    def validate(self) -> None:
        """Raise ConfigError at the first option that cannot work."""
        check_side(self.image_size)


def check_side(pixels: int) -> None:
    """Raise ConfigError if an image of this side cannot be rendered."""
    require(pixels > 0, "env.image_size", pixels, "more than 0")
    require(pixels <= MAX_SIDE, "env.image_size", pixels, f"at most {MAX_SIDE:,}")


def make(env: EnvConfig, workers: WorkerConfig) -> HostEnvironment:
    """The environment of a configuration. Raises ConfigError."""
    own = env.typed(HabitatOptions)
    own.validate()
    horizon = env.horizon or HORIZON
    if own.backend == "habitat" and own.dataset is None:
        allowed = "an episode dataset of habitat's scenes, made with relic-jax habitat-dataset"
        _require_habitat(own, horizon, workers)
        raise ConfigError(f"env.dataset is None; allowed with env.backend habitat: {allowed}")
    try:
        data = soft_dataset() if own.dataset is None else dataset.read(own.dataset)
    except SetupError as error:
        raise ConfigError(f"env.dataset is {own.dataset!r}; {error}") from None
    if data["backend"] != own.backend:
        raise ConfigError(
            f"env.backend is {own.backend!r}; allowed: {data['backend']!r}, which the dataset is made for"
        )
    options = {
        "backend": own.backend,
        "scene_dataset": own.scene_dataset if own.dataset is None else data["scene_dataset"],
        "objects": own.objects,
        "size": own.image_size,
        "border": 5 * own.image_size // 256,
        "horizon": horizon,
        "categories": list(data["categories"]),
        "scenes": sorted({task["scene"] for split in ("train", "test") for task in data[split]}),
        "gpus": list(range(workers.gpus)),
    }
    return HostEnvironment(
        name="extobjnav",
        entry="relic_jax.envs.habitat.worker:make",
        options=options,
        spec=spec(own.image_size, horizon, len(data["categories"])),
        splits={"train": data["train"], "test": data["test"]},
        image="rgb",
        per_worker=1 if own.backend == "habitat" else None,  # two of its renderers in a process do not work
        host=workers,
    )


def spec(size: int, horizon: int, categories: int) -> Spec:
    """What the workers announce."""
    return ExtObjNav.announce(size, horizon, categories)


def _require_habitat(own: HabitatOptions, horizon: int, workers: WorkerConfig) -> None:
    """Raises ConfigError where the workers' interpreter has no habitat_sim."""
    options = {"backend": "habitat", "size": own.image_size, "horizon": horizon}
    expected = spec(own.image_size, horizon, len(dataset.CATEGORIES))
    probe = HostEnvironment("extobjnav", "relic_jax.envs.habitat.worker:make", options, expected, {}, host=workers)
    probe.start(1).close()
