"""The cache of compiled kernels: what is loaded from it, what is not, and what compilers may do."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time

import pytest

from relic_jax.models.attention import cpu_build
from relic_jax.models.attention.cpu_build import KernelError
from relic_jax.private_folder import is_safe, private_folder

pytestmark = [
    pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"),
    pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners of files"),
]
as_root = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root gives files away")
UNUSED_UID = 65534


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where kernels are kept. It does not exist yet."""
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own are private, but who knows what is above
        if not is_safe(os.lstat(folder)):
            pytest.skip(f"others can write to {folder}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "relic-jax"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.cpp"
    path.write_text('extern "C" int forward() { return 7; }')
    return path


def load(source, **options):
    return cpu_build.load("toy", source, ("-O0",), ("forward",), **options)


def only(folder):
    (file,) = folder.iterdir()
    return file


def evil(source, to):
    """A library that does something else."""
    code = source.with_name("evil.cpp")
    code.write_text('extern "C" int forward() { return 666; }')
    subprocess.run(["c++", "-shared", "-fPIC", str(code), "-o", str(to)], check=True)


def test_it_is_compiled_once_into_a_private_folder(cache, source, monkeypatch):
    assert load(source).forward() == 7
    file = only(cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and not file.stat().st_mode & 0o022
    monkeypatch.setattr(cpu_build, "COMPILE_SECONDS", 0)  # compiling would fail
    assert load(source).forward() == 7 and only(cache) == file


@pytest.mark.parametrize("damage", ["truncated", "empty", "a byte differs", "longer"])
def test_damaged_files_are_compiled_again(cache, source, damage):
    load(source)
    file = only(cache)
    content = file.read_bytes()
    middle = len(content) // 2
    changed = {"truncated": content[:middle], "empty": b"", "longer": content + b"\0"}
    file.write_bytes(changed.get(damage, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]))
    assert load(source).forward() == 7
    assert only(cache).read_bytes() == content


@pytest.mark.parametrize(
    "intruder",
    [
        "symbolic link",
        "writable by others",
        "folder",
        "pipe",
        pytest.param("of another owner", marks=as_root),
    ],
)
def test_what_others_may_have_put_there_is_not_run(cache, source, intruder, tmp_path):
    load(source)
    file = only(cache)
    file.unlink()
    if intruder == "symbolic link":
        evil(source, tmp_path / "evil.so")
        file.symlink_to(tmp_path / "evil.so")
    elif intruder == "folder":
        file.mkdir()
    elif intruder == "pipe":
        os.mkfifo(file)
    else:
        evil(source, file)
        if intruder == "writable by others":
            file.chmod(0o666)
        else:
            os.chown(file, UNUSED_UID, -1)
    assert load(source).forward() == 7


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o770, 0o1777])
def test_a_folder_that_others_could_write_to_is_emptied_and_closed(cache, source, mode):
    load(source)
    file = only(cache)
    evil(source, file.with_name("evil.so"))
    os.replace(file.with_name("evil.so"), file)
    (cache / "programs").mkdir()
    cache.chmod(mode)
    assert load(source).forward() == 7
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and len(list(cache.iterdir())) == 1


def test_an_older_folder_that_others_can_only_read_stays_of_use(cache, source):
    load(source)
    cache.chmod(0o755)
    assert private_folder() == cache and len(list(cache.iterdir())) == 1
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "fault",
    [
        "a file in its place",
        "above it, others can write",
        pytest.param("of another owner", marks=as_root),
        pytest.param("another owner above it", marks=as_root),
        pytest.param("another owner's link above it", marks=as_root),
        pytest.param("another owner's link", marks=as_root),
        "links in a circle",
    ],
)
def test_without_a_folder_of_ones_own_it_is_compiled_for_this_process(cache, source, fault, tmp_path, monkeypatch):
    real = tmp_path / "real"
    if fault == "a file in its place":
        cache.parent.mkdir()
        cache.write_text("")
    elif fault == "above it, others can write":
        cache.mkdir(parents=True, mode=0o700)
        cache.parent.chmod(0o777)
    elif fault == "links in a circle":
        cache.parent.symlink_to(tmp_path / "other")
        (tmp_path / "other").symlink_to(cache.parent)
    elif "link" in fault:
        (real / "relic-jax").mkdir(parents=True, mode=0o700)
        link, target = (cache, real / "relic-jax") if fault.endswith("link") else (cache.parent, real)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
        os.lchown(link, UNUSED_UID, -1)
    else:
        cache.mkdir(parents=True, mode=0o700)
        os.chown(cache if fault == "of another owner" else cache.parent, UNUSED_UID, -1)
    assert private_folder() is None
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert load(source).forward() == 7
    assert not list(tmp_path.glob("relic-jax-*")) and not list(real.rglob("*.so"))


def test_a_link_of_the_users_own_is_followed(cache, source, tmp_path):
    (tmp_path / "scratch").mkdir()
    cache.parent.symlink_to(tmp_path / "scratch")
    assert load(source).forward() == 7
    assert only(tmp_path / "scratch" / "relic-jax")


@pytest.mark.parametrize("named", ["", "relative/path", ".", "~/cache"])
def test_relative_cache_folders_are_ignored(named, source, tmp_path, monkeypatch):
    """So the XDG base directory specification has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert load(source).forward() == 7
    assert only(tmp_path / "home" / ".cache" / "relic-jax")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "source.cpp"}


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null", "relative", ""])
def test_a_home_that_cannot_be_used(home, source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(tempfile, "mkstemp", fail)  # HOME="" is "/", which root can write to
    assert load(source).forward() == 7
    assert {path.name for path in tmp_path.iterdir()} == {"source.cpp"}


def fail(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_nothing_in_the_cache(cache, source, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail)
    assert load(source).forward() == 7
    assert not list(cache.iterdir())


@pytest.mark.parametrize("where", ["cache", "temporary files"])
def test_a_folder_without_execution(cache, source, monkeypatch, where):
    """dlopen fails on a file system that is mounted with noexec."""
    load(source)

    class Mounted(ctypes.CDLL):
        def __init__(self, name):
            if name.startswith(str(cache)) == (where == "cache"):
                raise OSError("failed to map segment from shared object")
            super().__init__(name)

    monkeypatch.setattr(ctypes, "CDLL", Mounted)
    assert load(source).forward() == 7
    only(cache).unlink()
    assert load(source).forward() == 7


COMPILERS = {
    "hangs": "sleep 600",
    "fails in Latin-1": r"printf 'g\374ltig: \344\366\n' >&2; exit 1",
    "writes nothing": "true",
    "writes garbage": 'for x; do last=$x; done; echo garbage > "$last"',
    "writes half a library": 'for x; do last=$x; done; real "$@"; head -c 9000 "$last" > h; mv h "$last"',
    "leaves a symbol out": 'for x; do last=$x; done; real -shared -fPIC -x c++ /dev/null -o "$last"',
}


@pytest.mark.parametrize("case", COMPILERS)
def test_compilers_that_are_of_no_use(case, cache, source, tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    real = shutil.which("c++")
    probe = 'case "$*" in *-dM*) exec real "$@";; esac\n' if case not in ("hangs", "fails in Latin-1") else ""
    compiler.write_text(f"#!/bin/sh\ncd {tmp_path}\n" + (probe + COMPILERS[case]).replace("real ", real + " ") + "\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(cpu_build, "PROBE_SECONDS", 5.0 if probe else 0.2)
    begun = time.monotonic()
    with pytest.raises((KernelError, OSError, AttributeError)):
        load(source)
    assert time.monotonic() - begun < 240
    assert not cache.exists() or not list(cache.iterdir())


def test_a_compiler_that_prints_in_another_encoding(cache, source, tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f"#!/bin/sh\nprintf '// g\\374ltig\\n'; printf '\\344' >&2; exec {shutil.which('c++')} \"$@\"\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert load(source).forward() == 7


def test_two_processes_at_once(cache, source):
    code = "import sys; from pathlib import Path; from relic_jax.models.attention import cpu_build; "
    code += "print(cpu_build.load('toy', Path(sys.argv[1]), ('-O0',), ('forward',)).forward())"
    command = [sys.executable, "-c", code, str(source)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in running] == ["7\n"] * 3
    assert all(cpu_build.read_intact(file) for file in cache.iterdir()) and list(cache.iterdir())
