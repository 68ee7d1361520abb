"""Environments by name."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from relic_jax.config import EnvConfig, Options
from relic_jax.environment.base import Environment, VisualEnvironment
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs.probes.env import Probe
from relic_jax.envs.registry import TABLE, UnknownEnvironmentError, changed_options, describe, make, names

EXPECTED = {
    "darkroom-dpt",
    "darkroom-ad-9",
    "darkroom-ad-9-random",
    "darkroom-hard-17",
    "darkroom-hard-17-random",
    "darkroom-large-40x20",
    "darkroom-permuted",
    "key-to-door-9",
    "gridobj-9",
    "gridobj-13",
    "gridobj-21",
    "probe-value",
    "probe-discount",
    "probe-policy",
    "probe-memory",
    "probe-bandit",
    "probe-continuous",
    "pointmass-goal",
    "miniworld-dpt4",
    "miniworld-open",
    "miniworld-oneroom",
    "miniworld-hallway",
    "miniworld-tmaze",
    "miniworld-fourrooms",
    "miniworld-maze",
    "miniworld-wallgap",
    "house-objnav-small",
    "house-objnav-medium",
    "house-objnav-large",
}


def test_names_are_sorted_and_complete():
    assert names() == sorted(names())
    assert set(names()) >= EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_made_environments_know_their_name(name):
    assert make(name).name == name
    assert make(name) == make(name)


def test_summaries_are_one_line():
    assert all(summary and "\n" not in summary for summary in (entry.summary for entry in TABLE.values()))


def test_description():
    description = describe("darkroom-dpt")
    assert (description.horizon, description.actions) == (100, 5)
    assert description.observation == "float32 [2]"
    assert (description.train_tasks, description.test_tasks) == (80, 20)
    assert (description.train_hash, description.test_hash) == ("7751ebc586a2", "f117b3c869d9")
    line = str(description)
    assert "\n" not in line and "darkroom-dpt" in line and "f117b3c869d9" in line


def test_descriptions_name_the_parts_of_an_observation():
    description = describe("house-objnav-small")
    assert description.observation == "gps float32 [2], image uint8 [64, 64, 3], target float32 [20]"
    assert (description.train_tasks, description.test_tasks, description.actions) == (10_000, 1000, 6)


def test_the_listing_says_what_dpt4_cannot_show():
    line = str(describe("miniworld-dpt4"))
    assert "only four distinct tasks" in line and "test tasks are training tasks" in line


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_the_listing_says_where_memory_gains_little_as_measured(size):
    file = Path(__file__).parents[2] / "experiments" / "results" / "searchers" / f"house-objnav-{size}.json"
    difference = json.loads(file.read_text(encoding="utf-8"))["difference"]["spl"]["mean"]
    assert difference < 0.2
    line = str(describe(f"house-objnav-{size}"))
    options = "no test of memory with view symbols, pose episode and all kinds asked for"
    assert f"{options}: scripted searchers with and without it differ by {difference:.2f} in SPL" in line


def test_options_that_differ_from_their_defaults():
    env = EnvConfig("house-objnav-small", options=Options(pose="house", view="image", asked="1,2"))
    assert changed_options(env) == {"asked": "1,2", "pose": "house"}
    assert changed_options(EnvConfig("darkroom-dpt")) == {}


@pytest.mark.parametrize("function", [make, describe])
def test_unknown_name_is_answered_with_the_nearest(function):
    with pytest.raises(UnknownEnvironmentError) as error:
        function("darkrom-dpt\n")
    message = str(error.value)
    assert isinstance(error.value, ValueError)
    assert r"'darkrom-dpt\n'" in message and "\n" not in message
    assert "did you mean darkroom-dpt" in message and "relic-jax envs lists" in message


def test_hopeless_name_gets_no_guess():
    with pytest.raises(UnknownEnvironmentError) as error:
        make("xyzzy")
    assert str(error.value) == "env is 'xyzzy'; allowed: a name that relic-jax envs lists"


def test_environments_are_imported_only_when_made():
    code = (
        "import sys, relic_jax.envs.registry as r; r.names(); "
        "worlds = tuple('relic_jax.envs.' + x for x in ('darkroom', 'probes', 'firstperson')); "
        "assert not [m for m in sys.modules if m.startswith(worlds)]; "
        "r.make('probe-value'); assert 'relic_jax.envs.darkroom.env' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_what_the_interface_leaves_open_is_defined(name):
    """But for the steps of simulators, which are taken in worker processes."""
    env = make(name)
    abstract = {Environment: ["observation_spec", "action_space", "reset", "step", "tasks"]}
    if isinstance(env, VisualEnvironment):
        abstract[VisualEnvironment] = ["start", "transition", "observe"]
    if isinstance(env, Probe):
        abstract[Probe] = ["observe", "reward"]
    missing = [m for base, methods in abstract.items() for m in methods if getattr(type(env), m) is getattr(base, m)]
    assert missing == (["step"] if isinstance(env, HostEnvironment) else [])


NAMED = {
    "darkroom-dpt": ("right", "left", "up", "down", "stay"),
    "key-to-door-9": ("right", "left", "up", "down", "stay"),
    "gridobj-9": ("right", "left", "up", "down", "stay"),
    "miniworld-open": ("turn left", "turn right", "forward", "nothing"),
    "miniworld-tmaze": ("turn left", "turn right", "forward"),
    "house-objnav-small": ("stop", "forward", "turn left", "turn right", "look up", "look down"),
    "pointmass-goal": ("Δx", "Δy"),
    "darkroom-permuted": None,
    "probe-bandit": None,
}


@pytest.mark.parametrize("name", NAMED)
def test_names_of_actions(name):
    from relic_jax.environment.repeat import repeated

    env = make(name)
    assert env.action_names == NAMED[name] == repeated(env, 2).action_names
    assert NAMED[name] is None or len(NAMED[name]) == env.action_space.n


def test_the_names_of_darkrooms_actions_are_what_they_do():
    env, effects = make("darkroom-dpt"), {"right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}
    moves = [tuple(int(x) for x in env.move(np.array([5, 5]), action) - 5) for action in range(5)]
    assert moves == [effects.get(name, (0, 0)) for name in env.action_names]
