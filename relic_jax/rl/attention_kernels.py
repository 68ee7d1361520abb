"""The attention kernels of a run, as its checkpoints store them.

Kernels differ in rounding. A resumed run equals the uninterrupted one bit for bit only if it uses the same kernels.
"""

from __future__ import annotations

import logging

from relic_jax.models.attention import select
from relic_jax.models.policy import Policy

log = logging.getLogger("relic_jax.attention_kernels")


def used_kernels(policy: Policy) -> dict[str, str]:
    """Return the names of the attention kernels that training uses on the default devices.

    Args:
        policy: The policy that is trained.

    Returns:
        The kernel for a "block" of steps in updates and refreshes, the kernel to "decode" a single step when acting,
        and the kernel to "peek", which predicts a value from the memory that acts. Empty if the memory does not use
        these kernels.
    """
    if not policy.config.traits.kernels:
        return {}
    config = policy.config.transformer
    return {
        "block": select(config).name,
        "decode": select(config, decode=True, kv_format=policy.acting_format).name,
        "peek": select(config, kv_format=policy.acting_format).name,
    }


def report_changes(stored: dict[str, str] | None, policy: Policy) -> None:
    """Log one line if a checkpoint was written with other kernels than those that training uses here.

    Args:
        stored: The kernels of the checkpoint, as `used_kernels` returns them. None if it does not name them.
        policy: The policy that is trained.
    """
    if not stored:
        return
    here = used_kernels(policy)
    changes = [f"{use}: {stored[use]!r} → {here[use]!r}" for use in here if stored.get(use, here[use]) != here[use]]
    if changes:
        log.warning(
            "attention kernels differ from those of the checkpoint (%s): training continues, but not bit for bit",
            ", ".join(changes),
        )
