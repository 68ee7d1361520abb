"""Training and evaluation with environments in worker processes, on a noisy corridor that tests can step directly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import checkpoint
from relic_jax.bridge.pool import PoolError
from relic_jax.bridge.worker import episode_seed
from relic_jax.config import ConfigError, EvalConfig, TrialConfig, WorkerConfig
from relic_jax.environment.base import num_tasks
from relic_jax.environment.reference_returns import reference_returns
from relic_jax.evaluation import in_context_curves
from relic_jax.experiments.faults.corridor import Corridor
from relic_jax.experiments.faults.small import PER_UPDATE
from relic_jax.experiments.faults.workers import HORIZON, corridor, killed_workers
from relic_jax.metrics import JsonLines
from relic_jax.rl import train as training
from relic_jax.rl import update
from relic_jax.rl.diagnostics import episode_sums
from relic_jax.rl.host import HostRunner
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.state import init_state
from relic_jax.rl.train import prepare, restore, train


def by_hand(env, task, seed, actions):
    """Step an environment without faults: return observations before each action, rewards, terminated, truncated."""
    simulator, episode, rows = Corridor(**env.options), 0, []
    observation = simulator.reset(task, episode_seed(seed, 0))
    for action in actions:
        before = np.concatenate([observation[name].ravel() for name in ("image", "vector")]).astype(np.float32)
        observation, reward, terminated, truncated, _ = simulator.step(int(action))
        rows.append((before, np.float32(reward), terminated, truncated and not terminated))
        if terminated or truncated:
            episode += 1
            observation = simulator.reset(task, episode_seed(seed, episode))
    return [np.array(column) for column in zip(*rows, strict=True)]


def collected(setup, state, segments=1):
    with HostRunner(setup) as run:
        for index in range(segments):
            run._trials.trials or run._trials.reset(np.asarray(state.trial.task), np.asarray(state.trial.env))
            found = run._collect(state, index)
        return found


@pytest.fixture
def config(tiny):
    return tiny(env="corridor", trial=TrialConfig(environments=4, steps=32, updates=2), total_steps=6 * PER_UPDATE)


@pytest.mark.parametrize(("workers", "credit"), [(1, "terminal"), (2, "bootstrap"), (4, "terminal")])
def test_a_segment_is_what_happened(config, workers, credit):
    """Compare the policy's outputs with one pass over the block, and the environment's with stepping it here."""
    config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, time_limit=credit))
    setup = prepare(config, corridor(WorkerConfig(workers=workers)))
    state = initial_state(setup)
    found = jax.device_get(collected(setup, state))
    steps = found.steps
    empty = setup.policy.initial_memory(4, 16)
    output, memory = jax.jit(setup.policy.unroll)(state.params, empty, steps.inputs)
    np.testing.assert_allclose(steps.log_prob, output.distribution.log_prob(steps.action), atol=1e-5)
    np.testing.assert_allclose(steps.value, output.value, atol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(found.memory), jax.tree.leaves(memory), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert steps.valid.all() and steps.truncated.any() and steps.terminated.any()
    for row, (seed, task) in enumerate(zip(state.trial.env, np.asarray(state.trial.task), strict=True)):
        before, reward, terminated, truncated = by_hand(
            setup.trials.env, setup.trials.env.task(task), int(seed), steps.action[row]
        )
        np.testing.assert_array_equal(steps.inputs.observation[row], before)
        np.testing.assert_array_equal(steps.reward[row], reward)
        np.testing.assert_array_equal(steps.terminated[row], terminated)
        np.testing.assert_array_equal(steps.truncated[row], truncated)
        ended = terminated | truncated
        np.testing.assert_array_equal(steps.inputs.first[row], [True, *ended[:-1]])
        previous = np.where(ended, -1, steps.action[row])[:-1]
        np.testing.assert_array_equal(steps.inputs.previous_action[row], [-1, *previous])
        np.testing.assert_array_equal(steps.inputs.previous_reward[row], [0, *np.where(ended, 0, reward)[:-1]])
    assert ((steps.final_value != 0) == (steps.truncated & (credit == "bootstrap"))).all()


def test_results_do_not_depend_on_workers_or_groups(config, tmp_path):
    found = []
    slow = {"fault": "slow", "at": 1, "only": 0, "once": str(tmp_path / "once")}
    for workers, batch, options in ((1, None, {}), (2, None, {}), (4, 1, slow)):
        setup = prepare(config, corridor(WorkerConfig(workers=workers, batch=batch), **options))
        found.append(jax.device_get(collected(setup, initial_state(setup))))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].steps.action, other.steps.action)
        np.testing.assert_array_equal(found[0].steps.reward, other.steps.reward)
        np.testing.assert_allclose(found[0].last_value, other.last_value, atol=1e-5)


def test_a_lost_step_has_no_advantage_and_what_precedes_is_bootstrapped(config):
    ppo = dataclasses.replace(config.ppo, gamma=0.5, gae_lambda=0.5, reward_scale=2.0)
    for credit in ("episode", "trial"):
        changed = dataclasses.replace(config, ppo=dataclasses.replace(ppo, credit=credit))
        setup = training.make_setup(changed, corridor())
        state = init_state(setup)
        rows = np.zeros((4, 32), np.float32)
        reward, value, valid = rows.copy(), rows.copy(), np.ones_like(rows, bool)
        reward[0, :3], value[0, :3], valid[0, 1] = (1.0, 9.0, 1.0), (0.5, 4.0, 0.25), False
        steps = state.trajectory.replace(reward=reward, value=value, valid=valid)
        batch = update.make_batch(setup, state.replace(trajectory=steps), state.memory, jnp.zeros(4))
        # step 0: 2·1 + ½·4 − ½ = 3.5; step 1 is lost: 0; step 2: 2·1 + ½·0 − ¼ = 1.75
        np.testing.assert_allclose(batch.advantage[0, :4], [3.5, 0.0, 1.75, 0.0], atol=1e-6)


def test_metrics_are_those_of_the_steps_that_ended_episodes(config):
    """`Corridor` has the metrics success and jax. The first is built in, so the test replaces it by a third."""
    setup = prepare(config, corridor(WorkerConfig(workers=2)))
    with HostRunner(setup) as run:
        state = initial_state(setup)
        run._trials.reset(np.asarray(state.trial.task), np.asarray(state.trial.env))
        found = run._collect(state, 0)
    results = found.results
    assert set(results.metrics) == {"jax"} and results.metrics["jax"].shape == results.reward.shape
    ended = results.terminated | results.truncated
    numbers = np.arange(ended.size).reshape(ended.shape)
    assert 0 < ended.sum() < ended.size
    counted = found._replace(results=dataclasses.replace(results, metrics={"jax": numbers.astype(np.float32)}))
    sums = jax.device_get(episode_sums(counted))
    assert sums["episode/jax"] == numbers[ended].sum()
    stacked = {**sums, "loss": np.zeros(())}
    (record,) = training.records(setup.config, 0, stacked)
    assert record["episode/jax"] == pytest.approx(numbers[ended].mean(), rel=1e-6)
    assert "episode/jax" not in next(training.records(setup.config, 0, {**stacked, "episodes": np.zeros(())}))


def test_lost_steps_do_not_count(config):
    """Lost steps affect neither the loss, whatever values they hold, nor the statistics of episodes."""
    setup = training.make_setup(config, corridor())
    state = jax.jit(lambda: init_state(setup))()
    rng = np.random.RandomState(0)
    size = (4, config.trial.steps)
    steps = state.trajectory.replace(
        value=rng.normal(size=size).astype(np.float32),
        reward=rng.normal(size=size).astype(np.float32),
        valid=rng.uniform(size=size) < 0.8,
    )

    @jax.jit
    def loss(steps):
        batch = update.make_batch(setup, state.replace(trajectory=steps), state.memory, jnp.zeros(4))
        window = update.Window(0, config.trial.segment, full=False)
        return update.minibatch_loss(setup, state.env_steps, state.params, batch, window, jax.random.key(0))

    lost = ~steps.valid
    for change in ({"reward": jnp.where(lost, 99.0, steps.reward)}, {"action": lost * 1}, {"log_prob": lost * -3.0}):
        expected, found = loss(steps), loss(steps.replace(**change))
        for name in ("loss", "kl", "entropy", "clip_fraction"):
            np.testing.assert_allclose(found[1][name], expected[1][name], rtol=1e-6)
    assert loss(steps.replace(valid=np.ones(size, bool)))[0] != loss(steps)[0]


class At(JsonLines):
    """Calls `at(env_steps)` before a record is logged."""

    def __init__(self, folder, env_steps, at):
        super().__init__(folder, env_steps)
        self.at = at

    def log(self, record, clock):
        self.at(record["env_steps"])
        super().log(record, clock)


def go(setup, folder, *, resume=False, at=lambda env_steps: None):
    folder.mkdir(exist_ok=True)
    return train(setup, folder, lambda env_steps: At(folder, env_steps, at), resume=resume)


def arrays(setup, folder):
    state, _ = restore(setup, folder / "checkpoints")
    leaves = jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


class Killed(BaseException):
    """Represents SIGKILL."""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(config, tmp_path, devices):
    setup = prepare(dataclasses.replace(config, devices=devices), corridor())
    go(setup, tmp_path / "whole")
    kills = [PER_UPDATE, 4 * PER_UPDATE, 5 * PER_UPDATE]

    def at(env_steps):
        if kills and env_steps == kills[0]:
            kills.pop(0)
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            go(setup, tmp_path / "cut", resume=True, at=at)
    assert go(setup, tmp_path / "cut", resume=True).finished
    assert arrays(setup, tmp_path / "cut") == arrays(setup, tmp_path / "whole")
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]


def test_an_episode_that_cannot_be_played_again_is_lost_on_resuming(config):
    setup = prepare(config, corridor())
    with HostRunner(setup) as run:
        state, _ = run(initial_state(setup))
    before = jax.device_get(state.trial)
    moved = before.env + np.array([1, 1, 0, 0], np.int32)  # other seeds: other noise
    state = state.replace(trial=jax.device_put(before.replace(env=moved), state.trial.env.sharding))
    with HostRunner(setup) as run:
        resumed = jax.device_get(run._resumed(state, 16).trajectory)
        trial = run._trials.all
    elsewhere = np.array([True, True, False, False])
    np.testing.assert_array_equal(trial.first, before.first | elsewhere)
    np.testing.assert_array_equal(trial.previous_action[2:], before.previous_action[2:])
    np.testing.assert_array_equal(trial.observation[2:], before.observation[2:])
    lost = elsewhere & ~before.first
    assert lost.any()
    np.testing.assert_array_equal(~resumed.valid[:, :16], lost[:, None] & (np.arange(16) == 15))
    assert resumed.truncated[lost, 15].all() and not trial.observation[lost, 48].any(), "a new episode"


def test_too_many_failures_stop_the_run_with_a_checkpoint(config, tmp_path):
    setup = prepare(config, corridor(WorkerConfig(max_restarts=2), fault="crash", at=5))
    with pytest.raises(PoolError, match=r"stopped after 3 worker failures.*saved, resume with: relic-jax") as error:
        go(setup, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert checkpoint.complete_steps(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize(
    ("host", "options", "words"),
    [
        ({"workers": 3}, {}, r"host.workers is 3; allowed: a divisor of the environments \(4\)"),
        ({"workers": 2, "batch": 3}, {}, "host.batch is 3; allowed: None, 2, 4"),
        ({"python": "/no/python"}, {}, "env 'corridor' cannot start: python is '/no/python'; allowed: a Python"),
        ({}, {"fault": "none", "strange": 1}, "unexpected keyword argument 'strange'"),
    ],
)
def test_failures_to_start_are_one_line_before_training(config, host, options, words):
    env = dataclasses.replace(corridor(WorkerConfig(**host)), options={"horizon": HORIZON, **options})
    with pytest.raises(ConfigError, match=words) as error:
        prepare(config, env)
    assert "\n" not in str(error.value)


def test_one_environment_per_worker_where_it_must_be(config):
    env = dataclasses.replace(corridor(WorkerConfig(workers=2)), per_worker=1)
    with pytest.raises(ConfigError, match=r"host\.workers is 2; allowed: 4"):
        prepare(config, env)


@pytest.mark.parametrize("per_worker", [None, 1])
def test_evaluation_plays_every_task_and_lets_the_expert_begin(config, per_worker):
    env = dataclasses.replace(corridor(), per_worker=per_worker)
    setup = training.make_setup(config, env)
    params = setup.policy.init(jax.random.key(0))
    curves = in_context_curves(setup.policy, params, env, EvalConfig(episodes=4, repeats=2, expert_episodes=2), seed=1)
    assert curves.returns.shape == (2 * num_tasks(env.tasks("test")), 4)
    assert curves.successes[:, :2].all() and not curves.successes[:, 2:].all()
    assert (curves.returns[:, :2] > 1).all() and (curves.returns[:, :2] < 1.1).all()
    assert {name: x.shape for name, x in curves.metrics.items()} == {"jax": curves.returns.shape}
    first = curves.trial  # for the goal −4 the expert needs two steps
    assert first.action[:4].tolist() == [0, 0, 0, 0] and first.first[:5].tolist() == [True, False] * 2 + [True]
    assert first.observation[:2, 48].tolist() == [0, -2]
    lines = reference_returns(env, "test", episodes=60)
    assert lines.optimal.success_rate == 1 and 0 < lines.random.success_rate < 0.9


@pytest.mark.slow
def test_evaluation_survives_crashes_and_counts_whole_episodes(config, tmp_path):
    env = corridor(fault="crash", only=0, once=str(tmp_path / "happened"))
    setup = training.make_setup(config, env)
    params = setup.policy.init(jax.random.key(0))
    curves = in_context_curves(setup.policy, params, env, EvalConfig(episodes=5, context_limit=4))
    assert (tmp_path / "happened").exists() and curves.returns.shape == (3, 5)


@pytest.mark.slow
def test_the_policy_is_learned(config):
    """The observation contains the goal. Random actions reach it in 0.35 of the episodes."""
    config = dataclasses.replace(
        config,
        trial=TrialConfig(environments=16, steps=48, updates=1),
        ppo=dataclasses.replace(config.ppo, lr=5e-3, epochs=4, minibatches=1, max_grad_norm=0.5, value_clip=None),
    )
    setup = prepare(dataclasses.replace(config, total_steps=45 * 16 * 48), corridor(WorkerConfig(workers=2)))
    state, reached = initial_state(setup), []
    with HostRunner(setup) as run:
        for _ in range(45):
            state, metrics = run(state)
            reached.append(float(metrics["success_sum"] / metrics["episodes"]))
    assert np.mean(reached[:5]) < 0.6 and np.mean(reached[-10:]) > 0.9


@pytest.mark.slow
def test_training_goes_on_through_random_kills(config, tmp_path, kills):
    """One worker per update is killed at a random time.

    Only steps that were in progress are lost, and no process or shared memory remains.
    """
    assert killed_workers(tmp_path / "run", kills, config) == []
