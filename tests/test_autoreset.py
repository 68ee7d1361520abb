"""The agent in gymnasium's vector environments: with every autoreset mode it sees the same episodes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import runtime
from relic_jax.config import ConfigError, PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.loading import LoadedPolicy
from relic_jax.models.policy import Policy
from relic_jax.spaces import Spaces

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

MODES = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP, "disabled": AutoresetMode.DISABLED}
ROWS, STEPS = 3, 60


class Tape(gymnasium.Env):
    """Returns a distinct number for every observation and reward, in episodes of 2 … 6 steps."""

    observation_space = gymnasium.spaces.Box(-100, 100, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(5)

    def __init__(self, row):
        self.row, self.episode, self.count = row, -1, 0
        self.random = np.random.default_rng(row)

    def reset(self, seed=None, options=None):
        self.episode, self.count, self.length = self.episode + 1, 0, int(self.random.integers(2, 7))
        return self.observe(), {}

    def step(self, action):
        self.count += 1
        over, terminal = self.count == self.length, self.episode % 2 == 0
        return self.observe(), 0.1 * self.count + 0.01 * action, over and terminal, over and not terminal, {}

    def observe(self):
        return np.array([self.row + 0.1 * self.count, np.sin(self.episode)], np.float32)


class Recorder:
    """Forwards to a backend and records the inputs of each step."""

    def __init__(self, backend):
        self.backend, self.seen = backend, []

    def step(self, arrays, inputs):
        self.seen.append({name: np.array(inputs[name]) for name in ("observation", "first", "previous_reward")})
        return self.backend.step(arrays, inputs)

    def __getattr__(self, name):
        return getattr(self.backend, name)


@pytest.fixture(scope="module")
def loaded(tiny, drawn):
    def build(memory="transformer", show_last_reward=False):
        sizes = {"layers": 2, "heads": 2, "width": 16, "mlp_width": 16, "max_positions": 32}
        config = PolicyConfig(TransformerConfig(**sizes), memory=memory)
        spaces = Spaces(jax.ShapeDtypeStruct((2,), jnp.float32), (-1.0,) * 2, (1.0,) * 2, Discrete(5), 6)
        policy, run = Policy(config, spaces), tiny(policy=config)
        run = dataclasses.replace(run, trial=dataclasses.replace(run.trial, show_last_reward=show_last_reward))
        return LoadedPolicy(policy, drawn(policy), run, spaces, {}, None, None)

    return build


def recorded(agent):
    """Return the agent's steps in each row: observation, first, reward, value, action."""
    steps = [[] for _ in range(agent.batch or 1)]
    agent._backend = Recorder(agent._backend)

    def act(*arguments):
        count = len(agent._backend.seen)
        action = agent.step(*arguments)
        idle = agent._context.waiting
        if len(agent._backend.seen) > count:
            seen, value, taken = agent._backend.seen[-1], agent.outputs["value"], np.atleast_1d(action)
            for row in np.flatnonzero(~idle):
                one = [*seen["observation"][row], seen["first"][row], seen["previous_reward"][row]]
                steps[row].append([*map(float, one), float(value[row]), int(taken[row])])
        return action

    return act, steps


def vector_steps(policy, mode, **options):
    """Play ROWS environments in one of gymnasium's vector environments."""
    envs = SyncVectorEnv([lambda row=row: Tape(row) for row in range(ROWS)], autoreset_mode=MODES[mode])
    agent = policy.agent(env=envs, greedy=True, **options)
    assert (agent.batch, agent.autoreset) == (ROWS, mode)
    act, steps = recorded(agent)
    action = act(envs.reset(seed=0)[0])
    for _ in range(STEPS):
        observation, reward, terminated, truncated, _ = envs.step(action)
        ended = terminated | truncated
        if mode == "disabled" and ended.any():
            observation, _ = envs.reset(options={"reset_mask": ended})
        action = act(observation, reward, terminated, truncated)
    return steps


def single_steps(policy, row, **options):
    """Play one of them alone with explicit resets."""
    env, agent = Tape(row), policy.agent(greedy=True, **options)
    act, steps = recorded(agent)
    action = act(env.reset()[0])
    for _ in range(STEPS):
        observation, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
        action = act(observation, reward, terminated, truncated)
    return steps[0]


CASES = [
    ("next_step", {}, {"capacity": 100}),
    ("next_step", {"show_last_reward": True}, {"capacity": 100}),
    ("next_step", {}, {"capacity": 12}),  # whole episodes are dropped, and one episode can fill the context
    ("next_step", {"show_last_reward": True}, {"capacity": 6}),
    ("next_step", {}, {"capacity": 12, "full": "window"}),
    ("next_step", {"memory": "lstm", "show_last_reward": True}, {}),
    ("same_step", {"show_last_reward": True}, {"capacity": 100}),
    ("disabled", {"show_last_reward": True}, {"capacity": 100}),
]


@pytest.mark.parametrize(("mode", "policy", "options"), CASES)
def test_a_vector_environment_is_its_environments_one_by_one(loaded, mode, policy, options):
    policy = loaded(**policy)
    together = vector_steps(policy, mode, **options)
    for row in range(ROWS):
        alone = single_steps(policy, row, **options)
        count = len(together[row])
        assert STEPS * 0.7 < count <= len(alone)
        np.testing.assert_allclose(together[row], alone[:count], rtol=1e-5, atol=1e-5)
    firsts = [step[2] for step in together[0]]
    assert sum(firsts) > 8


def test_a_row_may_wait_while_its_context_is_saved(loaded, tmp_path):
    policy = loaded(show_last_reward=True)
    random, agents = np.random.default_rng(0), []
    for _ in range(2):
        agents.append(policy.agent(batch=2, capacity=20, autoreset="next_step", greedy=True))
    x = random.normal(size=(6, 2, 2)).astype(np.float32)
    for ended in (False, False, np.array([True, False])):
        agents[0].step(x[0], 0.5, ended)
    agents[0].save(tmp_path / "context")
    agents[1].restore(tmp_path / "context")
    np.testing.assert_array_equal(agents[1].steps, [2, 3])
    for agent in agents:
        agent.step(x[1])
        agent.step(x[2], 1.0, True)  # if all rows wait, nothing is computed
        np.testing.assert_array_equal(agent.steps, [3, 4])
        assert agent.step(x[3]).shape == (2,)
    np.testing.assert_array_equal(agents[0].outputs["value"], agents[1].outputs["value"])


def test_what_is_shared_by_numpy_and_jax_moves_the_same_slots():
    random, rows = np.random.default_rng(0), np.array([True, False, True])
    arrays = {"episodes": random.integers(9, size=(3, 5)), "values.0": random.normal(size=(3, 2, 5, 4))}
    arrays = {name: x.astype(np.int32 if x.ndim == 2 else np.float32) for name, x in arrays.items()}
    mine, theirs = runtime.hold_rows(np, arrays, rows), runtime.hold_rows(jnp, arrays, rows)
    for name, x in arrays.items():
        np.testing.assert_array_equal(mine[name], theirs[name])
        np.testing.assert_array_equal(mine[name][1], x[1])
        np.testing.assert_array_equal(
            np.moveaxis(mine[name], -1 if x.ndim == 2 else 2, 1)[0, 1:],
            np.moveaxis(x, -1 if x.ndim == 2 else 2, 1)[0, :-1],
        )


def test_what_an_environment_says_of_itself(loaded):
    policy = loaded()
    single = gymnasium.wrappers.Autoreset(gymnasium.wrappers.TimeLimit(Tape(0), 9))
    assert policy.agent(env=single).autoreset == "next_step" and policy.agent(env=Tape(0)).autoreset == "disabled"
    envs = SyncVectorEnv([lambda: Tape(0)] * 2)
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    assert policy.agent(env=wrapped).autoreset == "next_step" and policy.agent(batch=2).autoreset == "same_step"
    refused = [({"env": envs, "batch": 3}, "batch is 3; allowed: 2, the environments of env")]
    refused.append(
        ({"env": envs, "autoreset": "same_step"}, "autoreset is 'same_step'; allowed: 'next_step', the mode")
    )
    refused.append(({"autoreset": "never"}, "autoreset is 'never'; allowed: 'next_step', 'same_step', 'disabled'"))
    old = SyncVectorEnv([lambda: Tape(0)] * 2)
    old.metadata = {}
    refused.append(({"env": old}, "env.metadata['autoreset_mode'] is None; allowed: gymnasium's AutoresetMode"))
    for options, said in refused:
        with pytest.raises(ConfigError) as error:
            policy.agent(**options)
        assert said in str(error.value) and "\n" not in str(error.value)
    assert policy.agent(env=old, autoreset="same_step").batch == 2


def test_a_policy_of_a_gymnasium_environment_reads_it_as_it_is(loaded):
    """FrozenLake's cell numbers are one-hot encoded, as its workers encode them."""
    policy = loaded()
    spaces = dataclasses.replace(policy.spaces, observation=jax.ShapeDtypeStruct((16,), jnp.float32))
    spaces = dataclasses.replace(spaces, low=(0.0,) * 16, high=(1.0,) * 16, action_space=Discrete(4))
    made = Policy(policy.policy.config, spaces)
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), jax.eval_shape(made.init, jax.random.key(0)))
    config = dataclasses.replace(policy.config, env="gym:FrozenLake-v1")
    policy = LoadedPolicy(made, params, config, spaces, {}, None, None)
    envs = gymnasium.make_vec("FrozenLake-v1", num_envs=2)
    agent = policy.agent(env=envs)
    backend = agent._backend = Recorder(agent._backend)
    actions = agent.step(envs.reset(seed=0)[0])
    observation, *rest, _ = envs.step(actions)
    agent.step(observation, *rest)
    np.testing.assert_array_equal(backend.seen[-1]["observation"], np.eye(16)[observation])
    alone = gymnasium.make("FrozenLake-v1")
    assert type(policy.agent(env=alone).step(alone.reset()[0])) is int
