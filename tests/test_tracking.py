"""Trackers: contents of files, console output, and files after a kill."""

import io
import json
import re
import threading

import pytest

from relic_jax.files import write_atomically
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.progress import duration
from relic_jax.tracking import Console, Trackers

CLOCK = {"seconds": 2.0, "steps_per_second": 1234.5, "seconds_left": 75.0}


def record(env_steps, **values):
    return {"env_steps": env_steps, "loss": 0.1 + env_steps, **values}


def write_log(folder, *steps):
    log = JsonLines(folder, 0)
    for env_steps in steps:
        log.log(record(env_steps), CLOCK)
    log.close()


def test_metrics_and_timing_are_kept_apart(tmp_path):
    write_log(tmp_path, 10, 20)
    assert read_lines(tmp_path / "metrics.jsonl") == [record(10), record(20)]
    assert read_lines(tmp_path / "timing.jsonl") == [{"env_steps": 10, **CLOCK}, {"env_steps": 20, **CLOCK}]


def test_lines_are_on_disk_as_soon_as_they_are_logged(tmp_path):
    log = JsonLines(tmp_path, 0)
    log.log(record(10), CLOCK)
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(record(10)) + "\n"
    log.close()


@pytest.mark.parametrize(("checkpoint", "kept"), [(0, []), (10, [10]), (25, [10, 20]), (30, [10, 20, 30])])
def test_reopening_drops_what_was_logged_after_the_checkpoint(tmp_path, checkpoint, kept):
    write_log(tmp_path, 10, 20, 30)
    JsonLines(tmp_path, checkpoint).close()
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert [line["env_steps"] for line in read_lines(tmp_path / name)] == kept


def test_interrupted_and_reopened_file_is_byte_for_byte_the_uninterrupted_one(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    write_log(whole, 10, 20, 30)
    write_log(cut, 10, 20)
    with (cut / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(30))[:-7])
    log = JsonLines(cut, 10)
    log.log(record(20), CLOCK)
    log.log(record(30), CLOCK)
    log.close()
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path, cut):
    write_log(tmp_path, 10, 20)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-1] + "\n" + json.dumps(record(30))[:cut])
    assert read_lines(path) == [record(10), record(20)]


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_write_atomically_keeps_the_old_content_when_it_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half of it \ud800")
    assert path.read_text() == "old"


def test_console_line_shows_progress_and_returns():
    losses = {"policy_loss": -0.01234, "value_loss": 0.5, "entropy": 1.609}
    line = Console(4000, io.StringIO()).line({"env_steps": 1000, "return": 12.25, "success": 0.5, **losses}, CLOCK)
    parts = [part.strip() for part in line.split(" · ")]
    assert parts == [
        "1,000/4,000 steps ( 25%)",
        "1,234 steps/s",
        "1:15 left",
        "return 12.25",
        "success 50%",
        "policy -0.0123",
        "value 0.5",
        "entropy 1.61",
    ]


def test_console_line_without_a_finished_episode_has_no_return():
    line = Console(4000, io.StringIO()).line({"env_steps": 1000, "episodes": 0.0, "entropy": 1.6}, CLOCK)
    assert "return" not in line and "success" not in line and "entropy 1.6" in line


def test_console_prints_the_first_and_the_last_record_whatever_the_interval():
    stream = io.StringIO()
    console = Console(30, stream, interval=1e9)
    for env_steps in (10, 20, 30):
        console.log(record(env_steps), CLOCK)
    console.close()
    assert [line.split("/")[0].strip() for line in stream.getvalue().splitlines()] == ["10", "30"]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_console_is_one_live_line_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    console = Console(20, stream)
    console.log(record(10), CLOCK)
    console.log(record(20), CLOCK)
    console.close()
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")
    assert re.findall(r"\r\x1b\[K +(\d+)/20", stream.getvalue()) == ["10", "20"]


def test_console_averages_over_what_came_since_the_last_line():
    stream = io.StringIO()
    console = Console(30, stream, interval=1e9)
    console.log({"env_steps": 10, "episodes": 1.0, "return": 50.0, "success": 1.0, "entropy": 1.0}, CLOCK)
    console.log({"env_steps": 20, "episodes": 3.0, "return": 2.0, "success": 0.0, "entropy": 0.5}, CLOCK)
    console.log({"env_steps": 25, "episodes": 0.0, "entropy": 0.3}, CLOCK)
    console.log({"env_steps": 30, "episodes": 1.0, "return": 6.0, "success": 1.0, "entropy": 0.1}, CLOCK)
    assert "return 3.00 · success 25%" in stream.getvalue().splitlines()[1]
    assert stream.getvalue().splitlines()[1].endswith("entropy 0.3")


def test_without_a_speed_the_line_says_how_long_the_start_took():
    line = Console(4000, io.StringIO()).line({"env_steps": 1000}, {"seconds": 75.0, "startup_seconds": 75.0})
    assert [part.strip() for part in line.split(" · ")] == ["1,000/4,000 steps ( 25%)", "started in 1:15"]


def tickers():
    return [thread for thread in threading.enumerate() if thread.name == "relic-jax-progress"]


def test_compilation_is_shown_until_the_first_record():
    stream = io.StringIO()
    console = Console(20, stream)
    console.begin("compiling the first update")
    assert stream.getvalue() == "compiling the first update …\n"
    console.log(record(10), CLOCK)
    assert not tickers() and "10/20" in stream.getvalue().splitlines()[1]
    console.begin("compiling")
    assert len(tickers()) == 1
    console.close()
    assert not tickers()


def test_a_console_that_cannot_be_written_to_ends_nothing():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    for stream in (Full(), None):
        console = Console(20, stream)
        console._stream = stream  # None, the value of sys.stdout without a console
        console.begin("compiling")
        console.log(record(10), CLOCK)
        console.close()


def test_durations():
    assert [duration(s) for s in (0, 59.6, 75, 3600, 100_000)] == ["0:00", "1:00", "1:15", "1:00:00", "27:46:40"]


def test_pretraining_has_its_own_file_which_starts_again(tmp_path):
    for loss in (4.0, 3.0):
        tracker = JsonLines(tmp_path, 0)
        for steps in (4, 8):
            tracker.pretrained({"optimizer_steps": steps, "loss": loss / steps, "right": 0.5}, 8)
        tracker.log(record(10), CLOCK)
        tracker.close()
    lines = (tmp_path / "pretraining.jsonl").read_text().splitlines()
    expected = [{"optimizer_steps": steps, "loss": 3.0 / steps, "right": 0.5} for steps in (4, 8)]
    assert [json.loads(line) for line in lines] == expected
    JsonLines(tmp_path, 10).close()
    assert len((tmp_path / "pretraining.jsonl").read_text().splitlines()) == 2, "a resumed run keeps it"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_console_shows_how_far_the_pretraining_is():
    stream = io.StringIO()
    console = Console(20, stream, interval=1e9)
    console.begin("compiling")
    for steps in (4, 8, 12):
        Trackers([console]).pretrained({"optimizer_steps": steps, "loss": 4.25 / steps, "right": steps / 12}, 12)
    console.close()
    assert not tickers()
    assert stream.getvalue().splitlines() == [
        "compiling …",
        "pretraining 4/12 optimizer steps ( 33%) · cross-entropy 1.06 · right 33%",
        "pretraining 12/12 optimizer steps (100%) · cross-entropy 0.354 · right 100%",
    ]


def test_several_trackers_all_get_everything(tmp_path):
    class Spy:
        def __init__(self):
            self.seen = []

        def log(self, record, clock):
            self.seen.append((record, clock))

        def close(self):
            self.seen.append("closed")

    spies = [Spy(), Spy()]
    trackers = Trackers(spies)
    trackers.log(record(10), CLOCK)
    trackers.close()
    assert all(spy.seen == [(record(10), CLOCK), "closed"] for spy in spies)
