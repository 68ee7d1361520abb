"""metrics.jsonl after kills, power failures, edits and full disks: no line is lost."""

import errno
import json

import pytest

from relic_jax.files import StorageError, storage_errors, storage_failure
from relic_jax.metrics import JsonLines, read_lines

CLOCK = {"seconds": 2.0, "steps_per_second": 1234.5, "seconds_left": 75.0}
LINES = [json.dumps({"env_steps": steps, "loss": 0.5, "return": float("nan")}).encode() for steps in (10, 20, 30, 40)]

DAMAGED = {
    "cut in the middle": LINES[0][:9],
    "binary garbage": b"\x93\x00\x01\xff\xfe{",
    "invalid UTF-8": LINES[0].replace(b"loss", b"l\xe4ss"),
    "zeros of a power cut": bytes(300),
    "a number": b"5",
    "an empty object": b"{}",
    "a list": b"[1, 2]",
    "null": b"null",
    "no env_steps": b'{"loss": 1.0}',
    "env_steps is text": b'{"env_steps": "10"}',
    "env_steps is true": b'{"env_steps": true}',
    "env_steps is infinite": b'{"env_steps": 1e999}',
    "a value is text": b'{"env_steps": 15, "loss": "x"}',
    "two records in a line": LINES[0] + LINES[1],
    "deeply nested": b"[" * 100_000,
    "more digits than Python reads": b'{"env_steps": ' + b"1" * 5000 + b"}",
    "steps that go back": b'{"env_steps": 1}',
}


def reopened(folder, content, env_steps=40):
    """Open a run's metrics for resuming and return the messages for the user."""
    told = []
    (folder / "metrics.jsonl").write_bytes(content)
    (folder / "timing.jsonl").write_bytes(b"")
    JsonLines(folder, env_steps, told.append).close()
    return told


@pytest.mark.parametrize("where", range(4), ids=["first", "second", "third", "last"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_line_is_kept_aside_and_reported(tmp_path, case, where):
    """Regression: a damaged first line emptied the file without a message."""
    if case == "steps that go back" and where == 0:
        return  # is a good record there
    lines = list(LINES)
    lines[where] = DAMAGED[case]
    content = b"\n".join(lines) + b"\n"
    told = reopened(tmp_path, content)
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == content
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(line + b"\n" for line in LINES[:where])
    assert f"line {where + 1} cannot be read" in told[0] and "metrics.jsonl.damaged-1" in told[0]
    assert all("\n" not in line for line in told)
    assert "the records in between are lost" in told[1]


@pytest.mark.parametrize("tail", [LINES[3][:1], LINES[3][:-1], LINES[3][:9], b"", b"\n", b"\r\n \n"])
def test_a_last_line_that_a_kill_cut_short_is_normal(tmp_path, tail):
    assert reopened(tmp_path, b"\n".join(LINES[:3]) + b"\n" + tail, 30) == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join(LINES[:3]) + b"\n"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("tail", [bytes(50), LINES[3][:20] + bytes(20), b"\xff", b"garbage"])
def test_a_last_line_that_no_kill_leaves_is_kept_aside(tmp_path, tail):
    content = b"\n".join(LINES[:3]) + b"\n" + tail
    assert "line 4 cannot be read" in reopened(tmp_path, content, 30)[0]
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == content


def test_every_damage_keeps_its_own_file(tmp_path):
    for number in (1, 2, 3):
        reopened(tmp_path, b"%d damaged\n" % number)
    assert [(tmp_path / f"metrics.jsonl.damaged-{n}").read_bytes() for n in (1, 2, 3)] == [
        b"1 damaged\n",
        b"2 damaged\n",
        b"3 damaged\n",
    ]


def test_it_is_kept_aside_where_there_are_no_links(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("os.link", unsupported)
    for _ in range(2):
        reopened(tmp_path, b"damaged\n")
    assert (tmp_path / "metrics.jsonl.damaged-2").read_bytes() == b"damaged\n"


def test_nothing_is_rewritten_where_it_cannot_be_kept_aside(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        reopened(tmp_path, b"damaged\n" + LINES[0] + b"\n")
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"damaged\n" + LINES[0] + b"\n"


@pytest.mark.parametrize(
    ("steps", "said"), [(None, "is missing"), ((), "has no records"), ((10, 20), "ends at step 20")]
)
def test_missing_records_are_reported(tmp_path, steps, said):
    if steps is not None:
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in LINES[: len(steps)]))
    told = []
    JsonLines(tmp_path, 40, told.append).close()
    assert len(told) == 1 and said in told[0] and "step 40" in told[0]


def test_a_new_run_and_a_whole_file_say_nothing(tmp_path):
    told = []
    JsonLines(tmp_path, 0, told.append).close()
    assert reopened(tmp_path, b"\n".join(LINES) + b"\n") == told == []


def test_messages_go_to_stderr(tmp_path, capsys):
    JsonLines(tmp_path, 40).close()
    err = capsys.readouterr().err
    assert err.startswith("relic-jax: ") and err.count("\n") == 1


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / ".metrics.jsonl.123.tmp").write_text("half")
    (tmp_path / ".config.json.123.tmp").write_text("of another file")
    JsonLines(tmp_path, 0).close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "timing.jsonl", ".config.json.123.tmp"}


def test_a_line_that_did_not_fit_is_not_there(tmp_path, monkeypatch):
    log = JsonLines(tmp_path, 0)
    log.log({"env_steps": 10, "loss": 0.5}, CLOCK)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    class Full:
        """A file that accepts some bytes, then fails as on a full disk."""

        def __init__(self, file):
            self.file, self.name, self.fileno = file, file.name, file.fileno

        def write(self, data):
            if len(data) < 10:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data[:-5])

    log._files[0] = Full(log._files[0])
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        log.log({"env_steps": 20, "loss": 0.5}, CLOCK)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before and len(read_lines(tmp_path / "metrics.jsonl")) == 1


# --- errors of storage, as libraries raise them ---


def raised(make):
    try:
        make()
    except Exception as error:
        return error


def wrapped():
    try:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "a.png")
    except OSError as error:
        raise ValueError("encoder error -2") from error


def while_handling():
    try:
        raise OSError(errno.EROFS, "Read-only file system")
    except OSError:
        raise KeyError("x")  # noqa: B904


def grouped():
    raise ExceptionGroup("save failed", [ValueError("x"), OSError(errno.ENOSPC, "No space left on device", "d/0")])


def said():
    raise ValueError(
        'UNAVAILABLE: Error writing "/a/b/manifest.ocdbt.__lock": Failed to write: [OS error 28: ENOSPC No space left]'
    )


@pytest.mark.parametrize(
    ("make", "line"), [(wrapped, "quota"), (while_handling, "Read-only"), (grouped, "No space left"), (said, "ENOSPC")]
)
def test_storage_errors_are_found_in_errors_of_libraries(make, line):
    found = storage_failure(raised(make))
    assert line in found and "\n" not in found
    with pytest.raises(StorageError, match=f"{line}.*; go on"), storage_errors("go on"):
        make()


def test_other_errors_are_not_storage_errors():
    with pytest.raises(ZeroDivisionError), storage_errors("go on"):
        1 / 0  # noqa: B018
    assert storage_failure(FileNotFoundError(2, "No such file or directory")) is None
