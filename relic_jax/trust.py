"""Which configs may start programs: those of the user's own runs, and others only where the user says so.

A config names an environment and its workers: a module to import, an interpreter to start, files to read. Whoever
loads a policy that somebody else made has not chosen these. Checkpoints and exports therefore carry a signature of
those fields, made with a secret key that only this user can read. A copy or a move keeps it, an edit does not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError, TrainConfig, WorkerConfig

KEY_BYTES = 32
HARMLESS = frozenset(("workers", "backend", "text", "gpus", "start_timeout", "step_timeout", "max_restarts"))
"""Fields of `WorkerConfig` and options of environments that are numbers or choices. Numbers are always harmless, other
options may name a program, a module, a machine or a file."""
PLAIN_PREFIXES = ("gymnax", "xland", "navix", "craftax", "playground", "metaworld", "gym")
"""What may stand before the first colon of an environment's name where an id of an installed package follows."""
PHYSICS = re.compile(r"[\w-]+:(generalized|positional|spring|mjx)")
"""An environment of ours with a physics backend."""


def key_file() -> Path | None:
    """Where this user's key is kept: `relic-jax/owner.key` in the user's configuration folder. None: there is none."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    except RuntimeError:  # no home folder
        return None
    return folder / "relic-jax" / "owner.key"


def read_key() -> bytes | None:
    """The key; None where there is none, or where somebody else can read it or wrote it."""
    file = key_file()
    if file is None:
        return None
    flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # each on some systems only
    try:
        descriptor = os.open(file, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in flags))
    except (OSError, ValueError):
        return None
    try:
        about = os.fstat(descriptor)
        private = not hasattr(os, "getuid") or (about.st_uid == os.getuid() and not stat.S_IMODE(about.st_mode) & 0o077)
        key = os.read(descriptor, KEY_BYTES + 1) if stat.S_ISREG(about.st_mode) and private else b""
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return key if len(key) == KEY_BYTES else None


def own_key() -> bytes | None:
    """The key, made now where there is none; None where it cannot be kept (no home folder, a full or read-only one)."""
    file = key_file()
    if file is None or os.path.lexists(file):
        return read_key()
    temporary = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(secrets.token_bytes(KEY_BYTES))
                opened.flush()
                os.fsync(opened.fileno())
            os.link(temporary, file)  # unlike a rename, it fails where another process was first
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError):
        pass
    return read_key()


def sign(config: TrainConfig) -> str | None:
    """The user's signature of what a config may start; None where the user has no key."""
    key = own_key()
    return None if key is None else _signature(key, config)


def is_own(config: TrainConfig, signature: Any) -> bool:
    """Whether this user signed a config with the same environment and workers."""
    key = read_key() if isinstance(signature, str) else None
    return key is not None and hmac.compare_digest(_signature(key, config).encode(), signature.encode())


def _signature(key: bytes, config: TrainConfig) -> str:
    env = config.env  # the message has the layout of the first configs, so their signatures stay valid
    horizon = {} if env.horizon is None else {"horizon": env.horizon}
    host = {**_changed(config.host), **env.options, **horizon}
    message = json.dumps({"env": env.name, "host": host}, sort_keys=True)
    return "hmac-sha256:" + hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


def _changed(host: WorkerConfig) -> dict[str, Any]:
    """The fields that differ from their defaults: fields of later versions then change no signature."""
    default = WorkerConfig()
    names = (field.name for field in dataclasses.fields(host))
    return {name: getattr(host, name) for name in names if getattr(host, name) != getattr(default, name)}


def needs_trust(config: TrainConfig) -> dict[str, Any]:
    """The fields of a config, by name, that would run a program, import a module or read a file that they name."""
    env, host = config.env, _changed(config.host)
    found: dict[str, Any] = {} if _is_registered(env.name) else {"env": env.name}
    found |= {f"env.{name}": value for name, value in env.options.items() if not _is_harmless(name, value)}
    return found | {f"host.{name}": value for name, value in host.items() if name not in HARMLESS}


def _is_harmless(name: str, value: Any) -> bool:
    return name in HARMLESS or value is None or isinstance(value, (bool, int, float))


def _is_registered(env: str) -> bool:
    """Whether a name is that of an environment in relic-jax or in an installed package."""
    prefix, colon, rest = env.partition(":")
    if not colon or PHYSICS.fullmatch(env):
        return True
    if prefix == "gym":
        return ":" not in rest  # gymnasium imports the module before a colon
    return prefix in PLAIN_PREFIXES and not re.search(r"[/\\]|\.\w+$", rest)  # an id, not a file


def check(config: TrainConfig, source: Path, *, own: bool, given: Collection[str] = ()) -> None:
    """Raises ConfigError where a config that is not the user's own would start or read what the user did not name.

    source: where the config comes from. given: names of the fields that the user set on the command line.
    """
    refused = {name: value for name, value in needs_trust(config).items() if name not in given}
    if own or not refused:
        return
    fields = ", ".join(f"{name} is {value!r}" for name, value in refused.items())
    options = ", ".join(f"--{name.replace('_', '-')}" for name in refused)
    raise ConfigError(
        f"{fields} in '{source}', which is not a run of yours, and following that can run code of others; allowed: "
        f"--trust, or {options} on the command line"
    )


def check_buildable(config: TrainConfig, source: Path) -> None:
    """Raises ConfigError where making the environment starts a process or imports a module that the config names."""
    prefix = config.env.name.partition(":")[0]
    if needs_trust(config) or prefix in ("gym", "metaworld", "extobjnav"):
        raise ConfigError(
            f"checkpoint is '{source}', of a version that did not save the spaces, so that its env {config.env.name!r} "
            "has to be started to load it; allowed: with --trust (in Python: trust=True)"
        )
