"""A run does not depend on how many devices share its environments."""

import dataclasses
import re
import threading

import chex
import jax
import numpy as np
import pytest

from relic_jax.config import PPOConfig, TrialConfig
from relic_jax.envs.registry import make
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl.parallel import initial_state, parallel
from relic_jax.rl.segment import segment_step, trial_step
from relic_jax.rl.state import make_setup
from relic_jax.rl.train import prepare, train

PPO = {
    "two steps": {"minibatches": 2, "accumulate": 1},
    "one step": {"minibatches": 4, "accumulate": 4, "normalize_advantages": True},
}


@pytest.fixture(scope="module")
def setup_with(tiny):
    def build(devices, env="darkroom-ad-9-random", **ppo):
        learning = {"epochs": 2, "lr": 1e-3, "warmup_steps": 0, "shuffle": True}
        trial = TrialConfig(environments=8, steps=32, updates=2)
        config = tiny(env=env, devices=devices, trial=trial, ppo=PPOConfig(**(learning | ppo)), total_steps=256)
        return make_setup(config, make(config.env))

    return build


@pytest.mark.slow
@pytest.mark.parametrize("name", PPO)
def test_a_trial_on_four_devices_is_that_of_one(setup_with, name):
    found = []
    for devices in (1, 4):
        setup = setup_with(devices, **PPO[name])
        before = initial_state(setup)
        start = jax.device_get(before.params)
        state, metrics = parallel(setup, trial_step)(before)
        found.append(jax.device_get((state.params, state.trial, metrics)))
    (params, trial, metrics), (other_params, other_trial, other_metrics) = found
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, start)), strict=True)) > 1e-3
    chex.assert_trees_all_close(other_params, params, atol=1e-5)
    chex.assert_trees_all_equal(other_trial.task, trial.task)
    chex.assert_trees_all_close(other_metrics, metrics, rtol=2e-3, atol=1e-5)


def all_reduces(text):
    """Return the largest number of elements of each all-reduce of a compiled program that is inside a loop or not."""
    shapes = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    return [
        sum(int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", s))
        for s in shapes
    ]


@pytest.mark.slow
def test_there_is_one_all_reduce_of_the_gradient_and_none_in_acting_and_refresh(setup_with):
    """The context is split, so acting and refreshing need no communication: only gradients and metrics are reduced."""
    setup = setup_with(2, **PPO["two steps"], context_gradient="stopped", last_update="partial")
    state = jax.eval_shape(lambda: initial_state(setup))
    text = parallel(setup, segment_step).lower(state).compile().as_text()
    parameters = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(setup.policy.trainable(state.params)))
    sizes = all_reduces(text)
    assert sum(sizes) - parameters < 64 and max(sizes) <= parameters  # the gradient once, and a few numbers
    for name in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {name}(" not in text


@pytest.mark.slow
def test_a_run_continues_on_another_number_of_devices(tiny, tmp_path):
    """Two trials on four devices, one on two and one on four again are four trials on four devices."""
    trial = TrialConfig(environments=8, steps=16, updates=2)
    ppo = PPOConfig(minibatches=2, accumulate=1, epochs=1, lr=1e-3, lr_final=1e-3, warmup_steps=0)
    whole = tiny(env="darkroom-ad-9-random", devices=4, trial=trial, ppo=ppo, total_steps=4 * 128)
    env = make(whole.env)

    def run(folder, devices, until):
        stop = threading.Event()

        class Tracker(JsonLines):
            def log(self, record, clock):
                super().log(record, clock)
                if record["env_steps"] == until:
                    stop.set()

        resume = (folder / "checkpoints").exists()
        setup = prepare(dataclasses.replace(whole, devices=devices), env, resume=resume)
        return train(setup, folder, lambda steps: Tracker(folder, steps), resume=resume, stop=stop).state

    expected = run(tmp_path / "whole", 4, 512)
    for devices, until in ((4, 256), (2, 384), (4, 512)):
        state = run(tmp_path / "changed", devices, until)
        assert int(state.env_steps) == until
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(expected.params), atol=1e-5)
    lines, same = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("changed", "whole"))
    assert len(lines) == len(same) == 8
    for line, other in zip(lines, same, strict=True):
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=2e-3, atol=1e-5)
