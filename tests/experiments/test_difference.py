"""`relic-jax difference`: hand-worked differences, pairing, and refusals."""

import json

import numpy as np
import pytest

from relic_jax.experiments import difference
from relic_jax.experiments.difference import Side

REFERENCES = {"random": 0.0, "optimal": 10.0}


@pytest.fixture
def write(tmp_path):
    """Return `write(name, steps, **fields)`, a result with a metric, steps [seeds, tasks · repeats, episodes]."""

    def written(name, steps, **about):
        steps = np.asarray(steps, float)
        seeds, rows, episodes = steps.shape
        curve = {part: steps.mean((0, 1)).tolist() for part in ("mean", "low", "high")}
        found = {"env": "gridobj-9", "split": "test", "split_hash": "abc", "tasks": rows, "seeds": seeds}
        found |= {"episodes": episodes, "repeats": 1, "reference_returns": REFERENCES, "return": curve}
        found |= {"success": curve, "metrics": {"steps": curve}, "raw_metrics": {"steps": steps.tolist()}}
        found |= {"raw_returns": (-steps).tolist(), "raw_successes": np.ones(steps.shape, int).tolist()}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(found | {"checkpoints": ["runs/a/checkpoints/8"]} | about))
        return path

    return written


def test_later_episodes_less_the_first_of_a_hand_worked_result(write, cli):
    path = write("a", [[[10, 4, 2, 3], [20, 4, 4, 1]]])
    code, out, err = cli("difference", path, "--metric", "steps", "--episodes", "3-4")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "steps in 2 tasks of gridobj-9 (split abc), seeds: 1",
        f"{path}, episodes 3-4: 2.5, 95% [2.5, 2.5], median 2.5, 90th percentile 3.7",
        f"{path}, episode 1: 15, 95% [10, 20], median 15, 90th percentile 19",
        "difference: -12.5, 95% [-17.5, -7.5]",
    ]
    path.rename(path.with_name("curve.json"))
    _, out, _ = cli("difference", path.parent)  # the result of a run: returns, all episodes after the first
    assert out.splitlines()[-1] == "difference: +12, 95% [7, 17]"


def test_the_first_episode_of_the_policy_follows_those_of_the_expert(write, cli):
    path = write("a", [[[1, 10, 4, 2]]], expert_episodes=1)
    _, out, _ = cli("difference", path, "--metric", "steps")
    assert out.splitlines()[1:3] == [
        f"{path}, episodes 3-4: 3, 95% [3, 3], median 3, 90th percentile 3.8",
        f"{path}, episode 2: 10, 95% [10, 10], median 10, 90th percentile 10",
    ]


def test_means_of_each_seed_are_printed(write, cli):
    path = write("a", [[[10, 4], [20, 6]], [[8, 2], [8, 3]]])
    _, out, _ = cli("difference", path, "--metric", "steps")
    lines = out.splitlines()
    assert (lines[2], lines[4]) == ("  by seed: 5, 2.5", "  by seed: 15, 8")


def test_repeats_of_a_task_are_averaged_and_not_resampled(write, cli):
    path = write("a", [[[10, 4], [20, 6], [30, 5], [30, 9]]], tasks=2, repeats=2)
    _, out, _ = cli("difference", path, "--metric", "steps")
    assert out.splitlines()[-1] == "difference: -16.5, 95% [-23, -10]"


def test_the_same_policies_are_paired_by_task_and_by_seed(write, cli):
    limited, full = write("limited", [[[5, 6], [9, 9]], [[45, 46], [49, 49]]]), write("full", [[[3, 4], [7, 7]]] * 2)
    _, out, _ = cli("difference", limited, full, "--metric", "steps", "--episodes", "2")
    assert out.splitlines()[-1] == "difference: +22, 95% [2, 42]"
    same = write("same", [[[4, 5], [8, 8]], [[44, 45], [48, 48]]])
    _, out, _ = cli("difference", limited, same, "--metric", "steps", "--episodes", "2")
    assert out.splitlines()[-1] == "difference: +1, 95% [1, 1]"


def test_other_policies_are_paired_by_task_only():
    rng = np.random.default_rng(0)
    tasks, seeds = rng.normal(0, 100, (1, 30, 1)), rng.normal(0, 1, (5, 1, 1))
    left, right = Side("a", tasks + seeds + 3, ["a"]), Side("b", tasks - seeds[::-1], ["b"])
    value, low, high = difference.difference(left, right)
    assert value == pytest.approx(3 + 2 * seeds.mean())
    spread = 2 * np.sqrt(2) * seeds.std() / np.sqrt(5)  # the tasks cancel, the seeds do not
    assert 0.7 * spread < (high - low) / 2 < 1.3 * spread
    paired = difference.difference(left, Side("b", right.values, ["a"]))
    assert paired.value == pytest.approx(value) and paired[1:] != (low, high)


def test_unknown_options_of_an_environment_fit_any_others(write, cli):
    old, new = write("old", [[[3, 4]]]), write("new", [[[3, 4]]], env_options={"pose": "dock", "asked": 2})
    code, out, err = cli("difference", new, old)
    assert (code, err) == (0, "")
    assert out.startswith("return in 1 tasks of gridobj-9, asked 2, pose dock (split abc), seeds: 1\n")


def test_bad_input_is_refused(write, cli, tmp_path):
    path = write("a", [[[10, 4, 2]]])
    no_values = write("early", [[[10, 4, 2]]], raw_returns=None)
    damaged = write("damaged", [[[10, 4, 2]]], raw_metrics={"steps": [[[1, 2]]]})
    text = tmp_path / "text.json"
    text.write_text("[")
    refused = [
        ((), "paths are 0 files or folders; allowed: 1 or 2"),
        ((path, path, path), "paths are 3 files or folders"),
        ((path, "--metric", "stesp"), "metric is 'stesp'; allowed for"),
        ((path, "--episodes", "0"), "episodes is '0'; allowed: N or FIRST-LAST, from 1 to 3"),
        ((path, "--episodes", "2-4"), "episodes is '2-4'"),
        ((path, "--against", "3-2"), "against is '3-2'"),
        ((path, write("b", [[[1, 2, 3]]], split_hash="other")), "split_hash of"),
        ((path, write("c", [[[1, 2, 3]] * 2])), "tasks of"),
        (
            (write("dock", [[[1, 2, 3]]], env_options={"pose": "dock"}), write("d", [[[1, 2, 3]]], env_options={})),
            "d.json' is {}; allowed: {'pose': 'dock'}, as in",
        ),
        ((no_values,), "has no raw values"),
        ((damaged, "--metric", "steps"), "has damaged values of steps"),
        ((text,), "is no evaluation"),
        ((tmp_path / "none.json",), "is no evaluation"),
    ]
    for arguments, message in refused:
        code, _, err = cli("difference", *arguments)
        assert code == 2 and message in err, (arguments, err)
