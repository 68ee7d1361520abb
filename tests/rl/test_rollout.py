"""Acting on a prefix of the buffer: equal results, and a cost that depends on the filled steps only."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import PolicyConfig, TrainConfig, TransformerConfig, TrialConfig
from relic_jax.envs.registry import make
from relic_jax.rl.rollout import buffer_sizes, collect, collect_within, with_size
from relic_jax.rl.state import init_state, make_setup

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
