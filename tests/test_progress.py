"""Progress messages and speed."""

import io
import time

import pytest

from relic_jax import progress
from relic_jax.progress import Activity, Clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_long_work_is_reported_every_interval():
    stream = io.StringIO()
    with Activity("drawing", stream, interval=0.05):
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 2 and set(lines) == {"drawing · 0:00"}


def test_what_is_short_prints_nothing():
    stream = io.StringIO()
    with Activity("drawing", stream) as activity:
        activity.show("still")
    assert stream.getvalue() == ""


def test_a_terminal_has_one_live_line_that_is_erased():
    stream = Terminal()
    with Activity("evaluating", stream, at_once=True) as activity:
        activity.show("evaluating  50%")
    assert "\n" not in stream.getvalue() and stream.getvalue().endswith("\r\x1b[K")
    assert "evaluating  50% · 0:00" in stream.getvalue()
    with Activity("evaluating", stream, at_once=True) as activity:
        activity.say("stopped")
    assert "\r\x1b[Kstopped\n" in stream.getvalue()


@pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("closed"), BrokenPipeError()])
def test_a_stream_that_fails_ends_nothing(error):
    class Broken(io.StringIO):
        def write(self, text):
            raise error

    with Activity("drawing", Broken(), interval=0.01, at_once=True) as activity:
        time.sleep(0.05)
        activity.say("done")


@pytest.fixture
def now(monkeypatch):
    """Return `now(seconds)`, which sets the clock."""
    at = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: at[0])

    def set_now(seconds):
        at[0] = 1000.0 + seconds

    return set_now


def test_compiling_counts_neither_in_the_speed_nor_in_the_time_left(now):
    """After 80 s of compiling, 1000 steps take a second, so 100,000 steps take 100 s."""
    clock = Clock(0.0, 100_000)
    now(81)
    assert clock.read(1000) == {"seconds": 81, "startup_seconds": 81}
    now(82)
    assert clock.read(2000) == {"seconds": 82, "steps_per_second": 1000, "seconds_left": 98}
    now(91)
    assert clock.read(11_000)["seconds_left"] == 89


def test_a_resumed_run_counts_from_its_own_first_update(now):
    clock = Clock(500.0, 100_000)
    now(60)
    assert clock.read(51_000) == {"seconds": 560, "startup_seconds": 60}
    now(61)
    assert clock.read(52_000) == {"seconds": 561, "steps_per_second": 1000, "seconds_left": 48}


def test_the_speed_is_the_recent_one_over_a_minute_and_over_the_window(now):
    clock = Clock(0.0, 10**6, window=5000)
    for second in range(0, 200):  # 100 steps a second
        now(second)
        slow = clock.read(100 * second + 100)
    assert slow["steps_per_second"] == pytest.approx(100)
    for second in range(200, 300):  # then 1000
        now(second)
        fast = clock.read(20_000 + 1000 * (second - 199))
    assert fast["steps_per_second"] == pytest.approx(1000)
    clock = Clock(0.0, 10**6, window=10_000)
    for index in range(100):  # one in 100 steps takes 100 times as long, and the window always contains one
        now(index + 99 * (index // 10))
        reading = clock.read(1000 * (index + 1))
    assert reading["steps_per_second"] == pytest.approx(1000 / 10.9, rel=0.15)
