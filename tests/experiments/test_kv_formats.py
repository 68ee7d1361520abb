import numpy as np
import pytest

from relic_jax.environment.base import TrialRecord
from relic_jax.envs.registry import make
from relic_jax.experiments import kv_formats
from relic_jax.rl import train as training
from relic_jax.rl.train import prepare, restore


def test_what_the_policy_read_is_rebuilt_from_a_trial(tiny):
    trial = TrialRecord(
        observation=np.arange(8.0).reshape(4, 2),
        action=np.array([3, 1, 2, 0], np.int32),
        reward=np.array([0.0, 1.0, 0.5, 0.0], np.float32),
        first=np.array([True, False, True, False]),
        task=(),
    )
    inputs = kv_formats.inputs_of(trial, tiny())
    assert inputs.previous_action.tolist() == [[-1, 3, -1, 2]]
    assert inputs.previous_reward.tolist() == [[0.0, 0.0, 0.0, 0.5]]
    assert inputs.first.tolist() == [[True, False, True, False]]
    assert np.array_equal(inputs.observation[0], trial.observation)


def test_measures_by_hand():
    exact, found = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    measured = kv_formats.measures(exact, found)
    assert measured["log_prob_difference"] == pytest.approx(np.log(2))
    assert measured["divergence"] == pytest.approx(0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3)))
    assert measured["same_favourite"] == 0.5


@pytest.mark.slow
def test_every_format_of_a_checkpoint_is_compared(tiny, tmp_path):
    config = tiny()
    setup = prepare(config, make(config.env))
    training.save(setup, tmp_path / "checkpoints", *restore(setup, tmp_path / "checkpoints"))
    rows = {row["format"]: row for row in kv_formats.compare(tmp_path / "checkpoints" / "0")}
    assert set(rows) == {"float32", "bfloat16", "int8"}
    assert rows["float32"]["log_prob_difference"] == rows["float32"]["divergence"] == 0.0
    for form in ("bfloat16", "int8"):
        assert 0 < rows[form]["log_prob_difference"] < 1e-2


def test_a_path_that_cannot_be_written_is_refused_before_the_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["kv_formats", str(tmp_path / "no run"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"out is .*; allowed: a file that can be written \(it is a folder\)"):
        kv_formats.main()
