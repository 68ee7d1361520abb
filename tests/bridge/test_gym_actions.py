"""gymnasium's discrete action spaces and action masks through the bridge, against gymnasium in this process."""

import dataclasses
import os
import sys
import textwrap

import numpy as np
import pytest

from relic_jax.bridge import protocol
from relic_jax.bridge.gym import actions as gym_actions
from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.protocol import ArraySpec, ProtocolError, Spec
from relic_jax.bridge.worker import SetupError
from relic_jax.config import EnvConfig, TrialConfig, WorkerConfig
from relic_jax.environment.base import Discrete, MultiDiscrete
from relic_jax.environment.reference_returns import reference_returns
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces

SPACES = {
    "discrete": spaces.Discrete(4),
    "start": spaces.Discrete(3, start=-2),
    "multi": spaces.MultiDiscrete([2, 3]),
    "multi start": spaces.MultiDiscrete([2, 3], start=[5, -1]),
    "table": spaces.MultiDiscrete([[2, 3], [4, 1]]),
    "binary": spaces.MultiBinary(3),
    "binary table": spaces.MultiBinary([2, 2]),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_action_of_a_space_can_be_taken_and_no_other(name):
    space = SPACES[name]
    found = gym_actions.action_spec(space)
    own = Discrete(found["actions"]) if found["actions"] else MultiDiscrete(found["nvec"])
    assert found["action"] == ArraySpec("int32", own.shape)
    drawn = [gym_actions.to_gym(space, a) for a in own.draw(np.random.default_rng(0), 3000)]
    assert all(space.contains(action) for action in drawn)
    count = int(np.prod(np.array(found.get("nvec") or found["actions"])))
    assert len(np.unique(np.reshape(drawn, (3000, -1)), axis=0)) == count
    starts = gym_actions.to_gym(space, np.zeros(own.shape, np.int32))
    np.testing.assert_array_equal(starts, getattr(space, "start", 0) * np.ones(space.shape, int))


@pytest.mark.parametrize("name", SPACES)
def test_masks_mean_what_they_mean_to_gymnasium(name):
    """Actions that `space.sample(mask)` draws are those that our mask allows, and all of them."""
    space, random = SPACES[name], np.random.default_rng(0)
    found = gym_actions.action_spec(space)
    own = Discrete(found["actions"]) if found["actions"] else MultiDiscrete(found["nvec"])
    space.seed(0)
    for _ in range(20):
        if name.startswith("binary"):
            mask = random.integers(3, size=space.shape).astype(np.int8)
        else:
            parts = [random.integers(2, size=n).astype(np.int8) for n in found.get("nvec") or [found["actions"]]]
            for part in parts:
                part[random.integers(len(part))] = 1
            mask = parts[0] if own.shape == () else tuple(parts)
            if name == "table":
                mask = (tuple(parts[:2]), tuple(parts[2:]))
        legal = gym_actions.legal(space, {"action_mask": mask})
        assert legal.dtype == bool and legal.shape == (own.mask_size,) and own.playable(legal)
        theirs = np.reshape([space.sample(mask) for _ in range(100)], (100, -1))
        ours = np.reshape(
            [gym_actions.to_gym(space, a) for a in own.draw(random, 100, np.tile(legal, (100, 1)))], (100, -1)
        )
        sizes = [len(np.unique(column)) for column in theirs.T]
        assert sizes == [len(np.unique(column)) for column in ours.T]
        assert {*map(tuple, theirs.tolist())} | {*map(tuple, ours.tolist())} <= {
            *map(tuple, np.reshape([gym_actions.to_gym(space, a) for a in legal_actions(own, legal)],
                                   (-1, theirs.shape[1])).tolist())}  # fmt: skip


def legal_actions(own, legal):
    every = np.indices(own.nvec if own.shape else (own.n,)).reshape(own.n if own.shape else 1, -1).T
    return [a if own.shape else a[0] for a in every if own.allows(legal, a if own.shape else a[0])]


@pytest.mark.parametrize("mask", [None, np.ones(3), np.full(4, 2), "all", [[1, 0], [1, 1]], np.array([0.5, 1, 1, 1])])
def test_what_is_no_mask_of_four_actions_is_named(mask):
    if np.size(mask) == 4 and np.isin(mask, (0, 1)).all():
        gym_actions.legal(SPACES["discrete"], {"action_mask": mask})
        return
    with pytest.raises(SetupError, match="action_mask"):
        gym_actions.legal(SPACES["discrete"], {"action_mask": mask})


@pytest.mark.parametrize(
    "space", [spaces.Text(3), spaces.Box(-np.inf, np.inf, (2,)), spaces.Tuple([spaces.Discrete(2)])]
)
def test_other_spaces_are_refused_by_name(space):
    with pytest.raises(SetupError, match=r"action space is .*; allowed: Discrete, MultiDiscrete, MultiBinary, a Box"):
        gym_actions.action_spec(space)


def test_specs_travel_and_malformed_ones_do_not():
    spec = Spec("x", {}, ArraySpec("int32", (2,)), 0, 0.0, 0.0, (), 5, True, False, nvec=(2, 3), masks=True)
    assert Spec.from_json(spec.to_json()) == spec and spec.mask_size == 5
    legal = np.array([1, 0, 0, 1, 1], bool)
    assert spec.playable(legal) and not spec.playable(np.array([0, 0, 1, 1, 1], bool))
    assert [spec.allows(legal, a) for a in ([0, 1], [0, 0], [1, 1], [0, 3], [-1, 1])] == [True, *[False] * 4]
    assert spec.asks_expert(np.array([protocol.EXPERT, 0])).tolist() == [True, False]
    old = spec._replace(action=ArraySpec("int32", ()), actions=3, nvec=(), masks=False).to_json()
    del old["nvec"], old["masks"]
    assert Spec.from_json(old).nvec == ()
    for wrong in ({"nvec": (2,)}, {"actions": 3}, {"nvec": (2, 0)}, {"nvec": ()}):
        with pytest.raises(ProtocolError, match="malformed"):
            Spec.from_json(spec._replace(**wrong).to_json())


MODULE = '''
import gymnasium, numpy as np


class Masked(gymnasium.Env):
    """Moves by one of five actions from -2; leaving [-3, 3] is illegal, and so is standing still at odd steps.

    An illegal action is an error, and leaves a file."""

    observation_space = gymnasium.spaces.Box(-3.0, 3.0, (1,), np.float32)

    def __init__(self, kind="discrete", fault=""):
        self.kind, self.fault = kind, fault
        self.action_space = (
            gymnasium.spaces.Discrete(5, start=-2) if kind == "discrete" else gymnasium.spaces.MultiDiscrete([5, 2])
        )

    def info(self):
        moved = self.at + np.arange(-2, 3)
        self.mask = ((abs(moved) <= 3) & ((np.arange(5) != 2) | (self.count % 2 == 0))).astype(np.int8)
        if self.fault == "missing" and self.count == 3:
            return {}
        if self.fault == "nothing" and self.count == 3:
            self.mask[:] = 0
        self.other = np.array([self.count % 2 == 0, self.count % 3 > 0 or self.count % 2], np.int8)
        return {"action_mask": self.mask if self.kind == "discrete" else (self.mask, self.other)}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.count, self.goal = 0, 0, int(self.np_random.integers(-3, 4))
        return np.array([self.at], np.float32), self.info()

    def step(self, action):
        assert self.action_space.contains(action), action
        move = int(action) + 2 if self.kind == "discrete" else int(action[0])
        if not (self.mask[move] and (self.kind == "discrete" or self.other[action[1]])):
            open(__file__ + ".illegal", "w").close()
            raise ValueError(f"illegal {action}")
        self.at, self.count = self.at + move - 2, self.count + 1
        terminated = self.count == 6
        info = {} if terminated else self.info()  # nothing can be done at the end
        return np.array([self.at], np.float32), float(self.at == self.goal), terminated, False, info


gymnasium.register("Masked-v0", Masked, max_episode_steps=20)
'''


@pytest.fixture
def masked(tmp_path, monkeypatch):
    """Its module's name, for `gym:MODULE:Masked-v0`, in this process and in workers."""
    (tmp_path / "masked_envs.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "masked_envs:Masked-v0"


def pool_of(id, **arguments):
    entry = "relic_jax.bridge.gym:GymEnvironment"
    options = {"id": id, "arguments": arguments}
    return Pool(PoolConfig(entry, options, 1, 4, paths=(os.getcwd(),), max_restarts=1, backoff=0.0))


@pytest.mark.parametrize("kind", ["discrete", "multi"])
def test_masks_come_with_the_observations_that_they_belong_to(masked, kind):
    with pool_of(masked, kind=kind) as pool:
        spec, random = pool.spec, np.random.default_rng(0)
        assert spec.masks and spec.mask_size == (5 if kind == "discrete" else 7)
        own = Discrete(spec.actions) if kind == "discrete" else MultiDiscrete(spec.nvec)
        batch, seen = pool.reset([{}] * 4, range(4)), set()
        for _ in range(14):
            at = batch.observation["observation"]
            moved = at + np.arange(-2, 3)
            outside = abs(moved) > 3
            assert not batch.legal[:, :5][outside].any() and own.playable(batch.legal).all()
            seen |= {*map(tuple, batch.legal.tolist())}
            pool.send(own.draw(random, 4, batch.legal))
            batch = pool.receive()
            assert batch.valid.all() and batch.legal.dtype == bool
        assert len(seen) > 4 and not pool.faults


@pytest.mark.parametrize(("fault", "said"), [("missing", "info has no 'action_mask'"), ("nothing", "allows no action")])
def test_a_mask_that_is_missing_or_leaves_nothing_is_said(masked, fault, said):
    with pool_of(masked, fault=fault) as pool, pytest.raises(PoolError, match=said):
        batch, random = pool.reset([{}] * 4, range(4)), np.random.default_rng(0)
        for _ in range(20):
            pool.send(Discrete(5).draw(random, 4, batch.legal))
            batch = pool.receive()


@pytest.mark.slow
def test_a_trial_is_trained_and_evaluated_without_an_illegal_action(masked, tiny, tmp_path):
    """The environment raises at the first one, which would be a fault and a lost step, and leaves a file, also where
    the seeds are tested before the training."""
    from relic_jax.rl.host import HostRunner
    from relic_jax.rl.parallel import initial_state
    from relic_jax.rl.train import prepare

    host = WorkerConfig(workers=1)
    env = make(EnvConfig(f"gym:{masked}", horizon=6), host)
    assert env.masks_actions and env.action_space == Discrete(5)
    config = tiny(env=env.name, host=host, trial=TrialConfig(environments=2, steps=24, updates=2))
    config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, minibatches=1, last_update="partial"))
    setup = prepare(config, env)
    state = initial_state(setup)
    with HostRunner(setup) as run:
        for index in range(2):
            state, metrics = run(state)
            assert metrics["lost_steps"] == 0 and np.isfinite(metrics["loss"]) and metrics["entropy"] < np.log(5)
            if index == 0:
                steps = state.trajectory
                assert Discrete(5).allows(steps.inputs.legal[:, :12], steps.action[:, :12]).all()
        assert not run._trials.pool.faults
    evaluation = dataclasses.replace(config.eval, tasks=2, episodes=2)
    curves = in_context_curves(setup.policy, state.params, env, evaluation)
    assert curves.returns.shape == (2, 2)
    assert reference_returns(env, "test", episodes=4).random.mean_return >= 0
    assert not list(tmp_path.glob("*.illegal"))
