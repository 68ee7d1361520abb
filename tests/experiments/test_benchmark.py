import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest

from relic_jax.config import ConfigError, check_fields
from relic_jax.experiments import presets
from relic_jax.experiments.benchmark import __main__ as benchmark
from relic_jax.experiments.benchmark import peers, start, sweep
from relic_jax.experiments.benchmark.measure import Machine

MACHINE = Machine("cpu", "cpu", 2, "0", "3", native=True, copy_bandwidth=1e9, matrix_rate=1e9)


def test_what_was_measured_before_a_failure_is_kept(tmp_path, monkeypatch, capsys):
    """The output folder is created, and the file holds the cases before a case that fails."""

    def cases(machine):
        yield {"name": "one", "rate": 2.0, "unit": "steps/s"}
        raise RuntimeError("no more")

    out = tmp_path / "not" / "there" / "numbers.json"
    monkeypatch.setattr(benchmark, "measure_machine", lambda: MACHINE)
    monkeypatch.setattr(benchmark.importlib, "import_module", lambda _: SimpleNamespace(cases=cases))
    monkeypatch.setattr(sys, "argv", ["benchmark", "act", "--out", str(out)])
    with pytest.raises(RuntimeError, match="no more"):
        benchmark.main()
    assert [case["rate"] for case in json.loads(out.read_text())["cases"]] == [2.0]
    assert list(benchmark.read(out)) == ["one"]
    assert "attention compiled" in capsys.readouterr().out


def test_peers_needs_a_checkout_and_measures_what_the_preset_trains(tmp_path):
    with pytest.raises(ConfigError, match=r"--xland is .*; allowed: a checkout of XLand-MiniGrid, with training"):
        next(peers.cases(None, tmp_path))
    config = peers.our_config(peers.Sizes(256))
    check_fields(config)
    assert (config.trial.segment, config.policy.recurrent.width, config.policy.recurrent.input_width) == (32, 256, 128)
    assert config.ppo == dataclasses.replace(presets.get(peers.PRESET).config.ppo, minibatches=4)


def test_a_sweep_is_measured_beside_the_sum_of_separate_runs(monkeypatch):
    commands = []

    def seconds(folder, name, *arguments):
        commands.append(arguments[:4])
        return 30.0 if name == "together" else 20.0

    monkeypatch.setattr(sweep, "_seconds", seconds)
    (found,) = sweep.cases(MACHINE, 3, 32_000)
    assert (found["seconds"], found["seconds_alone"]) == (30.0, 60.0)
    assert "of the time of separate runs 50%" in benchmark.line(found, None)
    assert commands[0] == ("train", "darkroom-dpt", "--seed", "0")
    assert commands[-1] == ("sweep", "darkroom-dpt", "--seeds", "3")
    assert found["name"].endswith("3 seeds beside 3 runs of 32,000 steps") and found["target"] == 0.6


def test_a_start_is_measured_cold_and_warm_beside_another_checkout(monkeypatch, tmp_path):
    """The warm process has the cache of the cold one. The other checkout has its own, empty one."""
    calls = []

    def first_update(name, python, folder, kernels):
        calls.append((python, folder))
        return {"cpu_seconds": {1: 20.0, 2: 10.0, 3: 2.0}[len(calls)], "seconds": 9.0}

    monkeypatch.setattr(start, "first_update", first_update)
    monkeypatch.setattr(start.subprocess, "run", lambda *_, **__: None)
    (found,) = start.cases(MACHINE, ["darkroom-smoke"], tmp_path)
    assert found["of_other"] == 0.5 and found["reached"]
    assert [python for python, _ in calls] == [tmp_path, start.Path(sys.executable), start.Path(sys.executable)]
    assert calls[1][1] == calls[2][1] != calls[0][1]
    assert "cold 0.50× the other checkout" in benchmark.line(found, None)
    monkeypatch.setattr(start, "first_update", lambda *_: "gymnasium is missing")
    (skipped,) = start.cases(MACHINE, ["darkroom-smoke"])
    assert "skipped, cold: gymnasium is missing" in benchmark.line(skipped, None)
