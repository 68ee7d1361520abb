"""Trackers for TensorBoard and Weights & Biases. Training continues without delay if one of them fails."""

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
    """Import the module of an extra. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module(_MODULES[extra])
    except ImportError:
        raise ConfigError(f"track is {extra!r}; it needs: pip install 'relic-jax[{extra}]'") from None


class TensorBoard:
    """A tracker that writes scalars for TensorBoard (extra `tensorboard`) to event files in `folder/tensorboard`.

    It writes in the calling thread, which reports a full disk as an error. A background thread would only end.

    Args:
        folder: The run folder.
        env_steps: Environment steps of the checkpoint that training resumes from. Later events are dropped.
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
        if resumed:  # a running TensorBoard has already read the dropped events
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            self._write(env_steps + 1, session_log=start)

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=step, **content))

    def log(self, record: Record, clock: Record) -> None:
        """Write one scalar per number."""
        for name, value in {**record, **clock}.items():
            self._write(int(record["env_steps"]), summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > self.FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def pretrained(self, record: Record, steps: int) -> None:
        """Write the numbers of a record of the pretraining, against optimizer steps."""
        del steps
        step = int(record["optimizer_steps"])
        for name, value in record.items():
            if name != "optimizer_steps":
                self._write(step, summary=self._scalar(f"pretraining/{name}", value))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def drop_events(folder: Path, env_steps: int, event: Any) -> bool:
    """Drop the events after `env_steps`, and truncated ones, from a folder's event files. Replaces files atomically.

    Args:
        folder: The folder with event files.
        env_steps: Environment steps of the last event to keep.
        event: Class of the protocol buffer.

    Returns:
        Whether there are event files.
    """
    files = sorted(folder.glob("*.tfevents.*"))
    for file in files:
        data = file.read_bytes()
        kept = b"".join(record for record, step in _events(data, event) if step <= env_steps)
        if kept != data and data:
            write_atomically(file, kept)
    return bool(files)


def _events(data: bytes, event: Any) -> list[tuple[bytes, int]]:
    """Return the complete records of an event file and their steps.

    A record has a length (8 bytes), a checksum (4), the content and a checksum (4).
    """
    found, start = [], 0
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 8], "little") + 4
        if end > len(data):
            break
        try:
            step = event.FromString(data[start + 12 : end - 4]).step
        except Exception:  # protobuf's DecodeError: TensorBoard cannot read the rest either
            break
        found.append((data[start:end], step))
        start = end
    return found


@dataclasses.dataclass(frozen=True)
class WandBOptions:
    """Project, name and tags of a run on Weights & Biases, for `--track wandb`."""

    project: str = "relic-jax"
    """Project."""
    entity: str | None = None
    """User or team. None: the default of the login."""
    group: str | None = None
    """Group of runs, such as the seeds of one experiment."""
    tags: tuple[str, ...] = ()
    """Tags."""
    name: str | None = None
    """Name of the run. None: the name of its folder."""


def wandb_run(folder: Path, options: WandBOptions) -> tuple[str, WandBOptions]:
    """Return the id and the options of a run, which `folder/wandb.json` stores when it starts.

    Args:
        folder: The run folder.
        options: Options of the command line. A default value keeps the stored one.

    Raises:
        ConfigError: If the options name another project or entity than the run's, or the file cannot be read.
    """
    file, default = folder / "wandb.json", WandBOptions()
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        identifier, old = str(stored.pop("id")), WandBOptions(**{**stored, "tags": tuple(stored["tags"])})
    except FileNotFoundError:
        return uuid.uuid4().hex[:8], options
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"track is 'wandb'; allowed: if '{file}' can be read, or is removed (a new run)") from None
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {name: value for name, value in given.items() if value != getattr(default, name)}
    for name in ("project", "entity"):
        if name in given and given[name] != getattr(old, name):
            allowed = f"{getattr(old, name)!r}, which this run is in ('{file}')"
            raise ConfigError(f"wandb.{name} is {given[name]!r}; allowed: {allowed}")
    return identifier, dataclasses.replace(old, **given)


class WandB:
    """A tracker for Weights & Biases (extra `wandb`). The environment variable WANDB_MODE sets the mode.

    A resumed run continues the same W&B run, also offline. The x-axis of charts is env_steps, so records after the
    checkpoint are logged again at the same positions. Without a login or a network, the run is logged offline with a
    warning.
    """

    TIMEOUT = 30  # seconds of one attempt to reach the server; wandb makes two
    FINISH = 60.0  # seconds to wait for unsent data

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
        except Exception as error:  # no login, no network, no such entity: many classes
            warn(f"wandb: {error}; the run is logged offline, upload it later: wandb sync {folder / 'wandb'}/*")
            self._run = wandb.init(**about, mode="offline")
        self._run.define_metric("env_steps")
        self._run.define_metric("pretraining/*", step_metric="pretraining/optimizer_steps")  # the first match counts
        self._run.define_metric("*", step_metric="env_steps")

    def log(self, record: Record, clock: Record) -> None:
        """Log one row."""
        self._run.log({**record, **clock})

    def pretrained(self, record: Record, steps: int) -> None:
        """Log a record of the pretraining, against optimizer steps."""
        del steps
        self._run.log({f"pretraining/{name}": value for name, value in record.items()})

    def close(self) -> None:
        """End logging. After a timeout, unsent data is left for `wandb sync`."""
        ending = threading.Thread(target=self._run.finish, name="relic-jax-wandb", daemon=True)
        ending.start()
        ending.join(self.FINISH)
        if ending.is_alive():
            warn(f"wandb: some data was not sent within {self.FINISH:.0f} s, upload it later: wandb sync")


class OptionalTracker:
    """A tracker that training does not need. If it fails, a warning is printed and it receives no more records.

    Args:
        name: Name of the tracker, for the warning.
        make: Creates the tracker. A ConfigError that it raises is passed on.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name, self._tracker = name, None
        self._tracker = self._try(make)

    def _try(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except ConfigError:
            raise
        except Exception as error:  # other projects raise any class
            warn(f"{self._name}: {type(error).__name__}: {error}; training continues without it")
            self._tracker = None
            return None

    def log(self, record: Record, clock: Record) -> None:
        """Log one record, unless the tracker has failed."""
        tracker = self._tracker
        if tracker is not None:
            self._try(lambda: tracker.log(record, clock))

    def pretrained(self, record: Record, steps: int) -> None:
        """Log a record of the pretraining, unless the tracker has failed or logs none."""
        show = getattr(self._tracker, "pretrained", None)
        if show is not None:
            self._try(lambda: show(record, steps))

    def evaluated(self, evaluation: dict[str, Any]) -> None:
        """Log the result of an evaluation during training, unless the tracker has failed."""
        record = {f"evaluation/{name}": evaluation[name] for name in ("first", "later") if evaluation[name] is not None}
        self.log({"env_steps": evaluation["env_steps"], **record}, {})

    def close(self) -> None:
        """Close the tracker, unless it has failed."""
        tracker = self._tracker
        if tracker is not None:
            self._try(tracker.close)


def warn(text: str) -> None:
    """Print a one-line warning to standard error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed or full stream, or None
        print("relic-jax: " + " ".join(text.split()), file=sys.stderr, flush=True)
