"""Pooling of seeds: runs are seeds of one curve if their configs differ only in the seed, resources and evaluation."""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError, EvalConfig, differences, value_of
from relic_jax.loading import LoadedPolicy
from relic_jax.parameters import fingerprint

RESOURCES = ("workers", "python", "gpus", "start_timeout", "step_timeout", "max_restarts", "ray")
MAY_DIFFER = frozenset(
    (
        *("seed", "devices", "context_devices", "checkpoint_minutes"),
        *(f"host.{name}" for name in RESOURCES),
        *(f"eval.{field.name}" for field in dataclasses.fields(EvalConfig)),
    )
)
"""Fields in which the runs of one curve can differ. Those of `eval` do not change a policy."""
GROUP_NAME = re.compile(r"[\w.+-]+")


def check_pool(policies: Sequence[LoadedPolicy], imported: Sequence[bool]) -> None:
    """Raise ConfigError if two policies are not seeds of one curve, or are the same policy.

    Args:
        policies: The policies.
        imported: Whether each was imported from the original code; its config then has no meaningful seed.
    """
    prints = [fingerprint(policy.params) for policy in policies] if len(policies) > 1 else [""]
    for index, other in enumerate(policies):
        for before, first in enumerate(policies[:index]):
            pair = f"'{other.path}' and '{first.path}'"
            same = ConfigError(f"paths: {pair} are the same policy; allowed: each run once")
            if other.path.resolve() == first.path.resolve():
                raise same
            if found := _difference(first, other):
                name, allowed, value = found
                raise ConfigError(
                    f"paths: '{other.path}' has {name} {value!r}; allowed to pool with: {allowed!r}, as '{first.path}' "
                    "has (seeds of one curve; for a curve of each: --group NAME=RUNS)"
                )
            if prints[index] == prints[before]:  # a copy, or another format
                raise same
            seed = other.config.seed
            if seed == first.config.seed and not (imported[index] or imported[before]):
                raise ConfigError(f"paths: {pair} both have seed {seed}; allowed: one run of each seed")


def _difference(first: LoadedPolicy, other: LoadedPolicy) -> tuple[str, Any, Any] | None:
    """Return (name, first value, other value) of the first field that must be equal and is not; None if all are."""
    for name in differences(first.config, other.config):
        own, others = value_of(first.config, name), value_of(other.config, name)
        if name not in MAY_DIFFER and not (name == "start_from" and _numbered_alike(own, others)):
            return name, own, others
    own, others = (policy.training.get("env_steps") for policy in (first, other))
    return None if own == others else ("env_steps", own, others)


def _numbered_alike(*paths: str | None) -> bool:
    """Whether paths differ in numbers only: seeds can continue the seeds of an earlier run."""
    return None not in paths and len({re.sub(r"\d+", "N", str(path)) for path in paths}) == 1


def groups(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Return the folders of each group, for texts `NAME=PATTERN[,PATTERN…]` with shell patterns."""
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, _, patterns = text.partition("=")
        if "=" not in text or not GROUP_NAME.fullmatch(name) or name in found:
            allowed = "NAME=PATTERN, each NAME once, of letters, digits and . + - _"
            raise ConfigError(f"group is {text!r}; allowed: {allowed}")
        matched = [Path(match) for pattern in patterns.split(",") for match in sorted(glob.glob(pattern))]
        found[name] = [path for path in matched if path.is_dir()]
        if not found[name]:
            raise ConfigError(f"group is {text!r}; allowed: a pattern that some run, checkpoint or export matches")
    return found
