"""Houses: their contents, distances, and the task ExtObjNav."""

import dataclasses
import functools
import heapq
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from houses import COUNT, TINY, built, houses
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relic_jax.config import EnvConfig, Options
from relic_jax.environment.base import num_tasks
from relic_jax.environment.trials import Trials
from relic_jax.envs.firstperson import house_walk
from relic_jax.envs.firstperson.geodesic import distance_at, distances, distances_around, interpolated
from relic_jax.envs.firstperson.house_plan import CATEGORIES, CELL, HouseConfig
from relic_jax.envs.firstperson.house_walk import DOWN, FORWARD, LEFT, RIGHT, STOP, UP, slide
from relic_jax.envs.firstperson.houses import PRESETS
from relic_jax.envs.firstperson.paint import FIRST_SOLID
from relic_jax.envs.firstperson.plan import touches_walls
from relic_jax.envs.firstperson.renderer import render_objects
from relic_jax.envs.firstperson.scene import RoomTooSmallError, TooManyObjectsError
from relic_jax.envs.registry import make

BUILT = built()


def dijkstra(free, sources):
    """Shortest paths in plain Python. free: bool [n, m]; sources: float [n, m], infinite for other cells."""
    best = np.full(free.shape, np.inf)
    heap = [(sources[cell], cell) for cell in np.ndindex(free.shape) if free[cell] and np.isfinite(sources[cell])]
    heapq.heapify(heap)
    is_free = lambda x, z: 0 <= x < free.shape[0] and 0 <= z < free.shape[1] and free[x, z]  # noqa: E731
    while heap:
        length, (x, z) = heapq.heappop(heap)
        if length >= best[x, z]:
            continue
        best[x, z] = length
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            if (i or j) and is_free(x + i, z + j) and is_free(x + i, z) and is_free(x, z + j):
                heapq.heappush(heap, (length + CELL * math.hypot(i, j), (x + i, z + j)))
    return best


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), share=st.floats(0.0, 0.5))
def test_distances_are_dijkstras(seed, share):
    random = np.random.RandomState(seed)
    free = random.uniform(size=(9, 11)) >= share
    sources = np.where(random.uniform(size=(2, 9, 11)) < 0.05, random.uniform(size=(2, 9, 11)), np.inf)
    ours = jax.jit(lambda f, s: distances(f, s, CELL))(free, sources.astype(np.float32))
    np.testing.assert_allclose(ours, [dijkstra(free, s) for s in sources], rtol=1e-5)


def fast_marching(free, sources):
    """The eikonal equation in plain Python: cells are fixed in the order of their distances (Sethian 1996)."""
    best = np.where(free, sources, np.inf)
    inside = np.pad(best, 1, constant_values=np.inf)
    heap = [(best[cell], cell) for cell in np.ndindex(free.shape) if np.isfinite(best[cell])]
    heapq.heapify(heap)
    while heap:
        length, (x, z) = heapq.heappop(heap)
        if length > inside[x + 1, z + 1]:
            continue
        for i, j in ((x, z + 1), (x + 2, z + 1), (x + 1, z), (x + 1, z + 2)):
            if not (0 < i <= free.shape[0] and 0 < j <= free.shape[1] and free[i - 1, j - 1]):
                continue
            near, far = sorted((inside[[i - 1, i + 1], j].min(), inside[i, [j - 1, j + 1]].min()))
            new = near + CELL
            if far < new:  # (d - near)² + (d - far)² = CELL²
                new = (near + far + math.sqrt(2 * CELL**2 - (far - near) ** 2)) / 2
            if new < inside[i, j] - 1e-9:
                inside[i, j] = new
                heapq.heappush(heap, (new, (i - 1, j - 1)))
    return inside[1:-1, 1:-1]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), share=st.floats(0.0, 0.4))
def test_distances_around_a_place_are_those_of_fast_marching(seed, share):
    random = np.random.RandomState(seed)
    free = random.uniform(size=(14, 13)) >= share
    sources = np.where(random.uniform(size=(14, 13)) < 0.02, random.uniform(size=(14, 13)), np.inf)
    x, z = random.randint(14), random.randint(13)
    free[x, z] = True
    found = around(free, sources.astype(np.float32), (np.array([x, z], np.float32) + 0.3) * CELL)
    expected = fast_marching(free, sources)
    near = expected <= expected[x, z] + 1.25
    np.testing.assert_allclose(found[near], expected[near], rtol=1e-3)
    assert (found >= expected - 1e-3).all()


def test_distances_around_a_place_are_nearly_straight_lines():
    sources = np.full((24, 24), np.inf, np.float32)
    sources[3, 4] = 0.0
    found = around(np.ones((24, 24), bool), sources, jnp.array([5.0, 5.0]))
    straight = CELL * np.hypot(*(np.indices((24, 24)) - np.array([3, 4])[:, None, None]))
    assert (found >= straight - 1e-4).all() and (found <= 1.05 * straight + CELL).all()


around = jax.jit(lambda free, sources, position: distances_around(free, sources, CELL, position))


def test_distances_of_a_batch_are_those_of_each_place():
    random = np.random.RandomState(0)
    free = random.uniform(size=(12, 11)) >= 0.2
    sources = np.where(random.uniform(size=(5, 12, 11)) < 0.05, 0.0, np.inf).astype(np.float32)
    places = (np.argwhere(free)[:5] + 0.3).astype(np.float32) * CELL
    for batched, axes in ((sources, (None, 0, 0)), (sources[0], (None, None, 0))):
        found = jax.vmap(around, axes)(jnp.asarray(free), batched, places)
        expected = [around(free, x, p) for x, p in zip(np.broadcast_to(batched, sources.shape), places, strict=True)]
        np.testing.assert_array_equal(found, np.stack(expected))


def test_distance_between_centres_is_over_the_best_of_the_four_around():
    field = jnp.full((4, 4), jnp.inf).at[1, 1].set(1.0).at[2, 1].set(0.5)
    at = lambda x, z: float(distance_at(field, jnp.array([x, z]), CELL))  # noqa: E731
    assert at(1.5 * CELL, 1.5 * CELL) == pytest.approx(0.75)  # 0.25 m on to the nearer one's neighbour
    assert at(2.5 * CELL, 1.5 * CELL) == pytest.approx(0.5)
    assert at(2 * CELL, 1.5 * CELL) == pytest.approx(0.5 + CELL / 2)
    assert at(2.5 * CELL, 1.5 * CELL + 0.1) == pytest.approx(0.6)
    assert at(0.1, 0.1) == math.inf


def test_interpolated_distances_are_linear_and_skip_centres_without_one():
    field = jnp.add.outer(jnp.arange(5.0), 2 * jnp.arange(5.0)) * CELL
    at = lambda field, x, z: float(interpolated(field, jnp.array([x, z]), CELL))  # noqa: E731
    assert at(field, 0.5, 0.6) == pytest.approx((0.5 - CELL / 2) + 2 * (0.6 - CELL / 2), abs=1e-5)
    walled = field.at[2].set(jnp.inf)
    assert at(walled, 0.5, 0.625) == pytest.approx(float(field[1, 2]), abs=1e-5)
    assert at(jnp.full((5, 5), jnp.inf), 0.5, 0.6) == math.inf


def test_a_step_in_the_open_is_a_quarter_metre_and_walls_are_slid_along():
    free = np.ones((8, 8), bool)
    free[6] = False  # a wall at 1.5 m ≤ x < 1.75 m
    step = lambda position, angle: slide(  # noqa: E731
        jnp.asarray(free), jnp.array(position), jnp.array([math.cos(angle), -math.sin(angle)])
    )
    np.testing.assert_allclose(
        step((0.6, 1.0), 0.3), [0.6 + 0.25 * math.cos(0.3), 1.0 - 0.25 * math.sin(0.3)], rtol=1e-6
    )
    x, z = step((1.3, 1.0), 0.5)
    assert x == pytest.approx(1.5 - house_walk.RADIUS, abs=2e-3) and z == pytest.approx(1.0 - 0.25 * math.sin(0.5))
    np.testing.assert_allclose(step((0.2, 0.2), math.pi), [house_walk.RADIUS + 1e-3, 0.2], atol=1e-6)  # the outer wall


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
@example(seed=20193701)  # rounding decides where a step ends
def test_the_agent_is_never_inside_anything(seed):
    random = np.random.RandomState(seed)
    free = random.uniform(size=(10, 10)) < 0.7
    free[5, 5] = True
    places = walk(jnp.asarray(free), random.uniform(-np.pi, np.pi, 60).astype(np.float32))
    for place in np.asarray(places, float):
        for corner in itertools.product((-house_walk.RADIUS, house_walk.RADIUS), repeat=2):
            cell = np.floor((place + corner) / CELL).astype(int)
            assert (cell >= 0).all() and (cell < 10).all() and free[tuple(cell)]
    steps = np.diff(np.asarray(places), axis=0)
    assert np.linalg.norm(steps, axis=1).max() <= 0.25 + 1e-5


@jax.jit
def walk(free, angles):
    def step(position, angle):
        position = slide(free, position, jnp.stack([jnp.cos(angle), jnp.sin(angle)]))
        return position, position

    return jax.lax.scan(step, jnp.array([5.5, 5.5]) * CELL, angles)[1]


def test_houses_are_whole_and_everything_in_them_can_be_reached():
    found = houses()
    assert found.present.all() and found.reachable.all()
    np.testing.assert_array_equal(found.start_count, found.free.sum((1, 2)))  # no free cell is cut off
    for index in range(COUNT):
        cells = found.starts[index][: found.start_count[index]]
        assert found.free[index].reshape(-1)[cells].all() and len(set(cells.tolist())) == len(cells)
        assert len(set(found.categories[index].tolist())) == 4


def test_houses_have_rooms_and_doors():
    for index, free in enumerate(houses().free):
        assert 0.5 < free.mean() < 0.95
        pieces = houses().walls[index]
        lengths = np.linalg.norm(pieces[:, 1] - pieces[:, 0], axis=-1)
        assert (lengths > 0).sum() > 4 + 6  # more than one inner wall
        # A door is one meter wide. The last two of the six pieces of a wall are its jambs, one cell deep.
        jambs = lengths[:-4].reshape(-1, 6)[:, 4:]
        assert np.isin(np.round(jambs, 4), (0, CELL)).all()


def test_walls_are_drawn_where_one_cannot_walk():
    """A circle smaller than a cell touches no wall from a free cell; a larger one touches the outer wall beside it."""
    centres = (np.stack(np.meshgrid(np.arange(24), np.arange(24), indexing="ij"), -1) + 0.5) * CELL
    touch = jax.jit(jax.vmap(touches_walls, in_axes=(0, None, None)))
    for index in range(4):
        free, walls = houses().free[index], houses().walls[index]
        flat = centres.reshape(-1, 2).astype(np.float32)
        assert not np.asarray(touch(flat, 0.49 * CELL, walls)).reshape(24, 24)[free].any()
        edge = np.ones((24, 24), bool)
        edge[1:-1, 1:-1] = False
        assert np.asarray(touch(flat, 0.51 * CELL, walls)).reshape(24, 24)[edge].all()


def test_objects_stand_apart_in_cells_of_their_own():
    found = houses()
    for free, place in zip(found.free, found.place, strict=True):
        corner = np.round(place / CELL).astype(int) - 1
        blocks = [set(itertools.product(range(x, x + 2), range(z, z + 2))) for x, z in corner]
        assert len(set().union(*blocks)) == 4 * len(blocks)
        assert not any(free[cell] for block in blocks for cell in block)


def test_distances_of_a_house_are_dijkstras_to_its_objects():
    found = houses()
    centres = (np.arange(24) + 0.5) * CELL
    for index, category in ((0, 0), (1, 3)):
        sources = np.full((24, 24), np.inf)
        for x, z in found.place[index][2 * category : 2 * category + 2]:
            near = np.maximum(np.abs(centres - x)[:, None], np.abs(centres - z)[None]) < 2 * CELL
            sources = np.where(near, np.minimum(sources, np.hypot(centres[:, None] - x, centres[None] - z)), sources)
        np.testing.assert_allclose(found.distance[index, category], dijkstra(found.free[index], sources), rtol=1e-5)


def test_an_episode_starts_in_the_house_of_its_task():
    state = jax.device_get(jax.jit(TINY.start)(jax.random.key(5), jnp.int32(TINY.tasks("test")[2])))
    jax.tree.map(np.testing.assert_array_equal, state.house, jax.tree.map(lambda x: x[2], houses()))
    assert state.distance == state.start_distance > 0


def test_splits_are_seeds_and_seeds_are_houses():
    for env in PRESETS.values():
        train, test = env.tasks("train"), env.tasks("test")
        assert (num_tasks(train), num_tasks(test)) == (10_000, 1000) and not set(train.tolist()) & set(test.tolist())
    assert len(np.unique(houses().free.reshape(COUNT, -1), axis=0)) == COUNT


# --- the task ---------------------------------------------------------------------------------------------------------


@functools.cache
def played():
    """Random steps in trials: TrialStates before each step [T + 1, B], actions [T, B], TrialSteps [T, B]."""
    trials, steps = Trials(dataclasses.replace(BUILT, horizon=30)), 50
    tasks = jax.tree.map(jnp.asarray, houses())

    def run(key):
        start = trials.reset(key, tasks)

        def step(state, key):
            # Stops are rare, and most steps go forward.
            probabilities = jnp.array([0.03, 0.55, 0.15, 0.15, 0.06, 0.06])
            action = jax.random.choice(key, 6, (COUNT,), p=probabilities).astype(jnp.int32)
            next_state, result = trials.step(key, state, action)
            return next_state, (next_state, action, result)

        _, (states, actions, results) = jax.lax.scan(step, start, jax.random.split(key, steps))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, states), actions, results

    return jax.device_get(jax.jit(run)(jax.random.key(3)))


@pytest.mark.slow
def test_rewards_are_the_decrease_of_the_distance():
    states, actions, results = played()
    before, after, ended = states.env.distance[:-1], states.env.distance[1:], results.terminated | results.truncated
    going_on = ~ended
    np.testing.assert_allclose(results.reward[going_on], (before - after - 0.001)[going_on], atol=1e-5)
    np.testing.assert_array_equal(results.terminated, actions == STOP)
    assert results.truncated.any() and not (results.truncated & results.terminated).any()
    last = results.truncated  # the rewards of an episode sum to the decrease of the distance
    expected = states.env.start_distance[:-1] - results.metrics["distance"] - 0.001 * 30
    np.testing.assert_allclose(results.episode_return[last], expected[last], atol=1e-4)


@pytest.mark.slow
def test_rewards_can_end_where_a_stop_is_a_success():
    states, actions, results = played()
    env = dataclasses.replace(BUILT, horizon=30, reward_to="reach")
    before = jax.tree.map(lambda x: x[:-1].reshape(-1, *x.shape[2:]), states.env)
    _, found = jax.jit(jax.vmap(lambda state, action: env.transition(None, state, action, None)))(
        before, actions.ravel()
    )
    after = np.where(results.terminated, states.env.distance[:-1], states.env.distance[1:]).ravel()
    inside = (before.distance < 2) & (after < 2)
    outside = (before.distance > 2) & (after > 2)
    going_on = ~(results.terminated | results.truncated).ravel()
    assert (inside & going_on).sum() > 20 and (outside & going_on).sum() > 20
    np.testing.assert_allclose(found.reward[inside & going_on], -0.001, atol=1e-6)
    plain = results.reward.ravel()
    np.testing.assert_array_equal(found.reward[outside & going_on], plain[outside & going_on])
    np.testing.assert_array_equal(found.reward[~going_on & found.terminated], plain[~going_on & found.terminated])
    assert make(EnvConfig("house-objnav-small", options=Options(reward_to="reach"))).reward_to == "reach"


def test_stops_are_judged_by_the_picture_before_them():
    states, _, results = played()
    seen, stopped = states.env.pixels[:-1] >= 10, results.terminated
    np.testing.assert_array_equal(results.success[stopped], seen[stopped])
    expected = np.where(seen, 2.0, 0.0) - 0.001
    np.testing.assert_allclose(results.reward[stopped], expected[stopped], atol=1e-5)
    assert seen[stopped].any() and not seen[stopped].all()


def test_pixels_are_counted_inside_the_border_and_within_two_metres():
    states, _, _ = played()
    chosen = [(t, b) for t in range(0, 50, 7) for b in range(COUNT)]
    some = jax.tree.map(lambda x: np.stack([x[i] for i in chosen]), states.env)
    view = jax.jit(jax.vmap(lambda s: render_objects(TINY.scene(s.house), TINY.camera(s), TINY.lens)))(some)
    counts = []
    for k in range(len(chosen)):
        inside = np.asarray(view.objects[k])[5:-5, 5:-5]
        objects = [2 * some.target[k], 2 * some.target[k] + 1]
        near = [np.linalg.norm(some.house.place[k][o] - some.position[k]) <= 2 for o in objects]
        counts.append(
            max((inside == FIRST_SOLID + 3 + o).sum() if n else 0 for o, n in zip(objects, near, strict=True))
        )
    np.testing.assert_array_equal(some.pixels, counts)
    assert max(counts) >= 10


def test_episodes_start_anew_in_the_same_house():
    states, _, results = played()
    for leaf in jax.tree.leaves(states.env.house):
        assert (leaf == leaf[:1]).all()
    opened = states.first[1:]
    np.testing.assert_array_equal(opened, results.terminated | results.truncated)
    np.testing.assert_array_equal(states.env.position[1:][opened], states.env.start[1:][opened])
    assert (states.env.step[1:][opened] == 0).all() and (states.observation["gps"][1:][opened] == 0).all()
    assert len(np.unique(states.env.target)) == 4


def test_observations_are_target_and_way_from_the_start():
    states, _, _ = played()
    env, seen = states.env, states.observation
    categories = np.take_along_axis(env.house.categories, env.target[..., None], -1)[..., 0]
    np.testing.assert_array_equal(seen["target"].argmax(-1), categories)
    np.testing.assert_array_equal(seen["target"].sum(-1), 1)
    assert seen["target"].shape[-1] == CATEGORIES == 20
    np.testing.assert_allclose(
        np.linalg.norm(seen["gps"], axis=-1), np.linalg.norm(env.position - env.start, axis=-1), atol=1e-5
    )
    ahead = np.stack([np.cos(env.heading), -np.sin(env.heading)], -1)
    np.testing.assert_allclose(seen["gps"][..., 0], ((env.position - env.start) * ahead).sum(-1), atol=1e-5)


def test_metrics_are_spl_and_soft_spl():
    states, _, results = played()
    env, ended = states.env, results.terminated | results.truncated
    shortest = env.start_distance[:-1]
    moved = np.linalg.norm(env.position[1:] - env.position[:-1], axis=-1) * ~ended
    path = env.path[:-1] + moved  # a step that ends an episode by stopping does not move
    share = shortest / np.maximum(shortest, path)
    stopped = results.terminated
    np.testing.assert_allclose(results.metrics["spl"][stopped], (share * results.success)[stopped], rtol=1e-4)
    soft = np.maximum(0, 1 - results.metrics["distance"] / shortest) * share
    np.testing.assert_allclose(results.metrics["soft_spl"][stopped], soft[stopped], rtol=1e-4, atol=1e-6)
    assert (results.metrics["spl"][results.truncated] == 0).all()


def test_actions_turn_and_look_by_thirty_degrees_within_limits():
    task = jnp.int32(10_000)
    state = jax.tree.map(lambda x: jnp.asarray(x[0, 0]), played()[0].env)
    act = lambda state, action: TINY.transition(jax.random.key(0), state, jnp.int32(action), task)[0]  # noqa: E731
    assert [int(act(state, a).turns - state.turns) for a in (FORWARD, LEFT, RIGHT)] == [0, 1, -1]
    pitches = []
    for action in (UP, UP, UP, DOWN, DOWN, DOWN, DOWN, DOWN):
        state = act(state, action)
        pitches.append(int(state.pitch))
    assert pitches == [1, 2, 2, 1, 0, -1, -2, -2]
    assert float(TINY.camera(state).rise) == pytest.approx(-math.tan(math.radians(60)), rel=1e-5)


def test_the_expert_finds_everything_on_nearly_the_shortest_way():
    def episode(key, task):
        state, _ = BUILT.reset(key, task)

        def step(carry, key):
            state, done, metrics = carry
            action = BUILT.optimal_action(state, task)
            state, timestep = BUILT.step(key, state, action, task)
            ends = timestep.terminated & ~done
            metrics = jax.tree.map(lambda new, old: jnp.where(ends, new, old), BUILT.metrics(state), metrics)
            return (state, done | timestep.terminated, metrics), None

        nothing = jax.tree.map(jnp.zeros_like, BUILT.metrics(state))
        (_, done, metrics), _ = jax.lax.scan(step, (state, jnp.zeros((), bool), nothing), jax.random.split(key, 80))
        return done, metrics

    done, metrics = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(1), COUNT), houses())
    assert done.all()
    assert metrics["spl"].mean() >= 0.95


# --- houses that cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"cells": 12}, RoomTooSmallError, "cells is 12; allowed: 17 or more, for 4 rooms"),
        ({"cells": 20, "furniture": 40}, RoomTooSmallError, "cells is 20"),
        ({"categories": 21}, TooManyObjectsError, "categories is 21; allowed: 1 to 20"),
        ({"categories": 0}, TooManyObjectsError, "categories is 0"),
        ({"categories": 20, "instances": 3}, TooManyObjectsError, "allowed: at most slots = 40"),
    ],
)
def test_impossible_houses_are_refused_by_name(options, error, text):
    with pytest.raises(error, match=text):
        HouseConfig(**options)


def test_presets_are_registered():
    for name, rooms in (("small", 4), ("medium", 8), ("large", 16)):
        env = make(f"house-objnav-{name}")
        assert env.name == f"house-objnav-{name}" and 2**env.config.splits == rooms and env.horizon == 500
