"""Object navigation: exact geodesics, the ray caster, hand-computed rewards, the expert, datasets, bad input.

Tests that take `world` run on the software simulator and on habitat-sim, which gets the same rooms as textured meshes.
It runs in the interpreter RELIC_HABITAT_PYTHON, or in this one if it has habitat_sim:

    RELIC_HABITAT_PYTHON=PATH pytest -m habitat tests/envs/test_habitat.py
"""

import ast
import heapq
import inspect
import json
import math
import sys
from pathlib import Path

import glb
import habitat_python
import numpy as np
import pytest
from remote import Remote

from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.worker import SetupError
from relic_jax.envs.habitat import api, configuration, dataset, soft
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.configuration import Settings
from relic_jax.envs.habitat.soft import camera as soft_camera
from relic_jax.envs.habitat.soft import house
from relic_jax.envs.habitat.worker import DOWN, FORWARD, LEFT, RIGHT, STOP, UP, ExtObjNav


def room(path, *boxes, size=(10.0, 10.0), tables=(), roof=False):
    """A scene file with the boxes (x0, z0, x1, z1, height) as obstacles."""
    rows = [[x0, 0, z0, x1, h, z1, 200, 50, 50] for x0, z0, x1, z1, h in boxes]
    path.write_text(json.dumps({"size": size, "boxes": rows, "tables": list(tables), "roof": roof}))
    return str(path)


class World:
    """Rooms in one of the simulators; one simulation lives at a time, in a process of its own if it is habitat-sim's.

    slack: metres that its navmesh may be off by. lift: metres that its floor may be.
    """

    def __init__(self, backend, folder):
        self.backend, self.folder = backend, folder
        self.slack, self.lift = (1e-4, 1e-6) if backend == "soft" else (0.15, 0.25)
        self._houses, self._open = {}, None

    def room(self, name, *boxes):
        path = room(self.folder / f"{name}.json", *boxes, roof=True)
        if self.backend == "soft":
            return path
        self._houses[name] = house.load_scene(path)
        self._set = glb.write_set(str(self.folder / "set"), self._houses, dataset.CATEGORIES)
        return name

    def centered(self, name, like):
        """Add an object template with the mesh of another one and its origin in the middle, habitat-sim's default."""
        if self.backend == "habitat":
            content = {"render_asset": f"{like}.glb", "up": [0, 1, 0], "front": [0, 0, -1], "requires_lighting": False}
            (self.folder / "set" / "objects" / f"{name}.object_config.json").write_text(json.dumps(content))
        return name

    def options(self, **changes):
        if self.backend == "soft":
            return changes
        here = {"backend": "habitat", "scene_dataset": self._set, "objects": str(self.folder / "set" / "objects")}
        return {**here, **changes}

    def _only(self, entry, options):
        self.close()
        if self.backend == "habitat":
            self._open = Remote(habitat_python.find(), entry, options)
        else:
            self._open = ExtObjNav(**options) if entry.endswith(":make") else Simulation(Settings(**options))
        return self._open

    def simulation(self, scene, **settings):
        options = self.options(size=64, **settings)
        made = self._only("relic_jax.envs.habitat.api:open_simulation", options)
        made.load(scene)
        return made

    def environment(self, scene, *objects, **options):
        """An ExtObjNav with objects (category, x, y, z) and the task for it."""
        things = [{"category": name, "position": [x, y, z]} for name, x, y, z in objects]
        options = self.options(**{"size": 64, "border": 1, "horizon": 50, **options})
        return self._only("relic_jax.envs.habitat.worker:make", options), {"scene": scene, "objects": things}

    def flat(self, point):
        """Return (x, z) of a point, which must be on the floor."""
        assert abs(point[1]) <= self.lift
        return np.asarray(point)[[0, 2]]

    def close(self):
        if self._open is not None:
            (self._open.end if self.backend == "habitat" else self._open.close)()
            self._open = None


@pytest.fixture(params=["soft", pytest.param("habitat", marks=pytest.mark.habitat)])
def world(request, tmp_path):
    if request.param == "habitat" and not habitat_python.find():
        pytest.skip(habitat_python.MISSING)
    made = World(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def open_room(world):
    return world.room("open")


@pytest.fixture
def split_room(world):
    """A wall along x = 5 from z = 0 to z = 6."""
    return world.room("split", (4.9, 0.0, 5.1, 6.0, 2.5))


def simulation(scene, **settings):
    made = Simulation(Settings(size=64, **settings))
    made.load(scene)
    return made


def test_geodesic_around_a_wall_by_hand(world, split_room):
    sim = world.simulation(split_room, radius=0.1)
    start, end = np.array([3.0, 0, 2.0]), np.array([7.0, 0, 2.0])
    length, which, points = sim.path(start, [end])
    corner = math.hypot(1.8, 4.1)  # from (3, 2) to the inflated corner (4.8, 6.1), 0.4 along, and back
    assert which == 0 and length == pytest.approx(2 * corner + 0.4, abs=3 * world.slack)
    assert length == sim.distance(start, [end])
    turns = [[3, 2], [4.8, 6.1], [5.2, 6.1], [7, 2]]
    found = np.array([world.flat(point) for point in points])
    for turn in turns:
        assert np.linalg.norm(found - turn, axis=-1).min() < 2 * world.slack
    assert len(found) == len(turns) or world.backend == "habitat"
    assert sim.path(start, [np.array([3.0, 0, 9.0])])[0] == pytest.approx(7.0, abs=world.slack)


def test_the_nearest_of_several_ends_and_none(world, split_room):
    sim = world.simulation(split_room)
    ends = [np.array([9.0, 0, 9.0]), np.array([2.0, 0, 3.0]), np.array([6.0, 0, 2.0])]
    found = sim.path(np.array([3.0, 0, 2.0]), ends)[:2]
    assert found == (pytest.approx(math.sqrt(2), abs=world.slack), 1)
    closed = world.simulation(world.room("closed", (4.9, 0.0, 5.1, 10.0, 2.5)))
    assert closed.path(np.array([3.0, 0, 2.0]), [np.array([7.0, 0, 2.0])]) == (math.inf, -1, [])


def dijkstra(space, start, cells):
    """Distances on a fine grid with 16 directions: at least the exact ones, at most 3% more."""
    spacing = space.size / (cells - 1)
    grid = np.stack(np.meshgrid(*(np.arange(cells) * s for s in spacing), indexing="ij"), -1)
    free = space.is_free(grid.reshape(-1, 2)).reshape(cells, cells)
    moves = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if math.gcd(i, j) == 1]
    best, queue = np.full((cells, cells), np.inf), [(0.0, start)]
    best[start] = 0.0
    while queue:
        length, here = heapq.heappop(queue)
        if length > best[here]:
            continue
        for move in moves:
            there = (here[0] + move[0], here[1] + move[1])
            if not (min(there) >= 0 and max(there) < cells and free[there]):
                continue
            way = grid[here] + np.linspace(0, 1, 9)[:, None] * (grid[there] - grid[here])
            total = length + float(np.linalg.norm(np.array(move) * spacing))
            if total < best[there] and space.is_free(way).all():
                best[there] = total
                heapq.heappush(queue, (total, there))
    return grid, best


def test_geodesics_agree_with_a_fine_grid():
    space = house.FreeSpace(house.make_house(3), 0.18)
    cells = 41
    first = np.stack(np.meshgrid(*(np.linspace(0, size, cells) for size in space.size), indexing="ij"), -1)
    start = tuple(np.argwhere(space.is_free(first.reshape(-1, 2)).reshape(cells, cells))[50])
    grid, best = dijkstra(space, start, cells)
    free = [tuple(index) for index in np.argwhere(np.isfinite(best))]
    assert len(free) > 400
    rng = np.random.RandomState(1)
    for index in rng.permutation(len(free))[:60]:
        end = free[index]
        exact = space.distance(grid[start], grid[end], space.paths_to(grid[end]))
        assert exact <= best[end] + 1e-6
        assert best[end] <= 1.05 * exact + 0.5  # a way through a door has to bend to the grid's points
        points = space.path(grid[start], grid[end])
        assert sum(map(np.linalg.norm, np.diff(points, axis=0))) == pytest.approx(exact, abs=1e-3)


def test_a_blocked_step_slides_along_the_wall(world, split_room):
    sim = world.simulation(split_room, radius=0.1)
    sim.put(np.array([4.75, 0, 3.0]), math.radians(-60))  # ahead: 0.866 in x, −0.5 in z
    assert sim.act(FORWARD).collided
    position, _ = sim.pose()
    np.testing.assert_allclose(world.flat(position), [4.8, 3.0 - 0.125], atol=max(1e-3, world.slack))
    for _ in range(40):  # it neither passes through nor gets stuck inside
        sim.act(FORWARD)
        position, _ = sim.pose()
        assert position[0] <= 4.8 + world.slack and math.isfinite(sim.distance(position, [np.array([9.0, 0, 9.0])]))


def test_random_walks_stay_where_the_agent_can_be(world, split_room):
    sim = world.simulation("house-5" if world.backend == "soft" else split_room)
    sim.seed(0)
    rng = np.random.RandomState(0)
    start = sim.random_point()
    sim.put(start, 0.3)
    for _ in range(500):
        sim.act(int(rng.choice([FORWARD, FORWARD, FORWARD, LEFT, RIGHT])))
        position, _ = sim.pose()
        assert sim._simulator.pathfinder.is_navigable(position)
        assert math.isfinite(sim.distance(position, [start]))


def test_turns_and_looks_follow_habitats_axes(world, open_room):
    sim = world.simulation(open_room)
    sim.put(np.array([5.0, 0, 5.0]), 0.0)
    sim.act(FORWARD)
    np.testing.assert_allclose(world.flat(sim.pose()[0]), [5, 4.75], atol=1e-3)  # −z is ahead
    sim.act(LEFT)
    assert sim.pose()[1] == pytest.approx(math.radians(30), abs=1e-5)
    sim.act(FORWARD)
    expected = [5 - 0.125, 4.75 - 0.25 * math.cos(math.radians(30))]
    np.testing.assert_allclose(world.flat(sim.pose()[0]), expected, atol=1e-3)


def views(sim, *actions):
    """Return the image of object ids after the actions."""
    for action in actions:
        sim.act(action)
    return sim.ids()


def test_what_the_camera_sees_by_hand(world, open_room):
    sim = world.simulation(open_room, eye=1.25)
    sim.put(np.array([5.0, 0, 5.0]), 0.0)
    sim.place([("mug", np.array([5.0, 1.1, 3.0]), 7), ("apple", np.array([5.0, 1.1, 8.0]), 8)])
    ids = sim.ids()
    rows, columns = np.nonzero(ids == 7)
    # 0.3 m at a distance of 1.85 m from the near side: 64/2 · 0.15/1.85 = 2.6 pixels to each side of the middle
    assert set(columns) == {30, 31, 32, 33} | ({29, 34} & set(columns)) and len(set(columns)) in (4, 6)
    assert abs(rows.mean() - 31.5) < 1 and not (ids == 8).any(), "what is behind is not seen"
    assert (views(sim, *[LEFT] * 6) == 8).any()
    sim.put(np.array([5.0, 0, 5.0]), 0.0)
    up, down = np.nonzero(views(sim, UP) == 7)[0].mean(), np.nonzero(views(sim, DOWN, DOWN) == 7)[0].mean()
    assert up > 40 and down < 23, "what is ahead moves down in the image on looking up"
    left = np.nonzero(views(sim, UP, LEFT) == 7)[1].mean()
    assert left > 40, "and to the right on turning left"


def test_objects_stand_on_a_position_wherever_their_origin_is(world, open_room):
    name = world.centered("middle", "mug")
    sim = world.simulation(open_room, eye=1.25)
    sim.put(np.array([5.0, 0, 5.0]), 0.0)
    seen = []
    for template in ("mug", name):
        sim.place([(template, np.array([5.0, 0.8, 3.0]), 7)])
        seen.append(sim.ids() == 7)
    np.testing.assert_array_equal(*seen)
    rows = np.nonzero(seen[0])[0]
    assert rows.size > 20 and rows.min() > 31, "the camera is 0.15 m above its top"


def test_random_points_are_on_the_floor_and_not_on_the_roof(world, open_room):
    sim = world.simulation(open_room)
    sim.seed(0)
    for _ in range(40):
        world.flat(sim.random_point())
    world.flat(sim.snap(np.array([5.0, 2.0, 5.0])))
    roof = [island for island in sim.islands if island.low > 2]
    assert len(sim.islands) == 2 and len(roof) == 1 and (sim.island.indoors, roof[0].indoors) == (1, 0)
    assert sim.reach(np.array([5.0, 2.9, 5.0])) is None


@pytest.mark.habitat
def test_stairs_join_two_levels_to_one_island(tmp_path):
    """A platform 0.72 m high with four steps. The software simulator has no stairs."""
    if not habitat_python.find():
        pytest.skip(habitat_python.MISSING)
    world = World("habitat", tmp_path)
    steps = [(5.0 - 0.4 * k, 1.0, 5.4 - 0.4 * k, 3.0, 0.18 * (k + 1)) for k in range(4)]
    try:
        sim = world.simulation(world.room("stairs", *steps, (0.0, 0.0, 3.8, 10.0, 0.72)))
        assert abs(sim.island.low) <= world.lift and sim.island.high == pytest.approx(0.72, abs=world.lift)
        sim.seed(0)
        points = np.array([sim.random_point() for _ in range(60)])
        upstairs = points[:, 1] > 0.5
        assert 10 < upstairs.sum() < 50 and points[:, 1].max() < 1.2, "both levels, and not the roof"
        goal = sim.reach(np.array([1.0, 0.72, 8.0]))
        assert goal[1] == pytest.approx(0.72, abs=world.lift)
        assert all(math.isfinite(sim.distance(point, [goal])) for point in points)
    finally:
        world.close()


def test_walls_hide_what_is_behind(world, split_room):
    sim = world.simulation(split_room, eye=1.25)
    sim.place([("mug", np.array([7.0, 1.1, 3.0]), 5), ("apple", np.array([4.0, 1.1, 3.0]), 6)])
    sim.put(np.array([2.0, 0, 3.0]), -math.pi / 2)
    ids = sim.ids()
    assert not (ids == 5).any() and (ids == 6).any()
    sim.put(np.array([6.0, 0, 3.0]), -math.pi / 2)
    assert (sim.ids() == 5).any()


def test_depth_by_hand(tmp_path):
    camera = soft.CameraSensorSpec()
    camera.uuid, camera.sensor_type, camera.resolution = "depth", soft.SensorType.DEPTH, [65, 65]
    settings = soft.SimulatorConfiguration()
    settings.scene_id = room(tmp_path / "split.json", (4.9, 0.0, 5.1, 6.0, 2.5))
    agent = soft.AgentConfiguration(sensor_specifications=[camera])
    sim = soft.Simulator(soft.Configuration(settings, [agent]))
    state = soft.AgentState([3.0, 0, 3.0], [0.0, math.sin(-math.pi / 4), 0.0, math.cos(-math.pi / 4)])  # towards +x
    sim.get_agent(0).set_state(state)
    depth = sim.get_sensor_observations()["depth"]
    assert depth.dtype == np.float32 and depth.shape == (65, 65)
    assert depth[32, 32] == pytest.approx(1.9, abs=1e-3)
    assert depth[64, 32] == pytest.approx(1.5 / (64 / 65), abs=2e-2)  # the floor, 45° down


def every_ray(low, high, rays, depth):
    """`camera._first_hits` without any culling: each ray against each box, one at a time."""
    found, best = np.full(depth.shape, -1), depth.copy()
    for row, column in np.ndindex(depth.shape):
        ray = rays[:, row, column].astype(np.float64)
        for index in range(len(low)):
            ends = np.stack([low[index] / ray, high[index] / ray])
            enter, leave = ends.min(0).max(), ends.max(0).min()
            if 0 < enter < min(leave, best[row, column]):
                best[row, column], found[row, column] = enter, index
    return found, best


@pytest.mark.parametrize("seed", range(6))
def test_rays_that_are_left_out_hit_nothing(seed):
    """Culling does not change the result: each ray is compared with all boxes."""
    rng = np.random.RandomState(seed)
    sim = simulation(f"house-{seed}")
    sim.seed(seed)
    agent = sim._simulator.agents[0]
    agent.position, agent.heading, agent.pitch = sim.random_point(), rng.uniform(-3, 3), rng.choice([-1.0, 0.0, 0.5])
    spec = soft.CameraSensorSpec()
    spec.resolution = [16, 20]
    camera, boxes = soft_camera.Camera(spec), sim._simulator._visible_boxes().boxes
    turn = soft_camera._about_x(agent.pitch).T @ soft_camera._about_y(agent.heading).T
    rays = (camera.rays @ turn).T.astype(np.float32).reshape(3, 16, 20)
    eye = agent.position + np.array([0, 1.5, 0])
    low, high = boxes.low - eye, boxes.high - eye
    depth = np.full((16, 20), 9.0, np.float32)
    expected, distance = every_ray(low, high, rays, depth)
    windows = soft_camera._windows(camera, low, high, turn)
    found, _ = soft_camera._first_hits(low, high, windows, rays, depth)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(depth, distance, rtol=1e-4)
    tried = sum(depth[rows, columns].size for _, rows, columns in windows)
    assert tried < 0.9 * len(low) * depth.size and (found >= 0).mean() > 0.2


def begin(env, setup, position, heading, category="mug"):
    episode = {"category": category, "position": position, "heading": heading}
    return env.reset({**setup, "episodes": [episode]}, 0)


def test_an_episode_by_hand(world, open_room):
    env, setup = world.environment(open_room, ("mug", 5.0, 1.1, 2.0), ("mug", 9.0, 1.1, 9.0), ("apple", 5.0, 1.1, 4.0))
    first = begin(env, setup, [5.0, 0, 6.0], 0.0)
    assert first["goal"].tolist() == [float(name == "mug") for name in dataset.CATEGORIES]
    assert first["gps"].tolist() == [0, 0]
    observation, reward, terminated, truncated, metrics = env.step(FORWARD)
    exact = 1e-5 if world.backend == "soft" else 0.02  # a navmesh has cells
    assert reward == pytest.approx(0.25 - 0.001, abs=exact) and not terminated and not truncated
    np.testing.assert_allclose(observation["gps"], [0.25, 0.0], atol=1e-3)
    assert metrics["distance"] == pytest.approx(3.75, abs=max(exact, world.slack)) and metrics["success"] == 0
    env.step(RIGHT)
    observation, reward, *_ = env.step(FORWARD)
    half, root = 0.25 * 0.5, 0.25 * math.sqrt(0.75)
    np.testing.assert_allclose(observation["gps"], [0.25 + root, half], atol=1e-3)
    assert reward == pytest.approx(3.75 - math.hypot(3.75 - root, half) - 0.001, abs=exact)
    _, reward, terminated, truncated, metrics = env.step(STOP)  # too far away
    assert (terminated, truncated, metrics["success"], metrics["spl"]) == (True, False, 0, 0)
    assert reward == pytest.approx(-0.001)
    made = 1 - math.hypot(3.75 - root, half) / 4
    assert metrics["soft_spl"] == pytest.approx(made, abs=exact)


def test_the_distance_is_computed_when_the_position_changes(soft_data, monkeypatch):
    env = ExtObjNav(size=8, categories=soft_data["categories"])
    env.reset(soft_data["train"][0], 0)
    exact, queries, moved = env.simulation.distance, [], 0
    monkeypatch.setattr(env.simulation, "distance", lambda *arguments: queries.append(0) or exact(*arguments))
    for action in np.random.RandomState(0).choice([FORWARD, LEFT, RIGHT, UP, DOWN], 60).tolist():
        before = env.position
        env.step(action)
        moved += not np.array_equal(before, env.position)
        assert env.distance == exact(env.position, env.ends)
    assert 5 < moved < 40 and len(queries) == moved


def test_success_needs_nearness_and_pixels(world, open_room):
    env, setup = world.environment(open_room, ("mug", 5.0, 1.1, 4.1), ("apple", 5.0, 1.1, 9.5))

    def stop(*actions, position=(5.0, 0, 6.0), heading=0.0, category="mug"):
        begin(env, setup, list(position), heading, category)
        for action in actions:
            env.step(action)
        _, reward, terminated, _, metrics = env.step(STOP)
        assert terminated and reward == pytest.approx(2 * metrics["success"] - 0.001)
        return metrics["success"]

    assert stop() == 1
    assert stop(position=(5.0, 0, 6.2)) == 0, "2.1 m away"
    assert stop(LEFT, LEFT, LEFT) == 0, "out of view"
    assert stop(category="apple") == 0, "another category"
    env.pixels = 10_000
    assert stop() == 0, "too few pixels"
    env.pixels = 10
    assert stop(LEFT) == 1
    env.border = 20
    assert stop() == 1 and stop(LEFT) == 0, "the border does not count"


def test_spl_divides_by_the_way_taken(world, open_room):
    env, setup = world.environment(open_room, ("mug", 5.0, 1.1, 4.5))
    begin(env, setup, [5.0, 0, 6.0], math.radians(180))
    for action in [FORWARD] * 2 + [LEFT] * 6 + [FORWARD] * 6:
        env.step(action)
    *_, metrics = env.step(STOP)
    near = max(1e-3, world.slack / 2)
    assert metrics["success"] == 1 and metrics["spl"] == pytest.approx(1.5 / 2.0, abs=near)
    assert metrics["soft_spl"] == pytest.approx(2 / 3 * 1.5 / 2.0, abs=near)


def test_the_time_limit_truncates(world, open_room):
    env, setup = world.environment(open_room, ("mug", 5.0, 1.1, 2.0), horizon=3)
    begin(env, setup, [5.0, 0, 8.0], 0.0)
    ends = [env.step(LEFT)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    begin(env, setup, [5.0, 0, 8.0], 0.0)
    assert [env.step(action)[2:4] for action in (LEFT, LEFT, STOP)][-1] == (True, False), "stop ends, no time limit"


@pytest.fixture(scope="module")
def soft_data():
    scenes = dataset.soft_scenes(8, 4)
    return dataset.generate(Settings(), scenes, layouts=1, categories=dataset.CATEGORIES[:6])


def test_the_expert_succeeds_on_short_ways(soft_data):
    env = ExtObjNav(size=64, border=1, horizon=200, categories=soft_data["categories"])
    successes, ratios = [], []
    for index, setup in enumerate(soft_data["train"] + soft_data["test"]):
        env.reset(setup, index)
        ended = False
        while not ended:
            _, _, terminated, truncated, metrics = env.step(env.expert())
            ended = terminated or truncated
        successes.append(metrics["success"])
        ratios.append(metrics["spl"])
    assert np.mean(successes) == 1 and np.mean(ratios) > 0.95


def test_episodes_follow_from_task_and_seed_alone(soft_data):
    def play(env, setup, seed):
        rng, found = np.random.RandomState(0), [env.reset(setup, seed)]
        return found + [env.step(int(rng.randint(1, 6)))[:2] for _ in range(10)]

    a, b = (ExtObjNav(size=32, border=1, categories=soft_data["categories"]) for _ in range(2))
    play(b, soft_data["train"][1], 3)  # another past
    for seed in (1, 2):
        left, right = play(a, soft_data["train"][0], seed), play(b, soft_data["train"][0], seed)
        for name in ("rgb", "goal", "gps"):
            np.testing.assert_array_equal(left[0][name], right[0][name])
        assert [step[1] for step in left[1:]] == [step[1] for step in right[1:]]
    assert not np.array_equal(play(a, soft_data["train"][0], 1)[0]["rgb"], play(a, soft_data["train"][0], 2)[0]["rgb"])


def test_categories_are_asked_for_uniformly(world, open_room):
    env, setup = world.environment(
        open_room, ("mug", 5, 0, 2), ("mug", 2, 0, 2), ("mug", 2, 0, 5), ("apple", 8, 0, 8), size=8
    )
    goals = [dataset.CATEGORIES[int(env.reset(setup, seed)["goal"].argmax())] for seed in range(200)]
    assert 70 < goals.count("mug") < 130 and goals.count("apple") == 200 - goals.count("mug")


def test_datasets_are_reproducible_held_out_and_read_back(tmp_path, soft_data):
    again = dataset.generate(Settings(), dataset.soft_scenes(8, 4), layouts=1, categories=dataset.CATEGORIES[:6])
    assert again == soft_data
    assert not {t["scene"] for t in soft_data["train"]} & {t["scene"] for t in soft_data["test"]}
    path = tmp_path / "data.json"
    path.write_text(json.dumps(soft_data))
    assert dataset.read(str(path)) == soft_data


def test_through_the_bridge_equals_in_process(soft_data):
    options = {"size": 32, "border": 1, "horizon": 20, "categories": soft_data["categories"]}
    tasks, seeds = soft_data["train"][:2], [3, 4]
    with Pool(PoolConfig("relic_jax.envs.habitat.worker:make", options, workers=2, environments=1)) as pool:
        batch = pool.reset(tasks, seeds)
        from relic_jax.bridge.worker import episode_seed

        env = ExtObjNav(**options)
        mine = env.reset(tasks[1], episode_seed(4, 0))
        np.testing.assert_array_equal(batch.observation["rgb"][1], mine["rgb"])
        ended = False
        while not ended:
            action = env.expert()
            _, reward, terminated, truncated, metrics = env.step(action)
            pool.send(np.full(2, -1))
            batch = pool.receive()
            assert batch.reward[1] == np.float32(reward) and batch.acted[1] == action
            np.testing.assert_allclose(batch.metrics[1], list(metrics.values()), rtol=1e-6)
            ended = terminated or truncated
            assert (batch.terminated[1], batch.truncated[1]) == (terminated, truncated)


def one_line(make, words, error=SetupError):
    with pytest.raises(error) as raised:
        make()
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_bad_input_is_one_line(tmp_path, soft_data):
    one_line(lambda: ExtObjNav(scene_dataset="/no/such.json"), "scene dataset '/no/such.json' does not exist")
    one_line(lambda: ExtObjNav(scenes=["nowhere.glb"]), "scene 'nowhere.glb' cannot be loaded")
    full = room(tmp_path / "full.json", (0.0, 0.0, 1.0, 1.0, 2.0), size=(1.0, 1.0))
    one_line(lambda: ExtObjNav(scenes=[full]), "has no navmesh")
    one_line(lambda: ExtObjNav(backend="unity"), "allowed: soft, habitat")
    absent = {**soft_data, "categories": [*soft_data["categories"], "unicorn"]}
    one_line(lambda: dataset.check(absent), "category 'unicorn' is in no scene")
    both = {"train": ["house-1"], "test": ["house-1"]}
    one_line(lambda: dataset.generate(Settings(), both), "scene 'house-1' is in both splits")
    one_line(lambda: dataset.read("/no/such/file"), "cannot be read")
    one_line(lambda: dataset.check({"format": "other"}), "format 'other'")


def test_without_habitat_sim_one_line_says_how_to_get_it(tmp_path):
    (tmp_path / "habitat_sim.py").write_text("raise ImportError('not here')")
    config = PoolConfig("relic_jax.envs.habitat.worker:make", {"backend": "habitat"}, 1, 1, 1, paths=(str(tmp_path),))
    one_line(lambda: Pool(config), "has no habitat_sim", PoolError)
    one_line(lambda: Pool(config), "conda create", PoolError)


WORKER_SIDE = [path for path in Path(api.__file__).parent.glob("*.py") if path.stem not in ("__init__", "env")]
WORKER_SIDE += Path(soft.__file__).parent.glob("*.py")


@pytest.mark.parametrize("path", WORKER_SIDE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_worker_side_is_python_3_8_and_knows_no_jax(path):
    source = path.read_text()
    ast.parse(source, feature_version=(3, 8))
    assert "import jax" not in source and "from __future__ import annotations" in source


def test_a_simulation_in_another_interpreter_is_used_like_one_here(tmp_path):
    """Tests marked `habitat` run in this way."""
    scene = room(tmp_path / "open.json")
    far = Remote(sys.executable, "relic_jax.envs.habitat.api:open_simulation", {"size": 8})
    near = Simulation(Settings(size=8))
    near.load(scene)
    far.load(scene)
    for each in (far, near):
        each.seed(3)
        each.put(each.random_point(), 0.3)
    near.act(FORWARD)
    assert far.act(FORWARD).rgb.shape == (8, 8, 3)
    np.testing.assert_array_equal(far.pose()[0], near.pose()[0])
    assert far._simulator.pathfinder.is_navigable(far.pose()[0]) and far.scene == scene
    one_line(lambda: far.load("nowhere.glb"), "scene 'nowhere.glb' cannot be loaded")
    far.scene = "other"
    assert far.scene == "other"
    far.end()


def test_soft_has_all_that_api_calls_of_habitat_sim():
    """Names after `module.` and `self.module.` in api.py exist in `soft`; with habitat_sim, the same is asked of it."""
    tree = ast.parse(inspect.getsource(api) + inspect.getsource(configuration))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("module", "self.module"):
            used.add(node.attr)
    assert {"Simulator", "Configuration", "nav", "agent", "physics"} <= used
    backends = [soft]
    try:
        backends.append(__import__("habitat_sim"))
    except ImportError:
        assert "habitat_sim" not in sys.modules
    for backend in backends:
        assert all(hasattr(backend, name) for name in used - {"__version__"})
