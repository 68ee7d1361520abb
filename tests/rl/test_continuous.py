"""Training with continuous actions: inside jit, with simulators in worker processes, resumed and evaluated."""

import dataclasses
import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reach import Reach

from relic_jax import checkpoint
from relic_jax.bridge.worker import episode_seed
from relic_jax.config import (
    ConfigError,
    EncoderConfig,
    EvalConfig,
    HeadConfig,
    PolicyConfig,
    PPOConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
    WorkerConfig,
    validate,
)
from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.reference_returns import reference_returns
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves
from relic_jax.experiments.run import env_of
from relic_jax.metrics import JsonLines
from relic_jax.rl import runner
from relic_jax.rl.host import HostRunner
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.rollout import collect
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.train import prepare, restore, train


def with_policy(config, **parts):
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, **parts))


@pytest.fixture
def config(tiny):
    """Return a config of two trials of four updates of the point mass, with normalized observations."""
    return with_policy(tiny(env="pointmass-goal"), encoder=EncoderConfig("normalized"))


# --- inside jit ---


@pytest.mark.slow
@pytest.mark.parametrize("action", ["tanh", "gaussian"])
def test_stored_densities_and_previous_actions_are_those_of_the_stored_actions(config, action):
    """A large initial deviation clips normal draws and brings squashed draws close to the bounds."""
    setup = prepare(with_policy(config, head=HeadConfig(action=action, log_std=0.49)), make("pointmass-goal"))

    @jax.jit
    def run(state):
        found = collect(setup, state.params, state.trial, state.memory, jax.random.key(1))
        output, _ = setup.policy.unroll(state.params, setup.policy.initial_memory(4, 0), found.steps.inputs)
        return found, output

    found, output = jax.device_get(run(initial_state(setup)))
    steps = found.steps
    assert steps.action.shape == (4, 16, 2) and steps.action.dtype == np.float32
    ratio = np.exp(output.distribution.log_prob(jnp.asarray(steps.action)) - steps.log_prob)
    np.testing.assert_allclose(ratio, 1, atol=1e-4)
    np.testing.assert_allclose(output.value, steps.value, atol=1e-5)
    clipped = np.clip(steps.action, -1, 1)
    assert (clipped != steps.action).any() == (action == "gaussian")
    np.testing.assert_array_equal(steps.inputs.previous_action[:, 1:], clipped[:, :-1])  # no episode ends in 16 steps
    np.testing.assert_array_equal(steps.inputs.previous_action[:, 0], 0)
    np.testing.assert_allclose(
        np.diff(steps.inputs.observation, axis=1), 0.1 * clipped[:, :-1], atol=1e-6
    )  # actions in the environment are within its bounds


@pytest.mark.slow
def test_statistics_are_those_of_all_observations_and_take_no_part_in_learning(config):
    """Compare with numpy after each of three segments, on two devices. The optimizer does not change the statistics."""
    setup = prepare(dataclasses.replace(config, devices=2), make("pointmass-goal"))
    step, state, seen = compile_chunk(setup), initial_state(setup), []
    for index in range(3):
        state, _ = step(state)
        seen.append(np.asarray(state.trajectory.inputs.observation[:, 16 * index : 16 * (index + 1)]))
        everything = np.concatenate([x.reshape(-1, 2) for x in seen]).astype(np.float64)
        statistics = state.params["encoder"]["statistics"]
        assert float(statistics["count"]) == len(everything) == 64 * (index + 1)
        np.testing.assert_allclose(statistics["mean"], everything.mean(0), atol=1e-6)
        np.testing.assert_allclose(statistics["variance"], everything.var(0), rtol=1e-4)


def run_to_the_end(setup, folder, *, resume=False, stop_at=None):
    class Stopping(JsonLines):
        def log(self, record, clock):
            if record["env_steps"] == stop_at:
                raise KeyboardInterrupt
            super().log(record, clock)

    folder.mkdir(exist_ok=True)
    return train(setup, folder, lambda env_steps: Stopping(folder, env_steps), resume=resume)


def outcome(setup, folder):
    state = restore(setup, folder / "checkpoints")[0]
    leaves = jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    return [np.asarray(x).tobytes() for x in leaves], (folder / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_resumed_is_bit_for_bit_uninterrupted_and_statistics_are_in_the_checkpoint(config, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "compile_chunk", functools.cache(runner.compile_chunk))  # compile once for all runs
    setup = prepare(config, make("pointmass-goal"))
    whole = run_to_the_end(setup, tmp_path / "whole")
    assert whole.finished
    with pytest.raises(KeyboardInterrupt):  # in the middle of the first trial
        run_to_the_end(setup, tmp_path / "cut", stop_at=192)
    run_to_the_end(setup, tmp_path / "cut", resume=True)
    assert outcome(setup, tmp_path / "cut") == outcome(setup, tmp_path / "whole")
    abstract = jax.eval_shape(setup.policy.init, jax.random.key(0))
    params = checkpoint.load_params(checkpoint.find(tmp_path / "whole"), abstract)
    statistics = params["encoder"]["statistics"]
    assert float(statistics["count"]) == 512 and np.asarray(statistics["mean"]).any()
    jax.tree.map(np.testing.assert_array_equal, statistics, whole.state.params["encoder"]["statistics"])


@pytest.mark.slow
def test_the_expert_acts_first_in_evaluation_of_repeated_actions(config):
    config = dataclasses.replace(config, trial=dataclasses.replace(config.trial, action_repeat=2))
    env = env_of(config)
    setup = prepare(config, env)
    params, evaluation = setup.policy.init(jax.random.key(0)), EvalConfig(episodes=3, expert_episodes=2, tasks=5)
    curves = in_context_curves(setup.policy, params, env, evaluation)
    expert = reference_returns(env, "test", episodes=40).optimal.mean_return
    assert env.horizon == 20
    assert expert == pytest.approx(curves.returns[:, :2].mean(), rel=0.1) and curves.returns[:, 2].max() < 0.5 * expert
    bound = 0.1 + 1e-6
    assert (np.abs(curves.trial.action) <= bound).all() and curves.trial.action.shape == (3 * 20, 2)


LEARNER = TrainConfig(
    env="probe-continuous",
    devices=1,
    policy=PolicyConfig(
        transformer=TransformerConfig(layers=1, heads=2, width=32, mlp_width=64, max_positions=16),
        encoder=EncoderConfig(observation="scaled"),
    ),
    trial=TrialConfig(environments=16, steps=60, updates=3),
    ppo=PPOConfig(
        lr=3e-3,
        lr_final=1e-4,
        warmup_steps=0,
        minibatches=1,
        accumulate=1,
        value_clip=None,
        max_grad_norm=0.5,
        entropy_coef=0.0,
        normalize_advantages=True,
        context_gradient="stopped",
        last_update="partial",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("head", [HeadConfig("tanh"), HeadConfig("gaussian", std="state")], ids=lambda h: h.action)
def test_the_target_action_is_learned(head):
    """A policy that ignores observations earns 0.25, the best one 1. See `ContinuousProbe`."""
    trials = 40
    config = dataclasses.replace(with_policy(LEARNER, head=head), total_steps=trials * 16 * 60)
    setup = prepare(config, make(config.env))
    chunk, state = compile_chunk(setup), initial_state(setup)
    for _ in range(trials):
        state, metrics = chunk(state)
    assert float(metrics["return_sum"].sum() / metrics["episodes"].sum()) > 0.85


# --- simulators in worker processes ---

TASKS = {"train": [{"goal": [3.0, -1.0]}, {"goal": [-2.0, 2.5]}], "test": [{"goal": [1.0, 4.0]}, {"goal": [-4.0, 0.5]}]}


def reach(workers=1):
    spec = Reach().spec
    return HostEnvironment("reach", "reach:Reach", {}, spec, TASKS, host=WorkerConfig(workers=workers))


@pytest.fixture
def hosted(tiny, monkeypatch):
    monkeypatch.chdir(Path(inspect.getfile(Reach)).parent)  # workers import from the current folder
    trial = TrialConfig(environments=4, steps=32, updates=2)
    config = with_policy(tiny(env="reach", trial=trial, total_steps=4 * 64), head=HeadConfig("gaussian", log_std=0.0))
    return with_policy(config, encoder=EncoderConfig("normalized"))


def test_a_segment_of_a_simulator_is_what_happened(hosted):
    env = reach(2)
    setup = prepare(hosted, env)
    state = initial_state(setup)
    with HostRunner(setup) as run:
        run._trials.reset(np.asarray(state.trial.task), np.asarray(state.trial.env))
        steps = jax.device_get(run._collect(state, 0)).steps
    assert (np.abs(steps.action) > 1).any()
    for row, (seed, task) in enumerate(zip(state.trial.env, np.asarray(state.trial.task), strict=True)):
        simulator, episode, previous = Reach(), 0, np.zeros(2, np.float32)
        seen = simulator.reset(env.task(task), episode_seed(int(seed), 0))["vector"]
        for index, action in enumerate(steps.action[row]):
            np.testing.assert_array_equal(steps.inputs.observation[row, index], seen)
            np.testing.assert_allclose(steps.inputs.previous_action[row, index], previous, atol=1e-6)
            applied = env.action_space.to_env(action)
            np.testing.assert_allclose(applied, np.clip(2 * action, -2, 2), atol=1e-6)
            observation, reward, _, ended, _ = simulator.step(applied)
            assert steps.reward[row, index] == np.float32(reward)
            seen, previous = observation["vector"], applied / 2
            if ended:
                episode += 1
                seen = simulator.reset(env.task(task), episode_seed(int(seed), episode))["vector"]
                previous = np.zeros(2, np.float32)


@pytest.mark.slow
def test_a_simulator_is_resumed_bit_for_bit(hosted, tmp_path):
    setup = prepare(hosted, reach())
    run_to_the_end(setup, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(setup, tmp_path / "cut", stop_at=128)
    run_to_the_end(setup, tmp_path / "cut", resume=True)
    assert outcome(setup, tmp_path / "cut") == outcome(setup, tmp_path / "whole")


def test_the_expert_of_a_simulator_acts_when_asked(hosted):
    setup = prepare(hosted, reach())
    params = setup.policy.init(jax.random.key(0))
    curves = in_context_curves(setup.policy, params, setup.trials.env, EvalConfig(episodes=3, expert_episodes=2))
    # at most 2 per axis: the remaining distances, summed over both axes, are 2 then 0, and 2.5 then 0.5 then 0
    np.testing.assert_allclose(curves.returns[:, :2], [[-2.0] * 2, [-2.0] * 2], atol=1e-5)
    lines = reference_returns(setup.trials.env, "test", episodes=4)
    assert lines.optimal.mean_return == pytest.approx(-2.0) and lines.random.mean_return < -10


def test_gymnasium_with_custom_bounds(tmp_path):
    """Bounds differ between components of a 2D array. The environment receives actions in its own units."""
    gymnasium = pytest.importorskip("gymnasium")
    from relic_jax.bridge.gym import GymEnvironment
    from relic_jax.bridge.worker import SetupError

    class Env(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)  # which are not scaled
        action_space = gymnasium.spaces.Box(np.array([[-1.0, 0.0]], np.float32), np.array([[3.0, 0.5]], np.float32))

        def reset(self, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            assert self.action_space.contains(action)
            return action[0], 0.0, False, False, {}

    gymnasium.register("Bounds-v0", Env, max_episode_steps=9)
    env = GymEnvironment("Bounds-v0")
    assert (env.spec.low, env.spec.high, env.spec.action.shape) == (-1.0, 1.0, (2,))
    env.reset({}, 0)
    np.testing.assert_allclose(env.step(np.array([0.0, 1.0], np.float32))[0]["observation"], [1.0, 0.5])
    Env.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(SetupError, match="a Box of floats with finite bounds"):
        GymEnvironment("Bounds-v0")


# --- bad input ---


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (HeadConfig(log_std=1.0), "policy.head.log_std is 1.0; allowed: more than policy.head.log_std_min"),
        (
            HeadConfig(log_std_min=2.0),
            "head.log_std_max is 0.5; allowed: more than policy.head.log_std_min (2.0)",
        ),
        (HeadConfig(log_std_max=1.5), "policy.head.log_std_max is 1.5; allowed: at most 0.6931"),
        (HeadConfig(log_std_min=-20.0), "policy.head.log_std_min is -20.0; allowed: -10 or more"),
        (HeadConfig(log_std_max=float("inf")), "policy.head.log_std_max is inf; allowed: a finite number"),
    ],
)
def test_bad_heads_are_one_line(head, words):
    with pytest.raises(ConfigError) as error:
        validate(with_policy(LEARNER, head=head), horizon=1)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_wide_gaussian_is_valid_and_an_action_repeat_of_0_is_not():
    validate(with_policy(LEARNER, head=HeadConfig("gaussian", log_std_max=1.5)), horizon=1)
    with pytest.raises(ConfigError, match=r"trial\.action_repeat is 0"):
        validate(dataclasses.replace(LEARNER, trial=TrialConfig(action_repeat=0)), horizon=1)
