"""Decide which configs can start programs: those of the user's own runs, and others only with the user's consent.

A config names an environment and its workers: a module to import, an interpreter to start, files to read. A user who
loads another user's policy did not choose these. Checkpoints and exports therefore contain a signature of these fields,
made with a secret key that only the user can read. The signature stays valid if the files are copied or moved, but not
if the fields are edited.
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
HARMLESS = frozenset(
    (
        "workers",
        "batch",
        "backend",
        "text",
        "gpus",
        "start_timeout",
        "step_timeout",
        "max_restarts",
        "pose",
        "view",
        "asked",
        "reward_to",
    )
)
"""Fields of `WorkerConfig` and options of environments that are choices or lists of numbers. Numbers are always
harmless. Other options can name a program, a module, a machine or a file."""
PLAIN_PREFIXES = ("gymnax", "xland", "navix", "craftax", "playground", "metaworld", "gym")
"""Prefixes, before the first colon of an environment's name, that are followed by an id of an installed package."""
PHYSICS = re.compile(r"[\w-]+:(generalized|positional|spring|mjx)")
"""A registered environment with a physics backend."""


def key_file() -> Path | None:
    """Return the path of the user's key in the configuration folder. None if there is no home folder."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    except RuntimeError:  # no home folder
        return None
    return folder / "relic-jax" / "owner.key"


def read_key() -> bytes | None:
    """Return the key. None if there is none, or if another user wrote it or can read it."""
    file = key_file()
    if file is None:
        return None
    flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # each exists only on some systems
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
    """Return the key, and create it if there is none. None if it cannot be stored."""
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
            os.link(temporary, file)  # unlike a rename, it fails if another process was first
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError):
        pass
    return read_key()


def sign(config: TrainConfig) -> str | None:
    """Return the user's signature of the fields of a config that can start programs. None if the user has no key."""
    key = own_key()
    return None if key is None else _signature(key, config)


def is_own(config: TrainConfig, signature: Any) -> bool:
    """Return whether this user signed a config with the same environment and workers."""
    key = read_key() if isinstance(signature, str) else None
    return key is not None and hmac.compare_digest(_signature(key, config).encode(), signature.encode())


def _signature(key: bytes, config: TrainConfig) -> str:
    env = config.env  # the message has the layout of the first configs, so their signatures stay valid
    horizon = {} if env.horizon is None else {"horizon": env.horizon}
    host = {**_changed(config.host), **env.options, **horizon}
    message = json.dumps({"env": env.name, "host": host}, sort_keys=True)
    return "hmac-sha256:" + hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


def _changed(host: WorkerConfig) -> dict[str, Any]:
    """Return the fields that differ from their defaults. New fields of later versions then change no signature."""
    default = WorkerConfig()
    names = (field.name for field in dataclasses.fields(host))
    return {name: getattr(host, name) for name in names if getattr(host, name) != getattr(default, name)}


def needs_trust(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of a config that name a program to run, a module to import or a file to read, by name."""
    env, host = config.env, _changed(config.host)
    found: dict[str, Any] = {} if _is_registered(env.name) else {"env": env.name}
    found |= {f"env.{name}": value for name, value in env.options.items() if not _is_harmless(name, value)}
    return found | {f"host.{name}": value for name, value in host.items() if name not in HARMLESS}


def _is_harmless(name: str, value: Any) -> bool:
    return name in HARMLESS or value is None or isinstance(value, (bool, int, float))


def _is_registered(env: str) -> bool:
    """Return whether a name belongs to an environment of relic-jax or of an installed package."""
    prefix, colon, rest = env.partition(":")
    if not colon or PHYSICS.fullmatch(env):
        return True
    if prefix == "gym":
        return ":" not in rest  # gymnasium imports the module before a colon
    return prefix in PLAIN_PREFIXES and not re.search(r"[/\\]|\.\w+$", rest)  # an id, not a file


def check(config: TrainConfig, source: Path, *, own: bool, given: Collection[str] = ()) -> None:
    """Check that a config only starts or reads what the user chose.

    Args:
        config: The config.
        source: The file or folder of the config, for the message.
        own: Whether the config is the user's own, see `is_own`.
        given: Names of the fields that the user set on the command line.

    Raises:
        ConfigError: If the config is not the user's own and has other fields that need trust.
    """
    refused = {name: value for name, value in needs_trust(config).items() if name not in given}
    if own or not refused:
        return
    fields = ", ".join(f"{name} is {value!r}" for name, value in refused.items())
    options = ", ".join(f"--{name.replace('_', '-')}" for name in refused)
    raise ConfigError(
        f"{fields} in '{source}', which is not one of your runs, so this can run code that others wrote; allowed: "
        f"--trust, or {options} on the command line"
    )


def check_buildable(config: TrainConfig, source: Path) -> None:
    """Raise ConfigError if creating the environment starts a process or imports a module that the config names."""
    prefix = config.env.name.partition(":")[0]
    if needs_trust(config) or prefix in ("gym", "metaworld", "extobjnav"):
        raise ConfigError(
            f"checkpoint is '{source}' of a version that did not save the spaces, so loading it starts its env "
            f"{config.env.name!r}; allowed: with --trust (in Python: trust=True)"
        )
