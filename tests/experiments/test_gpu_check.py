"""The check of a GPU on a machine without one: its parts, its limits, and that it sees a wrong kernel."""

import dataclasses
import json
import sys
import time

import jax.numpy as jnp
import pytest

from relic_jax.config import ConfigError
from relic_jax.experiments.benchmark.measure import Machine
from relic_jax.experiments.gpu_check import __main__ as gpu_check
from relic_jax.experiments.gpu_check import kernels, runs
from relic_jax.experiments.gpu_check.parts import PARTS

QUICK = {"platform": "cpu", "quick": True}


def say(*lines, then=""):
    """Return a command that prints lines, for use in place of a part's process."""
    return sys.executable, "-c", f"import time\nfor x in {lines!r}: print(x, flush=True)\n{then}"


def machine(platform="gpu"):
    found = Machine(platform, "card", 1, "0", "3", native=False, copy_bandwidth=1e9, matrix_rate=1e9)
    return json.dumps({"name": "machine", **vars(found)})


def test_parts_are_listed_in_order_and_fit_the_time(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--list"])
    gpu_check.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PARTS)
    first_nine = [part.seconds for part in PARTS.values()][:9]
    assert sum(first_nine) <= 600, "parts that a check of ten minutes never reaches"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "platform is 'cpu'; allowed: a GPU that JAX finds, or --platform cpu --quick"),
        ({"platform": "cpu"}, "platform is 'cpu'; allowed: a GPU, or cpu with --quick"),
        ({"parts": "act,kernel"}, r"parts is 'kernel'; allowed: kernels, act, .*"),
    ],
)
def test_bad_input_is_a_line(options, message, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "PROCESS", say(machine("cpu")))
    with pytest.raises(ConfigError, match=message):
        gpu_check.check(gpu_check.Command(**options, out=tmp_path / "x.json"))


def test_a_device_that_cannot_be_used(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "PROCESS", say(then="raise SystemExit('CUDA_ERROR_NO_DEVICE')"))
    with pytest.raises(ConfigError, match="platform is 'gpu', which cannot be used: failed: CUDA_ERROR_NO_DEVICE"):
        gpu_check.check(gpu_check.Command(out=tmp_path / "x.json"))


def test_results_before_the_limit_are_kept(monkeypatch, tmp_path, capsys):
    """A part that hangs is killed with its processes, a part that fails is reported, and the next ones still run."""
    hanging = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    behaviour = {
        "machine": say(machine()),
        "act": say('{"name": "act/one", "rate": 2.0, "unit": "actions/s"}', "not JSON", then=hanging),
        "update": say(then="raise ValueError('no cuDNN')"),
        "kernels": say(json.dumps(kernels.verdict("kernels/right", 0.1, 0.2))),
    }

    class Process(tuple):
        def __iter__(self):
            return iter(behaviour[next(names)])

    names = iter(["machine", "act", "update", "kernels"])
    monkeypatch.setattr(gpu_check, "PROCESS", Process())
    for name, seconds in {"act": 10.0, "update": 60.0, "kernels": 60.0}.items():
        monkeypatch.setitem(PARTS, name, dataclasses.replace(PARTS[name], seconds=seconds))
    monkeypatch.setattr(gpu_check, "LEAST_SECONDS", 1.0)
    out, start = tmp_path / "new" / "results.json", time.monotonic()
    assert not gpu_check.check(gpu_check.Command(parts="act,update,kernels", out=out))
    assert time.monotonic() - start < 60  # the part that hangs would take 99
    document = json.loads(out.read_text())
    assert document["machine"]["device"] == "card"
    assert document["parts"]["act"]["cases"] == [{"name": "act/one", "rate": 2.0, "unit": "actions/s"}]
    statuses = [part["status"] for part in document["parts"].values()]
    assert statuses == ["stopped at its limit of 10 s", "failed: ValueError: no cuDNN", "done"]
    assert gpu_check.failures(document) == ["update"]
    assert "kernels/right · ok" in capsys.readouterr().out
    names = iter(["machine"])
    assert gpu_check.check(gpu_check.Command(parts="act", out=out, minutes=0.01))  # out of time is no failure
    assert json.loads(out.read_text())["parts"]["act"]["status"] == "skipped: no time left"


def test_a_wrong_kernel_is_found(monkeypatch):
    """A kernel that forgets the oldest step, and one that returns NaN."""
    assert kernels.step_case(40, "float32", within_episode=False)["passed"]
    right = kernels.decode.flash_decode

    def forgetful(inputs, interpret):
        length = inputs.context.length - 1
        return right(inputs.replace(window=jnp.minimum(inputs.window, length)), interpret=interpret)

    monkeypatch.setattr(kernels.decode, "flash_decode", forgetful)
    wrong = kernels.step_case(40, "float32", within_episode=False)
    assert not wrong["passed"] and wrong["error"] > 1e-3
    monkeypatch.setattr(kernels.decode, "flash_decode", lambda inputs, interpret: inputs.query * jnp.nan)
    assert kernels.step_case(40, "float32", within_episode=False)["error"] == 1e30


def test_a_part_runs_with_tiny_sizes(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "STEPS", 2)
    gpu_check.run_part(gpu_check.Command(**QUICK), "decoders")
    cases = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [case["name"].split("/")[1] for case in cases][:3] == ["fused", "xla", "dot_product_attention"]
    assert all(case["bytes"] == 2 * 2 * 2 * 8 * 600 * 32 and case["milliseconds"] > 0 for case in cases)


def test_a_run_is_interrupted_at_its_limit(monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()
    lines = [{"env_steps": 100, "seconds": 10.0}, {"env_steps": 500, "seconds": 12.0}]
    (tmp_path / "run" / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(runs, "COMMAND", say(then="time.sleep(99)"))
    monkeypatch.setattr(runs, "GRACE", 2.0)
    found = runs.trained(tmp_path, "train", "darkroom-dpt-gpu", False, 3.0)
    assert found["interrupted"] and not found["finished"] and "error" not in found and found["seconds"] < 20
    assert (found["env_steps"], found["startup_seconds"], found["steps_per_second"]) == (500, 10.0, 200.0)
    monkeypatch.setattr(runs, "COMMAND", say(then="raise SystemExit('out of memory')"))
    assert runs.trained(tmp_path, "train", "darkroom-dpt-gpu", False, 60.0)["error"] == "out of memory\n"
