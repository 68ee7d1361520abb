"""Warn about episodes that are truncated at the horizon because the environment does not end them."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np

log = logging.getLogger("relic_jax.horizon")


def warn_if_cut(name: str, horizon: int, cut: Any) -> None:
    """Warn if the horizon cut an episode, once per environment and process.

    Args:
        name: Name of the environment.
        horizon: Its horizon in steps.
        cut: A count, or flags, of the truncated episodes. None: none.
    """
    if cut is not None and np.any(cut):
        warn(name, horizon)


@functools.cache
def warn(name: str, horizon: int) -> None:
    """Log the warning."""
    log.warning("env %r: episodes that outlast its horizon of %d steps are truncated there", name, horizon)
