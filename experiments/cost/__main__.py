"""`python -m experiments.cost`: compare the model with the measurements in experiments/results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from relic_jax.config import PolicyConfig, TrainConfig
from relic_jax.experiments import presets
from relic_jax.experiments.benchmark.models import MODEL
from relic_jax.experiments.cost import arithmetic
from relic_jax.experiments.cost.devices import DEVICES, Device
from relic_jax.experiments.cost.prediction import UPDATE_KERNELS_PER_LAYER, act_step, predict, rates
from relic_jax.metrics import read_lines

RESULTS = Path(__file__).resolve().parents[1] / "results"
SEGMENT = 256
"""Steps of a segment in the benchmark."""


class Row(NamedTuple):
    """A measurement and its prediction, both in steps or actions per second.

    Attributes:
        name: Name of the measurement.
        measured: The measurement.
        predicted: The prediction.
        fitted: Whether a constant of the model was fitted to this measurement.
    """

    name: str
    measured: float
    predicted: float
    fitted: bool = False

    def __str__(self) -> str:
        """Return a row of the table in docs/scaling.md."""
        ratio = f"{self.predicted / self.measured:.2f}" + " (fitted)" * self.fitted
        return f"| {self.name} | {self.measured:,.0f} | {self.predicted:,.0f} | {ratio} |"


def rows() -> Iterator[Row]:
    """Yield every measurement that the model describes."""
    h200, cpu = DEVICES["h200"], DEVICES["cpu"]
    half = replace(MODEL, dtype="bfloat16")
    gpu_cases, cpu_cases = (cases(RESULTS / "benchmark" / name) for name in ("h200.json", "native-cpu2.json"))
    for batch, context in ((20, 8192), (256, 8192), (20, 65_536)):
        name = f"act/bfloat16/batch{batch}/context{context}"
        yield acting(f"h200 {name}", gpu_cases[name], half, h200, batch, context)
    name = "act/int8/batch20/context8192"
    yield acting(f"h200 {name}", gpu_cases[name], replace(half, cache="int8"), h200, 20, 8192)
    name = "update/batch4/context8192/bfloat16"
    yield updating(f"h200 {name}", gpu_cases[name], half, h200, 8192)
    first, *_, last = read_lines(RESULTS / "darkroom-dpt" / "h200-seed0-timing.jsonl")
    rate = (last["env_steps"] - first["env_steps"]) / (last["seconds"] - first["seconds"])
    yield Row("h200 darkroom-dpt-gpu, whole", rate, whole("darkroom-dpt-gpu", h200, 1))
    yield from long_trial(h200)
    both = replace(cpu, bandwidth=2 * cpu.bandwidth)  # acting is not split over devices in the benchmark
    for context in (1024, 4096, 8192):
        name = f"act/float32/batch20/context{context}"
        yield acting(f"cpu {name}", cpu_cases[name], MODEL, both, 20, context, fitted=context == 4096)
    for context in (4096, 8192):
        name = f"update/batch4/context{context}"
        yield updating(f"cpu {name}", cpu_cases[name], MODEL, cpu, context, fitted=context == 4096)
        name = f"refresh/batch2/context{context}"
        yield refreshing(f"cpu {name}", cpu_cases[name], cpu, context)
    for suffix in ("", "/context_gradient=stopped"):
        name = f"train/darkroom-relic-paper{suffix}"
        change = {"ppo.context_gradient": "stopped"} if suffix else {}
        yield Row(f"cpu {name}", cpu_cases[name]["rate"], whole("darkroom-relic-paper", cpu, 2, **change))
    yield Row("cpu train/darkroom-dpt", cpu_cases["train/darkroom-dpt"]["rate"], whole("darkroom-dpt", cpu, 2))


def cases(path: Path) -> dict[str, dict[str, Any]]:
    """Return the cases of a benchmark by name. If a case was measured twice, the first one is returned."""
    found: dict[str, dict[str, Any]] = {}
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        found.setdefault(case["name"], case)
    return found


def acting(
    name: str, case: dict[str, Any], model: Any, device: Device, batch: int, context: int, fitted: bool = False
) -> Row:
    """Return a case of the benchmark act, which has neither environment nor heads that sample."""
    seconds, _, _ = act_step(PolicyConfig(model), device, batch, context, kernels=0)
    return Row(name, case["rate"], batch / seconds, fitted)


def updating(name: str, case: dict[str, Any], model: Any, device: Device, context: int, fitted: bool = True) -> Row:
    """Return a case of the benchmark update: one minibatch of four environments on every device."""
    policy, batch = PolicyConfig(model), 4
    attention_rate, dense_rate = rates(policy, device)
    seconds = arithmetic.attention_update(policy, batch, SEGMENT, context) / attention_rate
    seconds += arithmetic.dense_update(policy, batch * SEGMENT) / dense_rate
    seconds += UPDATE_KERNELS_PER_LAYER * model.layers * device.kernel_seconds
    return Row(name, batch * SEGMENT / case["seconds"], batch * SEGMENT / seconds, fitted)


def refreshing(name: str, case: dict[str, Any], device: Device, steps: int) -> Row:
    """Return a case of the benchmark refresh: two environments on every device."""
    policy, batch = PolicyConfig(MODEL), 2
    attention_rate, dense_rate = rates(policy, device)
    seconds = arithmetic.attention_refresh(policy, batch, steps) / attention_rate
    seconds += 2 * batch * steps * arithmetic.weights(policy) / dense_rate
    return Row(name, batch * steps / case["seconds"], batch * steps / seconds)


def whole(preset: str, device: Device, devices: int, **changes: Any) -> float:
    """Return the predicted steps per second of a preset whose environments the devices share."""
    config: TrainConfig = presets.get(preset).config
    ppo = replace(config.ppo, **{name.removeprefix("ppo."): value for name, value in changes.items()})
    return predict(replace(config, ppo=ppo), device, devices, share=True).rate


def long_trial(device: Device) -> Iterator[Row]:
    """Yield the speed of `darkroom-64k` in bfloat16 on the H200 at four lengths of the context.

    The predicted time is that of a trial up to the end of the range minus that of a trial up to its start.
    """
    lines = read_lines(RESULTS / "darkroom-64k" / "h200-timing.jsonl")
    seconds = {int(line["env_steps"]): float(line["seconds"]) for line in lines}
    config = presets.get("darkroom-64k").config
    transformer = replace(config.policy.transformer, dtype="bfloat16")
    config = replace(config, policy=replace(config.policy, transformer=transformer))
    environments, segment = config.trial.environments, config.trial.segment

    def predicted(steps: int) -> float:
        trial = dataclasses.replace(config.trial, steps=steps, updates=steps // segment)
        return predict(replace(config, trial=trial), device).trial_seconds

    for first, last in ((1024, 8192), (16_384, 24_576), (32_768, 40_960), (51_200, 59_392)):
        count = environments * (last - first)
        measured = count / (seconds[environments * last] - seconds[environments * first])
        name = f"h200 darkroom-64k, whole, context {first:,}–{last:,}"
        yield Row(name, measured, count / (predicted(last) - predicted(first)))


def main() -> None:
    """Print the comparison as a table."""
    print("| measurement | measured, per second | predicted | predicted / measured |\n|---|---|---|---|")
    for row in rows():
        print(row)


if __name__ == "__main__":
    main()
