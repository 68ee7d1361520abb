"""The step counter of two words is exact, and accurate as a float, for runs of any length."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relic_jax.config import PPOConfig
from relic_jax.rl.optimizer import entropy_coef, learning_rate, make_optimizer
from relic_jax.rl.steps import StepCount

STEPS = st.integers(0, 2**62) | st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 10**12])


@settings(deadline=None, max_examples=30)
@given(STEPS, STEPS)
@example(2**32 - 1, 1)
@example(2**31 - 64, 128)
def test_counts_like_pythons_integers(a, b):
    count = StepCount.of(a)
    assert int(count) == a and int(count + b) == a + b
    assert int(count.since(b)) == max(a - b, 0) and bool(count.is_before(b)) == (a < b)
    assert math.isclose(float(count.as_float()), a, rel_tol=2**-23)


def test_counts_in_a_compiled_loop_over_both_borders():
    count = jax.jit(lambda c: jax.lax.fori_loop(0, 10, lambda _, c: c + 2**30, c))(StepCount.of(7))
    assert int(count) == 10 * 2**30 + 7


def by_hand(ppo, total, steps):
    if steps < ppo.warmup_steps:
        return ppo.lr * (1e-3 + (1 - 1e-3) * steps / ppo.warmup_steps)
    progress = min((steps - ppo.warmup_steps) / (total - ppo.warmup_steps), 1)
    return ppo.lr_final + (ppo.lr - ppo.lr_final) * 0.5 * (1 + math.cos(math.pi * progress))


@pytest.mark.parametrize("total", [2**31, 2**32 + 1000, 10**12])
@pytest.mark.parametrize("warmup", [0, 10_000, 2**31, 2**32])
def test_schedules_are_accurate_as_far_as_a_run_goes(total, warmup):
    ppo = PPOConfig(warmup_steps=min(warmup, total // 2), entropy_coef=0.5, entropy_coef_final=0.1)
    ask = jax.jit(lambda count: (learning_rate(ppo, total, count), entropy_coef(ppo, total, count)))
    edges = (2**31 - 1, 2**31, 2**32 - 1, 2**32)
    for steps in (0, 1, ppo.warmup_steps, total // 3, total, 2 * total, *edges):
        rate, entropy = ask(StepCount.of(steps))
        # The warmup subtracts from the peak, so its first rates carry the rounding of the peak.
        assert math.isclose(rate, by_hand(ppo, total, steps), rel_tol=1e-5, abs_tol=ppo.lr * 2**-24)
        assert math.isclose(entropy, 0.5 - 0.4 * min(steps / total, 1), rel_tol=1e-6)


def test_runs_of_fewer_steps_keep_their_schedule_bit_for_bit():
    """Compare with optax's schedules on 32-bit integers, which earlier versions used."""
    ppo, total = PPOConfig(warmup_steps=10_000), 2**31 - 1
    warmup = optax.linear_schedule(1e-3 * ppo.lr, ppo.lr, ppo.warmup_steps)
    cosine = optax.cosine_decay_schedule(ppo.lr, total - ppo.warmup_steps, alpha=ppo.lr_final / ppo.lr)
    before = jax.jit(jax.vmap(optax.join_schedules([warmup, cosine], [ppo.warmup_steps])))
    now = jax.jit(jax.vmap(lambda low: learning_rate(ppo, total, StepCount(jnp.zeros_like(low), low))))
    random = np.random.default_rng(0)
    steps = np.concatenate([np.arange(0, 30_000, 7), random.integers(2**24, total, 20_000), [total]])
    np.testing.assert_array_equal(now(steps.astype(np.uint32)), before(steps.astype(np.int32)))


def test_adams_counter_stays_at_its_largest_value():
    """It counts optimizer steps in 32 bits, for a bias correction that is 1 long before."""
    optimizer, params = make_optimizer(PPOConfig()), {"actor": jnp.ones(3), "critic": jnp.ones(2)}
    state = optimizer.init(params)
    largest = jax.tree.map(lambda x: jnp.asarray(2**31 - 1, x.dtype) if x.dtype == jnp.int32 else x, state)
    earlier = jax.tree.map(lambda x: jnp.asarray(10**6, x.dtype) if x.dtype == jnp.int32 else x, state)
    gradient = {"actor": jnp.asarray([0.1, 0.0, -0.1]), "critic": jnp.asarray([1.0, -1.0])}
    (found, after), (expected, _) = (jax.jit(optimizer.update)(gradient, start, params) for start in (largest, earlier))
    counts = [int(x) for x in jax.tree.leaves(after) if x.dtype == jnp.int32]
    assert counts == [2**31 - 1]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
