"""Compile C++ kernels for this machine, and cache them in a folder that no other user can write to.

A kernel is machine code that this process runs, so a cached kernel is loaded only if it can be trusted:

- The cache folder and all folders above it belong to the user or to root, and no other user can write to them. OpenSSH
  requires the same of its files.
- The file is a regular file that belongs to the user.
- Its SHA-256 matches its name.

Any other file is compiled again. If no such folder can be created, the kernel is compiled into a temporary folder, once
per process.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from relic_jax.files import sync_entries
from relic_jax.private_folder import private_folder

PROBE_SECONDS = 20.0
COMPILE_SECONDS = 120.0


class KernelError(Exception):
    """There is no C++ compiler, or it does not compile the kernel."""


def load(
    stem: str, source: Path, flags: Sequence[str], symbols: Sequence[str], include: str = "", salt: str = ""
) -> ctypes.CDLL:
    """Return the shared library of a C++ file, from the cache or newly compiled.

    Args:
        stem: Prefix of the name of the cached file.
        source: The C++ file.
        flags: Flags of the compiler.
        symbols: Names that the library must export.
        include: Folder of headers, or "".
        salt: Other dependencies that the cached file is specific to, such as the version of the headers.

    Returns:
        The loaded library.

    Raises:
        KernelError: There is no compiler, or it fails.
        OSError: The library cannot be written or loaded.
        AttributeError: The library lacks a symbol.
    """
    if not hasattr(os, "geteuid"):
        raise KernelError("this system has no owners of files")
    command = [_compiler(), *flags, "-x", "c++"]
    macros = _run([*command, "-dM", "-E", "-"], PROBE_SECONDS)  # the features of compiler and processor
    key = hashlib.sha256(b"\0".join([source.read_bytes(), *map(os.fsencode, flags), macros, salt.encode()]))
    prefix = f"{stem}-{key.hexdigest()[:16]}-"
    folder = private_folder()
    for library in [] if folder is None else sorted(folder.glob(prefix + "*.so")):
        with contextlib.suppress(OSError, AttributeError):
            if (content := read_intact(library)) is not None:
                return _open(content, library, symbols)
        with contextlib.suppress(OSError):
            library.unlink()
    content = _compile([*command, *([f"-I{include}"] if include else []), str(source)], symbols)
    return _open(content, None if folder is None else _keep(content, folder, prefix), symbols)


def _compiler() -> str:
    """Return the path of the C++ compiler."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise KernelError("no C++ compiler")


def _run(command: Sequence[str], seconds: float) -> bytes:
    """Return the output of a program as bytes. After ``seconds``, kill it and its child processes."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise KernelError(f"{command[0]} did not end within {seconds:g} s") from None
            raise
    if process.returncode:
        raise KernelError(f"{command[0]} failed with exit code {process.returncode}")
    return output


def _compile(command: Sequence[str], symbols: Sequence[str]) -> bytes:
    """Compile and return the contents of the library."""
    with tempfile.TemporaryDirectory(prefix="relic-jax-") as scratch:
        new = Path(scratch) / "new.so"
        _run([*command, "-shared", "-fPIC", "-o", str(new)], COMPILE_SECONDS)
        if not new.is_file():
            raise KernelError("the compiler wrote no file")
        if sys.executable and "python" in Path(sys.executable).name.lower():  # else it is embedded in another program
            # first in a separate process, because loading a damaged library can crash it
            script = "import ctypes, sys; x = ctypes.CDLL(sys.argv[1]); [getattr(x, name) for name in sys.argv[2:]]"
            _run([sys.executable, "-I", "-S", "-c", script, str(new), *symbols], PROBE_SECONDS)
        return new.read_bytes()


def _open(content: bytes, cached: Path | None, symbols: Sequence[str]) -> ctypes.CDLL:
    """Load a private copy that no other process can change, or ``cached`` if temporary files cannot be executed."""
    try:
        with tempfile.TemporaryDirectory(prefix="relic-jax-") as scratch:
            copy = Path(scratch) / "copy.so"
            copy.write_bytes(content)
            opened = ctypes.CDLL(str(copy))  # it stays mapped after the file is deleted
    except OSError:
        if cached is None:
            raise
        opened = ctypes.CDLL(str(cached))
    for name in symbols:
        getattr(opened, name)
    return opened


def _keep(content: bytes, folder: Path, prefix: str) -> Path | None:
    """Write a library into the cache atomically, named after its contents. Return None if that fails."""
    library = folder / f"{prefix}{hashlib.sha256(content).hexdigest()}.so"
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o700)
            os.fsync(file.fileno())
        os.replace(temporary, library)
        sync_entries(folder)
        return library
    except OSError:  # a full disk
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return None


def read_intact(library: Path) -> bytes | None:
    """Return the contents of a cached file, or None if it cannot be trusted.

    Args:
        library: A file of the cache, whose name ends with the SHA-256 of its contents.

    Returns:
        The contents. None if another user could have written them, or if they do not match the name.

    Raises:
        OSError: The file cannot be read.
    """
    descriptor = os.open(library, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            return None
        content = file.read()
    return content if library.stem.rpartition("-")[2] == hashlib.sha256(content).hexdigest() else None
