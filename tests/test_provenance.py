"""The commit that a run records: that of relic-jax, or none."""

import os
import shutil
import subprocess
import time

import pytest

from relic_jax import provenance
from relic_jax.experiments import folders
from relic_jax.provenance import own_commit

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def checkout(root, name="relic-jax", tracked=True, inside="."):
    """Create a repository with a package and return (folder of the package, commit)."""
    package = root / inside / "relic_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (root / inside / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    (root / "other").write_text("")
    git(root, "init")
    git(root, "add", "." if tracked else "other")
    git(root, "commit", "-m", "one")
    return package, git(root, "rev-parse", "HEAD")


@needs_git
def test_the_commit_of_a_checkout_wherever_the_user_stands(tmp_path, monkeypatch):
    package, commit = checkout(tmp_path / "checkout")
    _, others = checkout(tmp_path / "user", name="mine")
    monkeypatch.chdir(tmp_path / "user")
    assert own_commit(package) == commit != others
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "user" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "user"))
    assert own_commit(package) == commit


@needs_git
def test_a_worktree_is_a_checkout(tmp_path):
    package, commit = checkout(tmp_path / "checkout")
    git(tmp_path / "checkout", "worktree", "add", str(tmp_path / "second"))
    assert own_commit(tmp_path / "second" / package.name) == commit


@needs_git
@pytest.mark.parametrize(
    "options",
    [
        {"name": "mine"},  # copied into a user's project
        {"tracked": False},
        {"inside": "third_party"},
        {"inside": "venv/lib/python3.11/site-packages", "tracked": False},
    ],
    ids=str,
)
def test_a_copy_in_another_repository_has_no_commit(tmp_path, options):
    assert own_commit(checkout(tmp_path, **options)[0]) is None


@needs_git
def test_no_repository_no_commit(tmp_path):
    package, _ = checkout(tmp_path)
    shutil.rmtree(tmp_path / ".git")
    assert own_commit(package) is None
    (tmp_path / ".git").write_text("not a repository")
    assert own_commit(package) is None


SCRIPTS = {
    "refuses": "echo 'fatal: detected dubious ownership' >&2; exit 128",
    "hangs": "sleep 600",
    "prints garbage": "printf '\\377\\376'",
    "is no program": None,
}


@pytest.mark.parametrize("case", ["is missing", *SCRIPTS])
def test_git_is_optional(case, tmp_path, monkeypatch, tiny):
    package = tmp_path / "relic_jax"
    package.mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "relic-jax"\n')
    path = tmp_path / "bin"
    path.mkdir()
    if case != "is missing":
        script = SCRIPTS[case]
        (path / "git").write_text("\0\1" if script is None else f"#!/bin/sh\n{script}\n")
        (path / "git").chmod(0o755)
    keep = "/usr/bin:/bin" if case == "hangs" else ""
    monkeypatch.setenv("PATH", os.pathsep.join(filter(None, [str(path), keep])))
    monkeypatch.setattr(provenance, "TIMEOUT", 0.2)
    begun = time.monotonic()
    assert own_commit(package) is None
    assert time.monotonic() - begun < 240
    monkeypatch.setattr(folders, "own_commit", lambda: own_commit(package))
    folders.create_folder(tmp_path / "run", tiny())
    assert '"commit": null' in (tmp_path / "run" / "origin.json").read_text()


def test_training_starts_without_git(tmp_path, monkeypatch, tiny):
    """Regression: training failed with 'runs is …; allowed: a folder that can be written'."""
    monkeypatch.setenv("PATH", str(tmp_path))
    folders.create_folder(tmp_path / "run", tiny())
    assert (tmp_path / "run" / "config.json").is_file()
