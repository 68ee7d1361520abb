"""Memory of a run from the sizes of its arrays, and the additional memory of compiled programs with long contexts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from relic_jax.config import ConfigError, PolicyConfig, PPOConfig, TrainConfig, TransformerConfig, TrialConfig
from relic_jax.envs.registry import make
from relic_jax.models.attention import cpu
from relic_jax.rl.memory_budget import available_bytes, check_memory, context_bytes, context_line, tree_bytes
from relic_jax.rl.rollout import collect, with_size
from relic_jax.rl.state import init_state, make_setup

SMALL = TransformerConfig(layers=4, heads=8, width=256, mlp_width=1024, max_positions=128)
MIB = 2**20


def setup_with(steps, updates, environments=1, **transformer):
    ppo = PPOConfig(epochs=1, minibatches=environments, accumulate=1, context_gradient="stopped", last_update="partial")
    policy = PolicyConfig(transformer=dataclasses.replace(SMALL, **transformer))
    trial = TrialConfig(environments=environments, steps=steps, updates=updates)
    return make_setup(TrainConfig(policy=policy, trial=trial, ppo=ppo, devices=1), make("darkroom-dpt"))


@pytest.mark.parametrize(("cache", "per_step"), [("float32", 8192), ("bfloat16", 4096), ("int8", 2304)])
def test_context_by_hand(cache, per_step):
    """The context holds keys and values of 4 layers of width 256. int8 adds a float32 scale per 32 of them."""
    setup = setup_with(65_536, 256, environments=4, cache=cache)
    assert context_bytes(setup) == 4 * 65_536 * per_step
    memory = jax.eval_shape(lambda: setup.policy.initial_memory(4, 65_536))
    assert tree_bytes((memory.keys, memory.values)) == context_bytes(setup)
    line = context_line(setup)
    assert f"{per_step:,} bytes" in line and f"{4 * 65_536 * per_step // MIB:,} MiB" in line


def test_a_run_that_cannot_fit_is_refused_with_the_arithmetic():
    setup = setup_with(65_536, 256, environments=4, decode="xla")  # which acts on a copy
    check_memory(setup, available=7 * 2**30)  # slightly more than three times 2 GiB
    with pytest.raises(ConfigError) as error:
        check_memory(setup, available=6 * 2**30)
    for part in ("trial.steps is 65536", "6,144 MiB", "8,192 bytes", "4 × 65,536 steps", "2,048 MiB"):
        assert part in str(error.value)


def test_what_this_machine_can_give_is_known():
    assert available_bytes(1) > 2**20


@pytest.mark.slow
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_an_update_against_64k_steps_needs_little_beside_the_context(form):
    """The update is compiled and not run. Its memory besides the arguments stays below 256 MiB."""
    from relic_jax.experiments.benchmark import update as benchmark

    setup = setup_with(65_536 + 256, 257, cache=form)
    state = jax.eval_shape(lambda: init_state(setup))
    before = jax.eval_shape(lambda: setup.policy.initial_memory(1, 65_536))
    analysis = jax.jit(lambda s, m: benchmark.run(setup, s, m)).lower(state, before).compile().memory_analysis()
    assert tree_bytes((before.keys, before.values)) < analysis.argument_size_in_bytes
    assert analysis.temp_size_in_bytes < 256 * MIB


def test_a_refresh_writes_the_context_in_place():
    """The refresh is compiled and not run. Its memory besides the arguments is far less than a copy of the context."""
    from relic_jax.experiments.benchmark import refresh as benchmark

    setup = setup_with(8192, 32, environments=2)
    state = jax.eval_shape(lambda: init_state(setup))
    analysis = jax.jit(lambda s: benchmark.run(setup, s)).lower(state).compile().memory_analysis()
    assert context_bytes(setup) == 128 * MIB
    assert analysis.temp_size_in_bytes < 32 * MIB


@pytest.mark.skipif(
    jax.default_backend() != "cpu" or not cpu.available(32, "cpu_step.cpp"), reason="a compiled kernel for CPUs"
)
def test_acting_writes_the_context_in_place():
    """Acting is compiled and not run. The compiled kernel reads the context, which is donated, without a copy."""
    setup = setup_with(8192, 32, environments=2)
    state = jax.eval_shape(lambda: init_state(setup))
    act = jax.jit(
        lambda params, trial, memory, key: collect(setup, params, trial, memory, key).memory, donate_argnums=2
    )
    analysis = act.lower(state.params, state.trial, state.memory, jax.random.key(0)).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 32 * MIB < 128 * MIB == context_bytes(setup)


def test_acting_on_a_short_context_does_not_read_the_long_buffer():
    """The buffer of the first segment is an eighth of the trial's buffer, for any length of the trial."""
    setup = setup_with(4096, 16)
    memory = jax.eval_shape(lambda: setup.policy.initial_memory(1, 4096))
    seen = []
    jax.eval_shape(lambda filled: with_size(memory.capacity, 256, filled, lambda n: seen.append(n) or jnp.zeros(())), 1)
    assert seen == [512 * i for i in range(1, 9)]
