"""The first update and an evaluation step of every preset are traced, which checks all shapes and dtypes."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest

from relic_jax.bridge.protocol import ArraySpec, Spec
from relic_jax.config import validate
from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.repeat import repeated
from relic_jax.environment.trials import TrialStep
from relic_jax.envs import registry
from relic_jax.evaluation.in_jit import chunk_function
from relic_jax.experiments import presets
from relic_jax.rl import rollout, update
from relic_jax.rl.host import COLLECTED_SPECS, Actor, Running, _closed, _learn, _opened, _trajectory
from relic_jax.rl.parallel import parallel
from relic_jax.rl.rollout import Collected
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.state import init_state, make_setup, step_input
from relic_jax.spaces import image_mask

EXTRAS = {
    "xland": "xminigrid",
    **dict.fromkeys(registry.names("relic_jax.envs.brax"), "brax"),
}
"""Modules of the extras that the presets' environments need, by the start of the environments' names."""


def announced(env):
    """Return the spec that an environment's simulator would announce, or None if it has no simulator."""
    vector, image = ArraySpec("float32", (39,)), ArraySpec("uint8", (60, 80, 3))
    if env.startswith("metaworld:"):
        action = ArraySpec("float32", (4,))
        return Spec(env, {"observation": vector}, action, 0, -1.0, 1.0, ("success",), 500, True, True)
    if env.startswith("gym:miniworld:"):
        return Spec(env, {"observation": image}, ArraySpec("int64", ()), 3, 0.0, 0.0, (), 180, True, False)
    return None


def environment(config):
    """Return a preset's environment without starting its simulators."""
    for prefix, module in EXTRAS.items():
        if config.env.name.startswith(prefix) and importlib.util.find_spec(module) is None:
            pytest.skip(f"needs the extra {'xland' if prefix == 'xland' else 'brax'}")
    spec = announced(config.env.name)
    if spec is None:
        return repeated(registry.make(config.env, config.host), config.trial.action_repeat)
    image = next((name for name, x in spec.observation.items() if x.dtype == "uint8"), None)
    splits = {"train": list(range(80)), "test": list(range(20))}
    return HostEnvironment(config.env.name, "", {}, spec, splits, image=image, host=config.host)


def trace_hosted_update(setup, state):
    """Trace the computations of `HostRunner` for a segment, with all environments in one group."""
    count, segment = setup.config.trial.environments, setup.config.trial.segment
    actor, env = Actor(setup.policy, count), setup.trials.env

    def collect(state):
        running = _opened(setup, state.trajectory, state.memory, 0, count, segment)
        running, _ = actor._step(state.params, running, step_input(state.trial), state.key, 0, 0)
        added, acted = _closed(setup, (running,))
        number, flag = jnp.zeros((segment, count)), jnp.zeros((segment, count), bool)
        others = {name: number for name in env.spec.metrics if name != "success"}
        results = TrialStep(number, flag, flag, None, number, flag, others)
        steps = _trajectory(acted, results, flag, number)
        last = actor.value(state.params, running.memory, step_input(state.trial))
        return Collected(state.trial, added, steps, results, last, acted.observation)

    collected = jax.eval_shape(collect, state)
    return jax.eval_shape(parallel(setup, _learn, COLLECTED_SPECS), state, collected)


def trace_evaluation(setup, state):
    """Trace an evaluation step."""
    env, batch = setup.trials.env, setup.config.trial.environments
    memory = jax.eval_shape(lambda: setup.policy.for_acting(setup.policy.initial_memory(batch, env.horizon)))
    if isinstance(env, HostEnvironment):
        run = Actor(setup.policy, batch, setup.config.eval.context_limit)._step
        seen = jax.eval_shape(step_input, state.trial)
        (after, acted), action = jax.eval_shape(run, state.params, Running(memory, None), seen, state.key, 0, 0)
        assert acted is None and action.shape[0] == batch
    else:
        run = chunk_function(setup.policy, setup.trials, setup.config.eval, 1)
        counts = jax.ShapeDtypeStruct((batch,), jnp.int32)
        trial, after, _, _ = jax.eval_shape(run, state.params, state.trial, memory, counts, state.key)
        assert specs(trial) == specs(state.trial)
    assert specs(after) == specs(memory)


def specs(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", presets.PRESETS)
def test_preset_starts(name, monkeypatch):
    monkeypatch.setattr(rollout, "MAX_SIZES", 1)  # of the buffers, each of which is traced separately
    monkeypatch.setattr(update, "GRADIENT_SIZES", 1)
    config = dataclasses.replace(presets.get(name).config, devices=1)
    env = environment(config)
    validate(config, horizon=env.horizon, images=any(image_mask(env.observation_spec)))
    setup = make_setup(config, env)
    state = jax.eval_shape(lambda: init_state(setup))
    if isinstance(env, HostEnvironment):
        after, metrics = trace_hosted_update(setup, state)
    else:
        after, metrics = jax.eval_shape(compile_chunk(setup), state)
    assert specs(after) == specs(state)
    assert all(x.dtype in (jnp.float32, jnp.int32) for x in metrics.values())
    trace_evaluation(setup, state)
