"""Acting on a prefix of the buffer: equal results, a cost that depends on the filled steps only, one compilation."""

import dataclasses
import functools
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import PolicyConfig, PPOConfig, TrainConfig, TransformerConfig, TrialConfig
from relic_jax.environment.trials import Trials
from relic_jax.envs.registry import make
from relic_jax.metrics import JsonLines
from relic_jax.models.attention import cpu
from relic_jax.rl import runner
from relic_jax.rl.rollout import buffer_sizes, collect, collect_within, with_size
from relic_jax.rl.state import init_state, make_setup
from relic_jax.rl.train import prepare, restore, train

TRANSFORMER = TransformerConfig(layers=2, heads=2, width=16, mlp_width=16, max_positions=32)


def test_sizes_by_hand():
    assert buffer_sizes(36, 12) == [12, 24, 36]
    assert buffer_sizes(4096, 256) == [512 * i for i in range(1, 9)]
    assert buffer_sizes(50, 10, count=2) == [30, 50]
    assert buffer_sizes(10, 10) == [10]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 9), st.data())
def test_the_smallest_size_that_holds_what_is_filled_is_taken(segments, segment, count, data):
    sizes = buffer_sizes(segments * segment, segment, count)
    assert len(sizes) == min(count, segments) and sizes == sorted(set(sizes)) and sizes[-1] == segments * segment
    assert all(size % segment == 0 for size in sizes)
    filled = data.draw(st.integers(1, segments * segment))
    taken = int(with_size(segments * segment, segment, filled, lambda size: jnp.asarray(size), count=count))
    assert taken == min(size for size in sizes if size >= filled)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["float32", "bfloat16", "int8"])
def test_acting_on_a_prefix_equals_acting_on_the_whole_buffer(cache):
    """Compare trials, records and the returned context of every segment of a trial, in every format."""
    policy = PolicyConfig(transformer=dataclasses.replace(TRANSFORMER, cache=cache))
    trial = TrialConfig(environments=3, steps=36, updates=3)
    setup = make_setup(TrainConfig(env="probe-bandit", policy=policy, trial=trial), make("probe-bandit"))
    state = jax.jit(lambda: init_state(setup))()
    on_prefix = jax.jit(lambda trial, memory, key: collect(setup, state.params, trial, memory, key))
    on_whole = jax.jit(
        lambda trial, memory, key: collect_within(setup, state.params, trial, setup.policy.for_acting(memory), key)
    )
    before, memory = state.trial, state.memory
    for index in range(3):
        key = jax.random.key(index)
        found, expected = on_prefix(before, memory, key), on_whole(before, memory, key)
        assert found.memory.kv_format == cache and int(found.memory.filled) == 12 * (index + 1)
        expected = expected._replace(memory=setup.policy.for_storage(expected.memory))
        chex.assert_trees_all_close(found._replace(memory=None), expected._replace(memory=None), atol=1e-6)
        for mine, theirs in zip(jax.tree.leaves(found.memory), jax.tree.leaves(expected.memory), strict=True):
            filled = (slice(None),) * 2 + (slice(12 * (index + 1)),) if mine.ndim >= 3 else ...
            np.testing.assert_allclose(
                mine[filled].astype(np.float32), theirs[filled].astype(np.float32), atol=1e-6, rtol=1e-2
            )
        before, memory = found.trial, found.memory


needs_a_compiler = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not cpu.available(8, "cpu_step.cpp"), reason="a compiled kernel for CPUs"
)


def setup_with(trial, **transformer):
    policy = PolicyConfig(transformer=dataclasses.replace(TRANSFORMER, **transformer))
    ppo = PPOConfig(minibatches=1, accumulate=1, epochs=1)
    return make_setup(TrainConfig(env="probe-bandit", policy=policy, trial=trial, ppo=ppo), make("probe-bandit"))


@pytest.fixture
def traced_steps(monkeypatch):
    """Return a list that grows whenever the step of the trials is traced, and so compiled."""
    calls, step = [], Trials.step
    monkeypatch.setattr(Trials, "step", lambda *arguments: calls.append(1) or step(*arguments))
    return calls


def traces(calls, updates, **transformer):
    """Count the traces of acting in trials of many segments."""
    setup = setup_with(TrialConfig(environments=2, steps=12 * updates, updates=updates), **transformer)
    state = jax.eval_shape(lambda: init_state(setup))
    calls.clear()
    jax.eval_shape(lambda s, key: collect(setup, s.params, s.trial, s.memory, key), state, jax.random.key(0))
    return len(calls)


@needs_a_compiler
@pytest.mark.parametrize("cache", ["float32", "bfloat16", "int8"])
def test_the_environment_is_compiled_once_for_any_number_of_segments(traced_steps, cache):
    assert traces(traced_steps, 2, cache=cache) == traces(traced_steps, 10, cache=cache) == 1


@pytest.mark.parametrize("choice", [{"decode": "xla"}, {"attention": "blocked"}])
def test_other_kernels_compile_it_for_every_size(traced_steps, choice):
    assert [traces(traced_steps, updates, **choice) for updates in (2, 10)] == [2, 8]


@pytest.mark.slow
@needs_a_compiler
def test_a_run_compiles_acting_once_and_resumes_bit_for_bit(traced_steps, tmp_path, monkeypatch):
    """A run of two trials with six segments each equals one that is stopped within the first trial and resumed."""
    config = setup_with(TrialConfig(environments=2, steps=24, updates=6)).config
    setup = prepare(dataclasses.replace(config, total_steps=96, chunk="segment", devices=1), make("probe-bandit"))
    chunk = runner.compile_chunk(setup)
    monkeypatch.setattr(runner, "compile_chunk", lambda _: chunk)  # one program for all runs
    whole, parts, stop = tmp_path / "whole", tmp_path / "parts", threading.Event()

    class Stopping(JsonLines):
        def log(self, record, clock):
            super().log(record, clock)
            stop.set()

    assert train(setup, whole, functools.partial(JsonLines, whole), resume=False).finished
    assert not train(setup, parts, functools.partial(Stopping, parts), resume=False, stop=stop).finished
    assert train(setup, parts, functools.partial(JsonLines, parts), resume=True).finished
    states = [restore(setup, folder / "checkpoints")[0] for folder in (whole, parts)]
    chex.assert_trees_all_equal(*(state.replace(key=jax.random.key_data(state.key)) for state in states))
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    assert len(traced_steps) == 1


@needs_a_compiler
@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_the_compiled_kernel_acts_as_xla_does(cache):
    """The actions are equal, and the probabilities up to the order of sums, in every segment of a trial."""
    records = []
    for choice in ("fused", "xla"):
        setup = setup_with(TrialConfig(environments=3, steps=24, updates=2), decode=choice, cache=cache)
        state = jax.jit(lambda setup=setup: init_state(setup))()
        act = jax.jit(
            lambda trial, memory, key, setup=setup, params=state.params: collect(setup, params, trial, memory, key)
        )
        collected, memory = [state], state.memory
        for index in range(2):
            collected.append(act(collected[-1].trial, memory, jax.random.key(index)))
            memory = collected[-1].memory
        records.append(collected[1:])
    chex.assert_trees_all_close(*records, atol=1e-5 if cache == "float32" else 1e-3)
