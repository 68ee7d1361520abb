"""Evaluations by the commands use all devices, or as many as `--devices` says."""

import json
from dataclasses import replace

import jax
import pytest

from relic_jax.config import EvalConfig
from relic_jax.experiments import run, training
from relic_jax.loading import pretrained
from relic_jax.rl.train import Result


@pytest.fixture
def devices(monkeypatch):
    """Return the numbers of devices on which curves were computed, and the policies."""
    seen = []
    evaluate = run.in_context_curves

    def watched(policy, *arguments, **options):
        seen.append((options["devices"], policy))
        return evaluate(policy, *arguments, **options)

    monkeypatch.setattr(run, "in_context_curves", watched)
    return seen


def test_evaluate_uses_all_devices_unless_it_is_told_otherwise(cli, begun_run, tmp_path, devices):
    command = "evaluate", begun_run, "--episodes", "2", "--limit", "5", "--repeats", "1"
    results = []
    for options in ([], ["--devices", "1"]):
        code, _, err = cli(*command, *options, "--out", tmp_path / "curve")
        assert (code, err) == (0, "")
        results.append(json.loads((tmp_path / "curve.json").read_text())["raw_returns"])
    assert [count for count, _ in devices] == [len(jax.local_devices()), 1]
    assert results[0] == results[1]


@pytest.mark.parametrize("count", [0, 1000])
def test_evaluate_refuses_devices_that_do_not_exist(cli, begun_run, count):
    code, out, err = cli("evaluate", begun_run, "--devices", str(count))
    allowed = f"1 … {len(jax.local_devices())} ({jax.default_backend()})"
    assert (code, out, err) == (2, "", f"relic-jax: devices is {count}; allowed: {allowed}\n")


def test_cores_are_offered_as_devices_before_a_policy_is_loaded(cli, monkeypatch):
    offered = []
    monkeypatch.setattr("relic_jax.experiments.evaluation.offer_cores", offered.append)
    for options in ([], ["--devices", "3"]):
        assert cli("evaluate", "nowhere", *options)[0] == 2
    assert offered == [1, 3]


def test_pooled_policies_share_the_compiled_program(devices):
    first = pretrained("darkroom-dpt")
    seeds = [replace(pretrained("darkroom-dpt"), config=replace(first.config, seed=seed)) for seed in (0, 1)]
    assert seeds[0].policy is not seeds[1].policy
    run.evaluate_policies(seeds, EvalConfig(episodes=1, tasks=2, repeats=1), "test", lambda _: None, devices=2)
    assert [count for count, _ in devices] == [2, 2] and devices[0][1] is devices[1][1]


def test_the_evaluation_after_training_uses_the_devices_of_the_run(cli, tmp_path, begun_run, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", lambda *_, **__: Result(None, True, 1.0))
        patch.setattr(training, "finish", lambda *arguments: seen.append(arguments[3]))
        assert cli("train", "darkroom-smoke", "--devices=2", "--runs", tmp_path)[0] == 0
    monkeypatch.setattr(run, "evaluate_policies", lambda *arguments: seen.append(arguments[-1]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.finish(begun_run, Result(None, True, 1.0), None, 2)
    assert seen == [2, 2]
