"""Trackers of other projects: TensorBoard and Weights & Biases. Neither can end or delay training when it fails."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError
from relic_jax.files import write_atomically
from relic_jax.metrics import Record

_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def load_extra(extra: str) -> Any:
    """The module behind an extra. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(_MODULES[extra])
    except ImportError:
        raise ConfigError(f"track is {extra!r}; it needs: pip install 'relic-jax[{extra}]'") from None


class TensorBoard:
    """Scalars for TensorBoard (extra `tensorboard`), in event files in `folder/tensorboard`.

    env_steps: those of the checkpoint that training goes on from; what the files hold after it is dropped. Writes in
    the calling thread, so that a full disk is an error here and not a thread that ended.
    """

    FLUSH = 10.0  # seconds between flushes to disk

    def __init__(self, folder: Path, env_steps: int = 0) -> None:
        load_extra("tensorboard")
        events = importlib.import_module("tensorboardX.event_file_writer")
        self._proto = importlib.import_module("tensorboardX.proto.event_pb2")
        self._scalar = importlib.import_module("tensorboardX.summary").scalar
        folder = folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        resumed = drop_events(folder, env_steps, self._proto.Event)
        self._writer = events.EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex[:8]}")
        self._flushed = -math.inf
        if resumed:  # a TensorBoard that runs has read the dropped events
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            self._write(env_steps + 1, session_log=start)

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=step, **content))

    def log(self, record: Record, clock: Record) -> None:
        """One scalar per number."""
        for name, value in {**record, **clock}.items():
            self._write(int(record["env_steps"]), summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > self.FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def drop_events(folder: Path, env_steps: int, event: Any) -> bool:
    """Drops from the event files of a folder what is after `env_steps`, and a record that a kill cut short.

    event: the protocol buffer's class. Returns whether there are event files. Each is replaced whole.
    """
    files = sorted(folder.glob("*.tfevents.*"))
    for file in files:
        data = file.read_bytes()
        kept = b"".join(record for record, step in _events(data, event) if step <= env_steps)
        if kept != data and data:
            write_atomically(file, kept)
    return bool(files)


def _events(data: bytes, event: Any) -> list[tuple[bytes, int]]:
    """The whole records of an event file, each with its step: length (8 bytes), checksum (4), content, checksum (4)."""
    found, start = [], 0
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 8], "little") + 4
        if end > len(data):
            break
        try:
            step = event.FromString(data[start + 12 : end - 4]).step
        except Exception:  # protobuf's DecodeError: what follows cannot be read by TensorBoard either
            break
        found.append((data[start:end], step))
        start = end
    return found


@dataclasses.dataclass(frozen=True)
class WandBOptions:
    """Where a run appears on Weights & Biases (with `--track wandb`)."""

    project: str = "relic-jax"
    """Project."""
    entity: str | None = None
    """User or team; None: the default one of the login."""
    group: str | None = None
    """Group of runs, e.g. the seeds of one experiment."""
    tags: tuple[str, ...] = ()
    """Tags."""
    name: str | None = None
    """Name of the run; None: that of its folder."""


def wandb_run(folder: Path, options: WandBOptions) -> tuple[str, WandBOptions]:
    """The id and the options of a run, which `folder/wandb.json` keeps from its first session on.

    options: those of the command line; defaults stand for what was kept. Raises ConfigError where they ask for another
    project or entity than the run is in.
    """
    file, default = folder / "wandb.json", WandBOptions()
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        identifier, old = str(kept.pop("id")), WandBOptions(**{**kept, "tags": tuple(kept["tags"])})
    except FileNotFoundError:
        return uuid.uuid4().hex[:8], options
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"track is 'wandb'; allowed: where '{file}' can be read, or is removed (a new run)") from None
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {name: value for name, value in given.items() if value != getattr(default, name)}
    for name in ("project", "entity"):
        if name in given and given[name] != getattr(old, name):
            allowed = f"{getattr(old, name)!r}, which this run is in ('{file}')"
            raise ConfigError(f"wandb.{name} is {given[name]!r}; allowed: {allowed}")
    return identifier, dataclasses.replace(old, **given)


class WandB:
    """Weights & Biases (extra `wandb`). The mode (online, offline) is the WANDB_MODE of the environment.

    A resumed run goes on in the same W&B run, also offline. Charts are over env_steps: what was logged after the
    checkpoint is logged again at the same place. Without a login or a network, the session is offline instead, and one
    line says so.
    """

    TIMEOUT = 30  # seconds, of one try to reach the server; it makes two
    FINISH = 60.0  # seconds to wait for what is still to be sent

    def __init__(self, folder: Path, config: dict[str, Any], options: WandBOptions | None = None) -> None:
        wandb = load_extra("wandb")
        identifier, chosen = wandb_run(folder, options or WandBOptions())
        write_atomically(
            folder / "wandb.json", json.dumps({"id": identifier, **dataclasses.asdict(chosen)}, indent=2) + "\n"
        )
        about = dataclasses.asdict(chosen) | {"name": chosen.name or folder.name, "tags": list(chosen.tags) or None}
        about |= {"id": identifier, "resume": "allow", "dir": str(folder), "config": config}
        settings = wandb.Settings(init_timeout=self.TIMEOUT, login_timeout=self.TIMEOUT)
        try:
            self._run = wandb.init(**about, settings=settings)
        except Exception as error:  # no login, no network, no such entity: of many classes
            warn(f"wandb: {error}; this session is logged offline, send it later: wandb sync {folder / 'wandb'}/*")
            self._run = wandb.init(**about, mode="offline")
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")

    def log(self, record: Record, clock: Record) -> None:
        """One row."""
        self._run.log({**record, **clock})

    def close(self) -> None:
        """Ends the session of the W&B run. What cannot be sent soon is left for `wandb sync`."""
        ending = threading.Thread(target=self._run.finish, name="relic-jax-wandb", daemon=True)
        ending.start()
        ending.join(self.FINISH)
        if ending.is_alive():
            warn(f"wandb: not everything is sent after {self.FINISH:.0f} s; later: wandb sync")


class OptionalTracker:
    """A tracker that training can do without: when it fails, one line says so and it gets nothing more.

    make: makes it; a ConfigError of that passes.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name, self._tracker = name, None
        self._tracker = self._try(make)

    def _try(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except ConfigError:
            raise
        except Exception as error:  # of another project: of any class
            warn(f"{self._name}: {type(error).__name__}: {error}; training goes on without it")
            self._tracker = None
            return None

    def log(self, record: Record, clock: Record) -> None:
        """One record, while it works."""
        tracker = self._tracker
        if tracker is not None:
            self._try(lambda: tracker.log(record, clock))

    def close(self) -> None:
        """Ends it, while it works."""
        tracker = self._tracker
        if tracker is not None:
            self._try(tracker.close)


def warn(text: str) -> None:
    """One line on standard error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream that is closed or full, or none
        print("relic-jax: " + " ".join(text.split()), file=sys.stderr, flush=True)
