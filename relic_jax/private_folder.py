"""The folder of cached machine code, which no other user can write to.

This process runs the kernels and programs in it. So the folder and all folders above it must belong to the user or to
root, and no other user can write to them. OpenSSH requires the same of its files.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = "programs"
"""The folder of compiled programs in it, see `compilation_cache`."""
MAX_LINKS = 40  # Linux follows as many


def private_folder() -> Path | None:
    """Return ``relic-jax`` in the user's cache folder, created if missing. None if it cannot be trusted or written."""
    try:
        parent = _cache_home()
        if parent is None:
            return None
        folder = parent / "relic-jax"
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        *above, (_, own) = _ancestors(folder)
        if not all(is_safe(info) for _, info in above) or not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid():
            return None
        if own.st_mode & 0o077:
            folder.chmod(0o700)
        if own.st_mode & 0o022:  # other users could have written its files
            for file in folder.glob("*.so"):
                file.unlink()
            for programs in folder.glob(PROGRAMS):
                shutil.rmtree(programs)
        return folder if os.access(folder, os.W_OK) else None
    except OSError:
        return None


def _cache_home() -> Path | None:
    """Return XDG_CACHE_HOME, else ~/.cache. Relative paths are ignored, as the XDG specification requires."""
    path = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(path):
        return Path(path)
    try:
        home = Path.home()
    except (RuntimeError, KeyError):
        return None
    return home / ".cache" if home.is_absolute() else None


def _ancestors(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every folder and every symbolic link on the way to an absolute path."""
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
            raise OSError(f"too many symbolic links: {folder}")
        target = Path(os.readlink(entry))
        here = Path("/") if target.is_absolute() else here
        pending = [part for part in target.parts if part != "/"] + pending


def is_safe(info: os.stat_result) -> bool:
    """Return whether only the user and root can change the entries of a folder, or the target of a link."""
    if info.st_uid not in (0, os.geteuid()):
        return False
    if stat.S_ISLNK(info.st_mode):
        return True
    if not stat.S_ISDIR(info.st_mode):
        return False
    if info.st_mode & stat.S_ISVTX:  # in a sticky folder, users can only rename their own files
        return True
    return not info.st_mode & 0o002 and (not info.st_mode & 0o020 or _own_group(info.st_gid))


def _own_group(group: int) -> bool:
    """Return whether a group is the private group of the user, which many systems create for each user."""
    if group == 0:
        return True
    try:
        import grp
        import pwd

        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except (ImportError, KeyError):
        return False
    return user.pw_gid == group and entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}
