"""Compiles C++ kernels for this machine, and keeps them in a folder that nobody else can write to.

A kernel is machine code that this process runs, so a cached one is loaded only where it can be trusted: the folder and
all folders above it belong to the user or to root and nobody else can write to them (as OpenSSH asks of its files),
the file is a regular one of the user's own, and its SHA-256 is the one in its name. Anything else is compiled again.
Where no such folder can be made, the kernel is compiled into a temporary folder, once per process.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

from relic_jax.files import sync_entries

PROBE_SECONDS = 20.0
COMPILE_SECONDS = 120.0
MAX_LINKS = 40  # as Linux follows


class KernelError(Exception):
    """There is no compiler, or it does not compile this kernel."""


def load(
    stem: str, source: Path, flags: Sequence[str], symbols: Sequence[str], include: str = "", salt: str = ""
) -> ctypes.CDLL:
    """The shared library of a C++ file, from the cache or compiled.

    stem: how its file's name begins. symbols: what it must export. include: folder of headers. salt: what else it
    depends on, such as their version. Raises KernelError, OSError.
    """
    if not hasattr(os, "geteuid"):
        raise KernelError("owners of files are unknown on this system")
    command = [_compiler(), *flags, "-x", "c++"]
    macros = _run([*command, "-dM", "-E", "-"], PROBE_SECONDS)  # what compiler and processor can do
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
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise KernelError("no C++ compiler")


def _run(command: Sequence[str], seconds: float) -> bytes:
    """What a program prints, whatever its encoding. Ends it with all that it started after `seconds`."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise KernelError(f"{command[0]} does not end") from None
            raise
    if process.returncode:
        raise KernelError(f"{command[0]} fails")
    return output


def _compile(command: Sequence[str], symbols: Sequence[str]) -> bytes:
    """The contents of the library. Raises KernelError, OSError."""
    with tempfile.TemporaryDirectory(prefix="relic-jax-") as scratch:
        new = Path(scratch) / "new.so"
        _run([*command, "-shared", "-fPIC", "-o", str(new)], COMPILE_SECONDS)
        if not new.is_file():
            raise KernelError("the compiler wrote nothing")
        if sys.executable and "python" in Path(sys.executable).name.lower():  # else it is embedded in another program
            # in a process of its own first: loading a damaged library can end the process
            script = "import ctypes, sys; x = ctypes.CDLL(sys.argv[1]); [getattr(x, name) for name in sys.argv[2:]]"
            _run([sys.executable, "-I", "-S", "-c", script, str(new), *symbols], PROBE_SECONDS)
        return new.read_bytes()


def _open(content: bytes, kept: Path | None, symbols: Sequence[str]) -> ctypes.CDLL:
    """Loads a copy that nobody can change or cut short, or `kept` where temporary files cannot be executed.

    Raises OSError, and AttributeError where a symbol is missing.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="relic-jax-") as scratch:
            copy = Path(scratch) / "copy.so"
            copy.write_bytes(content)
            opened = ctypes.CDLL(str(copy))  # it stays mapped when the file is gone
    except OSError:
        if kept is None:
            raise
        opened = ctypes.CDLL(str(kept))
    for name in symbols:
        getattr(opened, name)
    return opened


def _keep(content: bytes, folder: Path, prefix: str) -> Path | None:
    """Writes a library into the cache, whole or not at all, under the name of its contents. None where it fails."""
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
    """The contents of a file of the cache. None where others could change it, or where its name says otherwise.

    Raises OSError.
    """
    descriptor = os.open(library, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            return None
        content = file.read()
    return content if library.stem.rpartition("-")[2] == hashlib.sha256(content).hexdigest() else None


def private_folder() -> Path | None:
    """`relic-jax` in the user's cache folder, made where it is missing; None where it cannot be trusted or written."""
    try:
        parent = _cache_home()
        if parent is None:
            return None
        folder = parent / "relic-jax"
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        *above, (_, own) = _way_to(folder)
        if not all(_safe(info) for _, info in above) or not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid():
            return None
        if own.st_mode & 0o077:
            folder.chmod(0o700)
        if own.st_mode & 0o022:  # others could write to it: what it holds is of no use
            for file in folder.glob("*.so"):
                file.unlink()
        return folder if os.access(folder, os.W_OK) else None
    except OSError:
        return None


def _cache_home() -> Path | None:
    """XDG_CACHE_HOME, else ~/.cache. The specification says: relative paths are invalid and ignored."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named)
    try:
        home = Path.home()
    except (RuntimeError, KeyError):
        return None
    return home / ".cache" if home.is_absolute() else None


def _way_to(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every folder and every symbolic link that leads to an absolute path. Raises OSError."""
    here, pending, links = Path("/"), [part for part in folder.parts if part != "/"], 0
    yield here, os.lstat(here)
    while pending:
        part = pending.pop(0)
        if part == "..":
            here = here.parent
            continue
        entry = here / part
        info = os.lstat(entry)
        yield entry, info
        if not stat.S_ISLNK(info.st_mode):
            here = entry
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(f"too many links: {folder}")
        target = Path(os.readlink(entry))
        here = Path("/") if target.is_absolute() else here
        pending = [part for part in target.parts if part != "/"] + pending


def _safe(info: os.stat_result) -> bool:
    """Whether only the user and root can change what is in a folder, or where a link leads."""
    if info.st_uid not in (0, os.geteuid()):
        return False
    if stat.S_ISLNK(info.st_mode):
        return True
    if not stat.S_ISDIR(info.st_mode):
        return False
    if info.st_mode & stat.S_ISVTX:  # in a sticky folder, nobody renames what belongs to another
        return True
    return not info.st_mode & 0o002 and (not info.st_mode & 0o020 or _own_group(info.st_gid))


def _own_group(group: int) -> bool:
    """Whether a group is the user's private one, which many systems give everybody."""
    if group == 0:
        return True
    try:
        import grp
        import pwd

        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except (ImportError, KeyError):
        return False
    return user.pw_gid == group and found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}
