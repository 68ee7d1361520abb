"""Write folders atomically, detect storage failures, and record checksums."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from relic_jax.errors import StorageError as StorageError
from relic_jax.runtime.files import CHECKSUMS, checksum, checksums_text
from relic_jax.runtime.files import replacing as replacing
from relic_jax.runtime.files import write_atomically as write_atomically

NOT_SUMMED = (CHECKSUMS, "README.md")
"""Files without a checksum. A user can edit the model card."""


def sync(folder: Path) -> None:
    """Flush a folder and all of its contents to disk, so a later rename cannot reach the disk before them."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_entries(path)
        else:
            with path.open("r+b" if sys.platform == "win32" else "rb") as file:  # Windows needs write access
                os.fsync(file.fileno())
    sync_entries(folder)


def sync_entries(folder: Path) -> None:
    """Flush the entries of a folder to disk. Does nothing on Windows, which cannot open folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if sys.platform == "win32":
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM}
_SAID = re.compile(  # in messages of libraries that wrap an OSError: tensorstore, safetensors, Pillow
    r"No space left on device|[Dd]isk quota exceeded|Read-only file system|File too large|Input/output error"
    r"|Stale file handle|Permission denied|Operation not permitted|ENOSPC|EDQUOT|EROFS|EFBIG|ESTALE|EACCES"
)


@contextmanager
def storage_errors(hint: str) -> Iterator[None]:
    """Turn the errors that libraries raise if storage fails into StorageError.

    Args:
        hint: Advice that ends the message.

    Raises:
        StorageError: If the body raises an error that `storage_failure` recognizes.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        line = storage_failure(error)
        if line is None:
            raise
        raise StorageError(f"{line}; {hint}") from None


def storage_failure(error: BaseException) -> str | None:
    """Return the system's message as one line if storage caused an error, else None.

    The cause can be wrapped: chained errors, exception groups and messages are searched too.
    """
    for inner in _chain(error):
        if isinstance(inner, OSError) and inner.errno in STORAGE:
            return " ".join(str(inner).split())
    for inner in _chain(error):
        if isinstance(inner, Exception) and (found := _SAID.search(str(inner))):
            where = re.search(r"(?:file|path|for|to|writing|creating|open(?:ing)?)[ :]+\W?(/[^\s\"':,\]]+)", str(inner))
            return f"{found[0]}: '{where[1]}'" if where else found[0]
    return None


def _chain(error: BaseException | None, depth: int = 20) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts, and the members of exception groups."""
    if error is None or depth == 0:
        return
    yield error
    for inner in getattr(error, "exceptions", ()):
        yield from _chain(inner, depth - 1)
    yield from _chain(error.__cause__, depth - 1)
    if not error.__suppress_context__ and error.__context__ is not error.__cause__:
        yield from _chain(error.__context__, depth - 1)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to errors that do not name a file, which are those of a file descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def append(file: BinaryIO, data: bytes) -> None:
    """Append all of the data to an unbuffered file, or none of it. Raises OSError if it cannot be written."""
    before, rest = os.fstat(file.fileno()).st_size, memoryview(data)
    with _named(Path(file.name)):
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                os.truncate(file.fileno(), before)
            raise


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed processes left while they wrote this file.

    No other process may be writing the file.
    """
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            temporary.unlink()


def write_checksums(folder: Path, names: Sequence[str] | None = None) -> None:
    """Write the file CHECKSUMS, which `runtime.verify_files` reads, into a folder.

    Args:
        folder: The folder.
        names: Paths of the files to include, relative to the folder. None: all files.
    """
    if names is None:
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
    sums = {name: checksum(folder / name) for name in names if name not in NOT_SUMMED}
    (folder / CHECKSUMS).write_bytes(checksums_text(sums).encode())


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final` that is renamed to `final` if the body succeeds.

    An existing `final` is replaced. If the body raises, it stays unchanged and the temporary folder is removed.
    """
    final = final.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (final.with_name(f".{final.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        if final.exists():
            os.replace(final, old)
        try:
            os.replace(temporary, final)
        except BaseException:
            if old.exists():
                os.replace(old, final)
            raise
        sync_entries(final.parent)
    except BaseException:
        remove_unfinished(temporary)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove a folder after an error. Returns when it stays away for 0.5 s, or after 5 s.

    Threads of orbax can still write files after it reported an error, which makes one removal fail or undoes it.
    """
    end, absent = time.monotonic() + 5, 0
    while absent < 5 and time.monotonic() < end:
        absent = 0 if folder.exists() else absent + 1
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
