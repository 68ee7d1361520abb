"""The initial state of a run: one trace, one program, and the bits of the usual optimization level."""

import jax
import numpy as np
import pytest

from relic_jax.envs.registry import make
from relic_jax.rl import parallel, state
from relic_jax.rl.train import prepare

COMPILED = "/jax/core/compile/backend_compile_duration"


def leaves(tree):
    is_key = jax.dtypes.prng_key
    return [
        np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, is_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def test_the_initial_state_is_traced_once_and_compiled_as_one_program(tiny, monkeypatch):
    traces, programs = [], []
    init_state = state.init_state
    monkeypatch.setattr(state, "init_state", lambda setup: traces.append(setup) or init_state(setup))
    setup = prepare(tiny(env="darkroom-ad-9"), make("darkroom-ad-9"))
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: programs.append(name))
    parallel.initial_state(setup)
    assert len(traces) == 1
    assert programs.count(COMPILED) == 1


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only programs for CPUs are compiled with fewer passes")
def test_fewer_passes_give_the_same_bits(tiny):
    setup = prepare(tiny(env="gridobj-9"), make("gridobj-9"))
    lowered = jax.jit(setup.initializer).lower()
    level = "xla_backend_optimization_level"
    states = [lowered.compile(compiler_options={level: value})() for value in (1, 3)]
    for fewer, usual in zip(*map(leaves, states), strict=True):
        np.testing.assert_array_equal(fewer, usual)
