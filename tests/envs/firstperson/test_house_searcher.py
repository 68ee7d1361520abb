"""The searchers of the houses: their memory, where they go, and the labels of what they recall."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from houses import COUNT, TINY, built, houses

from relic_jax.environment.base import TrialRecord
from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING, play_reference_agents
from relic_jax.environment.trials import Trials
from relic_jax.envs.firstperson.house_plan import CELL
from relic_jax.envs.firstperson.house_searcher import HouseSearcher, _to_parts, parts
from relic_jax.envs.firstperson.house_state import HouseRecord
from relic_jax.envs.firstperson.house_symbols import BEARINGS, DISTANCES
from relic_jax.envs.registry import make
from relic_jax.rl.recordings import record, relabeled

ENV = built(view="symbols", pose="house")
EPISODES = 6


@functools.cache
def played():
    """Episodes of both searchers in all houses."""
    return play_reference_agents(ENV, jax.tree.map(jnp.asarray, houses()), EPISODES)


@pytest.mark.slow
def test_searchers_succeed_and_memory_shortens_their_paths():
    forgetful, remembering = played()[FORGETFUL], played()[REMEMBERING]
    assert forgetful.successes.all() and remembering.successes.all()
    np.testing.assert_array_equal(forgetful.metrics["steps"][:, 0], remembering.metrics["steps"][:, 0])
    for name in (FORGETFUL, REMEMBERING):
        assert played()[name].metrics["spl"].mean() > 0.95  # these houses are tiny
    steps = {name: agent.metrics["steps"][:, 3:].mean() for name, agent in played().items()}
    assert steps[REMEMBERING] < 0.9 * steps[FORGETFUL]


def test_every_object_is_at_a_part():
    found = np.asarray(jax.jit(jax.vmap(lambda house: parts(house, TINY.config)))(houses()))
    for index in range(COUNT):
        corners = np.round(houses().place[index] / CELL).astype(int) - 1
        assert found[index][tuple(corners.T)].all()
        occupied = ~houses().free[index]
        wall = np.ones((24, 24), bool)  # the corners of four free cells are parts, those of four closed ones may be
        for i in range(23):
            for j in range(23):
                block = occupied[i : i + 2, j : j + 2]
                if not block.any():
                    assert found[index, i, j]
                wall[i, j] = block.all() and not found[index, i, j]
        assert wall[:23, :23].any()


def test_sources_are_the_cells_around_unseen_parts():
    unseen = np.random.RandomState(0).uniform(size=(7, 7)) < 0.05
    expected = np.full((8, 8), np.inf)
    for i, j in np.ndindex(8, 8):
        offsets = [np.abs([i - a - 0.5, j - b - 0.5]).max() for a, b in np.argwhere(unseen)]
        nearest = min(offsets)
        expected[i, j] = nearest * CELL * np.sqrt(2) if nearest < 2 else np.inf
    np.testing.assert_allclose(_to_parts(jnp.asarray(unseen)), expected, rtol=1e-6)


def started(index=0):
    house = jax.tree.map(lambda x: jnp.asarray(x[index]), houses())
    return ENV.observe(ENV.start(jax.random.key(2), house), house)[0], house


@pytest.mark.slow
def test_only_the_remembering_searcher_keeps_its_memory():
    state, _ = started()
    for memory, kept in (("episode", False), ("trial", True)):
        searcher = HouseSearcher(ENV, memory)
        before = jax.tree.map(jnp.ones_like, searcher.initial_memory())
        seen, _ = searcher.act(jax.random.key(0), before, state, jnp.array(True), None)
        assert bool(seen.objects.all()) is kept and bool(seen.parts.all()) is kept
        seen, _ = searcher.act(jax.random.key(0), before, state, jnp.array(False), None)
        assert seen.objects.all() and seen.parts.all()


@pytest.mark.slow
def test_a_searcher_that_knows_everything_is_as_fast_as_the_expert():
    searcher = HouseSearcher(ENV, "trial")
    act = jax.jit(lambda seen, state: searcher.action_probabilities(seen, state, jnp.array(False), None))
    step = jax.jit(lambda state, action, house: ENV.step(jax.random.key(0), state, action, house)[0])
    everything = jax.tree.map(jnp.ones_like, searcher.initial_memory())

    def play(choose, state, house):
        while not state.success:
            state = step(state, choose(state, house), house)
            assert state.step < 60
        return int(state.step)

    def searchers_action(state, house):
        del house
        probabilities = np.asarray(act(everything, state)[1])
        best = probabilities > 0
        np.testing.assert_allclose(probabilities[best], 1 / best.sum(), rtol=1e-6)
        return jnp.int32(probabilities.argmax())

    for index in range(3):
        state, house = started(index)
        expert, found = (play(choose, state, house) for choose in (ENV.optimal_action, searchers_action))
        assert abs(found - expert) <= 2
        nothing = dataclasses.replace(everything, objects=jnp.zeros_like(everything.objects))
        assert act(nothing, state)[0].parts.all()


@pytest.mark.slow
@pytest.mark.parametrize("pose", ["house", "dock"])
def test_recall_labels_are_those_of_a_loop_over_what_was_in_reach(pose):
    env = built(view="symbols", pose=pose)
    trials, searcher = Trials(env), HouseSearcher(env, "trial")
    tasks = jax.tree.map(lambda x: jnp.asarray(x[:1]), houses())
    if pose == "dock":
        env_start = env._episode

        class Docked(type(env)):
            def _episode(self, key, house, task):
                del task
                return env_start(key, house, jnp.int32(7))

        env = Docked(**{field.name: getattr(env, field.name) for field in dataclasses.fields(env)})
        trials = Trials(env)
    trial = trials.reset(jax.random.key(0), tasks)
    memory = jax.tree.map(lambda x: x[None], searcher.initial_memory())
    step = jax.jit(trials.step)
    act = jax.jit(jax.vmap(lambda memory, state, first: searcher.act(jax.random.key(0), memory, state, first, None)))
    observations, expected, last = [], [], {}
    low, _ = env.observation_range
    for number in range(150):
        observation = jax.tree.map(lambda x: np.asarray(x[0]), trial.observation)
        state = jax.tree.map(lambda x: np.asarray(x[0]), trial.env)
        for slot, category in enumerate(state.house.categories):
            two = state.house.place[2 * slot : 2 * slot + 2]
            near = (np.linalg.norm(two - state.position, axis=1) <= 2.0).any()
            assert observation["in_reach"][category] <= near
            if observation["in_view"][category] and near and observation["distance"][category] <= 2.0:
                last[category] = observation["gps"]
        place = last.get(observation["target"].argmax())
        expected.append(None if place is None else np.floor(place - low["gps"]).astype(int))
        along = np.split(observation["square"], np.cumsum(env.recall_classes)[:-1])
        np.testing.assert_array_equal([x.argmax() for x in along], np.floor(observation["gps"] - low["gps"]))
        assert observation["square"].sum() == 2
        observations.append(observation)
        memory, action = act(memory, trial.env, trial.first)
        trial, _ = step(jax.random.key(number), trial, action)
    labels, known = env.recall_labels(jax.tree.map(lambda *x: jnp.stack(x), *observations))
    np.testing.assert_array_equal(known, [place is not None for place in expected])
    assert 20 < known.sum() < 150
    for label, place in zip(np.asarray(labels), expected, strict=True):
        assert place is None or (label == place).all()
    assert (labels >= 0).all() and (labels < np.array(env.recall_classes)).all()


def test_relabeled_steps_ask_for_any_category_that_was_in_reach():
    tasks = jax.tree.map(lambda x: jnp.asarray(x[:2]), houses())
    before = record(Trials(ENV), HouseSearcher(ENV, "trial"), jax.random.key(0), tasks, 100, 0.2)
    after = jax.device_get(relabeled(ENV, jax.random.key(1), before))
    old, new = jax.device_get(before.inputs.observation), after.inputs.observation
    for name in old.keys() - {"target", "sighting"}:
        np.testing.assert_array_equal(new[name], old[name])
    target = new["target"].argmax(-1)[..., None]
    bearing, distance = np.split(new["sighting"], [len(BEARINGS)], axis=-1)
    seen, angle, meters = (np.take_along_axis(old[x], target, -1)[..., 0] for x in ("in_view", "bearing", "distance"))
    np.testing.assert_allclose(bearing @ np.array(BEARINGS), angle, atol=1e-5)
    np.testing.assert_allclose(distance @ np.array(DISTANCES), np.minimum(meters, 8), atol=1e-5)
    np.testing.assert_allclose(bearing.sum(-1), seen, atol=1e-6)
    reached = np.maximum.accumulate(old["in_reach"] > 0, axis=1)
    np.testing.assert_array_equal(after.known, reached.any(-1))
    assert np.take_along_axis(reached, target, -1)[after.known].all()
    assert (after.known & (new["target"] != old["target"]).any(-1)).sum() > 50
    assert ENV.can_relabel


def test_recall_needs_sightings_in_a_fixed_frame():
    assert make("house-objnav-medium").recall_classes == ()
    assert dataclasses.replace(TINY, view="symbols").recall_classes == ()
    assert dataclasses.replace(TINY, view="symbols", pose="house").recall_classes == (6, 6)
    assert dataclasses.replace(TINY, view="symbols", pose="dock").recall_classes == (17, 17)
    assert dataclasses.replace(TINY, pose="house").recall_classes == ()


def test_a_map_shows_the_house_of_the_task_and_what_was_in_view():
    env, task = dataclasses.replace(TINY, view="symbols"), TINY.tasks("test")[3]
    house = jax.tree.map(lambda x: x[3], houses())
    in_view = np.zeros((2, 20), np.float32)
    in_view[1, house.categories[2]] = 1
    steps = HouseRecord(np.array([0, 2]), np.array([[1.0, 2.0], [1.5, 2.0]]), *np.zeros((3, 2)))
    trial = TrialRecord({"in_view": in_view}, np.zeros(2), np.zeros(2), np.array([True, True]), task, steps)
    layout = env.trial_map(trial)
    assert layout.position.tolist() == [[1, -2], [1.5, -2]] and layout.asked.tolist() == list(house.categories[[0, 2]])
    np.testing.assert_array_equal(layout.in_view, in_view > 0)
    present = np.flatnonzero(house.present)
    np.testing.assert_allclose(layout.objects, house.place[present] * [1, -1], atol=1e-5)
    np.testing.assert_array_equal(layout.kinds, house.categories[present // TINY.config.instances])
    for points in (layout.objects, layout.walls.reshape(-1, 2)):
        assert (points >= layout.low - 1e-4).all() and (points <= layout.high + 1e-4).all()
    assert dataclasses.replace(TINY, view="image").trial_map(trial) is None
