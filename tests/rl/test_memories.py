"""Training with memories that consist of attention: updates, refreshes, resumed runs and evaluations."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from relic_jax.config import (
    ConfigError,
    EvalConfig,
    PolicyConfig,
    PPOConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
    validate,
)
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves
from relic_jax.rl import update as up
from relic_jax.rl.attention_kernels import used_kernels
from relic_jax.rl.memory_budget import context_line
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.state import make_setup
from relic_jax.rl.train import Progress, prepare, restore, save

SMALL = TransformerConfig(layers=2, heads=2, width=16, mlp_width=16, max_positions=16, init="fan_in")
FIELDS = {
    "window": {"window": 5},
    "transformer-xl": {"memory_steps": 5},
    "memo": {"summary_every": 5, "summary_tokens": 2},
}


def config(memory, **ppo):
    settings = {"minibatches": 2, "accumulate": 1, "epochs": 1, "lr": 1e-2, "warmup_steps": 0, **ppo}
    return TrainConfig(
        env="probe-bandit",
        total_steps=432,
        chunk="segment",
        devices=1,
        policy=PolicyConfig(dataclasses.replace(SMALL, **FIELDS[memory]), memory=memory),
        trial=TrialConfig(environments=4, steps=36, updates=3),
        ppo=PPOConfig(**settings),
    )


@pytest.mark.slow
@pytest.mark.parametrize("memory", FIELDS)
def test_a_run_trains_is_resumed_bit_for_bit_and_evaluated(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(up, "GRADIENT_SIZES", 1)  # of the trial's lengths, each of which is compiled
    setup = prepare(config(memory, refresh_every=1, shuffle=True), make("probe-bandit"))
    chunk, state = compile_chunk(setup), initial_state(setup)
    before = jax.tree.map(np.asarray, state.params)
    for index in range(2):
        assert int(state.memory.filled) == 12 * index
        state, metrics = chunk(state)
    assert np.isfinite(jax.tree.leaves(jax.device_get(metrics))).all()
    for path, (old, new) in zip(
        (p for p, _ in jax.tree_util.tree_leaves_with_path(before)),
        zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True),
        strict=True,
    ):
        assert np.any(old != new), path
    save(setup, tmp_path, state, Progress(env_steps=int(state.env_steps)))
    loaded, _ = restore(setup, tmp_path)
    for _ in range(3):
        (state, _), (loaded, _) = chunk(state), chunk(loaded)
    assert int(state.memory.filled) == 24
    data = [jax.tree.map(np.asarray, s.replace(key=jax.random.key_data(s.key))) for s in (state, loaded)]
    chex.assert_trees_all_equal(*data)
    curves = in_context_curves(setup.policy, state.params, make("probe-bandit"), EvalConfig(episodes=9, repeats=2))
    assert np.isfinite(curves.returns).all() and curves.returns.shape[1] == 9


@pytest.mark.parametrize(
    ("memory", "fields", "message"),
    [
        (
            "transformer-xl",
            {"attention": "reference"},
            "policy.transformer.attention is 'reference'; allowed: 'auto'",
        ),
        ("memo", {"attention": "native"}, "policy.transformer.attention is 'native'; allowed: 'auto' if"),
        ("memo", {"inter_episode": False}, "policy.transformer.inter_episode is False; allowed: True if policy.memory"),
        ("memo", {"memory_steps": 3}, "policy.transformer.memory_steps is 3; allowed: None if policy.memory is 'memo'"),
        ("memo", {"summary_tokens": 0}, "policy.transformer.summary_tokens is 0; allowed: more than 0, or None"),
    ],
)
def test_fields_that_a_memory_does_not_support_are_refused(memory, fields, message):
    policy = config(memory).policy
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(policy, transformer=dataclasses.replace(policy.transformer, **fields)).validate()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("memory", FIELDS)
def test_settings_that_need_every_step_are_refused(memory):
    cfg = config(memory, refresh_every=1, refresh_segments=2)
    with pytest.raises(ConfigError, match=f"ppo.refresh_segments is 2; allowed: None if policy.memory is '{memory}'"):
        validate(cfg, horizon=4)
    cfg = dataclasses.replace(config(memory), eval=EvalConfig(context_limit=5))
    with pytest.raises(ConfigError, match=f"eval.context_limit is 5; allowed: None if policy.memory is '{memory}'"):
        validate(cfg, horizon=4)


def test_the_size_of_the_memory_is_reported_in_bytes():
    """Keys and values of 2 layers of 16 numbers, for 4 environments; episodes, counters and the first episode."""
    setups = {memory: make_setup(config(memory), make("probe-bandit")) for memory in ("transformer-xl", "memo")}
    per_environment = 4 * (4 + 10), 4 * (4 + 5)
    xl, memo = 4 * (256 * 10 + per_environment[0]), 4 * (256 * (5 + 8 * 2) + per_environment[1])
    assert context_line(setups["transformer-xl"]) == f"transformer-xl, {xl:,} bytes for 4 trials of any length"
    assert context_line(setups["memo"]) == f"memo, {memo:,} bytes for 4 trials of 36 steps"
    assert used_kernels(setups["memo"].policy) == {}
