"""The code of the documentation runs."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "custom-environments.md"


def blocks():
    """Return (language, code) of the page's fenced blocks, in order."""
    return re.findall(r"^```(python|sh)\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)


@pytest.mark.slow
def test_the_page_about_custom_environments_runs(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    ran = []
    for language, code in blocks():
        if language == "sh":
            for line in code.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "relic-jax"
                status, out, err = cli(*arguments)
                assert status == 0, err
                ran.append(out)
        elif name := re.match(r"# (\w+\.py)\n", code):
            Path(name[1]).write_text(code)
        else:
            Path("script.py").write_text(code)
            runpy.run_path("script.py")
    assert "python:corridors:CORRIDOR: a custom environment; horizon 20" in ran[0] and "8 train tasks" in ran[0]
    assert Path("runs/corridor/curve.json").is_file() and "1000 train tasks" in ran[-1]
    assert Path("runs/from-python/checkpoints").is_dir()


SMALL = """
from dataclasses import dataclass, field
import jax, jax.numpy as jnp, numpy as np
from relic_jax.environment.base import Discrete, Environment, Image, TimeStep, first_timestep

@dataclass(frozen=True)
class Fine(Environment):
    name: str = "fine"
    horizon: int = 5
    action_space = Discrete(2)
    observation_spec = jax.ShapeDtypeStruct((2,), jnp.float32)
    def tasks(self, split): return np.arange(3)
    def reset(self, key, task): return jnp.zeros((), int), first_timestep(jnp.zeros(2))
    def step(self, key, state, action, task):
        return state + 1, TimeStep(jnp.zeros(2), jnp.zeros(()), jnp.zeros((), bool), state == 4)

class Reward(Fine):
    def step(self, key, state, action, task):
        return state, TimeStep(jnp.zeros(2), jnp.zeros((1,)), jnp.zeros((), bool), jnp.zeros((), bool))

class State(Fine):
    def step(self, key, state, action, task): return state.astype(float), first_timestep(jnp.zeros(2))

class Seen(Fine):
    def reset(self, key, task): return jnp.zeros((), int), first_timestep(jnp.zeros(3))

class Tasks(Fine):
    def tasks(self, split): return {"a": np.zeros((3, 2)), "b": np.zeros(4)}

class Empty(Fine):
    def tasks(self, split): return np.zeros((0 if split == "test" else 3,))

@dataclass(frozen=True)
class Unhashable(Fine):
    goals: list = field(default_factory=list)

NONE = Fine(horizon=0)

class Flat(Fine):
    observation_spec = Image((2, 2), jnp.uint8)

class Complex(Fine):
    observation_spec = {"z": jax.ShapeDtypeStruct((2,), jnp.complex64)}

class Tuples(Fine):
    observation_spec = {"size": 3}

@dataclass(frozen=True)
class Half(Environment):
    name: str = "half"
    horizon: int = 5
    def tasks(self, split): return np.arange(3)

class Rungs(Fine):
    rungs = {"far": (1, 2)}

class Listed(Fine):
    rungs = {"far": [1, 2]}

class Unlabelled(Fine):
    recall_classes = (4,)

class Classes(Unlabelled):
    recall_classes = [4]

class Labels(Unlabelled):
    def recall_labels(self, observations): return jnp.zeros(5, int), jnp.ones(5, bool)

class Relabelled(Unlabelled):
    can_relabel = True
    def recall_labels(self, observations): return jnp.zeros((5, 1), int), jnp.ones(5, bool)
    def relabel(self, key, observations): return observations[:1]

class Agents(Fine):
    def __init__(self, agent): object.__setattr__(self, "agent", agent)
    def __hash__(self): return hash(self.agent)
    @property
    def reference_agents(self): return {"walker": self.agent}

@dataclass(frozen=True)
class Idle:
    def initial_memory(self): return jnp.zeros(())

@dataclass(frozen=True)
class Walker(Idle):
    def act(self, key, memory, state, first, task): return memory, jnp.zeros(2)

@dataclass(frozen=True)
class Unsure(Idle):
    def act(self, key, memory, state, first, task): return memory, jnp.zeros((), int)
    def action_probabilities(self, memory, state, first, task): return memory, jnp.ones(3)

IDLE, WALKER, UNSURE = Agents(Idle()), Agents(Walker()), Agents(Unsure())

NUMBER = 3
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small:Reward", r"reward from step is float32\[1\]; allowed: float32\[\]"),
        ("small:State", r"state after step is float32\[\]; allowed: as after reset: int32\[\]"),
        ("small:Seen", r"observation from reset is float32\[3\]; allowed: float32\[2\]"),
        (
            "small:Tasks",
            r"tasks\('train'\) is of leading axes \[\(3,\), \(4,\)\]; allowed: arrays with one",
        ),
        ("small:Empty", r"tasks\('test'\) is of leading axes \[\(0,\)\]"),
        ("small:Unhashable", r"allowed: a frozen dataclass of hashable fields"),
        ("small:Flat", r"observation_spec is an Image \[2, 2\]; allowed: an Image \[height, width, channels\]"),
        ("small:Complex", r"observation_spec\['z'\] is complex64; allowed: floats, integers and booleans"),
        ("small:Tuples", r"observation_spec\['size'\] is int; allowed: a jax\.ShapeDtypeStruct"),
        ("small:NONE", r"horizon is 0; allowed: an int above 0"),
        ("small:Half", r"which does not define action_space; allowed: one that does"),
        ("small:Rungs", r"which does not define rung_tasks; allowed: one that does"),
        ("small:Listed", r"rungs\['far'\] is \[1, 2\]; allowed: a tuple of values, from easy to hard"),
        ("small:Unlabelled", r"which does not define recall_labels; allowed: one that does"),
        ("small:Classes", r"recall_classes is \[4\]; allowed: a tuple of numbers of classes"),
        ("small:Labels", r"recall_labels of 5 steps is .*int32\[5\].*; allowed: .*int32\[5, 1\]', 'bool\[5\]'\)"),
        ("small:Relabelled", r"relabel of 5 steps is float32\[1, 2\]; allowed: float32\[5, 2\]"),
        ("small:IDLE", r"reference_agents\['walker'\] is a Idle; allowed: an agent that defines act"),
        (
            "small:WALKER",
            r"\['walker'\]\.act is \('float32\[\]', 'float32\[2\]'\); allowed: \('float32\[\]', 'int32\[\]'\)",
        ),
        ("small:UNSURE", r"\['walker'\]\.action_probabilities is .*'float32\[3\]'\); allowed: .*'float32\[2\]'\)"),
        ("small:NUMBER", r"a int; allowed: a relic_jax\.environment\.base\.Environment"),
        ("small:NOTHING", r"allowed: a name in a module that can be imported from here"),
        ("nowhere:NOTHING", r"No module named 'nowhere'"),
        ("small", r"allowed: python:MODULE:NAME"),
    ],
)
def test_what_is_no_environment_is_one_line(tmp_path, monkeypatch, cli, name, message):
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = cli("train", "darkroom-smoke", "--env", f"python:{name}")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert re.search(rf"^relic-jax: env is 'python:{name}'.*{message}", err)
    assert not (tmp_path / "runs").exists()


def test_custom_environments_are_classes_or_instances(tmp_path, monkeypatch):
    from relic_jax.envs import registry

    (tmp_path / "small2.py").write_text(SMALL + "\nFINE = Fine()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.make("python:small2:FINE") == registry.make("python:small2:Fine")


def test_an_error_of_a_library_s_is_not_taken_for_a_missing_method(tmp_path, monkeypatch):
    from relic_jax.envs import registry

    source = SMALL.replace("def tasks(self, split): return np.arange(3)", "def tasks(self, split): return library()")
    (tmp_path / "small3.py").write_text("def library(): raise NotImplementedError('there')\n" + source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotImplementedError, match="there"):
        registry.make("python:small3:Fine")
