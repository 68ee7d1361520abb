"""ExtObjNav as the learner sees it: `extobjnav`, by default on the software simulator in procedural houses."""

from __future__ import annotations

import functools
from typing import Any

from relic_jax.bridge.protocol import Spec
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError, HostConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs.habitat import dataset
from relic_jax.envs.habitat.api import Settings
from relic_jax.envs.habitat.worker import ExtObjNav

SOFT_CATEGORIES = dataset.CATEGORIES[:6]
HORIZON = 500


@functools.lru_cache(maxsize=1)
def soft_dataset() -> dict[str, Any]:
    """37 train and 12 test houses with objects of six categories on their tables."""
    return dataset.generate(Settings(), dataset.soft_scenes(), categories=SOFT_CATEGORIES)


def make(host: HostConfig | None = None) -> HostEnvironment:
    """The environment of a configuration. Raises ConfigError."""
    host = host or HostConfig()
    if host.backend == "habitat" and host.dataset is None:
        allowed = "an episode dataset of habitat's scenes, made with relic-jax habitat-dataset"
        _require_habitat(host)
        raise ConfigError(f"host.dataset is None; allowed with --backend habitat: {allowed}")
    try:
        data = soft_dataset() if host.dataset is None else dataset.read(host.dataset)
    except SetupError as error:
        raise ConfigError(f"host.dataset is {host.dataset!r}; {error}") from None
    if data["backend"] != host.backend:
        raise ConfigError(
            f"host.backend is {host.backend!r}; allowed: {data['backend']!r}, which the dataset is made for"
        )
    options = {
        "backend": host.backend,
        "scene_dataset": host.scene_dataset if host.dataset is None else data["scene_dataset"],
        "objects": host.objects,
        "size": host.image_size,
        "border": 5 * host.image_size // 256,
        "horizon": host.horizon or HORIZON,
        "categories": list(data["categories"]),
        "scenes": sorted({task["scene"] for split in ("train", "test") for task in data[split]}),
        "gpus": list(range(host.gpus)),
    }
    return HostEnvironment(
        name="extobjnav",
        entry="relic_jax.envs.habitat.worker:make",
        options=options,
        spec=spec(host.image_size, host.horizon or HORIZON, len(data["categories"])),
        splits={"train": data["train"], "test": data["test"]},
        image="rgb",
        per_worker=1 if host.backend == "habitat" else None,  # two of its renderers in a process do not work
        host=host,
    )


def spec(size: int, horizon: int, categories: int) -> Spec:
    """What the workers announce."""
    return ExtObjNav.announce(size, horizon, categories)


def _require_habitat(host: HostConfig) -> None:
    """Raises ConfigError where the workers' interpreter has no habitat_sim."""
    options = {"backend": "habitat", "size": host.image_size, "horizon": host.horizon or HORIZON}
    expected = spec(host.image_size, host.horizon or HORIZON, len(dataset.CATEGORIES))
    probe = HostEnvironment("extobjnav", "relic_jax.envs.habitat.worker:make", options, expected, {}, host=host)
    probe.start(1).close()
