"""The environment interface. To write an environment, read `relic_jax.environment.base`.

Classes of environments in worker processes are imported on first use, since they need the simulator bridge.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from relic_jax.environment.base import (
    ActionSpace,
    Box,
    Discrete,
    Environment,
    Image,
    MultiDiscrete,
    PyTree,
    Split,
    TimeStep,
    TrialMap,
    TrialRecord,
    VisualEnvironment,
    first_timestep,
    num_tasks,
    split_hash,
)
from relic_jax.environment.trials import Trials, TrialState, TrialStep
from relic_jax.environment.wrappers import VisualWrapper, Wrapper

if TYPE_CHECKING:
    from relic_jax.environment.host import HostEnvironment
    from relic_jax.environment.host_trials import HostTrials
    from relic_jax.environment.repeat import ActionRepeat, repeated

__all__ = [
    "ActionRepeat",
    "ActionSpace",
    "Box",
    "Discrete",
    "Environment",
    "HostEnvironment",
    "HostTrials",
    "Image",
    "MultiDiscrete",
    "PyTree",
    "Split",
    "TimeStep",
    "TrialMap",
    "TrialRecord",
    "TrialState",
    "TrialStep",
    "Trials",
    "VisualEnvironment",
    "VisualWrapper",
    "Wrapper",
    "first_timestep",
    "num_tasks",
    "repeated",
    "split_hash",
]

_LAZY = {
    "ActionRepeat": "repeat",
    "HostEnvironment": "host",
    "HostTrials": "host_trials",
    "repeated": "repeat",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
