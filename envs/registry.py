"""Environments by name. Modules are imported only when one of their environments is made.

`python:MODULE:NAME` is a custom environment (`relic_jax.envs.custom`). `gym:ID` is gymnasium's environment ID,
`habitat-lab:CONFIG` the task of a habitat-lab config, `metaworld:ml10` a Meta-World benchmark; these and those in
HOSTED run in worker processes (`relic_jax.environment.host`). Names in BRAX may end in a physics backend:
`ant-dir:mjx`. A name that begins with one of SUITES and a colon is an environment of that suite: `gymnax:CartPole-v1`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

from relic_jax.environment.base import Environment, Image, num_tasks, split_hash

if TYPE_CHECKING:
    from relic_jax.config import HostConfig


class UnknownEnvironmentError(ValueError):
    """No environment has this name."""

    def __init__(self, name: str) -> None:
        """Names the value and the nearest names."""
        near = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ";"
        super().__init__(f"unknown environment {name!r}{hint} relic_jax.envs.registry.names() lists all")


@dataclasses.dataclass(frozen=True)
class Description:
    """What there is to know about an environment before running it; `str` gives it as one line.

    observation, action_space: as text. actions: number of actions, or of an action's components. *_tasks: sizes of the
    splits. *_hash: `split_hash` of the splits.
    """

    name: str
    summary: str
    horizon: int
    observation: str
    actions: int
    action_space: str
    train_tasks: int
    test_tasks: int
    train_hash: str
    test_hash: str
    action_names: tuple[str, ...] | None = None
    observation_names: tuple[str, ...] | None = None

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.name}: {self.summary}; horizon {self.horizon}, observation {self.observation}, "
            f"{self.action_space}, {self.train_tasks} train tasks ({self.train_hash}), "
            f"{self.test_tasks} test tasks ({self.test_hash})"
        )


def names() -> list[str]:
    """Every environment's name, sorted, but for those that PREFIXES or SUITES begin."""
    return sorted({**ENTRIES, **HOSTED, **BRAX, **XLAND})


def make(name: str, host: HostConfig | None = None) -> Environment:
    """The environment called `name`. host: for those in worker processes.

    Of those of other suites, `host.horizon` is the time limit. Raises UnknownEnvironmentError, and ConfigError where
    one in worker processes or of another suite cannot be made.
    """
    for prefix, (module, _) in PREFIXES.items():
        if name.startswith(prefix):
            return importlib.import_module(module).make(name.removeprefix(prefix), host)
    prefix = "xland" if name in XLAND else name.partition(":")[0]
    if prefix in SUITES and (name in XLAND or ":" in name):
        return importlib.import_module(SUITES[prefix][0]).make(name, host and host.horizon)
    if name.partition(":")[0] in BRAX:
        return importlib.import_module("relic_jax.envs.brax.env").make(name)
    if name in HOSTED:
        return importlib.import_module(HOSTED[name][0]).make(host)
    if name not in ENTRIES:
        raise UnknownEnvironmentError(name)
    return ENTRIES[name][0]()


def numbered(names: tuple[str, ...] | None, n: int) -> str:
    """'0 left, 1 right'; nothing where there are no names, or not as many as actions or components (n)."""
    return ", ".join(f"{index} {name}" for index, name in enumerate(names)) if names and len(names) == n else ""


def host_options(name: str) -> tuple[str, ...] | None:
    """The fields of HostConfig that the environment called `name` reads; None: no such name. None is made."""
    from relic_jax.config import HostConfig

    if name.startswith("python:"):
        return ()
    if name in HOSTED or name.startswith(tuple(PREFIXES)):
        other = () if name.startswith("gym:") else GYM_OPTIONS
        return tuple(field.name for field in dataclasses.fields(HostConfig) if field.name not in other)
    if name in XLAND or (":" in name and name.partition(":")[0] in SUITES):
        return ("horizon",)
    return () if name in ENTRIES or name.partition(":")[0] in BRAX else None


def describe(name: str, env: Environment | None = None) -> Description:
    """Describes the environment called `name`. env: it, where it was made already. Raises as `make` does."""
    env = env or make(name)
    train, test = env.tasks("train"), env.tasks("test")
    return Description(
        name=name,
        summary=", ".join(filter(None, (_summary(name), getattr(env, "note", "")))),
        horizon=env.horizon,
        observation=_observation(env),
        actions=env.action_space.n,
        action_space=str(env.action_space),
        train_tasks=num_tasks(train),
        test_tasks=num_tasks(test),
        train_hash=split_hash(train),
        test_hash=split_hash(test),
        action_names=env.action_names,
        observation_names=env.observation_names,
    )


def _summary(name: str) -> str:
    prefix = name.partition(":")[0]
    if prefix in BRAX:
        return BRAX[prefix]
    if prefix in SUITES and name != prefix:
        return f"{SUITES[prefix][1]}'s environment"
    by_prefix = (summary for prefix, (_, summary) in PREFIXES.items() if name.startswith(prefix))
    return next(by_prefix, None) or {**ENTRIES, **HOSTED, **XLAND}[name][1]


def _observation(env: Environment) -> str:
    """Dtypes and shapes of the observation's arrays, each after its name where it has one; images say so."""
    parts = []
    for path, spec in jax.tree_util.tree_leaves_with_path(env.observation_spec):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if isinstance(spec, Image) and name.split(".")[-1] != "image":
            name = f"{name} image".lstrip()
        parts.append(f"{name} {spec.dtype} {list(spec.shape)}".lstrip())
    return ", ".join(parts)


PREFIXES = {
    "python:": ("relic_jax.envs.custom", "one's own"),
    "gym:": ("relic_jax.envs.gym", "gymnasium's environment"),
    "habitat-lab:": ("relic_jax.envs.habitat.lab.env", "a task of habitat-lab's, by its config"),
    "metaworld:": ("relic_jax.envs.metaworld.env", "a robot arm's tasks, where the goal is not seen"),
}
"""Environments that others name: module with `make(rest of the name, host)`, description. All but the first live in
worker processes."""
GYM_OPTIONS = ("wrappers", "text")
"""Fields of HostConfig that only gymnasium's environments read."""
HOSTED = {
    "extobjnav": (
        "relic_jax.envs.habitat.env",
        "find objects of named categories in a house, on habitat-sim or on a software simulator",
    ),
}
"""Environments in worker processes: module with `make(host)`, one-line description."""

BRAX = {
    "halfcheetah-vel": "run at a speed that is not told",
    "halfcheetah-dir": "run forwards or backwards, whichever pays",
    "ant-dir": "walk in a direction that is not told",
    "ant-goal": "walk to a place that is not told",
}
"""Tasks on brax's environments (an extra); `NAME:BACKEND` chooses its physics. One-line descriptions."""

SUITES = {
    "gymnax": ("relic_jax.envs.adapters.gymnax", "gymnax"),
    "xland": ("relic_jax.envs.adapters.xland", "XLand-MiniGrid"),
    "navix": ("relic_jax.envs.adapters.navix", "navix"),
    "craftax": ("relic_jax.envs.adapters.craftax", "Craftax"),
    "playground": ("relic_jax.envs.adapters.playground", "MuJoCo Playground"),
}
"""Other suites (each an extra), by the prefix of their names: module with `make(name, horizon)`, the suite's name."""

XLAND = {
    "xland-anyside": (
        "relic_jax.envs.adapters.xland",
        "XLand-MiniGrid: the goals of xland-trivial that have no direction, one room",
    ),
    "xland-trivial": (
        "relic_jax.envs.adapters.xland",
        "XLand-MiniGrid: what to do with which of five objects, one room",
    ),
    "xland-small": (
        "relic_jax.envs.adapters.xland",
        "XLand-MiniGrid: the same with a rule that makes what is needed, one room",
    ),
    "xland-medium": ("relic_jax.envs.adapters.xland", "XLand-MiniGrid: chains of two rules, four rooms"),
}
"""Presets of XLand-MiniGrid. One-line descriptions, behind their module."""

Entry = tuple[Callable[[], Environment], str]  # factory, one-line description


def _presets(module: str, summaries: dict[str, str]) -> dict[str, Entry]:
    """Entries for environments that `module` keeps in its PRESETS."""

    def factory(name: str) -> Callable[[], Environment]:
        return lambda: importlib.import_module(module).PRESETS[name]

    return {name: (factory(name), summary) for name, summary in summaries.items()}


ENTRIES: dict[str, Entry] = {
    **_presets(
        "relic_jax.envs.darkroom.env",
        {
            "darkroom-dpt": "find a hidden goal on a blind 10×10 grid, rewarded for every step spent on it",
            "darkroom-ad-9": "darkroom-dpt on a 9×9 grid, from its centre",
            "darkroom-ad-9-random": "darkroom-ad-9 from a random cell in every episode",
            "darkroom-hard-17": "find a hidden goal on a blind 17×17 grid, rewarded once, which ends the episode",
            "darkroom-hard-17-random": "darkroom-hard-17 from a random cell in every episode",
            "darkroom-large-40x20": "darkroom-dpt on a 40×20 grid",
            "darkroom-permuted": "reach the far corner of a 10×10 grid with actions whose effects are unknown",
        },
    ),
    **_presets(
        "relic_jax.envs.darkroom.key_to_door",
        {"key-to-door-9": "find a hidden key, then a hidden door, on a blind 9×9 grid"},
    ),
    **_presets(
        "relic_jax.envs.firstperson.room",
        {
            "miniworld-dpt4": "DPT's Miniworld: which of four boxes is rewarded; only four distinct tasks, and the "
            "published test tasks are training tasks",
            "miniworld-open": "which of four objects is rewarded, in rooms with layouts that are held out",
        },
    ),
    **_presets(
        "relic_jax.envs.firstperson.levels",
        {
            "miniworld-oneroom": "find the red box in a room of 10×10 m",
            "miniworld-hallway": "find the red box at the end of a hallway",
            "miniworld-tmaze": "find the red box in one of the two arms of a T",
            "miniworld-fourrooms": "find the red box in four rooms with doors",
            "miniworld-maze": "find the red box in a maze of 8×8 cells",
            "miniworld-wallgap": "find the red box behind a wall with a gap, outdoors",
        },
    ),
    **_presets(
        "relic_jax.envs.firstperson.house",
        {
            "house-objnav-small": "find the named object in a house of up to 4 rooms, 6 kinds of objects",
            "house-objnav-medium": "find the named object in a house of up to 8 rooms, 12 kinds of objects",
            "house-objnav-large": "find the named object in a house of up to 16 rooms, 20 kinds of objects",
        },
    ),
    **_presets(
        "relic_jax.envs.probes.env",
        {
            "probe-value": "one step, always rewarded: can the value be learned",
            "probe-discount": "two steps, the second rewarded: is the return discounted and bootstrapped",
            "probe-policy": "one step, rewarded for matching what is seen: can the policy be learned",
            "probe-memory": "five steps, rewarded for recalling the first: is there memory within an episode",
            "probe-bandit": "five arms, the best one is the task: is there learning in context",
            "probe-continuous": "one step, rewarded for the action that is seen: can continuous actions be learned",
            "probe-mask": "four steps, in each of which other actions are legal: are masks kept and respected",
            "probe-multidiscrete": "one step, two actions at a time, rewarded for matching what is seen",
        },
    ),
    **_presets(
        "relic_jax.envs.pointmass.env",
        {
            "pointmass-goal": "find a hidden goal on a half circle and stay there, rewarded near to it",
        },
    ),
}
