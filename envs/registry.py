"""Environments by name: one table, filled by `register`.

A name in the table that ends in a colon is a prefix: `gym:` stands for `gym:CartPole-v1` and every other gymnasium
environment. Modules are imported when one of their environments is made, and not before.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import jax

from relic_jax.config import ConfigError, EnvConfig, Options, WorkerConfig
from relic_jax.environment.base import Environment, Image, num_tasks, split_hash


class UnknownEnvironmentError(ValueError):
    """No environment has this name."""

    def __init__(self, name: str) -> None:
        """Name the value and the nearest registered names."""
        near = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"env is {name!r}; allowed: a name that relic-jax envs lists{hint}")


@dataclasses.dataclass(frozen=True)
class Description:
    """Facts about an environment that are known before it runs. `str` puts them on one line.

    Attributes:
        name: Registered name.
        summary: One-line description.
        horizon: Steps of the longest episode.
        observation: Dtypes and shapes of the observation's arrays, as text.
        actions: Number of discrete actions, or of components of an action.
        action_space: The action space, as text.
        train_tasks: Number of training tasks.
        test_tasks: Number of held-out tasks.
        train_hash: `split_hash` of the training tasks.
        test_hash: `split_hash` of the held-out tasks.
        action_names: Names of the actions or components, if the environment has any.
        observation_names: Names of the components of a vector observation, if the environment has any.
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


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of an environment that has none."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the table, see `register` for the fields."""

    source: str
    summary: str
    options: str | None = None
    horizon: bool = False
    workers: bool = False
    variants: bool = False


TABLE: dict[str, Entry] = {}
"""Every environment and every prefix, by name. Fill it with `register`."""


def register(
    source: str,
    summaries: Mapping[str, str],
    *,
    options: str | None = None,
    horizon: bool = False,
    workers: bool = False,
    variants: bool = False,
) -> None:
    """Add environments of one family to the table.

    Args:
        source: `MODULE:ATTRIBUTE` of a function `make(env: EnvConfig, workers: WorkerConfig) -> Environment`, or of a
            mapping from names to environments.
        summaries: One-line description of each environment, by name. A name that ends in a colon is a prefix.
        options: `MODULE:CLASS` of a frozen dataclass with the family's options, each with a default and a doc string.
            `make` reads them with `env.typed(CLASS)`. None: the family has no options.
        horizon: Whether the environments read `EnvConfig.horizon`.
        workers: Whether the environments live in worker processes.
        variants: Whether a colon and a variant can follow the name, e.g. a physics backend: `ant-dir:mjx`.
    """
    for name, summary in summaries.items():
        TABLE[name] = Entry(source, summary, options, horizon, workers, variants)


def names(module: str = "") -> list[str]:
    """Return the names of environments without the prefixes, sorted. module: start of the sources of those wanted."""
    return sorted(name for name, entry in TABLE.items() if name[-1] != ":" and entry.source.startswith(module))


def prefixes() -> list[str]:
    """Return the prefixes, sorted, with their colons."""
    return sorted(name for name in TABLE if name.endswith(":"))


def find(name: str) -> Entry:
    """Return the row of the table for a name. Raises UnknownEnvironmentError."""
    head, colon, _ = name.partition(":")
    entry = TABLE.get(name) if not name.endswith(":") else None
    entry = entry or (TABLE.get(f"{head}:") if colon else None)
    if entry is None and colon and head in TABLE and TABLE[head].variants:
        entry = TABLE[head]
    if entry is None:
        raise UnknownEnvironmentError(name)
    return entry


def options_of(name: str) -> type[Any]:
    """Return the options dataclass of an environment's family. Raises UnknownEnvironmentError."""
    options = find(name).options
    return NoOptions if options is None else _attribute(options)


def option_names(name: str) -> tuple[str, ...]:
    """Return the fields of `EnvConfig` and the options that an environment reads. Raises UnknownEnvironmentError."""
    options = tuple(field.name for field in dataclasses.fields(options_of(name)))
    return ("horizon", *options) if find(name).horizon else options


def changed_options(env: EnvConfig) -> Options:
    """Return the options of an environment that differ from their defaults. Raises UnknownEnvironmentError."""
    family = options_of(env.name)
    given, default = dataclasses.asdict(env.typed(family)), dataclasses.asdict(family())
    return Options({name: value for name, value in given.items() if value != default[name]})


def renamed(env: EnvConfig, name: str) -> EnvConfig:
    """Return the config of the environment called `name` with those values of `env` that this one reads too."""
    if name == env.name:
        return env
    read = option_names(name)
    options = {option: value for option, value in env.options.items() if option in read}
    return EnvConfig(name, env.horizon if "horizon" in read else None, Options(options))


def check(env: EnvConfig) -> None:
    """Check the horizon and the options of an environment against what its family declares.

    Raises:
        UnknownEnvironmentError: No environment has this name.
        ConfigError: The environment does not read the horizon or an option, or a value has the wrong type.
    """
    if env.horizon is not None and not find(env.name).horizon:
        raise ConfigError(f"env.horizon is {env.horizon!r}; allowed: None, {env.name!r} has a fixed time limit")
    if env.options:
        env.typed(options_of(env.name))


def make(env: EnvConfig | str, workers: WorkerConfig | None = None) -> Environment:
    """Return an environment.

    Args:
        env: The configuration of the environment, or its name.
        workers: Worker processes, for environments that live in some. None: the defaults.

    Returns:
        The environment. Nothing is started, except a worker process that is asked for its spec and then stopped.

    Raises:
        UnknownEnvironmentError: No environment has this name.
        ConfigError: The environment cannot be made with these options, or needs an extra that is not installed.
    """
    env = EnvConfig(env) if isinstance(env, str) else env
    check(env)
    source = _attribute(find(env.name).source)
    if isinstance(source, Mapping):
        return source[env.name]
    return source(env, workers or WorkerConfig())


def _attribute(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def numbered(names: tuple[str, ...] | None, n: int) -> str:
    """Return "0 left, 1 right" for n names; "" if there are no names, or not one for each."""
    return ", ".join(f"{index} {name}" for index, name in enumerate(names)) if names and len(names) == n else ""


def describe(name: str, env: Environment | None = None) -> Description:
    """Describe an environment.

    Args:
        name: Its registered name.
        env: The environment, if it was already made.

    Returns:
        The description.

    Raises:
        UnknownEnvironmentError: No environment has this name.
        ConfigError: The environment cannot be made.
    """
    env = env or make(name)
    train, test = env.tasks("train"), env.tasks("test")
    return Description(
        name=name,
        summary=", ".join(filter(None, (find(name).summary, getattr(env, "note", "")))),
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


def _observation(env: Environment) -> str:
    """Return dtypes and shapes of the observation's arrays, each after its name if it has one."""
    parts = []
    for path, spec in jax.tree_util.tree_leaves_with_path(env.observation_spec):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if isinstance(spec, Image) and name.split(".")[-1] != "image":
            name = f"{name} image".lstrip()
        parts.append(f"{name} {spec.dtype} {list(spec.shape)}".lstrip())
    return ", ".join(parts)


register("relic_jax.envs.custom:make", {"python:": "a custom environment"})
register(
    "relic_jax.envs.gym:make",
    {"gym:": "an environment of gymnasium"},
    options="relic_jax.envs.gym:GymOptions",
    horizon=True,
    workers=True,
)
register(
    "relic_jax.envs.habitat.lab.env:make",
    {"habitat-lab:": "a task of habitat-lab, by its config"},
    options="relic_jax.envs.habitat.lab.env:HabitatLabOptions",
    horizon=True,
    workers=True,
)
register(
    "relic_jax.envs.habitat.env:make",
    {"extobjnav": "find objects of named categories in a house, on habitat-sim or on a software simulator"},
    options="relic_jax.envs.habitat.env:HabitatOptions",
    horizon=True,
    workers=True,
)
register(
    "relic_jax.envs.metaworld.env:make",
    {"metaworld:": "tasks of a robot arm whose goal is not observed"},
    horizon=True,
    workers=True,
)
register("relic_jax.envs.adapters.gymnax:make", {"gymnax:": "an environment of gymnax"}, horizon=True)
register("relic_jax.envs.adapters.navix:make", {"navix:": "an environment of navix"}, horizon=True)
register("relic_jax.envs.adapters.craftax:make", {"craftax:": "an environment of Craftax"}, horizon=True)
register("relic_jax.envs.adapters.playground:make", {"playground:": "MuJoCo Playground"}, horizon=True)
register(
    "relic_jax.envs.adapters.xland:make",
    {
        "xland:": "an environment of XLand-MiniGrid",
        "xland-anyside": "XLand-MiniGrid: the goals of xland-trivial that have no direction, one room",
        "xland-trivial": "XLand-MiniGrid: what to do with which of five objects, one room",
        "xland-small": "XLand-MiniGrid: xland-trivial with a rule that produces the object needed, one room",
        "xland-medium": "XLand-MiniGrid: chains of two rules, four rooms",
    },
    horizon=True,
)
register(
    "relic_jax.envs.brax.env:make",
    {
        "halfcheetah-vel": "run at a hidden speed",
        "halfcheetah-dir": "run forwards or backwards, whichever is rewarded",
        "ant-dir": "walk in a hidden direction",
        "ant-goal": "walk to a hidden place",
    },
    variants=True,
)
register(
    "relic_jax.envs.darkroom.env:PRESETS",
    {
        "darkroom-dpt": "find a hidden goal on a blind 10×10 grid, rewarded for every step on it",
        "darkroom-ad-9": "darkroom-dpt on a 9×9 grid, from its centre",
        "darkroom-ad-9-random": "darkroom-ad-9 from a random cell in every episode",
        "darkroom-hard-17": "find a hidden goal on a blind 17×17 grid, rewarded once, which ends the episode",
        "darkroom-hard-17-random": "darkroom-hard-17 from a random cell in every episode",
        "darkroom-large-40x20": "darkroom-dpt on a 40×20 grid",
        "darkroom-permuted": "reach the far corner of a 10×10 grid with actions whose effects are unknown",
    },
)
register(
    "relic_jax.envs.darkroom.key_to_door:PRESETS",
    {"key-to-door-9": "find a hidden key, then a hidden door, on a blind 9×9 grid"},
)
register(
    "relic_jax.envs.gridobj.env:make",
    {
        "gridobj-9": "find the named object on a 9×9 grid, 6 kinds of objects, seen from one cell away",
        "gridobj-13": "gridobj-9 on a 13×13 grid, 8 kinds of objects",
        "gridobj-21": "gridobj-9 on a 21×21 grid, 12 kinds of objects",
    },
    options="relic_jax.envs.gridobj.env:GridObjOptions",
)
register(
    "relic_jax.envs.firstperson.room:PRESETS",
    {
        "miniworld-dpt4": "DPT's Miniworld: which of four boxes is rewarded; only four distinct tasks, and the "
        "published test tasks are training tasks",
        "miniworld-open": "which of four objects is rewarded, in rooms with held-out layouts",
    },
)
register(
    "relic_jax.envs.firstperson.levels:PRESETS",
    {
        "miniworld-oneroom": "find the red box in a room of 10×10 m",
        "miniworld-hallway": "find the red box at the end of a hallway",
        "miniworld-tmaze": "find the red box in one of the two arms of a T",
        "miniworld-fourrooms": "find the red box in four rooms with doors",
        "miniworld-maze": "find the red box in a maze of 8×8 cells",
        "miniworld-wallgap": "find the red box behind a wall with a gap, outdoors",
    },
)
register(
    "relic_jax.envs.firstperson.houses:make",
    {
        f"house-objnav-{size}": f"find the named object in a house of up to {rooms} rooms, {kinds} kinds of objects; "
        "no test of memory with view symbols, pose episode and all kinds asked for: scripted searchers with and "
        f"without it differ by {difference} in SPL"
        for size, rooms, kinds, difference in (("small", 4, 6, 0.01), ("medium", 8, 12, 0.05), ("large", 16, 20, 0.14))
    },
    options="relic_jax.envs.firstperson.houses:HouseOptions",
)
register(
    "relic_jax.envs.probes.env:PRESETS",
    {
        "probe-value": "one step, always rewarded: tests whether the value is learned",
        "probe-discount": "two steps, the second rewarded: tests discounting and bootstrapping",
        "probe-policy": "one step, rewarded for the action that is observed: tests whether the policy is learned",
        "probe-memory": "five steps, rewarded for recalling the first: tests memory within an episode",
        "probe-bandit": "five arms, the best one is the task: tests learning in context",
        "probe-continuous": "one step, rewarded for the action that is observed: tests continuous actions",
        "probe-mask": "four steps, each with other legal actions: tests whether masks are stored and respected",
        "probe-multidiscrete": "one step, two actions at a time, rewarded for matching the observation",
    },
)
register(
    "relic_jax.envs.pointmass.env:PRESETS",
    {"pointmass-goal": "find a hidden goal on a half circle and stay there, rewarded near it"},
)
