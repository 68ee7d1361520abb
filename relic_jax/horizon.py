"""The line about episodes that were truncated at the horizon because their environment did not end them."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np

log = logging.getLogger("relic_jax.horizon")


def tell_of_cut(name: str, horizon: int, cut: Any) -> None:
    """Says so, once per environment and process. name: the environment's. cut: a count or flags; None: nothing was."""
    if cut is not None and np.any(cut):
        tell(name, horizon)


@functools.cache
def tell(name: str, horizon: int) -> None:
    """The line."""
    log.warning("env %r: episodes that outlast its horizon of %d steps are truncated there", name, horizon)
