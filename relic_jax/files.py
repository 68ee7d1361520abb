"""Folders that are there whole or not at all, and what says that they stayed so."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from relic_jax.runtime import CHECKSUMS, checksum, checksums_text

NOT_SUMMED = (CHECKSUMS, "README.md")
"""Files that no checksum is kept of: a model card may be edited."""


def sync(folder: Path) -> None:
    """Flushes a folder with all that is in it to disk, so that a rename never outlives its contents."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_entries(path)
        else:
            with path.open("r+b" if sys.platform == "win32" else "rb") as file:  # Windows flushes what can be written
                os.fsync(file.fileno())
    sync_entries(folder)


def sync_entries(folder: Path) -> None:
    """Flushes what is listed in a folder, where the system can: Windows cannot open folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if sys.platform == "win32":
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems: folders are never flushed
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that at any moment either the old or the new content is there, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_checksums(folder: Path, names: Sequence[str] | None = None) -> None:
    """Writes CHECKSUMS, which `runtime.verify_files` reads, into a folder. names: of which files; None: of all."""
    if names is None:
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
    sums = {name: checksum(folder / name) for name in names if name not in NOT_SUMMED}
    (folder / CHECKSUMS).write_bytes(checksums_text(sums).encode())


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder beside `final` to write into; it takes that name, and the place of what has it, when all went well."""
    final = final.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (final.with_name(f".{final.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        if final.exists():
            os.replace(final, old)
        os.replace(temporary, final)
        sync_entries(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
