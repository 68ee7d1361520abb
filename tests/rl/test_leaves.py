"""Observations of several arrays: an image, and vectors whose dtype and rank are preserved from end to end."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import (
    EncoderConfig,
    EvalConfig,
    PolicyConfig,
    PPOConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
)
from relic_jax.environment.base import Image
from relic_jax.envs.probes.env import PolicyProbe
from relic_jax.evaluation.in_jit import chunk_function
from relic_jax.rl import update as up
from relic_jax.rl.host import Actor, Running, _opened
from relic_jax.rl.segment import trial_step
from relic_jax.rl.state import init_state, make_setup, step_input
from relic_jax.spaces import image_mask

VECTORS = {"bit": jnp.bool_, "board": jnp.uint8, "count": jnp.int32, "half": jnp.float16, "real": jnp.float32}
SHAPES = {"bit": (3,), "board": (2, 2, 3), "count": (), "half": (2, 2), "real": (5,)}


@dataclasses.dataclass(frozen=True)
class Mixed(PolicyProbe):
    """Rewards the action that the arrays encode."""

    name: str = "probe-mixed"
    horizon: int = 2

    @property
    def observation_spec(self):
        vectors = {name: jax.ShapeDtypeStruct(SHAPES[name], dtype) for name, dtype in VECTORS.items()}
        return {**vectors, "view": Image((4, 4, 1), jnp.uint8)}

    def observe(self, state):
        return {name: jnp.full(x.shape, state.cue).astype(x.dtype) for name, x in self.observation_spec.items()}


def setup_of(*, image="small", memory="transformer", **ppo):
    transformer = TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=32, attention="reference")
    freeze = ppo.get("last_update") == "full"
    encoder = EncoderConfig(observation="normalized", features=4, freeze=freeze, image=image, vectors="embedded")
    settings = {"minibatches": 2, "accumulate": 1, "epochs": 1, "warmup_steps": 0, "refresh_every": 1, "shuffle": True}
    config = TrainConfig(
        devices=1,
        policy=PolicyConfig(transformer, encoder, memory=memory),
        trial=TrialConfig(environments=2, steps=16, updates=4),
        ppo=PPOConfig(**{**settings, "context_gradient": "full", "last_update": "partial", **ppo}),
    )
    return make_setup(config, Mixed())


def specs(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_an_array_is_an_image_because_its_spec_says_so():
    spec = Mixed().observation_spec
    assert image_mask(spec) == (False,) * 5 + (True,)  # `board` also has rank 3
    assert jax.eval_shape(lambda x: x, spec["view"]) == jax.ShapeDtypeStruct((4, 4, 1), jnp.uint8)
    assert Image((4, 4, 1), jnp.uint8) == spec["view"] and hash(Image((4, 4, 1), jnp.uint8)) == hash(spec["view"])
    plain = jax.ShapeDtypeStruct((4, 4, 1), jnp.uint8)
    assert spec["view"] != plain and plain != spec["view"] and Image((4, 4, 2), jnp.uint8) != spec["view"]


@pytest.mark.parametrize(
    "image", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cells", "patches"))]
)
@pytest.mark.parametrize(
    ("context_gradient", "last_update"), [("full", "partial"), ("stopped", "partial"), ("full", "full")]
)
def test_a_trial_keeps_every_dtype(context_gradient, last_update, image):
    """Covers acting, updates, shuffles and refreshes. With `cells` and `patches` the vectors are also goals."""
    setup = setup_of(image=image, context_gradient=context_gradient, last_update=last_update)
    state = jax.eval_shape(lambda: init_state(setup))
    kept = state.trajectory.inputs.observation
    assert {name: (x.shape, x.dtype) for name, x in kept.items() if name != "view"} == {
        name: ((2, 16, *SHAPES[name]), dtype) for name, dtype in VECTORS.items()
    }
    assert kept["view"].dtype == jnp.float32 and kept["view"].ndim == 3
    after, _ = jax.eval_shape(lambda s: trial_step(setup, s), state)
    assert specs(after) == specs(state)


@pytest.mark.parametrize("memory", ["transformer", "gru"])
def test_evaluation_and_workers_keep_every_dtype(memory):
    setup = setup_of(memory=memory, context_gradient="stopped")
    state = jax.eval_shape(lambda: init_state(setup))
    policy, trials = setup.policy, setup.trials
    memory = policy.initial_memory(2, 8)
    play = chunk_function(policy, trials, EvalConfig(episodes=2), 4)
    keys = jax.eval_shape(lambda: jax.random.key(0))
    counts = jax.ShapeDtypeStruct((2,), jnp.int32)
    trial, _, _, steps = jax.eval_shape(play, state.params, state.trial, memory, counts, keys)
    assert specs(trial) == specs(state.trial)
    assert {name: x.dtype for name, x in steps.observation.items()} == {**VECTORS, "view": jnp.uint8}
    running = jax.eval_shape(lambda m: _opened(setup, state.trajectory, m, 0, 2, 8), state.memory)
    seen = jax.eval_shape(step_input, state.trial)
    assert specs(running.acted.observation) == jax.tree.map(
        lambda x: ((2, 4, *x.shape), x.dtype), policy.spaces.observation
    )
    after, _ = jax.eval_shape(Actor(policy, 2)._step, state.params, Running(*running), seen, state.key, 0, 0)
    assert specs(after) == specs(running)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_same_numbers_as_floats(drawn):
    setup, random = setup_of(), np.random.default_rng(0)
    draw = jax.jit(lambda: init_state(setup).trajectory)
    trajectory = jax.tree.map(lambda x: np.asarray(random.integers(0, 2, x.shape), x.dtype), jax.eval_shape(draw))
    seen = {
        n: random.integers(0, 2, (2, 4, *x.shape)).astype(x.dtype) for n, x in setup.policy.spaces.observation.items()
    }
    number = random.normal(size=(2, 16)).astype(np.float32)
    batch = up.Batch(trajectory, setup.policy.initial_memory(2, 16), number, number, seen)
    params = drawn(setup.policy)

    @jax.jit
    def gradient(batch):
        return up.gradient(setup, 0, params, batch, up.Window(4, 4, full=False), jax.random.key(0))

    def as_floats(observation):
        return {n: x if n == "view" else np.asarray(x, np.float32) for n, x in observation.items()}

    mixed = gradient(batch)
    inputs = trajectory.inputs.replace(observation=as_floats(trajectory.inputs.observation))
    floats = batch._replace(trajectory=trajectory.replace(inputs=inputs), observation=as_floats(seen))
    chex.assert_trees_all_close(mixed, gradient(floats), rtol=1e-6, atol=1e-7)
    assert all(np.any(x) for x in jax.tree.leaves(mixed[0]["encoder"]["image_0"]))
