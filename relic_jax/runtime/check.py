"""`python run.py` in an export: a short check that the policy runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from .errors import ConfigError
from .exports import load
from .spaces import blank_observation

STEPS = 100


def main(folder: Path) -> None:
    """Load the export in `folder`, or in the first argument, and time up to 100 steps on blank observations."""
    start = time.perf_counter()
    try:
        agent = load(sys.argv[1] if len(sys.argv) > 1 else folder)
    except ConfigError as error:
        sys.exit(f"run.py: {error}")
    observation, seconds = blank_observation(agent.spaces["observation"]), []
    legal = np.ones(sum(agent.actions.sizes), bool) if agent.actions.masked else None
    agent.step(observation, legal=legal)
    print(f"loaded, first action after {time.perf_counter() - start:.2f} s")
    limit = agent.about["step"]["max_episode_steps"] or STEPS
    for _ in range(min(STEPS, agent.capacity, limit) - 1):
        start = time.perf_counter()
        agent.step(observation, legal=legal)
        seconds.append(time.perf_counter() - start)
    median = f"{1e3 * float(np.median(seconds)):.2f} ms a step (median), " if seconds else ""
    print(f"{median}{agent.steps} steps in the context")
