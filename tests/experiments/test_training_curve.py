"""Training curves from metrics.jsonl."""

import json

import pytest

from relic_jax.experiments.training_curve import curve


def test_means_are_over_episodes_and_parts_without_any_are_left_out(tmp_path):
    updates = [
        {"env_steps": 10, "episodes": 1.0, "return": 4.0, "success": 1.0},
        {"env_steps": 20, "episodes": 3.0, "return": 0.0, "success": 0.0},
        {"env_steps": 30, "episodes": 0.0, "return": None, "success": None},
        {"env_steps": 40, "episodes": 0.0},
        {"env_steps": 50, "episodes": 2.0, "return": -1.0, "success": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(update) + "\n" for update in updates))
    rows = [row.split(",")[1:] for row in curve(tmp_path, 2)]
    assert rows == [["20", "4", "1.0000", "0.2500"], ["50", "2", "-1.0000", "0.5000"]]
    rows = [row.split(",")[1] for row in curve(tmp_path, 5)]
    assert rows == ["10", "20", "50"]


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(curve(tmp_path, 2))
