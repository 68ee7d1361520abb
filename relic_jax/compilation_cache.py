"""Keep compiled programs in a folder of the user, so that the next process loads them instead of compiling them again.

This is JAX's persistent compilation cache, with a private folder and a bounded size. JAX's own bound needs a package
that JAX does not require. A user's setting of JAX's cache (`jax_compilation_cache_dir`, `JAX_COMPILATION_CACHE_DIR`,
`jax_enable_compilation_cache`) has precedence.

A loaded program is the machine code that was compiled, so its results are the same bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from relic_jax import process
from relic_jax.private_folder import PROGRAMS, private_folder

VARIABLE = "RELIC_JAX_COMPILATION_CACHE"
"""Environment variable that disables the cache with the value 0."""
MAX_BYTES = 2 * 2**30
"""Size of the folder above which the programs that were not used for the longest time are deleted."""
KEPT_SHARE = 0.8
"""Share of MAX_BYTES that remains after deleting."""
CHECKED = "checked"
"""Name of an empty file whose time is that of the last check for damaged files."""

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


@contextmanager
def used(enabled: bool = True) -> Iterator[None]:
    """Use the cache within the context, unless the user set JAX's cache or disabled it.

    Prints one line if there is no folder that only the user can write to. Programs are then compiled.

    Args:
        enabled: False: neither load nor store programs, whatever the user's settings are.
    """
    config: Any = jax.config
    if not enabled:
        with _settings(jax_enable_compilation_cache=False):
            yield
        return
    unset = config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache
    if not unset or os.environ.get(VARIABLE) == "0":
        yield
        return
    folder = programs_folder()
    if folder is None:
        print("compiled programs are not cached: no cache folder that only you can write to", file=sys.stderr)
        yield
        return
    discard_damaged(folder)
    prune(folder.parent)
    try:
        with _settings(jax_compilation_cache_dir=str(folder), jax_persistent_cache_min_compile_time_secs=0.0):
            yield
    finally:
        prune(folder.parent)


def with_cache(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """Return a function that calls `function` with the cache in use."""

    @functools.wraps(function)
    def called(*arguments: Inputs.args, **named: Inputs.kwargs) -> Output:
        with used():
            return function(*arguments, **named)

    return called


@contextmanager
def _settings(**values: Any) -> Iterator[None]:
    """Change settings of JAX's cache within the context. JAX reads them when it compiles after `reset_cache`."""
    config: Any = jax.config
    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            config.update(name, value)
        jax_cache.reset_cache()
        with warnings.catch_warnings():
            if process.is_own():  # JAX compiles the program again: nothing that a user could do
                warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
            yield
    finally:
        for name, value in before.items():
            config.update(name, value)
        jax_cache.reset_cache()


def programs_folder() -> Path | None:
    """Return the folder of programs for this kind of processor, created if missing. None if it cannot be written."""
    if not hasattr(os, "geteuid"):  # Windows: owners and modes do not say who can write
        return None
    private = private_folder()
    if private is None:
        return None
    folder = private / PROGRAMS / _processor()
    try:
        for missing in (folder.parent, folder):  # the mode does not apply to parents
            missing.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _processor() -> str:
    """Return a short name of this processor and its instructions. Machines can share a home folder."""
    text = platform.machine() + platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = ("model name", "flags", "Features", "CPU part")
        text += "".join(sorted({line for line in lines if line.startswith(names)}))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def discard_damaged(folder: Path) -> None:
    """Delete incomplete files, which a killed process or a full disk left. JAX would not write them again.

    Only files that are newer than the last check are read.
    """
    marker = folder / CHECKED
    with suppress(OSError):
        since = marker.stat().st_mtime if marker.exists() else 0.0
        marker.touch(mode=0o600)
        for path, info in _files(folder):
            if path.name.endswith("-cache") and info.st_mtime >= since and not _complete(path):
                path.unlink()


def _complete(path: Path) -> bool:
    """Return whether a file can be decompressed. True if it is in a format that this Python cannot read."""
    content = path.read_bytes()
    if content[:1] != b"x":  # not of zlib, but of zstd; an empty file is damaged
        return bool(content)
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True


def prune(folder: Path, limit: int = MAX_BYTES) -> None:
    """Delete the files that were not used for the longest time if a folder holds more than `limit` bytes."""
    files = sorted(_files(folder), key=lambda file: max(file[1].st_atime, file[1].st_mtime))
    size = sum(info.st_size for _, info in files)
    if size <= limit:
        return
    for path, info in files:
        with suppress(OSError):  # another process deleted it
            path.unlink()
        size -= info.st_size
        if size <= KEPT_SHARE * limit:
            return


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files in a folder and its subfolders."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(OSError):
                yield path, path.lstat()
