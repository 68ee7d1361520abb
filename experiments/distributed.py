"""`relic-jax train` in several processes: they connect, agree on the run before it starts, and end together."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from relic_jax import checkpoint, processes
from relic_jax.config import ConfigError, TrainConfig, differences, from_json, to_json, value_of
from relic_jax.experiments.arguments import last_value
from relic_jax.rl.train import NonFiniteError

Value = TypeVar("Value")

PACKAGES = ("relic-jax", "jax", "jaxlib")
"""Packages whose versions must be the same in all processes."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Which processes train a run together.

    Attributes:
        coordinator: HOST:PORT of process 0, or None if JAX detects the processes.
        count: Number of processes, or None.
        index: Number of this process, or None.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def process_options(arguments: Sequence[str]) -> ProcessOptions | None:
    """Return the options that make a process one of several, or None if there are none.

    Raises:
        ConfigError: If an option has no integer value, or is set without --coordinator.
    """
    coordinator = last_value(arguments, "--coordinator")
    numbers = [_number(arguments, name) for name in ("--num-processes", "--process-id")]
    if coordinator is None:
        for name, number in zip(("num-processes", "process-id"), numbers, strict=True):
            if number is not None:
                raise ConfigError(f"{name} is {number}; allowed: with --coordinator HOST:PORT")
        is_set = "--distributed" in arguments or last_value(arguments, "--distributed") == "True"
        return ProcessOptions() if is_set else None
    return ProcessOptions(coordinator, *numbers)


def _number(arguments: Sequence[str], name: str) -> int | None:
    text = last_value(arguments, name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name.removeprefix('--')} is {text!r}; allowed: a whole number") from None


@contextlib.contextmanager
def connected(options: ProcessOptions | None) -> Iterator[None]:
    """Connect this process to the others. Only process 0 prints results, and errors that all processes have.

    Does nothing without options.

    Raises:
        ConfigError: If the processes cannot connect.
    """
    if options is None:
        yield
        return
    try:
        processes.join(options.coordinator, options.count, options.index)
    except processes.SharedError:  # process 0 reports it
        sys.exit(2)
    index, _ = processes.place()
    processes.notice = processes.LossNotice()
    try:
        with contextlib.ExitStack() as stack:
            if index:
                silent = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(silent))
            yield
    except (NonFiniteError, processes.SharedError) as error:
        if index:
            sys.exit(1 if isinstance(error, NonFiniteError) else 2)
        raise
    except Exception as error:
        if processes.is_loss(error):
            processes.notice.end_process()
        raise
    finally:
        processes.notice.close()
        processes.notice = None


def agreed(several: bool, what: str, make: Callable[[], tuple[Value, dict[str, Any]]]) -> Value:
    """Return what `make` returns, or raise an error in all processes if one of them has an error.

    Args:
        several: Whether this process is one of several.
        what: Name of the step for the processes, such as "config".
        make: Returns the value, and JSON values that must be the same in all processes.

    Raises:
        processes.SharedError: If `make` raises ConfigError in any process, or the processes disagree.
    """
    if not several:
        return make()[0]
    value: Value | None = None
    message: dict[str, Any] = {"step": what}
    try:
        value, facts = make()
        message |= facts
    except ConfigError as error:
        message["error"] = str(error)
    except SystemExit as end:  # --help, or an error that was printed
        message["exit"] = end.code
    messages = processes.exchange(message)
    for other in messages:
        if "exit" in other:
            raise SystemExit(other["exit"])
    processes.raise_first_error(messages)
    check_agreement(messages)
    return value  # type: ignore[return-value]


def check_agreement(messages: Sequence[dict[str, Any]]) -> None:
    """Raise ConfigError that names the first value in which a process differs from process 0, and both values."""
    first = messages[0]
    for index, other in enumerate(messages):
        for name in first:
            if other.get(name) == first[name]:
                continue
            field, value, allowed = name, other.get(name), first[name]
            if name == "config":
                configs = [from_json(text) for text in (other[name], first[name])]
                field = differences(*configs)[0]
                value, allowed = (value_of(config, field) for config in configs)
            raise processes.SharedError(
                f"{field} is {value!r} on process {index}; allowed: {allowed!r}, as on process 0"
            )


def facts_of(config: TrainConfig, folder: Path, resume: bool) -> dict[str, Any]:
    """Return what must be the same in all processes before devices are used."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    newest = max(checkpoint.complete_steps(folder / "checkpoints"), default=None)
    return {**versions, "config": to_json(config), "folder": str(folder), "resume": resume, "checkpoint": newest}


def device_facts() -> dict[str, Any]:
    """Return what must be the same in all processes after devices are initialized."""
    return {"devices of a process": len(jax.local_devices()), "device": jax.local_devices()[0].device_kind}


def wait_for_first(several: bool) -> None:
    """Wait until process 0 has finished its evaluation, for example. Called by all processes."""
    if several:
        processes.exchange({})
