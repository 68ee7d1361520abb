"""The curriculum: the rule that raises the rung, the rungs and tasks that trials draw, resuming, and bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import CurriculumConfig, EnvConfig, TrainConfig, from_json, to_json
from relic_jax.environment.base import num_tasks
from relic_jax.environment.repeat import repeated
from relic_jax.envs.registry import make
from relic_jax.experiments.faults.processes import arrays
from relic_jax.experiments.training import parse_train
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl import curriculum as cur
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.population import Population, common_config
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.state import init_state, make_setup
from relic_jax.rl.steps import StepCount
from relic_jax.rl.train import prepare, restore, save, train
from relic_jax.stored_state import compact
from relic_jax.tracking import Console

pytestmark = pytest.mark.usefixtures("compile_once")

ARMS = CurriculumConfig(option="arms", values=(2, 3, 5), easier=0.5, threshold=-10.0, standard_errors=1.0, window=4)
"""A curriculum that rises as soon as a rung has four trials."""
PER_UPDATE = 64


def state_of(rung=0, rungs=(0, 0), gain=(0.0, 0.0), trials=(0, 0), episodes=0, first=0.0, later=0.0, variance=None):
    count, variance = len(rungs), variance and jnp.asarray(variance)

    def full(value, dtype):
        return jnp.broadcast_to(jnp.asarray(value, dtype), (count,))

    running = cur.RunningTrials(
        jnp.asarray(rungs), full(episodes, jnp.int32), full(first, jnp.float32), full(later, jnp.float32)
    )
    return cur.CurriculumState(jnp.asarray(rung), jnp.asarray(gain), jnp.asarray(trials), running, variance)


def alone(tree):
    """Return the sum over one device."""
    return tree


def test_the_returns_of_first_and_later_episodes_add_up_over_segments():
    running = cur.new_trials(jnp.zeros(2, jnp.int32))
    for ended, returns in (
        ([[1, 0], [1, 0], [0, 0]], [[5.0, 9.0], [7.0, 9.0], [9.0, 9.0]]),  # the first trial: episodes of 5 and 7
        ([[0, 1], [1, 0], [1, 1]], [[9.0, 2.0], [4.0, 9.0], [6.0, 8.0]]),  # 4 and 6; the second trial: 2 and 8
    ):
        running = cur.count_episodes(running, jnp.asarray(ended, bool), jnp.asarray(returns), later=3)
    np.testing.assert_array_equal(running.episodes, [4, 2])
    np.testing.assert_array_equal(running.first, [5.0, 2.0])
    np.testing.assert_array_equal(running.later, [10.0, 0.0])
    state = cur.CurriculumState(jnp.asarray(0), jnp.zeros(2), jnp.zeros(2, jnp.int32), running)
    found = cur.with_gains(state, 3, 10, alone)  # the second trial has no third episode
    np.testing.assert_array_equal(found.gain, [0.0, 0.0])  # (4 + 6) / 2 − 5
    np.testing.assert_array_equal(found.trials, [1, 0])


def test_the_running_mean_is_exact_up_to_the_window_and_exponential_after_it():
    state = state_of(rung=1, rungs=[0, 1, 1], episodes=4, first=[1.0, 0.0, 2.0], later=[3.0, 6.0, 6.0])
    state = cur.with_gains(state, 3, 4, alone)  # gains 0.5, 3 and 1
    np.testing.assert_allclose(state.gain, [0.5, 2.0])
    np.testing.assert_array_equal(state.trials, [1, 2])
    more = state_of(rung=1, rungs=[1, 1, 1], episodes=3, first=0.0, later=[4.0, 5.0, 6.0]).running
    state = cur.with_gains(state.replace(running=more), 3, 4, alone)  # of a window of 4, these three have 3/4
    np.testing.assert_allclose(state.gain, [0.5, 2.0 + 0.75 * (5.0 - 2.0)])
    np.testing.assert_array_equal(state.trials, [1, 4])
    many = state_of(rung=1, rungs=[1] * 6, episodes=3, first=0.0, later=7.0).running
    state = cur.with_gains(state.replace(running=many), 3, 4, alone)  # more trials than the window replace the mean
    np.testing.assert_allclose(state.gain, [0.5, 7.0])
    np.testing.assert_array_equal(state.trials, [1, 4])


def test_the_running_variance_is_that_of_the_same_trials():
    random = np.random.default_rng(0)
    state, seen = state_of(gain=[0.0], trials=[0], variance=[0.0]), []
    for count in (3, 1, 4):
        gains = random.normal(50.0, 2.5, count).astype(np.float32)
        seen.extend(gains)
        new = state_of(rungs=[0] * count, episodes=3, later=gains).running
        state = cur.with_gains(state.replace(running=new), 3, 8, alone)
        np.testing.assert_allclose(state.gain, [np.mean(seen)], rtol=1e-5)
        np.testing.assert_allclose(state.variance, [np.var(seen)], rtol=1e-3)
    np.testing.assert_allclose(state.standard_error, [np.std(seen, ddof=1) / np.sqrt(8)], rtol=1e-3)
    none = state_of(rungs=[0] * 4, episodes=2).running
    found = cur.with_gains(state.replace(running=none), 3, 8, alone)  # trials without later episodes
    np.testing.assert_array_equal(found.variance, state.variance)


@pytest.mark.parametrize(("errors", "expected"), [(0.0, 1), (1.0, 1), (3.0, 0)])
def test_chance_does_not_raise_the_rung_with_standard_errors(errors, expected):
    """The gains of 257 trials have a standard deviation of 2.5, so the standard error of their mean is 2.5 / 16."""
    config = TrainConfig(curriculum=CurriculumConfig("arms", threshold=0.1, standard_errors=errors))
    variance = [2.5**2, 0.0] if errors else None
    state = state_of(gain=[0.3, 0.0], trials=[257, 0], variance=variance)
    assert cur.next_rung(config, state, StepCount.of(0)) == expected


def test_a_checkpoint_has_the_variance_of_a_rule_that_reads_it(config, tmp_path):
    for errors, names in ((0.0, set()), (2.0, {"variance"})):
        curriculum = dataclasses.replace(ARMS, standard_errors=errors)
        setup = prepare(dataclasses.replace(config, devices=1, curriculum=curriculum), make("probe-bandit"))
        state, progress = restore(setup, tmp_path / "none")
        assert compact(state).curriculum.keys() == {"rung", "gain", "trials", "running"} | names
        save(setup, tmp_path / str(errors), state, progress)
        assert arrays(restore(setup, tmp_path / str(errors))[0]) == arrays(state)


@pytest.mark.parametrize(
    ("rung", "gain", "trials", "expected"),
    [
        (0, (0.3, 0.0, 0.0), (8, 0, 0), 1),
        (0, (0.2, 0.0, 0.0), (8, 0, 0), 0),  # the threshold itself is not enough
        (0, (0.3, 0.0, 0.0), (7, 0, 0), 0),  # too few trials
        (1, (0.9, 0.1, 0.0), (8, 8, 0), 1),  # the gain at the present rung counts
        (1, (0.0, 0.3, 0.0), (8, 8, 0), 2),  # an easier rung can get worse
        (2, (0.9, 0.9, 0.9), (8, 8, 8), 2),  # there is no harder one
    ],
)
def test_the_rung_rises_with_the_gain_at_the_present_one(rung, gain, trials, expected):
    config = TrainConfig(curriculum=CurriculumConfig("arms", threshold=0.2, window=8))
    assert cur.next_rung(config, state_of(rung, gain=gain, trials=trials), StepCount.of(0)) == expected


@pytest.mark.parametrize(
    ("starts", "expected"),
    [((), {0: 0, 333: 0, 334: 1, 666: 1, 667: 2, 1000: 2}), ((0.1, 0.5), {99: 0, 100: 1, 500: 2})],
)
def test_a_schedule_raises_the_rung_at_fixed_fractions_of_the_run(starts, expected):
    config = TrainConfig(total_steps=1000, curriculum=CurriculumConfig("arms", mode="schedule", starts=starts))
    state = state_of(gain=(0.0, 0.0, 0.0), trials=(0, 0, 0))
    found = {steps: int(cur.next_rung(config, state, StepCount.of(steps))) for steps in expected}
    assert found == expected
    assert cur.next_rung(config, state.replace(rung=jnp.asarray(1)), StepCount.of(0)) == 1, "a run that is extended"


def test_easier_rungs_have_their_share():
    np.testing.assert_allclose(cur.shares(jnp.asarray(0), 4, 0.3), [1, 0, 0, 0])
    np.testing.assert_allclose(cur.shares(jnp.asarray(1), 4, 0.3), [0.3, 0.7, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(cur.shares(jnp.asarray(3), 4, 0.3), [0.1, 0.1, 0.1, 0.7], rtol=1e-6)
    np.testing.assert_allclose(cur.shares(jnp.asarray(2), 4, 0.0), [0, 0, 1, 0])


def test_trials_draw_rungs_by_their_shares_and_tasks_of_their_rung():
    env, count = make("gridobj-9"), 20_000
    curriculum = CurriculumConfig("asked", values=(1, 2, 4, 6))
    rungs, tasks = cur.rungs_of(curriculum, env)
    assert rungs == ("asked", (1, 2, 4, 6), (10_000,) * 4)
    state = state_of(rung=2, rungs=np.zeros(count, np.int32), gain=(0.0,) * 4, trials=(0,) * 4)
    config = TrainConfig(curriculum=curriculum)
    after = cur.next_curriculum(config, state, StepCount.of(0), jax.random.key(0), alone)
    drawn = np.asarray(after.running.rung)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / count, [0.15, 0.15, 0.7, 0], atol=0.01)
    index = np.asarray(cur.draw_tasks(rungs, after.running.rung, jax.random.key(1)))
    np.testing.assert_array_equal((tasks.asked[index] >= 0).sum(1), np.asarray(rungs.values)[drawn])
    within = index - 10_000 * drawn
    assert within.min() < 20 and within.max() >= 9_980 and abs(within.mean() - 5_000) < 100
    assert rungs.task_name(20_003) == "3 of asked 4"


def test_tasks_of_a_rung_ask_for_the_first_kinds_of_the_same_layouts():
    env = make("gridobj-9")
    whole, two = env.tasks("train"), env.rung_tasks("asked", 2)
    jax.tree.map(np.testing.assert_array_equal, env.rung_tasks("asked", 6), whole)
    np.testing.assert_array_equal(two.objects, whole.objects)
    np.testing.assert_array_equal(two.asked[:, :2], whole.asked[:, :2])
    assert (two.asked[:, 2:] == -1).all()
    task = jax.tree.map(lambda x: jnp.asarray(x[5]), two)
    targets = jax.vmap(lambda key: env.reset(key, task)[0].target)(jax.random.split(jax.random.key(0), 50))
    assert set(targets.tolist()) == set(two.asked[5, :2].tolist())
    assert make(EnvConfig("gridobj-9", options={"asked": 3})).rungs == {"asked": (1, 2, 3)}
    assert make(EnvConfig("gridobj-9", options={"asked": "1,2"})).rungs == {"asked": ()}
    assert repeated(env, 2).rungs == env.rungs and repeated(env, 2).rung_tasks("asked", 2).asked.shape == (10_000, 6)


def test_xland_goals_without_a_direction_are_a_rung_of_the_same_shapes():
    pytest.importorskip("xminigrid")
    env = make("xland-trivial")
    curriculum = CurriculumConfig("goals")
    rungs, tasks = cur.rungs_of(curriculum, env)
    anyside, trivial = make("xland-anyside").tasks("train"), env.tasks("train")
    assert rungs == ("goals", ("anyside", "trivial"), (num_tasks(anyside), num_tasks(trivial)))
    expected = jax.tree.map(lambda a, b: np.concatenate([a, b]), anyside, trivial)
    jax.tree.map(np.testing.assert_array_equal, tasks, expected)
    held_out = {goal.tobytes() for goal in np.asarray(env.tasks("test").goal)}
    assert not held_out & {goal.tobytes() for goal in np.asarray(tasks.goal)}


@pytest.fixture(scope="module")
def config(tiny):
    """Return the config of four trials of four updates on five-armed bandits."""
    return tiny(env="probe-bandit", total_steps=1024, curriculum=ARMS)


class Killed(BaseException):
    """Represents SIGKILL: no cleanup runs after it."""


class Dying(JsonLines):
    """Fails before the record of update `update`."""

    def __init__(self, folder, env_steps, update):
        super().__init__(folder, env_steps)
        self._update = update

    def log(self, record, clock):
        if self._update is not None and record["env_steps"] == self._update * PER_UPDATE:
            raise Killed
        super().log(record, clock)


def go(setup, folder, *, resume=False, update=None):
    return train(setup, folder, lambda steps: Dying(folder, steps, update), resume=resume)


def outcome(setup, folder):
    return arrays(restore(setup, folder / "checkpoints")[0]), (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2])
def whole(request, config, tmp_path_factory):
    """Return (setup, folder) of an uninterrupted run on one and on two devices."""
    setup = prepare(dataclasses.replace(config, devices=request.param), make("probe-bandit"))
    folder = tmp_path_factory.mktemp(f"devices-{request.param}")
    assert go(setup, folder).finished
    return setup, folder


@pytest.mark.slow
def test_metrics_hold_the_rung_its_gains_and_the_shares_of_the_trials(whole):
    setup, folder = whole
    lines, state = read_lines(folder / "metrics.jsonl"), restore(setup, folder / "checkpoints")[0].curriculum
    rungs = [line["curriculum/rung"] for line in lines]
    assert len(lines) == 16 and rungs[:4] == [1.0] * 4 and rungs[4:8] == [2.0] * 4 and rungs == sorted(rungs)
    for line in lines:
        shares = [line[f"curriculum/share/{value}"] for value in ARMS.values]
        assert sum(shares) == 1 and shares[int(line["curriculum/rung"]) :] == [0] * (3 - int(line["curriculum/rung"]))
        assert all(4 * share % 1 == 0 for share in shares)
    assert "curriculum/gain/2" not in lines[3] and "curriculum/gain/2" in lines[4]
    assert int(state.trials[0]) == 4 and float(lines[-1]["curriculum/gain/2"]) != 0
    assert "curriculum/error/2" not in lines[3] and "curriculum/error/2" in lines[4] and state.variance[0] > 0
    console = Console(1024).line(lines[5], {})
    assert "rung 2" in console


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(whole, tmp_path):
    setup, folder = whole
    for update in (6, 13):
        with pytest.raises(Killed):
            go(setup, tmp_path, resume=True, update=update)
    state, progress = restore(setup, tmp_path / "checkpoints")
    assert progress.env_steps == 12 * PER_UPDATE and int(state.curriculum.rung) > 0
    go(setup, tmp_path, resume=True)
    assert outcome(setup, tmp_path) == outcome(setup, folder)


@pytest.mark.slow
def test_two_devices_share_the_state_and_split_the_running_trials(whole):
    setup, folder = whole
    state = restore(setup, folder / "checkpoints")[0].curriculum
    shapes = {x.addressable_shards[0].data.shape for x in jax.tree.leaves(state.running)}
    assert shapes == {(4 // setup.config.devices,)} and state.gain.addressable_shards[0].data.shape == (3,)


@pytest.mark.slow
def test_gains_equal_those_of_the_recorded_trials(config):
    """The rewards of whole trials, in an order that no update has shuffled, give the same gains."""
    ppo = dataclasses.replace(config.ppo, shuffle=False)
    setup = prepare(dataclasses.replace(config, ppo=ppo), make("probe-bandit"))
    chunk, state = compile_chunk(setup), initial_state(setup)
    for _ in range(3):
        state, _ = chunk(state)
    running = jax.device_get(state.curriculum.running)
    reward = np.asarray(state.trajectory.reward[:, :48]).reshape(4, 12, 4).sum(-1)  # by episode, four pulls each
    np.testing.assert_array_equal(running.episodes, 12)
    np.testing.assert_allclose(running.first, reward[:, 0])
    np.testing.assert_allclose(running.later, reward[:, 2:].sum(1))
    after, _ = chunk(state)
    assert int(after.curriculum.trials[0]) == 4 and int(after.curriculum.rung) == 1
    assert (np.asarray(after.trial.task) < np.asarray(ARMS.values)[np.asarray(after.curriculum.running.rung)]).all()
    for _ in range(4):
        after, _ = chunk(after)
    assert chunk._cache_size() == 1


def test_without_a_curriculum_nothing_is_added(tiny):
    env = make("probe-bandit")
    setup = make_setup(tiny(env="probe-bandit"), env)
    assert setup.rungs is None and num_tasks(setup.tasks) == 5
    assert jax.eval_shape(lambda: init_state(setup)).curriculum is None


@pytest.mark.slow
def test_runs_of_one_program_have_their_own_curricula(config):
    setups = [prepare(dataclasses.replace(config, seed=seed, chunk="trial"), make("probe-bandit")) for seed in (0, 1)]
    assert common_config(setups[0].config).curriculum == ARMS
    population = Population(setups, 1, per_device=2)
    states, values = population.stack([population.initial_state(setup) for setup in setups]), population.values(setups)
    chunk = compile_chunk(setups[0])
    single = [initial_state(setup) for setup in setups]
    for _ in range(3):
        states, metrics = population.step(states, values)
        single = [chunk(state)[0] for state in single]
    for slot in (0, 1):
        found, expected = population.state_of(states, slot).curriculum, single[slot].curriculum
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, expected)
    assert metrics["curriculum/rung"].shape == (2, 4)


def test_values_on_the_command_line_and_in_json():
    line = ["gridobj-9", "--curriculum.option", "asked", "--curriculum.values", "1", "3", "6"]
    assert parse_train(line)[0].config.curriculum == CurriculumConfig("asked", (1, 3, 6))
    line = ["xland-trivial", "--curriculum.option", "goals", "--curriculum.values", "anyside", "trivial"]
    config = parse_train(line)[0].config
    assert config.curriculum.values == ("anyside", "trivial") and from_json(to_json(config)) == config
    assert from_json("{}").curriculum == CurriculumConfig()
