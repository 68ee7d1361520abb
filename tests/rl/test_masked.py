"""Means over valid steps are ratios of total sums and total counts, on any number of devices."""

import dataclasses
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import PPOConfig, TrialConfig, WorkerConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.experiments.faults.corridor import Corridor
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl import update as up
from relic_jax.rl.masked import mean_of_valid, normalize_advantages, step_counts
from relic_jax.rl.minibatches import Order
from relic_jax.rl.parallel import parallel, state_shardings
from relic_jax.rl.state import AXIS, init_state, make_setup
from relic_jax.rl.train import prepare, train

TASKS = {"train": [{"goal": goal} for goal in (-3, -2, 2, 3)], "test": [{"goal": 1}]}
STEPS, SEGMENT = 16, 8


def corridor(**options):
    options = {"horizon": 6, **options}
    spec = Corridor(**options).spec
    host = WorkerConfig(workers=4)
    return HostEnvironment(
        "corridor", "relic_jax.experiments.faults.corridor:Corridor", options, spec, TASKS, host=host
    )


@pytest.fixture(scope="module")
def config(tiny):
    def make(devices=1, **ppo):
        learning = {"lr": 1e-2, "warmup_steps": 0, "epochs": 1, "minibatches": 4, "accumulate": 4, "shuffle": False}
        learning |= {"context_gradient": "stopped", "last_update": "partial", "normalize_advantages": True}
        trial = TrialConfig(environments=4, steps=STEPS, updates=STEPS // SEGMENT)
        ppo = PPOConfig(**(learning | ppo))
        return tiny(env="corridor", devices=devices, trial=trial, ppo=ppo, total_steps=4 * STEPS)

    return make


def on_devices(setup, function, *arrays):
    """Return `function(setup, …)` with the leading axis of each array split over as many devices as it has elements."""
    setup = dataclasses.replace(setup, local_environments=1, axis=AXIS)
    return jax.vmap(lambda *own: function(setup, *own), axis_name=AXIS)(*map(jnp.asarray, arrays))


def test_a_device_that_lost_steps_weighs_less(config):
    setup = make_setup(config(), corridor())
    advantage = np.array([[[1.0, 2.0, 3.0, 4.0]], [[10.0, 99.0, 99.0, 99.0]]], np.float32)
    valid = np.array([[[True] * 4], [[True, False, False, False]]])
    found = on_devices(setup, lambda s, a, v: normalize_advantages(s, a, 4, v), advantage, valid)
    seen = advantage[valid]
    assert seen.mean() == 4
    np.testing.assert_allclose(found, np.where(valid, (advantage - 4) / seen.std(), 0), rtol=1e-5)


@pytest.mark.parametrize("lost", ["one device", "everything"])
def test_where_no_step_is_valid_there_are_zeros(config, lost):
    setup = make_setup(config(), corridor())
    advantage = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    valid = np.ones((2, 3, 5), bool)
    valid[0 if lost == "one device" else slice(None)] = False
    found = np.asarray(on_devices(setup, lambda s, a, v: normalize_advantages(s, a, 5, v), advantage, valid))
    assert np.isfinite(found).all() and not found[~valid].any()
    if valid.any():
        np.testing.assert_allclose((found[valid].mean(), found[valid].std()), (0, 1), atol=1e-5)
    gradient = jax.vmap(jax.grad(lambda x, v: mean_of_valid(jnp.sqrt(x), v)))(jnp.zeros(2), jnp.zeros(2, bool))
    assert (np.asarray(mean_of_valid(jnp.full(3, jnp.nan), jnp.zeros(3, bool))) == 0) and gradient.shape == (2,)


def test_without_lost_steps_normalisation_is_bit_for_bit_that_of_plain_means(config):
    setup = make_setup(config(), corridor())
    advantage = jnp.asarray(np.random.default_rng(1).normal(2.0, 3.0, (8, 300)), jnp.float32)

    def plain(advantage, length):
        filled = jnp.arange(advantage.shape[1]) < length
        mean = jnp.mean(advantage, where=filled)
        deviation = jnp.sqrt(jnp.mean(jnp.square(advantage - mean), where=filled))
        return (advantage - mean) / (deviation + 1e-8)

    for length in (1, 100, 300):
        expected = jax.jit(plain)(advantage, length)
        np.testing.assert_array_equal(
            jax.jit(lambda a, n: normalize_advantages(setup, a, n))(advantage, length), expected
        )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_counts_of_minibatches(config, reduction, shared):
    """Compare sums divided by counts with numpy, on two devices of four environments each."""
    setup = make_setup(config(gradient_reduction=reduction), corridor())
    random = np.random.default_rng(2)
    valid, x = random.random((2, 4, 6)) < 0.4, random.normal(size=(2, 4, 6)).astype(np.float32)
    valid[0, :2] = False
    order = np.array([[[0, 1], [2, 3]], [[2, 0], [3, 1]]])  # two minibatches of two rows on each device
    counts = on_devices(setup, lambda s, v, o: step_counts(s, v, Order(o), shared=shared), valid, order)
    sums = np.where(valid, x, 0)[np.arange(2)[:, None, None], order].sum((2, 3))  # [device, minibatch]
    numbers = valid[np.arange(2)[:, None, None], order].sum((2, 3))
    if shared:
        sums_of, numbers_of = sums.sum(0), numbers.sum(0)
    else:
        sums_of, numbers_of = sums.ravel(), numbers.ravel()
    means = np.divide(sums_of, numbers_of, out=np.zeros(len(sums_of)), where=numbers_of > 0)
    expected = means.sum() if reduction == "sum" else sums_of.sum() / numbers_of.sum()
    scale = (len(means) if reduction == "sum" else 1) / sums.shape[1]  # as `accumulated_gradients` does it
    np.testing.assert_allclose((sums / counts.loss).sum(1).mean() * scale, expected, rtol=1e-5)
    np.testing.assert_allclose((sums / counts.metrics).mean(), sums.sum() / numbers.sum(), rtol=1e-5)


def masks():
    random = np.random.default_rng(3).random((4, STEPS)) < 0.7
    one_lost = random.copy()
    one_lost[1], one_lost[2, 1:] = False, False
    return {"some": random, "one environment": one_lost, "all": np.zeros((4, STEPS), bool)}


@pytest.fixture(scope="module")
def updates(config):
    """Return updates(devices, **ppo)(mask): parameters and metrics after an update from one state."""
    setup = make_setup(config(), corridor())
    state = jax.device_get(jax.jit(lambda: init_state(setup))())
    random = np.random.default_rng(4)
    size = (4, STEPS)
    numbers = {name: random.normal(size=size).astype(np.float32) for name in ("value", "reward")}
    numbers |= {"action": random.integers(5, size=size).astype(np.int32), "log_prob": np.full(size, -1.6, np.float32)}
    params = jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape).astype(x.dtype), state.params)
    state = state.replace(params=params, trajectory=state.trajectory.replace(**numbers))

    def make(devices, **ppo):
        own = make_setup(config(devices, **ppo), corridor())

        def updated(setup, state):
            batch = up.make_batch(setup, state, state.memory, jnp.zeros(setup.local_environments))
            window = up.Window(0, SEGMENT, full=False)
            params, _, metrics = up.run_epochs(setup, state, batch, window, jax.random.key(3))
            return state.replace(params=params), setup.mean(metrics)

        run = parallel(own, updated)

        def of(mask):
            given = state.replace(key=jax.random.key(0), trajectory=state.trajectory.replace(valid=mask))
            placed = jax.device_put(given, state_shardings(own.config, given))
            after, metrics = jax.device_get(run(placed))
            return after.params, metrics

        return of

    return make, params


UPDATES = {  # name: devices, settings
    "distributed": ((1, 4), {"minibatches": 4, "accumulate": 4}),
    "split": ((1, 4), {"minibatches": 1, "accumulate": 1}),
    "split in pairs": ((1, 2), {"minibatches": 2, "accumulate": 2}),
    "two steps": ((1, 2), {"minibatches": 2, "accumulate": 1}),
    "distributed in two steps": ((1, 2), {"minibatches": 4, "accumulate": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("reduction", [pytest.param("sum", marks=pytest.mark.slow), "mean"])
@pytest.mark.parametrize("name", ["distributed", *(pytest.param(n, marks=pytest.mark.slow) for n in list(UPDATES)[1:])])
def test_one_two_and_four_devices_make_the_same_update(updates, reduction, name):
    """Minibatches are split over the devices or distributed, in one optimizer step or two."""
    make, before = updates
    devices, settings = UPDATES[name]
    if reduction == "sum" and settings["accumulate"] == 1:
        pytest.skip("a sum over one minibatch is its mean")
    runs = [make(count, gradient_reduction=reduction, **settings) for count in devices]
    for name, mask in masks().items():
        (params, metrics), *others = [run(mask) for run in runs]
        for other_params, other_metrics in others:
            chex.assert_trees_all_close(other_params, params, atol=1e-5)
            chex.assert_trees_all_close(other_metrics, metrics, rtol=1e-4, atol=1e-6)
        moved = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, before)), strict=True))
        assert (moved > 1e-3) == (name != "all") and (metrics["grad_norm"] > 0) == (name != "all")
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, metrics)))


def test_a_mean_over_minibatches_is_that_over_all_their_valid_steps(updates):
    make, _ = updates
    split, whole = (make(1, gradient_reduction="mean", minibatches=n, accumulate=n) for n in (4, 1))
    mask = masks()["one environment"]
    (params, metrics), (expected, expected_metrics) = split(mask), whole(mask)
    chex.assert_trees_all_close(params, expected, atol=1e-5)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_failing_workers_do_not_change_what_devices_compute(config, tmp_path):
    """The worker of environment 0 crashes at every step, so one of four devices has no valid steps."""
    found, trial = [], TrialConfig(environments=4, steps=8, updates=2)
    for devices in (1, 2, 4):
        short = dataclasses.replace(config(devices), trial=trial, total_steps=32)
        setup = prepare(short, corridor(fault="crash", at=1, only=0))
        folder = tmp_path / str(devices)
        folder.mkdir()
        result = train(setup, folder, lambda env_steps, folder=folder: JsonLines(folder, env_steps), resume=False)
        assert result.finished
        found.append((jax.device_get(result.state.params), read_lines(folder / "metrics.jsonl")))
    (params, lines), *others = found
    assert [line["lost_steps"] for line in lines] == [trial.segment, trial.segment]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    for other_params, other_lines in others:
        chex.assert_trees_all_close(other_params, params, atol=1e-5)
        for line, other in zip(lines, other_lines, strict=True):
            assert line.keys() == other.keys()
            np.testing.assert_allclose(list(other.values()), list(line.values()), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("setting", ["JAX_NUM_CPU_DEVICES=4", "XLA_FLAGS=--xla_force_host_platform_device_count=4"])
def test_devices_that_are_asked_for_are_there(setting):
    name, _, value = setting.partition("=")
    code = "import jax; from relic_jax.rl.parallel import offer_cores; offer_cores(); print(len(jax.devices()))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, name: value}, capture_output=True, text=True)
    assert done.stdout.split() == ["4"], done.stderr
