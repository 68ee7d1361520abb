"""The agent compared step by step with evaluation, dropped episodes, and contexts in files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import relic_jax
from relic_jax import step as steps
from relic_jax.agent import Agent, _run
from relic_jax.config import ConfigError, EncoderConfig, EvalConfig, PolicyConfig, TransformerConfig
from relic_jax.environment.trials import Trials
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves
from relic_jax.export import verify
from relic_jax.loading import LoadedPolicy
from relic_jax.models.policy import Policy
from relic_jax.rl.state import step_input
from relic_jax.runtime import Actions, Rows
from relic_jax.runtime.agent import cast_array
from relic_jax.spaces import action_to_json, spaces_of
from relic_jax.types import StepInput


@pytest.fixture(scope="module")
def loaded(tiny, drawn):
    """Return `loaded(env, **transformer)`: a policy with random parameters, including sinks, and no file."""

    def build(env="darkroom-ad-9", encoder=None, memory="transformer", **transformer):
        config = TransformerConfig(
            **{"layers": 2, "heads": 2, "width": 16, "mlp_width": 16, "max_positions": 128} | transformer
        )
        policy_config = PolicyConfig(config, encoder or EncoderConfig(), memory=memory)
        config = tiny(env=env, policy=policy_config)
        spaces = spaces_of(make(env))
        policy = Policy(policy_config, spaces)
        return LoadedPolicy(policy, drawn(policy), config, spaces, {}, None, None)

    return build


def inputs(rng, steps, size=2, batch=None):
    """Return random observations, rewards, ends of episodes (about every fifth step), their kind, and actions."""
    shape = (steps,) if batch is None else (steps, batch)
    observations = rng.integers(0, 9, (*shape, size)).astype(np.float32)
    ended = rng.random(shape) < 0.2
    ended[0] = False
    rewards = rng.normal(size=shape).astype(np.float32)
    return observations, rewards, ended, rng.random(shape) < 0.5, rng.integers(0, 5, shape).astype(np.int32)


def play(agent, observations, rewards, ended, terminal, actions):
    """Return the agent's logits and values, [T, B, ...], with prescribed actions."""
    found = []
    for x, reward, end, kind, action in zip(observations, rewards, ended, terminal, actions, strict=True):
        agent._choose = lambda outputs, action=action: np.atleast_1d(action)
        agent.step(x, reward, end & kind, end & ~kind)
        found.append(np.concatenate([agent.outputs["logits"], agent.outputs["value"][:, None]], 1))
    return np.stack(found)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("env", "show_last_reward", "memory"),
    [
        ("darkroom-ad-9-random", False, "transformer"),
        ("pointmass-goal", True, "transformer"),
        ("darkroom-ad-9", True, "gru"),
    ],
)
def test_an_agent_does_what_the_rollout_does_with_the_same_keys(loaded, env, show_last_reward, memory):
    policy = loaded(env, memory=memory)
    trial_config = dataclasses.replace(policy.config.trial, show_last_reward=show_last_reward)
    policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, trial=trial_config))
    environment, batch, length = make(env), 3, 90
    trials = Trials(environment, show_last_reward)
    tasks = jax.tree.map(lambda x: jnp.asarray(x[:batch]), environment.tasks("test"))
    trial = first = jax.jit(trials.reset)(jax.random.key(3), tasks)
    memory, keys = policy.policy.initial_memory(batch, length), jax.random.split(jax.random.key(4), length)

    @jax.jit
    def rollout(trial, memory):
        def one(carry, key):
            trial, memory = carry
            action_key, env_key = jax.random.split(key)
            output, memory = policy.policy.act(policy.params, memory, step_input(trial))
            action = output.distribution.sample(action_key)
            trial, _ = trials.step(env_key, trial, action)
            return (trial, memory), (action, output.value)

        return jax.lax.scan(one, (trial, memory), keys)[1]

    actions, values = rollout(trial, memory)
    agent, advance = policy.agent(batch=batch, capacity=length), jax.jit(trials.step)
    observation, reward, terminated, truncated = first.observation, 0.0, False, False
    for index, key in enumerate(keys):
        action_key, env_key = jax.random.split(key)
        action = agent.step(np.asarray(observation), reward, terminated, truncated, key=action_key)
        close(agent.outputs["value"], values[index])
        close(action, environment.action_space.to_env(np.asarray(actions[index])))
        trial, result = advance(env_key, trial, actions[index])
        observation = trial.observation
        reward, terminated, truncated = (np.asarray(x) for x in (result.reward, result.terminated, result.truncated))
    assert trial.episode_return.shape == (batch,) and index == length - 1


def test_without_a_batch_it_is_the_first_row(loaded):
    policy, rng = loaded(), np.random.default_rng(0)
    data = inputs(rng, 30)
    alone, many = policy.agent(capacity=30), policy.agent(batch=2, capacity=30)
    beside = play(many, *(np.stack([x, x[::-1]], 1) for x in data))
    close(play(alone, *data)[:, 0], beside[:, 0])
    alone.reset(), many.reset()
    assert type(alone.step(data[0][0])) is int and many.step(data[0][:2]).dtype == np.int32


@pytest.mark.parametrize("sink", ["kv", "token", "none"])
def test_one_layer_after_a_drop_is_a_fresh_context_of_what_remains(loaded, sink):
    """With one layer, keys and values depend on their own steps only. Episodes are renumbered from 0."""
    policy, capacity = loaded(layers=1, sink=sink), 24
    data = inputs(np.random.default_rng(1), 100)
    agent, fresh = policy.agent(capacity=capacity), policy.agent(capacity=capacity)
    found, opened = play(agent, *data), np.flatnonzero(data[2])
    for end in (60, 80, 100):
        start = min(s for s in opened if end - s <= capacity)
        fresh.reset()
        close(found[end - 1], play(fresh, *(x[start:end] for x in data))[-1])
    assert agent.steps == 100 - min(s for s in opened if 100 - s <= capacity)


@pytest.mark.slow
@pytest.mark.parametrize("inter_episode", [True, False])
def test_deeper_policies_go_on_as_if_dropped_steps_were_out_of_sight(loaded, inter_episode):
    """This equals a context with room for all steps that masks the dropped ones."""
    policy, capacity, batch = loaded(sink="none", inter_episode=inter_episode), 20, 2
    data = inputs(np.random.default_rng(2), 90, batch=batch)
    dropping, roomy = policy.agent(batch=batch, capacity=capacity), policy.agent(batch=batch, capacity=90)
    for index in range(90):
        one = [x[index : index + 1] for x in data]
        found = play(dropping, *one)
        roomy._context.kept = np.minimum(roomy._context.kept, dropping._context.kept - 1)
        close(found, play(roomy, *one))
    assert (dropping.steps <= capacity).all() and dropping.steps[0] != dropping.steps[1]


def test_a_window_is_the_context_limit_of_evaluations(loaded):
    policy, window = loaded("darkroom-ad-9"), 30
    environment = make("darkroom-ad-9")
    curves = in_context_curves(
        policy.policy, policy.params, environment, EvalConfig(episodes=6, tasks=1, context_limit=window), seed=0
    )
    trial = curves.trial
    agent = policy.agent(capacity=window, full="window")
    actions = trial.action.astype(np.int32)
    rewards = np.concatenate([[0], trial.reward[:-1]]).astype(np.float32)
    ended = trial.first & (np.arange(len(trial.first)) > 0)
    logits = play(agent, trial.observation, rewards, ended, np.zeros_like(ended), actions)[:, 0, :-1]
    memory = policy.policy.initial_memory(1, len(logits))
    act = jax.jit(lambda memory, x: policy.policy.act(policy.params, memory, x, window=jnp.asarray(window)))
    for index, observation in enumerate(trial.observation):
        first = bool(trial.first[index])
        previous = -1 if first else int(trial.action[index - 1])
        seen = StepInput(
            jnp.asarray(observation)[None],
            jnp.full((1,), previous, jnp.int32),
            jnp.asarray([0.0 if first else rewards[index]]),
            jnp.asarray([first]),
        )
        output, memory = act(memory, seen)
        close(logits[index], output.distribution.logits[0])
    assert agent.steps == window < len(logits)


def test_rows_forget_on_their_own(loaded):
    policy, rng = loaded(), np.random.default_rng(3)
    data = inputs(rng, 40, batch=2)
    agent = policy.agent(batch=2, capacity=64)
    play(agent, *(x[:25] for x in data))
    agent.reset(rows=[True, False])
    together = play(agent, *(x[25:] for x in data))
    fresh = policy.agent(batch=2, capacity=64)
    np.testing.assert_array_equal(agent.steps, [15, 40])
    again = play(fresh, *(x[25:] for x in data))
    close(together[:, 0], again[:, 0])
    assert np.abs(together[:, 1] - again[:, 1]).max() > 1e-3  # the other row remembers


def test_a_recurrent_agent_is_never_full_and_forgets_row_by_row(loaded, tmp_path):
    policy = loaded(memory="lstm")
    data = inputs(np.random.default_rng(10), 60, batch=2)
    agent = policy.agent(batch=2, capacity=8, full="error")
    play(agent, *(x[:40] for x in data))
    agent.reset(rows=[True, False])
    agent.save(tmp_path / "context")
    together = play(agent, *(x[40:] for x in data))
    np.testing.assert_array_equal(agent.steps, [20, 60])
    restored, fresh = policy.agent(batch=2), policy.agent(batch=2)
    restored.restore(tmp_path / "context")
    np.testing.assert_array_equal(play(restored, *(x[40:] for x in data)), together)
    again = play(fresh, *(x[40:] for x in data))
    close(together[:, 0], again[:, 0])
    assert np.abs(together[:, 1] - again[:, 1]).max() > 1e-3
    with pytest.raises(ConfigError, match="full is 'window'; allowed: 'drop' or 'error' with a recurrent policy"):
        policy.agent(full="window")


def test_a_reset_of_the_episode_alone_is_an_end_of_an_episode(loaded):
    policy = loaded()
    observations, *_ = inputs(np.random.default_rng(4), 12)
    agents = policy.agent(), policy.agent()
    for index, x in enumerate(observations):
        if index == 6:
            agents[0].reset(new_task=False)
        agents[0].step(x, 0.5)
        agents[1].step(x, 0.5, False, index == 6)
        close(agents[0].outputs["value"], agents[1].outputs["value"])
    assert agents[0].steps == 12
    agents[0].reset()
    assert agents[0].steps == 0


@pytest.mark.parametrize("capacity", [16, 40])
def test_a_restored_agent_goes_on_bit_for_bit(loaded, tmp_path, capacity):
    policy = loaded()
    data = inputs(np.random.default_rng(5), 50)
    agent = policy.agent(capacity=capacity, seed=7)
    for x, reward, end in zip(*(x[:30] for x in data[:3]), strict=True):
        agent.step(x, reward, bool(end))
    agent.save(tmp_path / "context.safetensors")
    expected = [agent.step(x, r, bool(e), False) for x, r, e in zip(*(x[30:] for x in data[:3]), strict=True)]
    other = policy.agent(capacity=capacity)
    other.restore(tmp_path / "context.safetensors")
    assert other.steps <= capacity and [path.name for path in tmp_path.iterdir()] == ["context.safetensors"]
    found = [other.step(x, r, bool(e), False) for x, r, e in zip(*(x[30:] for x in data[:3]), strict=True)]
    assert found == expected
    np.testing.assert_array_equal(agent.outputs["logits"], other.outputs["logits"])


def test_contexts_that_do_not_belong_are_refused(loaded, tmp_path):
    policy, file = loaded(), tmp_path / "context.safetensors"
    agent = policy.agent(capacity=20)
    play(agent, *inputs(np.random.default_rng(6), 15))
    agent.save(file)
    other = dataclasses.replace(policy, params=jax.tree.map(lambda x: x + 1, policy.params))
    refused = [(other.agent(), "is of policy"), (policy.agent(batch=2), "is of batch None; allowed: 2")]
    refused.append((policy.agent(capacity=10), "holds 15 steps; allowed: 10"))
    for taker, said in refused:
        with pytest.raises(ConfigError, match=said) as error:
            taker.restore(file)
        assert "\n" not in str(error.value) and np.all(taker.steps == 0)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"{}"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="a whole safetensors file"):
            policy.agent().restore(file)
    with pytest.raises(ConfigError, match="nowhere"):
        policy.agent().restore(tmp_path / "nowhere")
    file.write_bytes(whole.replace(b"relic-jax-context-2", b"relic-jax-context-9"))
    with pytest.raises(ConfigError, match="has format 'relic-jax-context-9'; allowed: 'relic-jax-context-2'"):
        policy.agent().restore(file)


def test_the_step_is_traced_once(loaded, monkeypatch):
    policy, traced = loaded(), []
    step = steps.step
    monkeypatch.setattr(steps, "step", lambda *args: traced.append(1) or step(*args))
    agent = policy.agent(capacity=16)
    play(agent, *inputs(np.random.default_rng(8), 60))
    agent.reset()
    play(agent, *inputs(np.random.default_rng(9), 20))
    assert len(traced) == 1


def test_one_environment_is_written_in_place(loaded):
    """The context is not copied. On CPU, XLA makes several copies if arrays have a leading axis of 1."""
    policy = loaded()
    agent = policy.agent(capacity=4096)
    arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in agent._arrays.items()}
    inputs = steps.input_specs(policy.policy, 1) | {"key": jax.random.key(0), "count": np.uint32(0)}
    compiled = _run.lower(policy.policy, False, policy.params, arrays, inputs).compile()
    context = sum(x.nbytes for x in agent._arrays.values())
    assert compiled.memory_analysis().temp_size_in_bytes < context / 2


def test_bad_values_are_one_line(loaded):
    policy = loaded()
    x = np.zeros(2, np.float32)
    for options, said in (
        ({"full": "wrap"}, "full is 'wrap'; allowed: 'drop', 'window', 'error'"),
        ({"capacity": 0}, "capacity is 0; allowed: 1 or more"),
        ({"batch": 0}, "batch is 0; allowed: 1 or more"),
    ):
        with pytest.raises(ConfigError, match=said):
            policy.agent(**options)
    agent = policy.agent(capacity=3, full="error")
    for arguments, said in (
        ((np.zeros(3, np.float32),), r"observation is float32\[3\]; allowed: float32\[2\]"),
        (({"x": x},), "observation is object"),
        ((np.array([0.0, np.nan]),), "observation is not finite"),
        ((np.array([0.0, 1e300]),), r"observation is not finite in float32 \(1e\+300\)"),
        ((x, np.inf), "reward is inf; allowed: a finite number"),
        ((x, 1e300), r"reward is 1e\+300; allowed: a finite number"),
        ((x, 10**400), "reward is 1000.*allowed: a finite number"),
        ((x, "much"), "reward is 'much'; allowed: a finite number"),
        ((x, 0.0, 1), "terminated is 1; allowed: bool"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            agent.step(*arguments)
        assert "\n" not in str(error.value)
    assert agent.steps == 0
    for _ in range(3):
        agent.step(x)
    with pytest.raises(ConfigError, match=r"the context is full \(3 steps\)"):
        agent.step(x)
    running = policy.agent(capacity=3)
    for _ in range(3):
        running.step(x)
    with pytest.raises(ConfigError, match="the current episode fills the context"):
        running.step(x)
    running.step(x, 0.0, True)  # an episode that ends can be dropped
    assert running.steps == 1
    endless = loaded(max_positions=5).agent(capacity=50)
    with pytest.raises(ConfigError, match="the episode is longer than 4 steps"):
        for _ in range(6):
            endless.step(x)


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (np.float64(1e300), "float32", "x is not finite in float32 (1e+300)"),
        (np.float32(1e5), "float16", "x is not finite in float16 (100000.0)"),
        (np.int64(2**40), "int32", "x does not fit in int32 (1099511627776)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_are_tested_after_the_cast(value, dtype, said):
    for given_value in (value, np.array([value * 0, value])):
        with pytest.raises(ConfigError) as error:
            cast_array("x", np.asarray(given_value), np.dtype(dtype))
        assert said in str(error.value)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_dropping_keeps_whole_episodes_and_as_many_as_fit(data):
    """Compare with a reference that keeps a list of the episodes' lengths per row."""
    rows, capacity = data.draw(st.integers(1, 3)), data.draw(st.integers(4, 12))
    context, lengths = Rows.empty(rows, capacity, 1), [[] for _ in range(rows)]
    running = np.zeros(rows, int)
    for _ in range(60):
        ended = np.array([data.draw(st.booleans()) or running[r] == capacity - 1 for r in range(rows)])
        first = context.fresh | ended
        if context.length == capacity:
            context.without_oldest(first, capacity, True)
        context.advance(first, capacity)
        running = np.where(first, 1, running + 1)
        for row in range(rows):
            lengths[row] = [*lengths[row], 1] if first[row] else [*lengths[row][:-1], lengths[row][-1] + 1]
            while sum(lengths[row]) > capacity:
                lengths[row].pop(0)
        np.testing.assert_array_equal(context.kept, [sum(x) for x in lengths])
        np.testing.assert_array_equal(context.episode, [len(x) for x in lengths])
        np.testing.assert_array_equal(context.position, running - 1)


def test_actions_are_the_action_spaces():
    random = np.random.default_rng(0)
    for env in ("darkroom-dpt", "pointmass-goal"):
        space = make(env).action_space
        actions = Actions({**action_to_json(space), "distribution": "tanh"})
        drawn = (
            np.asarray([0, 3], np.int32) if space.shape == () else random.normal(size=(4, space.n)).astype(np.float32)
        )
        np.testing.assert_array_equal(actions.to_policy(drawn), space.to_policy(drawn))
        np.testing.assert_allclose(actions.to_env(drawn), space.to_env(drawn), rtol=1e-6)
        assert (actions.shape, actions.null_action) == (space.shape, space.null_action)
    logits = np.log([[0.1, 0.6, 0.3]]).repeat(20_000, 0)
    counts = np.bincount(Actions({"type": "discrete", "n": 3}).draw({"logits": logits}, random))
    np.testing.assert_allclose(counts / 20_000, [0.1, 0.6, 0.3], atol=0.015)


def test_an_agent_is_reachable_in_one_line(loaded):
    assert relic_jax.Agent is Agent and isinstance(loaded().agent(), relic_jax.Agent)
    assert verify.STEPS == 200


def test_steps_beyond_32_bits_go_on_and_draw_from_other_keys(loaded):
    agent = loaded().agent(capacity=16)
    keys = set()
    for count in (0, 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**33 - 1, 2**33):
        agent._count = count
        inputs = agent._own_key()
        key = jax.random.fold_in(inputs["key"], inputs["count"]) if inputs["count"] else inputs["key"]
        keys.add(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        agent.step(np.zeros(2, np.float32))
        assert agent._count == count + 1
    assert len(keys) == 8
