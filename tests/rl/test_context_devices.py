"""A run does not depend on how many devices share its context, and no device holds the whole context."""

import re

import chex
import jax
import numpy as np
import pytest

from relic_jax.config import ConfigError, PolicyConfig, PPOConfig, TransformerConfig, TrialConfig
from relic_jax.envs.registry import make
from relic_jax.rl.parallel import initial_state, parallel
from relic_jax.rl.segment import segment_step
from relic_jax.rl.train import Progress, prepare, restore, save

LAYOUTS = {"whole": (1, 1), "two": (2, 2), "two by two": (4, 2)}
"""(devices, context_devices)."""


@pytest.fixture(scope="module")
def prepared(tiny):
    def build(devices, context_devices, positions=32, **options):
        network = TransformerConfig(layers=2, heads=2, width=8, mlp_width=8, max_positions=positions)
        ppo = PPOConfig(
            **{"lr": 1e-3, "warmup_steps": 0, "epochs": 1, "minibatches": 2, "accumulate": 1},
            **{"context_gradient": "stopped", "last_update": "full"},
        )
        trial = TrialConfig(environments=4, steps=48, updates=3)
        fields = {"env": "darkroom-ad-9-random", "trial": trial, "ppo": ppo, "policy": PolicyConfig(network)}
        config = tiny(**(fields | options), devices=devices, context_devices=context_devices)
        return prepare(config, make(config.env))

    return build


@pytest.fixture(scope="module")
def trials(prepared):
    """For every layout: (setup, compiled program, states after each segment of a trial on the host, metrics)."""

    def trial(setup):
        state, states, metrics = initial_state(setup), [], []
        program = parallel(setup, segment_step).lower(state).compile()
        for _ in range(setup.config.trial.updates):
            state, measured = program(state)
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(measured))
        return setup, program, states, metrics

    return {name: trial(prepared(*layout)) for name, layout in LAYOUTS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "two by two"])
def test_a_trial_with_a_split_context_is_that_of_one_device(trials, name):
    setup, _, expected, expected_metrics = trials["whole"]
    _, _, states, metrics = trials[name]
    start = jax.device_get(initial_state(setup).params)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (expected[-1].params, start)), strict=True)]
    assert max(moved) > 1e-3
    chex.assert_trees_all_close(states[-1].params, expected[-1].params, atol=1e-5)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=2e-3, atol=1e-5)
    for state, whole in zip(states, expected, strict=True):
        chex.assert_trees_all_equal(state.trajectory.action, whole.trajectory.action)
        chex.assert_trees_all_close(state.trajectory, whole.trajectory, atol=1e-5)  # log-probabilities and values
        for split, array in zip(*map(jax.tree.leaves, (state.memory.keys, whole.memory.keys)), strict=True):
            parts = np.split(split, 2, axis=2)  # device c holds the steps c, c + 2, …
            filled = 16 * int(whole.segment)  # 0 after the trial
            for device, part in enumerate(parts):
                np.testing.assert_allclose(part[:, :, : filled // 2], array[:, :, device:filled:2], atol=1e-5)


def collectives(program):
    """Return [(operation, sizes of its arrays, replica groups)] of a compiled program."""
    found = []
    for shapes, name, rest in re.findall(
        r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\((.*)",
        program.as_text(),
    ):
        sizes = [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\w\[([\d,]*)\]", shapes)]
        groups = re.search(r"replica_groups=(\{\{.*?\}\}|\[.*?\]<=\[.*?\](?:T\([\d,]*\))?)", rest)
        found.append((name, sizes, groups and groups[1]))
    return found


@pytest.mark.slow
def test_each_device_has_half_of_the_context_and_no_collective_moves_keys(trials):
    setup, program, _, _ = trials["two by two"]
    state = initial_state(setup)
    key = state.memory.keys[0].data
    assert key.shape == (4, 2, 48, 4) and {x.data.shape for x in key.addressable_shards} == {(2, 2, 24, 4)}
    assert {x.data.shape for x in state.memory.episodes.addressable_shards} == {(2, 24)}
    assert {x.data.shape for x in state.trajectory.reward.addressable_shards} == {(2, 48)}  # not split along time
    assert not re.search(r"f32\[(2|4),2,48,4\]", program.as_text())  # the program never has a whole context
    context = sum(x.nbytes for x in jax.tree.leaves((state.memory.keys, state.memory.values)))
    whole, two = (trials[name][1].memory_analysis().argument_size_in_bytes for name in ("whole", "two"))
    assert whole - two >= context / 2
    found = collectives(program)
    gradient = sum(x.size for x in jax.tree.leaves(setup.policy.trainable(state.params)))
    everywhere = [sum(sizes) for _, sizes, groups in found if "{0,1}" not in groups and "{0,2}" not in groups]
    assert sum(size >= gradient for size in everywhere) == 2  # in the partial and in the full update
    for name, steps in {"all-reduce": 16, "all-gather": 48}.items():  # of a segment; of the full update
        sizes = [max(sizes) for other, sizes, groups in found if other == name and "{0,1},{2,3}" in groups]
        assert sizes and max(sizes) <= 2 * 2 * steps * 4  # environments, heads, steps, numbers of a head


@pytest.mark.slow
def test_a_checkpoint_restores_a_split_context(trials, tmp_path):
    setup, program, states, _ = trials["two"]
    state = initial_state(setup)
    state, _ = program(state)
    save(setup, tmp_path, state, Progress(env_steps=64))
    restored, _ = restore(setup, tmp_path)
    assert restored.memory.keys[0].data.sharding == state.memory.keys[0].data.sharding
    chex.assert_trees_all_equal(*(jax.device_get(x.replace(key=jax.random.key_data(x.key))) for x in (restored, state)))
    after, _ = program(restored)
    chex.assert_trees_all_equal(jax.device_get(after.params), states[1].params)


def test_devices_must_be_there_and_the_environment_inside_jit(prepared):
    with pytest.raises(ConfigError, match=r"^context_devices is 8; allowed: at most 4 devices$"):
        prepared(None, 8)
    with pytest.raises(ConfigError, match=r"^devices is 3; allowed: .*, times context_devices \(2\), or None$"):
        prepared(3, 2)
    with pytest.raises(ConfigError, match=r"^context_devices is 2; allowed: 1 in 'gym:CartPole-v1' \(the policy acts"):
        prepared(2, 2, env="gym:CartPole-v1", positions=502)
    assert prepared(None, 2).config.devices == 4
