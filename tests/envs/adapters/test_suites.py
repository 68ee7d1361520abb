"""Adapters beside the suites' own loops: the same keys, every value, at ends of episodes too."""

import dataclasses
import importlib.util
import os
import pickle
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError, EnvConfig
from relic_jax.environment.base import Box, Discrete, Environment, Image, num_tasks, split_hash
from relic_jax.environment.trials import Trials
from relic_jax.envs import registry
from relic_jax.envs.adapters import rulesets, suite

PACKAGES = {
    "gymnax": "gymnax",
    "xland": "xminigrid",
    "navix": "navix",
    "craftax": "craftax",
    "playground": "mujoco_playground",
}

XLAND = [name for name in registry.names() if name.startswith("xland-")]


def make(name, horizon=None):
    return registry.make(EnvConfig(name, horizon))


def assert_same(ours, theirs, rtol=0.0):
    """Two pytrees of arrays, bit for bit (NaN equals NaN). rtol: of floats, where two programs are compared that XLA
    has compiled differently and that differ in the last bit."""
    ours, theirs = (jax.tree.leaves(jax.tree.map(_numbers, tree)) for tree in (ours, theirs))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol if a.dtype.kind == "f" else 0, atol=0)


def _numbers(x):
    x = jnp.asarray(x)
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def decoded(vector, shape, sizes):
    """Categories [*shape, C] of a one-hot vector."""
    cells = np.asarray(vector).reshape(-1)[: np.prod(shape) * sum(sizes)].reshape(*shape, sum(sizes))
    parts = np.split(cells, np.cumsum(sizes)[:-1], axis=-1)
    assert all((part.sum(-1) == 1).all() for part in parts)
    return np.stack([part.argmax(-1) for part in parts], axis=-1)


def actions_and_keys(env, steps, seed=0):
    keys = jax.random.split(jax.random.key(seed), steps)
    return jax.vmap(env.action_space.sample)(jax.random.split(jax.random.key(seed + 1), steps)), keys


def keys_to_coins(keys):
    return jax.vmap(jax.random.bernoulli)(keys)


@pytest.mark.parametrize(
    ("id", "steps", "horizon"),
    [
        ("CartPole-v1", 150, None),  # ends by falling
        ("CartPole-v1", 100, 9),  # mostly by the time limit
        ("MountainCar-v0", 250, None),  # by gymnax's own limit of 200
        ("Pendulum-v1", 100, 40),  # continuous
        ("Breakout-MinAtar", 100, 40),
        ("FrozenLake-misc", 120, None),  # integers, and noise in its steps
    ],
)
def test_gymnax_step_for_step(id, steps, horizon):
    gymnax = pytest.importorskip("gymnax")
    env = make(f"gymnax:{id}", horizon)
    own, params = gymnax.make(id)
    params = params.replace(max_steps_in_episode=horizon or params.max_steps_in_episode)
    assert env.horizon == params.max_steps_in_episode
    with jax.disable_jit():  # compiled into different programs they differ in the last bit
        compare_with_gymnax(env, own, params, steps)


def compare_with_gymnax(env, own, params, steps):
    task = jnp.asarray(7)
    reset, step = env.reset, env.step
    theirs_seen, theirs = own.reset(jax.random.key(7), params)
    ours, timestep = reset(jax.random.key(99), task)
    ends = np.zeros(2, int)
    for action, key in zip(*actions_and_keys(env, steps), strict=True):
        assert_same((ours.inner, timestep.observation), (theirs, theirs_seen))
        seen, theirs, reward, terminated, truncated, info = own.step(key, theirs, action, params)
        ours, timestep = step(jax.random.split(key)[0], ours, action, task)  # theirs splits its key for the auto-reset
        assert_same((timestep.reward, timestep.observation), (reward, info["final_observation"]))
        assert bool(timestep.terminated) == bool(terminated)
        assert bool(timestep.truncated) == bool(truncated & ~terminated)
        ends += [timestep.terminated, timestep.truncated]
        theirs_seen = seen
        if terminated | truncated:
            theirs_seen, theirs = own.reset(jax.random.key(7), params)
            ours, timestep = reset(key, task)
    assert ends.sum() > 0


def test_gymnax_observations_and_actions():
    pytest.importorskip("gymnax")
    cartpole, pendulum, lake = (make(f"gymnax:{id}") for id in ("CartPole-v1", "Pendulum-v1", "FrozenLake-misc"))
    assert cartpole.action_space == Discrete(2) and pendulum.action_space == Box((-2.0,), (2.0,))
    low, high = cartpole.observation_range  # velocities are unbounded
    np.testing.assert_allclose(high, [4.8, 1, 0.41887903, 1], rtol=1e-6)
    np.testing.assert_array_equal(low, -high)
    assert lake.observation_spec == jax.ShapeDtypeStruct((), jnp.float32) and lake.observation_range[1] == 15
    breakout = make("gymnax:Breakout-MinAtar")
    assert breakout.observation_range is None and breakout.observation_spec == Image((10, 10, 4), jnp.float32)


def test_gymnax_that_needs_a_download_is_one_line(monkeypatch):
    pytest.importorskip("gymnax")
    from relic_jax.envs.adapters import gymnax as adapter

    def offline(id):
        raise OSError("no network")

    monkeypatch.setattr(adapter, "_made", offline)
    with pytest.raises(ConfigError, match=r"gymnax:MNISTBandit-bsuite.*no network"):
        make("gymnax:MNISTBandit-bsuite")


@pytest.mark.parametrize(("id", "horizon"), [("XLand-MiniGrid-R1-9x9", 30), ("XLand-MiniGrid-R4-9x9", 60)])
def test_xland_step_for_step_beside_its_auto_reset(id, horizon):
    xminigrid = pytest.importorskip("xminigrid")
    from xminigrid.types import RuleSet
    from xminigrid.wrappers import GymAutoResetWrapper

    env = make(f"xland:{id}:small", horizon)
    task = jax.tree.map(lambda x: jnp.asarray(x[3]), env.tasks("train"))
    # a goal that random actions reach: stand next to the first thing that lies around
    task = task.replace(goal=jnp.array([3, *task.init_tiles[0], 0, 0], jnp.uint8))
    own, params = xminigrid.make(id)
    params = params.replace(ruleset=RuleSet(task.goal, task.rules, task.init_tiles), max_steps=horizon - 1)
    assert make(f"xland:{id}").horizon == xminigrid.make(id)[1].max_steps + 1
    assert env.horizon == horizon and env.action_space == Discrete(own.num_actions(params))
    wrapped, reset, step = GymAutoResetWrapper(own), jax.jit(env.reset), jax.jit(env.step)
    start, restart = jax.jit(env.start), jax.jit(env.restart)
    own_step, own_wrapped = jax.jit(own.step), jax.jit(wrapped.step)
    theirs = own.reset(params, jax.random.key(5))
    ours, timestep = reset(jax.random.key(5), task)
    ends = np.zeros(2, int)
    actions, keys = actions_and_keys(env, 900)
    actions = jnp.where(keys_to_coins(keys), 0, actions)  # forward more often than not, to get somewhere
    for action, key in zip(actions, keys, strict=True):
        assert_same(ours.inner.state, theirs.state)
        assert_same(decoded(timestep.observation["view"] // 255, (5, 5), (13, 12)), theirs.observation)
        assert np.flatnonzero(timestep.observation["state"]).tolist() == [int(theirs.state.agent.direction), 4]
        end, theirs = own_step(params, theirs, action), own_wrapped(params, theirs, action)
        ours, timestep = step(key, ours, action, task)
        assert_same((ours.inner.state, timestep.reward), (end.state, theirs.reward))
        assert_same(decoded(timestep.observation["view"] // 255, (5, 5), (13, 12)), end.observation)
        assert not timestep.terminated and not timestep.truncated
        if theirs.last():
            assert np.flatnonzero(timestep.observation["state"]).tolist() == [int(end.state.agent.direction), 5]
            seen = timestep.observation
            ours, timestep = step(key, ours, action, task)  # the last look
            assert_same((timestep.observation, timestep.reward), (seen, 0.0))
            assert_same(restart(key, ours, task), start(key, task))  # of a state that went on unseen, nothing is left
            assert bool(timestep.terminated) == (float(end.reward) > 0) == bool(env.success(timestep, end.reward))
            assert bool(timestep.truncated) == (float(end.reward) == 0)
            ends += [timestep.terminated, timestep.truncated]
            ours, timestep = reset(jax.random.split(end.state.key)[0], task)
    assert ends[0] > 2 and ends[1] > 2


@pytest.mark.parametrize(
    ("id", "horizon"), [("Navix-Empty-Random-5x5-v0", 25), ("Navix-Dynamic-Obstacles-5x5-v0", None)]
)
def test_navix_step_for_step(id, horizon):
    navix = pytest.importorskip("navix")
    env = make(f"navix:{id}", horizon)
    own = navix.make(id, max_steps=horizon or 100, observation_fn=navix.observations.symbolic_first_person)
    assert env.horizon == own.max_steps and env.action_space == Discrete(int(own.action_space.n))
    reset, step, own_reset, own_step = jax.jit(env.reset), jax.jit(env.step), jax.jit(own.reset), jax.jit(own.step)
    task, ends = jnp.asarray(3), np.zeros(2, int)

    def opened(key):
        timestep = own_reset(jax.random.key(3))
        return timestep.replace(state=timestep.state.replace(key=key))

    theirs, (ours, timestep) = opened(jax.random.key(8)), reset(jax.random.key(8), task)
    for action, key in zip(*actions_and_keys(env, 400), strict=True):
        theirs = own_step(theirs, action)
        ours, timestep = step(key, ours, action, task)
        assert_same((ours.inner, timestep.reward), (theirs, theirs.reward))
        assert_same(decoded(timestep.observation, (7, 7), (11, 6, 4)), theirs.observation)
        assert bool(timestep.truncated) == (int(theirs.step_type) == 1)
        assert bool(timestep.terminated) == (int(theirs.step_type) == 2)
        ends += [timestep.terminated, timestep.truncated]
        if theirs.is_done():  # their next step would reset by itself
            theirs, (ours, timestep) = opened(key), reset(key, task)
    assert ends[0] > 2 and (ends[1] > 2 or horizon is None)


def test_craftax_step_for_step():
    craftax_env = pytest.importorskip("craftax.craftax_env")
    name = "Craftax-Classic-Symbolic-v1"
    env, own = make(f"craftax:{name}", 60), craftax_env.make_craftax_env_from_name(name, auto_reset=False)
    params = own.default_params.replace(max_timesteps=60)
    assert make(f"craftax:{name}").horizon == own.default_params.max_timesteps == 10_000
    trials, task = Trials(env), jnp.asarray([4])
    step = jax.jit(trials.step)
    trial = jax.jit(trials.reset)(jax.random.key(9), task)
    opening = theirs_seen, theirs = own.reset(jax.random.key(4), params)
    truncated = 0
    for action, key in zip(*actions_and_keys(env, 150), strict=True):
        assert_same(
            jax.tree.map(lambda x: x[0], (trial.env.inner, trial.observation)), (theirs, theirs_seen), rtol=1e-6
        )
        theirs_seen, theirs, reward, done, _ = own.step(jax.random.split(key, (2, 1))[0, 0], theirs, action, params)
        trial, result = step(key, trial, action[None])
        assert_same((result.reward[0], (result.terminated | result.truncated)[0]), (reward, done), rtol=1e-6)
        if result.truncated[0]:
            assert_same(result.final_observation[0], theirs_seen, rtol=1e-6)
            truncated += 1
        if done:
            theirs_seen, theirs = opening
    assert truncated >= 2
    dead = dataclasses.replace(trial.env, inner=trial.env.inner.replace(player_health=jnp.array([0])))
    _, result = step(jax.random.key(0), dataclasses.replace(trial, env=dead), jnp.array([0]))
    assert result.terminated[0] and not result.truncated[0]


@pytest.mark.parametrize("name", ["gymnax:CartPole-v1", "navix:Navix-DoorKey-Random-5x5-v0"])
def test_every_episode_of_a_seed_starts_alike_and_seeds_differ(name):
    pytest.importorskip(PACKAGES[name.partition(":")[0]])
    env = make(name, 4)
    trials = Trials(env)
    trial = trials.reset(jax.random.key(0), jnp.asarray([0, 1, 2]))
    opening = np.asarray(trial.observation)
    assert len(np.unique(opening, axis=0)) > 1
    step = jax.jit(trials.step)
    for index in range(12):
        trial, _ = step(jax.random.key(index), trial, jnp.zeros(3, jnp.int32))
        if trial.first.all():
            assert_same(trial.observation, opening)
    assert trial.first.all()
    assert not set(env.tasks("train").tolist()) & set(env.tasks("test").tolist())


def test_playground_step_for_step_beside_its_time_limit():
    playground = pytest.importorskip("mujoco_playground")
    from brax.envs.wrappers.training import EpisodeWrapper  # what MuJoCo Playground trains with

    horizon = 4
    env = make("playground:CartpoleBalance", horizon)
    assert env.action_space == Box((-1.0,), (1.0,)) and make("playground:CartpoleBalance").horizon == 1000
    raw = playground.registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    own = EpisodeWrapper(raw, horizon, 1)
    task, own_reset, own_step, step = jnp.asarray(7), jax.jit(own.reset), jax.jit(own.step), jax.jit(env.step)
    theirs = own_reset(jax.random.key(7))
    ours, timestep = jax.jit(env.reset)(jax.random.key(99), task)
    assert_same(timestep.observation, theirs.obs)
    for action, key in zip(*actions_and_keys(env, horizon), strict=True):
        theirs = own_step(theirs, action)
        ours, timestep = step(key, ours, action, task)
        assert_same((timestep.observation, timestep.reward), (theirs.obs, theirs.reward), rtol=1e-5)
        assert bool(timestep.terminated | timestep.truncated) == bool(theirs.done)
        assert bool(timestep.truncated) == bool(theirs.info["truncation"])
    assert bool(timestep.truncated)
    assert_same(ours.inner[0].data.qpos, theirs.data.qpos, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("gymnax:CartPol-v1", "gymnax:CartPole-v1"),
        ("navix:Navix-Empty-5x5", "navix:Navix-Empty-5x5-v0"),
        ("craftax:Craftax-Symbolic", "craftax:Craftax-Symbolic-v1"),
        ("xland:XLand-R1-9x9", "xland:XLand-MiniGrid-R1-9x9"),
        ("playground:CartpoleBalanced", "playground:CartpoleBalance"),
    ],
)
def test_unknown_ids_are_answered_with_the_nearest(name, near):
    pytest.importorskip(PACKAGES[name.partition(":")[0]])
    with pytest.raises(ConfigError) as error:
        make(name)
    assert f"did you mean {near}" in str(error.value) and "\n" not in str(error.value)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", ["gymnax:a", "navix:a", "craftax:a", "playground:a", "xland:a", *XLAND])
def test_a_missing_suite_is_one_line_that_names_the_extra(name, monkeypatch, cli):
    prefix = "xland" if name in XLAND else name.partition(":")[0]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == PACKAGES[prefix] else find(n, *a))
    code, _, err = cli("envs", name)
    assert code == 2 and err.count("\n") == 1
    assert f"needs the package {PACKAGES[prefix]}" in err and f"pip install relic-jax[{prefix}]" in err


def test_the_listing_names_the_prefixes(cli):
    code, out, _ = cli("envs")
    assert code == 0 and all(f"{prefix}:ID" in out for prefix in PACKAGES)


def test_spaces_that_fit_no_policy_are_refused():
    class Dict:
        shape = ()

    with pytest.raises(ConfigError, match="env is 'gymnax:x'; allowed: one with discrete actions"):
        suite.action_space(Dict(), "gymnax:x")


# --- rulesets ---


def is_solvable(goal, rules, tiles):
    """Whether rules make all that the goal needs out of what lies around."""
    here = {tuple(tile) for tile in tiles if tile[0]}
    while True:
        made = {
            tuple(rule[5:7] if rule[0] in rulesets.TILE_RULES else rule[3:5])
            for rule in rules
            if rule[0]
            and {tuple(rule[1:3])} | ({tuple(rule[3:5])} if rule[0] in rulesets.TILE_RULES else set()) <= here
        }
        if made <= here:
            break
        here |= made
    needed = [goal[1:3], goal[3:5]] if goal[0] in rulesets.TILE_GOALS else [goal[1:3]]
    return all(tuple(tile) in here for tile in needed)


@pytest.mark.parametrize("name", ["trivial", "small", "medium"])
def test_rulesets_can_be_solved_and_no_two_are_the_same(name):
    found = rulesets.generate(name)
    recipe = rulesets.RECIPES[name]
    assert num_tasks(found) == recipe.count
    assert all(is_solvable(*map(np.ndarray.tolist, x)) for x in zip(*jax.tree.leaves(found), strict=True))
    both = np.concatenate([found.goal, found.rules.reshape(recipe.count, -1)], axis=1)
    assert len(np.unique(both, axis=0)) == recipe.count


def test_the_draw_is_deterministic():
    assert split_hash(rulesets.generate("trivial")) == "d75f56f37fe2"
    assert split_hash(rulesets.generate("medium")) == "ec79d45c37af"


def test_encodings_are_those_of_xminigrid():
    pytest.importorskip("xminigrid")
    from xminigrid.core import goals, rules

    sides = ("", "Up", "Right", "Down", "Left")
    tile, other, product = (3, 1), (4, 2), (5, 5)
    for kind, names, module, length, made in (
        ("Goal", (rulesets.HOLD_GOAL, rulesets.NEAR_GOALS, rulesets.TILE_GOALS), goals, rulesets.GOAL_LENGTH, ()),
        ("Rule", (rulesets.HOLD_RULE, rulesets.NEAR_RULES, rulesets.TILE_RULES), rules, rulesets.RULE_LENGTH, product),
    ):
        extra = {"prod_tile": jnp.array(made)} if made else {}
        single = [(f"AgentHold{kind}", names[0])]
        single += [(f"AgentNear{side}{kind}", number) for side, number in zip(sides, names[1], strict=True)]
        for cls, number in single:
            encoded = getattr(module, cls)(tile=jnp.array(tile), **extra).encode()
            assert encoded.tolist() == [number, *tile, *made] + [0] * (length - 3 - len(made))
        for side, number in zip(sides, names[2], strict=True):
            cls = getattr(module, f"TileNear{side}{kind}")
            encoded = cls(tile_a=jnp.array(tile), tile_b=jnp.array(other), **extra).encode()
            assert encoded.tolist() == [number, *tile, *other, *made]


def test_xland_holds_rulesets_out():
    pytest.importorskip("xminigrid")
    for name in sorted({*XLAND} - {"xland-anyside"}):
        env = make(name)
        train, test = env.tasks("train"), env.tasks("test")
        assert env.name == name and (num_tasks(train), num_tasks(test)) == (9000, 1000)
        rows = [{(g.tobytes(), r.tobytes()) for g, r in zip(x.goal, x.rules, strict=True)} for x in (train, test)]
        assert not rows[0] & rows[1]
    trivial = make("xland-trivial")
    goals = [{goal.tobytes() for goal in trivial.tasks(split).goal} for split in ("train", "test")]
    assert not goals[0] & goals[1]
    lesson = make("xland-anyside")
    for split, own in zip(("train", "test"), goals, strict=True):
        tasks = lesson.tasks(split)
        assert {goal.tobytes() for goal in tasks.goal} <= own  # what trivial holds out is held out here
        kinds, counts = np.unique(tasks.goal[:, 0], return_counts=True)
        assert kinds.tolist() == [rulesets.HOLD_GOAL, rulesets.NEAR_GOALS[0], rulesets.TILE_GOALS[0]]
        assert 0.4 < counts[2] / counts.sum() < 0.7
        needed = [goal[1:3] for goal in tasks.goal], [goal[3:5] for goal in tasks.goal]
        for goal, tiles, *tile in zip(tasks.goal, tasks.init_tiles, *needed, strict=True):
            here = [t for t in tile if t.any()]
            assert len(here) == 1 + (goal[0] in rulesets.TILE_GOALS)
            for t in here:  # the goal's objects are there, and no others like them
                assert (tiles == t).all(-1).sum() == 1 + (len(here) == 2 and (here[0] == here[1]).all())
        assert not tasks.rules.any()
    assert split_hash(lesson.rulesets) == "eb303477d1dd"


def test_benchmarks_of_xminigrid_become_arrays_by_the_command_that_is_named(tmp_path, monkeypatch):
    pytest.importorskip("xminigrid")
    from xminigrid import benchmarks

    found = rulesets.generate("small")
    data = {"goals": found.goal, "rules": found.rules, "init_tiles": found.init_tiles}
    data = {key: jnp.asarray(x[:100]) for key, x in data.items()} | {
        "num_rules": jnp.zeros(100),
        "generation_config": {},
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmarks, "DATA_PATH", str(tmp_path))
    benchmarks.save_bz2_pickle(data, str(tmp_path / benchmarks.NAME2HFFILENAME["small-1m"]))  # as if downloaded
    with pytest.raises(ConfigError, match=r"load_benchmark\('small-1m'\)") as error:
        make("xland:XLand-MiniGrid-R1-9x9:small-1m")
    exec(shlex.split(str(error.value).partition("; python ")[2])[1])
    env = make("xland:XLand-MiniGrid-R1-9x9:small-1m.npz")
    assert_same(env.rulesets, jax.tree.map(lambda x: x[:100], found))
    assert (num_tasks(env.tasks("train")), num_tasks(env.tasks("test"))) == (90, 10)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("content", ["harmful", "inside", "cut", "other", "text"])
def test_files_that_are_something_else_are_one_line(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    harmful = np.array([Harmful()], object)
    whole = {"goals": np.zeros((3, 5)), "rules": np.zeros((3, 1, 7)), "init_tiles": np.zeros((3, 1, 2))}
    if content == "harmful":
        Path("file").write_bytes(pickle.dumps(Harmful()))
    elif content == "text":
        Path("file").write_bytes(b"nothing")
    else:
        changed = {"inside": {"init_tiles": harmful}, "other": {"rules": np.zeros((3, 5))}, "cut": {}}[content]
        np.savez("file.npz", **whole | changed)
        Path("file").write_bytes(Path("file.npz").read_bytes()[: -20 if content == "cut" else None])
    with pytest.raises(ConfigError, match="env is 'xland:x'; allowed: an npz file of goals") as error:
        rulesets.read(Path("file"), "xland:x")
    assert "\n" not in str(error.value) and not Path("harmed").exists()


@pytest.mark.parametrize("show_last_reward", [False, True])
def test_the_only_reward_of_an_episode_is_shown_where_it_was_earned(show_last_reward):
    pytest.importorskip("xminigrid")
    env = make("xland:XLand-MiniGrid-R1-9x9:trivial", 60)
    tasks = jax.tree.map(lambda x: jnp.asarray(x[:8]), env.tasks("train"))
    near = jnp.pad(tasks.init_tiles[:, 0], ((0, 0), (1, 2)))
    tasks = tasks.replace(goal=near.at[:, 0].set(3))  # reached at random: stand next to the first thing there
    trials = Trials(env, show_last_reward)
    step, state, rewarded = jax.jit(trials.step), trials.reset(jax.random.key(0), tasks), 0
    for index in range(400):
        actions = jnp.where(jax.random.bernoulli(jax.random.key(index), shape=(8,)), 0, index % 6)
        state, result = step(jax.random.key(index), state, actions)
        for row in np.flatnonzero(result.reward > 0):
            assert state.previous_reward[row] == result.reward[row] and not state.first[row]
            assert state.observation["state"][row, -1] == 1 and state.previous_action[row] == actions[row]
            rewarded += 1
    assert rewarded > 5


@pytest.mark.parametrize("name", ["xland-trivial", "xland-trivial-rl2", "xland-small", "xland-medium"])
def test_presets_fit_their_environment(name):
    pytest.importorskip("xminigrid")
    from relic_jax.config import validate
    from relic_jax.experiments import presets

    config = presets.get(name).config
    validate(config, horizon=make(config.env.name).horizon)


@pytest.mark.parametrize(
    "name",
    [
        "gymnax:CartPole-v1",
        "navix:Navix-Empty-5x5-v0",
        "craftax:Craftax-Symbolic-v1",
        "playground:CartpoleBalance",
        "xland-trivial",
    ],
)
def test_what_the_base_class_leaves_open_is_defined(name):
    pytest.importorskip("xminigrid" if name in XLAND else PACKAGES[name.partition(":")[0]])
    env = type(make(name))
    assert env.begin is not suite.Suite.begin and env.advance is not suite.Suite.advance
    assert env.action_space is not Environment.action_space
