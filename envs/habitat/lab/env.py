"""habitat-lab's tasks as the learner sees them: `habitat-lab:CONFIG`, in workers whose interpreter has habitat-lab."""

from __future__ import annotations

import sys
from typing import Any

from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.process import call
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError, HostConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs.habitat.lab.worker import SOFT

ENTRY = "relic_jax.envs.habitat.lab.worker:make"


def make(config: str, host: HostConfig | None = None) -> HostEnvironment:
    """The environment of habitat-lab's config `config`; a worker is started to ask for its spec. Raises ConfigError.

    host.dataset: path of the episodes with {split} in it; None: the config's. The config says which simulator it is.
    """
    host = host or HostConfig()
    options = {
        "config": config,
        "data": host.dataset,
        "scene_dataset": host.scene_dataset,
        "size": host.image_size,
        "horizon": host.horizon,
        "gpus": list(range(host.gpus)),
    }
    python = host.python or sys.executable
    try:
        found: dict[str, Any] = call(python, "relic_jax.envs.habitat.lab.worker:survey", options)
        with Pool(PoolConfig(ENTRY, options, 1, 1, 1, python=python, start_timeout=host.start_timeout)) as pool:
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
        host=host,
    )
