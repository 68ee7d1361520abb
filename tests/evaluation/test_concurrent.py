"""Evaluations in several threads: how many, and that they compute what single ones do with the same programs."""

import contextvars
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import EvalConfig
from relic_jax.environment.trials import Trials
from relic_jax.envs.registry import make
from relic_jax.evaluation import concurrent, in_context_curves, in_jit
from relic_jax.evaluation.concurrent import concurrent_evaluations, in_threads
from relic_jax.models.policy import PolicyConfig, policy_for
from relic_jax.models.transformer import TransformerConfig

CONFIG = EvalConfig(episodes=3, tasks=2, repeats=2)
POLICY = PolicyConfig(TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=128))


def test_items_are_computed_at_the_same_time_and_returned_in_order():
    both = threading.Barrier(2)

    def function(item):
        both.wait(timeout=60)
        return 10 * item

    assert in_threads(function, [1, 2, 3, 4], 2) == [10, 20, 30, 40]
    threads = in_threads(lambda _: threading.current_thread(), [1, 2], 1)
    assert threads == [threading.current_thread()] * 2


def test_the_first_error_is_raised():
    def function(item):
        raise ValueError(item)

    with pytest.raises(ValueError, match=r"^1$"):
        in_threads(function, [1, 2, 3], 2)


def test_threads_have_the_callers_settings_of_random_numbers():
    with jax.default_prng_impl("rbg"):
        names = in_threads(lambda seed: str(jax.random.key_impl(jax.random.key(seed))), [0, 1], 2)
    assert names == ["rbg", "rbg"]


def test_as_many_evaluations_as_fit_into_memory(monkeypatch):
    """A step of one trial is 2 · 8 float32 keys and values and 18 other bytes, and buffers can double."""
    env = make("darkroom-ad-9")  # 20 steps an episode
    one = 2 * (2 * 2) * (3 * env.horizon) * (2 * 8 * 4 + 18)

    def count(available, most=8, backend="cpu"):
        monkeypatch.setattr(concurrent, "available_bytes", lambda devices: available)
        monkeypatch.setattr(concurrent.jax, "default_backend", lambda: backend)
        return concurrent_evaluations(POLICY, CONFIG, env, "test", most)

    assert [count(3 * one - 1), count(3 * one), count(0.5 * one), count(None)] == [2, 3, 1, 8]
    assert count(None, most=1) == count(None, backend="gpu") == 1
    monkeypatch.setattr(type(env), "on_host", True, raising=False)
    assert count(None) == 1


def test_threads_have_the_context_variables_of_the_caller():
    variable = contextvars.ContextVar("variable", default="unset")
    token = variable.set("set")
    try:
        assert in_threads(lambda _: variable.get(), [0, 1, 2], 2) == ["set"] * 3
    finally:
        variable.reset(token)


def test_evaluations_in_threads_are_those_of_one_thread_and_share_their_programs(drawn):
    env = make("darkroom-ad-9-random")
    policy = policy_for(env, POLICY)
    params = jax.device_put(drawn(policy), jax.devices()[0])
    many = [jax.tree.map(lambda x, scale=scale: scale * x, params) for scale in (0.5, 1.0, 2.0, -1.0)]

    def actions(params):
        return in_context_curves(policy, params, env, CONFIG).trial.action

    in_jit.compiled_chunk.cache_clear()
    together = in_threads(actions, many, 2)
    chunk = in_jit.compiled_chunk(policy, Trials(env), in_jit.acting_options(CONFIG), env.horizon, 1)
    sizes = in_jit.context_sizes(policy, 4, 3 * env.horizon, env.horizon)
    assert chunk._cache_size() == len(sizes)
    assert in_jit.compiled_reset(Trials(env))._cache_size() == 1
    assert all(np.array_equal(x, actions(params)) for x, params in zip(together, many, strict=True))
    assert not np.array_equal(together[0], together[1])
    actions(jax.tree.map(jnp.copy, many[0]))
    assert chunk._cache_size() == len(sizes) and in_jit.compiled_chunk.cache_info().currsize == 1
