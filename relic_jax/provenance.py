"""Find the commit of relic-jax that is running. It is optional and never the commit of the user's own repository."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

TIMEOUT = 5.0  # seconds; a repository on a slow network folder must not delay a run


def own_commit(package: Path | None = None) -> str | None:
    """Return the commit of the checkout that contains this package's source.

    Args:
        package: Folder of the package. None: this package.

    Returns:
        The commit's hash. None if there is no such checkout because relic-jax is installed or copied into another
        project, or if git is missing, hangs or refuses the repository.
    """
    package = package or Path(__file__).resolve().parent
    root = package.parent
    if not (root / ".git").exists() or not _is_ours(root / "pyproject.toml"):
        return None
    source = f"{package.name}/__init__.py"
    if _git(root, "ls-files", "--error-unmatch", "--", source) is None or _git(root, "rev-parse", "--show-prefix"):
        return None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    return commit if commit and re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit) else None


def _is_ours(project: Path) -> bool:
    try:
        name = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return name == "relic-jax"


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of git in a folder without the line end. None if git fails."""
    # GIT_DIR and similar variables would select another repository
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("GIT_")}
    environment |= {"GIT_CEILING_DIRECTORIES": str(root.parent), "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
