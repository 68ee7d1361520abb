"""Fault injection with small counts. `python -m experiments.faults` runs larger ones."""

import shutil

import pytest

from relic_jax.experiments.faults import processes
from relic_jax.experiments.faults.__main__ import PARTS, QUICK, ROWS, Command
from relic_jax.metrics import read_lines


def test_every_part_can_be_run_and_is_in_the_quick_mode():
    assert set(PARTS) == set(ROWS) and set(QUICK) <= set(Command.__dataclass_fields__)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a run of four updates without faults."""
    return processes.run_whole(tmp_path_factory.mktemp("faults"), 4)


@pytest.mark.slow
def test_differences_are_found(whole, tmp_path):
    """The comparison detects differences."""
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    assert processes.differences(whole, other) == []
    lines = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(lines.replace("loss", "less", 1))
    assert processes.differences(whole, other) == ["metrics.jsonl differs"] and read_lines(whole / "metrics.jsonl")
