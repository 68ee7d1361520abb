"""The evaluation of a sweep's runs is compiled while their training is."""

import signal

import jax
import pytest

from relic_jax.config import EvalConfig
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves, in_jit
from relic_jax.experiments.sweep import warmup
from relic_jax.experiments.sweep.warmup import compiled_meanwhile
from relic_jax.rl.train import prepare
from relic_jax.stopping import Stop

EVAL = EvalConfig(episodes=2, tasks=2, repeats=1)


def test_the_evaluation_finds_what_was_compiled(tiny):
    setup = prepare(tiny(eval=EVAL), make("darkroom-ad-9-random"))
    options = in_jit.acting_options(EVAL)
    in_jit.compiled_chunk.cache_clear()
    with compiled_meanwhile(setup, devices=1, stop=Stop()):
        pass
    assert in_jit.compiled_chunk.cache_info().currsize == 0  # one core compiles one program at a time
    with compiled_meanwhile(setup, devices=2, stop=Stop()):
        pass
    chunk = in_jit.compiled_chunk(setup.policy, setup.trials, options, setup.trials.env.horizon, 1)
    sizes = in_jit.context_sizes(setup.policy, 2, 2 * setup.trials.env.horizon, setup.trials.env.horizon)
    assert chunk._cache_size() == 1
    params = jax.device_put(setup.policy.init(jax.random.key(0)), jax.devices()[0])
    in_context_curves(setup.policy, params, setup.trials.env, EVAL, seed=setup.config.seed)
    assert chunk._cache_size() == len(sizes)


@pytest.mark.parametrize(("stopped_after", "made"), [(0, []), (1, ["evaluation"]), (2, ["evaluation", "references"])])
def test_a_stop_ends_the_compilation_after_the_current_program(tiny, monkeypatch, stopped_after, made):
    stop, found = Stop(), []

    def program(name):
        def compiled(*_, **__):
            found.append(name)
            if len(found) == stopped_after:
                stop.signalled(signal.SIGINT)

        return compiled

    monkeypatch.setattr(warmup, "in_context_curves", program("evaluation"))
    monkeypatch.setattr(warmup.results, "reference_means", program("references"))
    if not stopped_after:
        stop.signalled(signal.SIGINT)
    with compiled_meanwhile(prepare(tiny(eval=EVAL), make("darkroom-ad-9-random")), devices=2, stop=stop):
        pass
    assert found == made
