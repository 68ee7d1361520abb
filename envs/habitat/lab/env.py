"""The learner's side of habitat-lab's tasks, `habitat-lab:CONFIG`. The workers' interpreter needs habitat-lab."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.process import call
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs.habitat.env import check_side
from relic_jax.envs.habitat.lab.worker import SOFT

ENTRY = "relic_jax.envs.habitat.lab.worker:make"


@dataclasses.dataclass(frozen=True)
class HabitatLabOptions:
    """Options of `habitat-lab:CONFIG`."""

    dataset: str | None = None
    """Path of the episodes, with {split} in it. None: the path in the config."""
    scene_dataset: str = "default"
    """Scene dataset configuration of habitat-sim for all episodes. "default": that of each episode."""
    image_size: int = 64
    """Side of the camera's square image, in pixels."""

    def validate(self) -> None:
        """Raise ConfigError at the first option that cannot work."""
        check_side(self.image_size)


def make(env: EnvConfig, workers: WorkerConfig) -> HostEnvironment:
    """Make the environment `habitat-lab:CONFIG`. A worker is started to announce its spec.

    Args:
        env: Its name, horizon and options. The config, a file or a name of habitat-lab's, determines the simulator.
        workers: Options of the workers.

    Raises:
        ConfigError: The interpreter has no habitat-lab, or the config cannot be loaded or run.
    """
    config, typed = env.name.removeprefix("habitat-lab:"), env.typed(HabitatLabOptions)
    typed.validate()
    options = {
        "config": config,
        "data": typed.dataset,
        "scene_dataset": typed.scene_dataset,
        "size": typed.image_size,
        "horizon": env.horizon,
        "gpus": list(range(workers.gpus)),
    }
    python = workers.python or sys.executable
    try:
        answer: dict[str, Any] = call(python, "relic_jax.envs.habitat.lab.worker:survey", options)
        with Pool(PoolConfig(ENTRY, options, 1, 1, 1, python=python, start_timeout=workers.start_timeout)) as pool:
            spec = pool.spec
    except (SetupError, PoolError) as error:
        raise ConfigError(f"env is 'habitat-lab:{config}'; {error}") from None
    return HostEnvironment(
        name=f"habitat-lab:{config}",
        entry=ENTRY,
        options=options,
        spec=spec,
        splits=answer["splits"],
        image="image" if "image" in spec.observation else None,
        per_worker=None if answer["simulator"] == SOFT else 1,  # a process can have only one renderer of habitat-sim
        host=workers,
    )
