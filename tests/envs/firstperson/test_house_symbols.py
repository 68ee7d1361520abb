"""The view "symbols": visibility and free distances against the renderer and a march through cells."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from houses import COUNT, TINY, built, houses
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.environment.trials import Trials
from relic_jax.envs.firstperson import house_symbols
from relic_jax.envs.firstperson.columns import in_view, nearest_wall
from relic_jax.envs.firstperson.house_plan import CATEGORIES, CELL
from relic_jax.envs.firstperson.house_walk import STOP
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.paint import DEPTH
from relic_jax.envs.firstperson.renderer import render_objects
from relic_jax.envs.firstperson.scene import Camera

ENV, IMAGES = built(view="symbols", pose="house"), built(pose="house")
STARTS = 12


@functools.cache
def started():
    """States and observations of several episodes in each house, [STARTS, COUNT]."""

    def start(key, house):
        state = ENV.start(key, house)
        # Away from the centers of cells, from which lines of sight to objects graze corners.
        return ENV.observe(dataclasses.replace(state, position=state.position + jnp.array([0.013, -0.007])), house)

    keys = jax.random.split(jax.random.key(0), (STARTS, COUNT))
    return jax.device_get(jax.jit(jax.vmap(jax.vmap(start), (0, None)))(keys, jax.tree.map(jnp.asarray, houses())))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0))
@functools.partial(jax.vmap, in_axes=(None, 0))
def _seen(house, state):
    """What the renderer and this module see of a state."""
    camera = TINY.camera(state)
    forward, right = in_view(house.place, camera)
    # The renderer's inverse distance of the nearest wall in the column of each object.
    wall = nearest_wall(TINY.scene(house).walls, camera, right / forward, DEPTH, textured=False).near
    ahead = (forward > 0) & (jnp.abs(right) <= forward)
    objects = render_objects(TINY.scene(house), camera, Lens(128, 128, 90.0, layers=30, solids=30)).objects
    index = jnp.arange(TINY.config.objects) + 2 + TINY.config.furniture
    pixels = (objects.reshape(-1, 1) == index).sum(0)
    return house_symbols.sightings(house, camera, TINY.lens), ahead & (wall * forward < 1), pixels


@functools.cache
def seen():
    """`_seen` of all states, [COUNT, STARTS, K]."""
    states = jax.tree.map(lambda x: jnp.swapaxes(jnp.asarray(x), 0, 1), started()[0])
    return jax.device_get(_seen(jax.tree.map(jnp.asarray, houses()), states))


@pytest.mark.slow
def test_objects_in_view_are_those_in_front_of_the_renderers_walls():
    sightings, expected, _ = seen()
    np.testing.assert_array_equal(sightings.visible, expected)
    assert 0.1 < expected.mean() < 0.5


@pytest.mark.slow
def test_images_agree_but_for_what_furniture_and_edges_cover():
    sightings, _, pixels = seen()
    assert (pixels[~sightings.visible] > 0).mean() < 0.03  # a side of an object around a corner
    far = sightings.visible & (sightings.distance > 1.7)  # nearer objects can be below the image
    assert (pixels[far] > 0).mean() > 0.93


def test_walls_hide_by_hand():
    walls = jnp.array([[[1.0, -1.0], [1.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])  # x = 1, z from −1 to 0.5
    camera = Camera(jnp.zeros(2), jnp.array([1.0, 0.0]))  # looks along x; z is to the right
    points = jnp.array([[2.0, 0.0], [2.0, 1.1], [0.9, 0.0], [2.0, -1.5], [-1.0, 0.0], [1.0, 1.1], [2.0, 0.9]])
    found = house_symbols.points_in_view(points, walls, camera, Lens(64, 64, 90.0))
    np.testing.assert_array_equal(found, [False, True, True, False, False, False, False])


def test_free_distances_are_those_of_a_march_through_the_cells():
    states, observations = started()
    for start in range(2):
        for index in range(COUNT):
            position, angle = states.position[start, index], states.heading[start, index]
            found = observations["free"][start, index].reshape(len(house_symbols.RAYS), -1)
            for ray, meters in zip(house_symbols.RAYS, found @ np.array(house_symbols.FREE), strict=True):
                way = np.array([np.cos(angle + ray), -np.sin(angle + ray)])
                marks = np.arange(0.0, 9.0, 0.001)
                cells = np.floor((position + marks[:, None] * way) / CELL).astype(int)
                inside = ((cells >= 0) & (cells < 24)).all(1)
                free = inside & houses().free[index][tuple(np.clip(cells, 0, 23).T)]
                assert meters == pytest.approx(min(marks[free.argmin()], house_symbols.FREE[-1]), abs=0.005)


def test_observations_name_the_nearest_object_of_each_category():
    states, observations = started()
    sightings, _, _ = seen()
    found = 0
    for start in range(STARTS):
        for index in range(COUNT):
            observation = {name: x[start, index] for name, x in observations.items()}
            assert set(observation) == set(ENV.observation_spec)
            for slot, category in enumerate(houses().categories[index]):
                two = [k for k in (2 * slot, 2 * slot + 1) if sightings.visible[index, start, k]]
                assert observation["in_view"][category] == bool(two)
                assert observation["in_reach"][category] == bool(two and observation["distance"][category] <= 2)
                if two:
                    found += 1
                    offsets = houses().place[index][two] - states.position[start, index]
                    nearest = offsets[np.linalg.norm(offsets, axis=1).argmin()]
                    angle = states.heading[start, index] + observation["bearing"][category]
                    ahead = np.array([np.cos(angle), -np.sin(angle)]) * observation["distance"][category]
                    np.testing.assert_allclose(ahead, nearest, atol=1e-4)
            target = observation["target"].argmax()
            bearing, distance = np.split(observation["sighting"], [len(house_symbols.BEARINGS)])
            assert bearing.sum() == distance.sum() == observation["in_view"][target]
            assert bearing @ house_symbols.BEARINGS == pytest.approx(observation["bearing"][target], abs=1e-5)
            near = min(observation["distance"][target], 8.0)
            assert distance @ np.array(house_symbols.DISTANCES) == pytest.approx(near, abs=1e-5)
            heading, directions = observation["heading"], 2 * np.pi * np.arange(12) / 12
            points = np.flatnonzero(observation["compass"])
            assert len(points) <= 2 and observation["compass"].sum() == pytest.approx(1)
            along = observation["compass"] @ np.exp(1j * directions)
            np.testing.assert_allclose(along / abs(along), heading[0] + 1j * heading[1], atol=0.02)
            absent = np.setdiff1d(np.arange(CATEGORIES), houses().categories[index])
            assert not any(observation[name][absent].any() for name in ("in_view", "in_reach", "distance", "bearing"))
    assert found > 100


@settings(deadline=None)  # the first call compiles
@given(st.floats(-3, 12, width=32))
def test_interpolated_numbers_are_the_weighted_means_of_neighboring_points(x):
    grid = np.array(house_symbols.DISTANCES)
    weights = np.asarray(house_symbols.two_hot(jnp.float32(x), house_symbols.DISTANCES))
    used = np.flatnonzero(weights)
    assert len(used) <= 2 and np.ptp(used) <= 1 and (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights @ grid == pytest.approx(np.clip(x, 0, 8), abs=1e-5)


def test_the_compass_is_continuous_at_north():
    found = np.asarray(house_symbols.compass(jnp.radians(jnp.array([-15.0, 0.0, 15.0, 345.0, 360.0]))))
    expected = np.zeros((5, 12))
    expected[[0, 0, 1, 2, 2, 3, 3, 4], [11, 0, 0, 0, 1, 11, 0, 0]] = 0.5
    expected[[1, 4], 0] = 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_spec_and_range():
    spec, (low, high) = ENV.observation_spec, ENV.observation_range
    _, observations = started()
    for name, values in observations.items():
        assert values.shape[2:] == spec[name].shape and values.dtype == spec[name].dtype
        assert (values >= low[name] - 1e-5).all() and (values <= high[name] + 1e-5).all()
    assert ENV.action_names == ("stop", "forward", "turn left", "turn right") and ENV.action_space.n == 4


def test_a_stop_is_judged_by_what_is_in_view():
    states, _ = started()
    sightings, _, _ = seen()
    for index in range(COUNT):
        two = 2 * states.target[:, index, None] + np.arange(2)
        near = np.take_along_axis(sightings.visible[index] & (sightings.distance[index] <= 2), two, 1).any(1)
        np.testing.assert_array_equal(states.pixels[:, index] >= 10, near)
    state = jax.tree.map(lambda x: jnp.asarray(x[0]), states)
    step = jax.vmap(lambda state, house: ENV.transition(jax.random.key(0), state, jnp.int32(STOP), house))
    _, timestep = step(state, jax.tree.map(jnp.asarray, houses()))
    np.testing.assert_array_equal(timestep.reward > 1, state.pixels >= 10)


def test_the_expert_succeeds_without_images():
    trials, tasks = Trials(ENV), jax.tree.map(jnp.asarray, houses())

    def play(key):
        def step(trial, key):
            trial, result = trials.step(key, trial, jax.vmap(ENV.optimal_action)(trial.env, trial.task))
            return trial, (result.terminated | result.truncated, result.success, result.metrics)

        return jax.lax.scan(step, trials.reset(key, tasks), jax.random.split(key, 120))[1]

    ended, success, metrics = jax.device_get(jax.jit(play)(jax.random.key(1)))
    assert ended.any(0).all() and success[ended].all()
    assert metrics["spl"][ended].mean() > 0.95
    assert metrics["steps"][ended].max() < 120
