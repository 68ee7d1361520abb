"""habitat-lab's tasks as the learner sees them: `habitat-lab:CONFIG`, in workers whose interpreter has habitat-lab."""

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
    """Scene dataset configuration of habitat-sim."""
    image_size: int = 64
    """Side of the camera's square image, in pixels."""

    def validate(self) -> None:
        """Raise ConfigError at the first option that cannot work."""
        check_side(self.image_size)


def make(env: EnvConfig, workers: WorkerConfig) -> HostEnvironment:
    """The environment of the habitat-lab config in `habitat-lab:CONFIG`; the config says which simulator it is.

    A worker is started to ask for its spec. Raises ConfigError.
    """
    config, own = env.name.removeprefix("habitat-lab:"), env.typed(HabitatLabOptions)
    own.validate()
    options = {
        "config": config,
        "data": own.dataset,
        "scene_dataset": own.scene_dataset,
        "size": own.image_size,
        "horizon": env.horizon,
        "gpus": list(range(workers.gpus)),
    }
    python = workers.python or sys.executable
    try:
        found: dict[str, Any] = call(python, "relic_jax.envs.habitat.lab.worker:survey", options)
        with Pool(PoolConfig(ENTRY, options, 1, 1, 1, python=python, start_timeout=workers.start_timeout)) as pool:
            spec = pool.spec
    except (SetupError, PoolError) as error:
        raise ConfigError(f"env is 'habitat-lab:{config}'; {error}") from None
    return HostEnvironment(
        name=f"habitat-lab:{config}",
        entry=ENTRY,
        options=options,
        spec=spec,
        splits=found["splits"],
        image="image" if "image" in spec.observation else None,
        per_worker=None if found["simulator"] == SOFT else 1,  # two of habitat-sim's renderers do not work in a process
        host=workers,
    )
