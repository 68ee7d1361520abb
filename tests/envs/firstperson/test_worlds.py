"""Rooms, floor plans and levels: tasks and splits, collisions, starts, and worlds that cannot be."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.environment.base import TrialRecord, num_tasks, split_hash
from relic_jax.envs.firstperson import level, levels, room
from relic_jax.envs.firstperson.level import Level, LevelState, LevelTask
from relic_jax.envs.firstperson.maze import Maze, maze_plan
from relic_jax.envs.firstperson.plan import Door, Plan, touches_walls
from relic_jax.envs.firstperson.room import OBJECT_RADIUS, Room, RoomState
from relic_jax.envs.firstperson.scene import RoomTooSmallError, UnreachableTargetError
from relic_jax.envs.registry import make

DPT, OPEN = room.PRESETS["miniworld-dpt4"], room.PRESETS["miniworld-open"]
KEY = jax.random.key(0)

# Every published result depends on these splits; a change here is a new version of the preset.
SPLITS = {
    "miniworld-dpt4": (10_000, "c8198117b9a8", 20, "d3cad370dab4"),
    "miniworld-open": (8000, "e772e97fc2a6", 200, "d612a954c98d"),
    "miniworld-fourrooms": (1000, "7aa8465faf8d", 100, "dc1f43d751c8"),
    "miniworld-hallway": (1000, "704196e92475", 100, "243e6611f45d"),
    "miniworld-maze": (1000, "f014e0075f57", 100, "e2bd5dfcc381"),
    "miniworld-oneroom": (1000, "27ca4e19a746", 100, "65c02e543685"),
    "miniworld-tmaze": (1000, "8c06e3705c18", 100, "d164507cab33"),
    "miniworld-wallgap": (1000, "1b08e7c69cb1", 100, "0cff0f7c1ce7"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_frozen(name):
    train, test = make(name).tasks("train"), make(name).tasks("test")
    assert (num_tasks(train), split_hash(train), num_tasks(test), split_hash(test)) == SPLITS[name]


def test_open_layouts_are_held_out_and_differ():
    def layouts(split):
        tasks = OPEN.tasks(split)
        return {tuple(row) for row in tasks.centre.reshape(len(tasks.target), -1).tolist()}

    train, test = layouts("train"), layouts("test")
    assert (len(train), len(test)) == (2000, 50) and not train & test
    assert OPEN.tasks("test").target[:8].tolist() == [0, 1, 2, 3] * 2


def test_open_objects_have_room_and_can_be_told_apart():
    tasks = OPEN.tasks("test")
    assert tasks.centre.min() >= OBJECT_RADIUS and tasks.centre.max() <= 6 - OBJECT_RADIUS
    for a, b in itertools.combinations(range(4), 2):
        assert np.linalg.norm(tasks.centre[:, a] - tasks.centre[:, b], axis=-1).min() > 2 * OBJECT_RADIUS
        assert (tasks.colour[:, a] != tasks.colour[:, b]).all()
    assert set(np.unique(tasks.shape)) == {0, 1, 2} and set(np.unique(tasks.colour)) == set(range(6))


def test_dpt_has_four_tasks_and_its_test_tasks_are_training_tasks():
    train, test = DPT.tasks("train"), DPT.tasks("test")
    np.testing.assert_array_equal(train.centre[8000:8020], test.centre)
    assert (train.colour == train.colour[0]).all() and set(train.target) == {0, 1, 2, 3}
    assert np.ptp(train.centre, axis=0).max() <= OBJECT_RADIUS  # boxes move by centimetres only
    corners = np.array([(0, 0), (6, 0), (6, 6), (0, 6)])
    assert np.abs(train.centre - corners).max() < 2 * OBJECT_RADIUS + 1e-6


def forward(env, position, turns, task):
    state = RoomState(jnp.array(position, jnp.float32), jnp.int32(turns), jnp.int32(0))
    return env.transition(KEY, state, jnp.int32(2), task)


def test_only_the_walls_and_the_target_block():
    task = jax.tree.map(lambda x: x[0], DPT.tasks("test"))
    task = task.replace(centre=np.array([[4.5, 3], [1.2, 3], [3, 5], [3, 1]], np.float32), target=np.int32(0))
    east, _ = forward(DPT, (3.0, 3.0), 0, task)  # would end 0.8 m from the target: no effect
    assert east.position.tolist() == [3.0, 3.0]
    west, _ = forward(DPT, (2.5, 3.0), 12, task)  # ends 0.6 m from a box that is not the target
    np.testing.assert_allclose(west.position, [1.8, 3.0], atol=1e-6)
    wall, _ = forward(DPT, (3.0, 1.05), 6, task)  # heading 90° is −z: would end at 0.35
    np.testing.assert_allclose(wall.position, [3.0, 1.05])


def test_reward_is_for_being_near_and_facing():
    task = jax.tree.map(lambda x: x[0], DPT.tasks("test"))
    task = task.replace(centre=np.array([[5, 3], [1, 1], [1, 5], [5, 5]], np.float32), target=np.int32(0))

    def reward(x, turns):  # nothing is done, 5 − x metres in front of the target or turned away from it
        state = RoomState(jnp.array([x, 3.0], jnp.float32), jnp.int32(turns), jnp.int32(0))
        return float(DPT.transition(KEY, state, jnp.int32(3), task)[1].reward)

    assert [reward(3.0, turns) for turns in (0, 1, 2, 3, -2, -3, 12)] == [1, 1, 1, 0, 1, 0, 0]
    assert [reward(5 - distance, 0) for distance in (2.0, 2.015, 2.016, 2.1)] == [1, 1, 0, 0]


def test_open_starts_are_random_and_corner_starts_are_not():
    keys = jax.random.split(KEY, 300)
    task = jax.tree.map(lambda x: x[3], OPEN.tasks("test"))
    states = jax.vmap(lambda key: OPEN.start(key, task))(keys)
    assert np.abs(states.position - 3).max() <= 0.4 and np.ptp(states.position, axis=0).min() > 0.7
    assert set(states.turns.tolist()) == set(range(24))
    corner = jax.tree.map(lambda x: x[3], DPT.tasks("test"))
    np.testing.assert_array_equal(jax.vmap(lambda key: DPT.start(key, corner).position)(keys), [corner.start] * 300)


@pytest.mark.parametrize("env", [DPT, OPEN, levels.PRESETS["miniworld-wallgap"]], ids=lambda env: env.name)
def test_observations_match_their_spec_and_range(env):
    task = jax.tree.map(lambda x: jnp.asarray(x[0]), env.tasks("test"))
    _, timestep = jax.jit(env.reset)(KEY, task)
    low, high = env.observation_range
    assert jax.tree.structure(timestep.observation) == jax.tree.structure(env.observation_spec)
    for seen, spec, least, most in zip(
        *map(jax.tree.leaves, (timestep.observation, env.observation_spec, low, high)), strict=True
    ):
        assert (seen.shape, seen.dtype) == (spec.shape, spec.dtype) == (least.shape, least.dtype)
        assert (seen >= least - 1e-5).all() and (seen <= most + 1e-5).all()


def test_trials_are_drawn_from_their_records():
    env = OPEN
    task = jax.tree.map(lambda x: x[0], env.tasks("test"))
    state = env.start(KEY, task)
    records = jax.tree.map(lambda x: np.stack([x] * 3), state).replace(turns=np.array([0, 6, 12], np.int32))
    first = np.array([True, False, False])
    frames = env.render_trial(TrialRecord(None, np.zeros(3, np.int32), np.ones(3, np.float32), first, task, records))
    assert frames.dtype == np.uint8 and frames.shape[0] == 3 and min(frames.shape[1:3]) >= 320
    view, plan = frames[:, :320, :320], frames[:, :320, 320:]
    assert (view[0] != view[1]).any() and (plan[0] != plan[1]).any()  # it turned, and the map shows it
    ring = (plan[0] == (20, 140, 70)).all(-1)
    y, x = np.argwhere(ring).mean(0)
    scale = (320 - 2 * 12) / 6
    np.testing.assert_allclose((np.array([x, y]) - 12) / scale, task.centre[task.target], atol=0.1)


def test_plan_walls_are_rooms_less_doors_and_jambs():
    plan = Plan(((0, 2, 0, 3), (3, 5, 0, 3)), (Door("x", (2, 3, 1, 2), 2.2),))
    found = {tuple(map(tuple, piece)) for piece in plan.walls().tolist()}
    assert found == {
        ((0, 0), (0, 3)),
        ((2, 0), (2, 1)),
        ((2, 2), (2, 3)),
        ((0, 0), (2, 0)),
        ((0, 3), (2, 3)),
        ((3, 0), (3, 1)),
        ((3, 2), (3, 3)),
        ((5, 0), (5, 3)),
        ((3, 0), (5, 0)),
        ((3, 3), (5, 3)),
        ((2, 1), (3, 1)),
        ((2, 2), (3, 2)),
    }
    lintels = plan.lintels()
    assert lintels.centre.tolist() == [[2.5, 1.5]] and lintels.half.tolist() == [[0.5, 0.5]]
    assert plan.regions() == (*plan.rooms, (2, 3, 1, 2))


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4),
    place=st.tuples(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32)),
)
def test_touching_a_wall_is_being_near_one_of_its_points(ends, place):
    wall = np.array(ends, np.float32).reshape(1, 2, 2)
    points = wall[0, 0] + np.linspace(0, 1, 2001)[:, None] * (wall[0, 1] - wall[0, 0])
    distance = np.linalg.norm(points - np.array(place), axis=-1).min()
    for radius in (max(0.0, distance * 0.99 - 1e-2), distance * 1.01 + 1e-2):
        assert bool(touches_walls(jnp.array(place), radius, wall)) == (radius > distance)


@pytest.mark.parametrize("name", ["miniworld-tmaze", "miniworld-fourrooms", "miniworld-maze", "miniworld-wallgap"])
def test_starts_and_boxes_are_clear_of_walls(name):
    env = levels.PRESETS[name]
    tasks = jax.tree.map(lambda x: x[:20], env.tasks("test"))
    box_in_wall = jax.vmap(lambda t: touches_walls(jnp.asarray(t.box), level.BOX_RADIUS - 1e-4, env.walls(t)))(tasks)
    assert not box_in_wall.any()

    def blocked(key, task):
        return env.blocked(env.start(key, task).position, env.walls(task), task)

    keys = jax.random.split(KEY, (20, 20))
    assert not jax.jit(jax.vmap(jax.vmap(blocked, in_axes=(0, None))))(keys, tasks).any()


def test_mazes_have_exactly_one_way_between_any_two_cells():
    tasks = levels.PRESETS["miniworld-maze"].tasks("test")
    assert (tasks.passages.sum(1) == 8 * 8 - 1).all()  # as many doors as a spanning tree has, and
    for passages in tasks.passages[:10]:
        assert reached_cells(passages, 8, 8) == 64  # every cell is reached
    assert len(np.unique(tasks.passages, axis=0)) == 100


def reached_cells(passages, rows, columns):
    along_x = rows * (columns - 1)
    reached = {(0, 0)}
    for _ in range(rows * columns):
        for j, i in itertools.product(range(rows), range(columns)):
            if i + 1 < columns and passages[j * (columns - 1) + i]:
                reached |= {(j, i), (j, i + 1)} if {(j, i), (j, i + 1)} & reached else set()
            if j + 1 < rows and passages[along_x + j * columns + i]:
                reached |= {(j, i), (j + 1, i)} if {(j, i), (j + 1, i)} & reached else set()
    return len(reached)


def test_reaching_the_box_is_worth_less_the_later_and_wins_over_the_time_limit():
    env = levels.PRESETS["miniworld-oneroom"]
    task = LevelTask(np.array([5.0, 5.0], np.float32), np.float32(0), np.zeros(0, bool))

    def after(step, x):
        state = LevelState(jnp.array([x, 5.0]), jnp.float32(0), jnp.int32(0), jnp.int32(step))
        timestep = env.transition(KEY, state, jnp.int32(2), task)[1]
        return float(timestep.reward), bool(timestep.terminated), bool(timestep.truncated)

    near = 5 - level.REACH - 0.1  # the step of 0.15 m ends within reach, 5 cm before the box would block it
    assert after(89, near) == (pytest.approx(1 - 0.2 * 90 / 180), True, False)
    assert after(179, near) == (pytest.approx(0.8), True, False)
    assert after(179, 2.0) == (0.0, False, True) and after(10, 2.0) == (0.0, False, False)


# --- worlds that cannot be ------------------------------------------------------------------------------------------


def test_rooms_too_small_for_their_objects_are_refused_by_name():
    with pytest.raises(RoomTooSmallError, match=r"side is 3\.0"):
        dataclasses.replace(OPEN, side=3.0)
    with pytest.raises(RoomTooSmallError, match=r"side is 4.9; allowed: 4.99 or more"):
        dataclasses.replace(DPT, side=4.9)
    with pytest.raises(RoomTooSmallError, match="rooms are"):
        Level("closet", Plan(((0.0, 1.0, 0.0, 1.0),)), 10)
    with pytest.raises(RoomTooSmallError, match="away from the box"):
        Level("cabin", Plan(((0.0, 1.8, 0.0, 1.8),)), 10)


def test_unreachable_targets_are_refused_by_name():
    rooms = ((0.0, 4.0, 0.0, 4.0), (5.0, 9.0, 0.0, 4.0))
    with pytest.raises(UnreachableTargetError, match="no doors lead from"):
        Level("apart", Plan(rooms), 10, box_regions=rooms[1:], start_regions=rooms[:1])
    Level("joined", Plan(rooms, (Door("x", (4.0, 5.0, 1.0, 3.0)),)), 10, box_regions=rooms[1:], start_regions=rooms[:1])


def test_unknown_layouts_are_refused():
    with pytest.raises(ValueError, match="layout is 'circle'; allowed: 'corners', 'open'"):
        Room("room", "circle")


def test_small_mazes_can_be_made():
    plan = maze_plan(2, 3)
    maze = Maze("maze-2x3", plan, 100, start_regions=plan.rooms, rows=2, columns=3)
    tasks = maze.tasks("test")
    assert tasks.passages.shape == (100, 7) and (tasks.passages.sum(1) == 5).all()
