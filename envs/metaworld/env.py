"""The learner's side of Meta-World's ML1, ML10 and ML45: `metaworld:ml1:reach-v3`, `metaworld:ml10`."""

from __future__ import annotations

import sys

from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.process import call
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.host import HostEnvironment

ENTRY = "relic_jax.envs.metaworld.worker:make"


def make(env: EnvConfig, workers: WorkerConfig) -> HostEnvironment:
    """Make the Meta-World benchmark `metaworld:ID` with its own split. A worker is started to announce its spec.

    Args:
        env: Its name, and `horizon`, the steps of an episode.
        workers: Options of the workers.

    Raises:
        ConfigError: The interpreter has no metaworld, or there is no such benchmark.
    """
    id, python = env.name.removeprefix("metaworld:"), workers.python or sys.executable
    options = {"id": id, "horizon": env.horizon}
    try:
        splits = call(python, "relic_jax.envs.metaworld.worker:survey", {"id": id})
        with Pool(PoolConfig(ENTRY, options, 1, 1, 1, python=python, start_timeout=workers.start_timeout)) as pool:
            spec, versions = pool.spec, pool.versions[0]
    except (SetupError, PoolError) as error:
        raise ConfigError(f"env is 'metaworld:{id}'; {error}") from None
    note = f"metaworld {versions['metaworld']}"
    return HostEnvironment(f"metaworld:{id}", ENTRY, options, spec, splits, host=workers, note=note)
