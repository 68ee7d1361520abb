"""Training programs lowered for CUDA on a machine without a GPU: every memory, kernel and environment that needs one.

Lowering runs JAX's own checks of shapes and dtypes and, for the Pallas kernels, the translation to Triton. Whether the
result compiles and is right only a GPU can tell (`python -m experiments.gpu_check`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hopper import HOPPER, custom_calls, lowered, on_hopper

from relic_jax.config import EnvConfig, Options
from relic_jax.environment.trials import Trials
from relic_jax.envs.registry import make
from relic_jax.experiments import presets
from relic_jax.models.attention import Backend
from relic_jax.rl.attention_kernels import used_kernels
from relic_jax.rl.segment import segment_step
from relic_jax.rl.state import make_setup, step_input

CUDNN = {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"}
TRITON = {"__gpu$xla.gpu.triton"}


def small(name, **transformer):
    """Return the setup of a preset with one small block."""
    config = presets.get(name).config
    size = {"layers": 1, "heads": 2, "width": 32, "mlp_width": 32, "dtype": "bfloat16", **transformer}
    policy = dataclasses.replace(
        config.policy,
        transformer=dataclasses.replace(config.policy.transformer, **size),
        linear_rnn=dataclasses.replace(config.policy.linear_rnn, layers=1),
    )
    trial = dataclasses.replace(config.trial, environments=config.ppo.minibatches)
    config = dataclasses.replace(config, devices=1, policy=policy, trial=trial)
    return make_setup(config, make(config.env))


@pytest.mark.parametrize(
    ("name", "transformer", "calls"),
    [
        ("darkroom-dpt", {}, TRITON | CUDNN),
        pytest.param("darkroom-relic-paper", {"dtype": "float32"}, TRITON, marks=pytest.mark.slow),
        ("darkroom-64k-int8", {"heads": 1, "width": 8, "remat": True}, CUDNN),  # too narrow for the decode kernel
    ],
)
def test_a_whole_segment(name, transformer, calls):
    """Acting, PPO, the refresh and the next trial, with either context gradient."""
    setup = small(name, **transformer)
    program = lowered(lambda state: segment_step(setup, state), setup.abstract_state)
    assert custom_calls(program) == calls


MEMORIES = {
    "darkroom-within-episode": TRITON,
    "darkroom-window": TRITON | CUDNN,
    "darkroom-transformer-xl": set(),
    "darkroom-gtrxl": set(),
    "darkroom-memo": set(),
    "darkroom-rl2": set(),
    "darkroom-gated-delta": set(),
    "darkroom-lru": set(),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_a_step_and_the_gradient_of_a_block(name):
    """For every other memory."""
    setup = small(name)
    policy, abstract, steps = setup.policy, setup.abstract_state, setup.config.trial.segment

    def run(params, memory, trial, inputs):
        def loss(params):
            output, after = policy.unroll(params, memory, inputs)
            return output.value.sum(), after

        gradient, _ = jax.grad(loss, has_aux=True)(params)
        return gradient, policy.act(params, memory, step_input(trial))

    with on_hopper():
        memory = jax.eval_shape(policy.for_acting, abstract.memory)
    inputs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0], steps, *x.shape[2:]), x.dtype), abstract.trajectory.inputs
    )
    assert custom_calls(lowered(run, abstract.params, memory, abstract.trial, inputs)) == MEMORIES[name]


@pytest.mark.parametrize(
    "config",
    [
        EnvConfig("gridobj-9"),
        EnvConfig("house-objnav-small"),
        EnvConfig("house-objnav-small", options=Options(view="symbols")),
        EnvConfig("miniworld-open"),
    ],
    ids=["grid", "images of a house", "symbols of a house", "images of rooms"],
)
def test_a_step_of_an_environment(config):
    """Dynamics, rendering and symbols. No function outside XLA is called."""
    env = make(config)
    trials, task = Trials(env), jax.tree.map(lambda x: jnp.asarray(x[:2]), env.tasks("train"))
    state = jax.eval_shape(trials.reset, jax.random.key(0), task)
    action = jnp.zeros(2, jnp.int32)
    assert custom_calls(lowered(trials.step, jax.random.key(0), state, action)) == set()


def test_a_gpu_would_use_these_kernels():
    """What `lowered` pretends is what the tests of `select` call a Hopper."""
    before = Backend.current
    with on_hopper():
        kernels = used_kernels(small("darkroom-dpt").policy)
    assert kernels == {"block": "cudnn", "decode": "decode", "peek": "cudnn"}
    assert Backend.current == before and HOPPER.compute_capability == 9.0
