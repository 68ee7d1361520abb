import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.models.policy import Policy
from relic_jax.rl import context
from relic_jax.rl.context import shuffled_order, window, write_window
from relic_jax.spaces import vector_spaces
from relic_jax.types import StepInput

STEPS = 24
order_of = jax.jit(shuffled_order)


def random_layout(seed: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the flags of a trial: `first[t + 1]` if `ended[t]`. Steps after `length` belong to an earlier trial."""
    rng = np.random.default_rng(seed)
    ended = rng.random(STEPS) < 0.3
    first = np.concatenate([[True], ended[:-1]])
    garbage = np.arange(STEPS) >= length
    return np.where(garbage, rng.random(STEPS) < 0.5, first), np.where(garbage, rng.random(STEPS) < 0.5, ended)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, STEPS))
def test_only_complete_episodes_move_and_they_move_whole(seed, length):
    first, ended = random_layout(seed, length)
    order = np.asarray(order_of(jax.random.key(seed), jnp.asarray(first), jnp.asarray(ended), jnp.asarray(length)))
    assert sorted(order) == list(range(STEPS))
    assert (order[length:] == np.arange(length, STEPS)).all()  # steps that are not filled stay at the end
    starts = [t for t in range(length) if first[t]]
    episodes = [list(range(a, b)) for a, b in zip(starts, [*starts[1:], length], strict=True)]
    running = [] if ended[length - 1] else episodes.pop()
    expected = sorted(episodes)
    found, at = [], 0
    while at < length - len(running):
        episode = next(e for e in episodes if e[0] == order[at])
        assert list(order[at : at + len(episode)]) == episode
        found.append(episode)
        at += len(episode)
    assert sorted(found) == expected
    assert list(order[at:length]) == running


def test_every_order_of_three_episodes_is_equally_likely():
    ended = jnp.zeros(STEPS, bool).at[jnp.array([1, 3, 5])].set(True)
    first = jnp.zeros(STEPS, bool).at[jnp.array([0, 2, 4, 6])].set(True)
    keys = jax.random.split(jax.random.key(0), 6000)
    order = jax.vmap(shuffled_order, in_axes=(0, None, None, None))(keys, first, ended, jnp.asarray(8))
    patterns, counts = np.unique(np.asarray(order[:, 0:6:2]), axis=0, return_counts=True)
    assert len(patterns) == 6
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(6000 * (1 / 6) * (5 / 6))  # five standard deviations
    assert (np.asarray(order[:, 6:8]) == [6, 7]).all()


def test_windows_round_trip():
    buffer = jnp.arange(20.0).reshape(2, 10)
    part = window(buffer, 4, 3)
    np.testing.assert_array_equal(part, [[4, 5, 6], [14, 15, 16]])
    np.testing.assert_array_equal(window(write_window(buffer, part + 100, 4), 4, 3), part + 100)


def toy_context(policy, batch):
    """Return (parameters, inputs) of a full trial of STEPS steps."""
    rng = np.random.default_rng(3)
    first = rng.random((batch, STEPS)) < 0.2
    first[:, 0] = True
    inputs = StepInput(
        observation=jnp.asarray(rng.uniform(-1, 1, (batch, STEPS, 2)), jnp.float32),
        previous_action=jnp.asarray(np.where(first, -1, rng.integers(0, 3, (batch, STEPS))), jnp.int32),
        previous_reward=jnp.asarray(rng.normal(size=(batch, STEPS)), jnp.float32),
        first=jnp.asarray(first),
    )
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 3, jnp.float32), shapes), inputs


POLICY = Policy(
    PolicyConfig(TransformerConfig(layers=2, heads=2, width=8, mlp_width=12, max_positions=32)),
    vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(3)),
)


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("rows", [8, 1024])
def test_a_refresh_of_the_last_segments_leaves_the_others_alone(start, rows, monkeypatch):
    """With the weights that computed the context nothing changes. With others, only the refreshed steps change.

    rows=8 refreshes one environment at a time, rows=1024 all of them at once.
    """
    monkeypatch.setattr(context, "ROWS", rows)
    batch, segment, segments = 4, 6, 4
    params, inputs = toy_context(POLICY, batch)
    output, memory = jax.jit(POLICY.unroll)(params, POLICY.initial_memory(batch, STEPS), inputs)
    run = jax.jit(
        lambda p: context.refresh(POLICY, p, memory, inputs, output.value, start, jnp.asarray(segments), segment)
    )
    same, value = run(params)
    chex.assert_trees_all_close((same, value), (memory, output.value), atol=1e-5)
    other = jax.tree.map(lambda x: 1.5 * x, params)
    changed, value = run(other)
    cut = start * segment
    for new, old in zip(changed.keys + changed.values, memory.keys + memory.values, strict=True):
        np.testing.assert_array_equal(new.data[:, :, :cut], old.data[:, :, :cut])
        assert (np.abs(new.data[:, :, cut:] - old.data[:, :, cut:]).max(-1) > 1e-4).all()
    np.testing.assert_array_equal(value[:, :cut], output.value[:, :cut])
    if start == 0:
        fresh = jax.jit(POLICY.unroll)(other, POLICY.initial_memory(batch, STEPS), inputs)
        chex.assert_trees_all_close((changed, value), (fresh[1], fresh[0].value), atol=1e-5)
