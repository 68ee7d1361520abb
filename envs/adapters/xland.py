"""XLand-MiniGrid (Nikulin et al. 2023, arXiv 2312.12044).

The presets are `xland-trivial`, `xland-small`, `xland-medium`, and the simpler `xland-anyside`. Other grids and the
benchmarks of the package are `xland:ENVID:BENCHMARK`.

The ruleset is the task and lasts for the whole trial. A trial of XLand, from a reset to the goal or the time limit, is
an episode of this library. Objects and agent are placed at random in every episode. The step types are those of dm_env:
`LAST` has no reason, so the adapter derives termination from the discount.

Episodes have one step more than those of XLand. It lets the policy observe the final state with its reward before the
next episode starts, and its action has no effect. Without it, a policy could not know what was rewarded.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.base import Discrete, Image, PyTree, Split, TimeStep, num_tasks
from relic_jax.environment.trials import select
from relic_jax.envs.adapters import rulesets
from relic_jax.envs.adapters.rulesets import RECIPES, Rulesets
from relic_jax.envs.adapters.suite import Reply, Suite, check_known, load

PREFIX = "xland"
FAMILY = "XLand-MiniGrid-"
PRESETS = {
    "xland-anyside": ("XLand-MiniGrid-R1-9x9", rulesets.ANYSIDE),
    "xland-trivial": ("XLand-MiniGrid-R1-9x9", "trivial"),
    "xland-small": ("XLand-MiniGrid-R1-9x9", "small"),
    "xland-medium": ("XLand-MiniGrid-R4-13x13", "medium"),
}
"""Grid and rulesets of each preset."""
TRAIN_SHARE = 0.9
"""Share of a benchmark's rulesets, shuffled by numpy's RandomState(0), for training. The others are held out."""
KINDS, COLOURS = 13, 12
CELLS = np.concatenate([np.eye(KINDS).repeat(COLOURS, axis=0), np.tile(np.eye(COLOURS), (KINDS, 1))], axis=1)
"""Encoding of each cell, one-hot in kind and color, float64 [156, 25]. On a CPU, a table is faster than a scatter."""


def make(env: EnvConfig, workers: WorkerConfig) -> XLand:
    """Make a preset, or `xland:ENVID:BENCHMARK`.

    Args:
        env: Its name, and `horizon`, the steps of the longest episode; None: the limit of XLand plus one.
        workers: Not used.

    Raises:
        ConfigError: The package is missing, or has no such environment or benchmark.
    """
    del workers
    name = env.name
    suite = load("xminigrid", PREFIX, name)
    if name in PRESETS:
        id, benchmark = PRESETS[name]
    else:
        id, _, benchmark = name.removeprefix(f"{PREFIX}:").partition(":")
        known = [known for known in suite.registered_environments() if known.startswith(FAMILY)]
        check_known(f"{PREFIX}:{id}", PREFIX, known)
    made = XLand(name, id, env.horizon or int(_made(id)[1].max_steps) + 1, benchmark or "trivial")
    made.rulesets  # noqa: B018  (raises an error now if the file is missing)
    return made


@functools.cache
def _made(id: str) -> tuple[Any, Any]:
    suite, wrappers = (load(module, PREFIX, f"{PREFIX}:{id}") for module in ("xminigrid", "xminigrid.wrappers"))
    with jax.ensure_compile_time_eval():  # the cached object must not hold tracers
        env, params = suite.make(id)
    return wrappers.DirectionObservationWrapper(env), params


@functools.cache
def _read(path: Path, name: str) -> Rulesets:
    return rulesets.read(path, name)


def _saving(benchmark: str) -> str:
    """Return a command that saves a benchmark as arrays. XLand-MiniGrid downloads a pickle, which is not read here."""
    code = f"import numpy, xminigrid; b = xminigrid.load_benchmark({benchmark!r}); "
    arrays = ", ".join(f"{name}=b.{name}" for name in ("goals", "rules", "init_tiles"))
    return f'python -c "{code}numpy.savez({benchmark + ".npz"!r}, {arrays})"'


@dataclasses.dataclass(frozen=True)
class XLand(Suite):
    """A grid of XLand-MiniGrid with the rulesets of a benchmark.

    Observations: "view" shows 5×5 cells in front of the agent, each one-hot (0 and 255) in kind and color, uint8
    [5, 5, 25]. "state" has the agent's direction, which some goals depend on, and whether the episode is over, uint8
    [6]. As in XLand-MiniGrid, the object that the agent carries is not observed. The goal earns 1 − 0.9·(steps/limit).
    `horizon` is the limit of XLand plus one.

    Attributes:
        benchmark: One of RECIPES, drawn here, ANYSIDE, or the path of a file of arrays.
    """

    ends_in_time = True

    benchmark: str = "trivial"

    expensive_reset = True  # as expensive as a step
    same_start: ClassVar[bool] = False

    @property
    def observation_spec(self) -> PyTree:
        """Shapes and dtypes of `encode`. The view is an image."""
        spec = super().observation_spec
        return {**spec, "view": Image(spec["view"].shape, spec["view"].dtype)}

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions."""
        return ("forward", "turn right", "turn left", "pick up", "put down", "toggle")

    @property
    def action_space(self) -> Discrete:
        """Forward, turn right, turn left, pick up, put down, toggle."""
        env, params = _made(self.id)
        return Discrete(env.num_actions(params))

    @property
    def rulesets(self) -> Rulesets:
        """All rulesets of the benchmark."""
        if self.benchmark == rulesets.ANYSIDE:
            return rulesets.anyside(rulesets.generate("trivial"))
        if self.benchmark in RECIPES:
            return rulesets.generate(self.benchmark)
        return _read(self._file(), self.name)

    def _file(self) -> Path:
        path = Path(self.benchmark)
        if path.is_file():
            return path
        known = load("xminigrid.benchmarks", PREFIX, self.name).NAME2HFFILENAME
        if self.benchmark in known:
            raise ConfigError(
                f"env is {self.name!r}; allowed: the path of its rulesets' arrays; {_saving(self.benchmark)}"
            )
        drawn = ", ".join((rulesets.ANYSIDE, *RECIPES))
        allowed = f"{drawn} (drawn here), or the path of an npz file of goals, rules and init_tiles"
        raise ConfigError(f"env is {self.name!r} with the rulesets {self.benchmark!r}; allowed: {allowed}")

    def _params(self, task: Rulesets) -> Any:
        ruleset = load("xminigrid.types", PREFIX, self.name).RuleSet(task.goal, task.rules, task.init_tiles)
        return _made(self.id)[1].replace(max_steps=self.horizon - 1, ruleset=ruleset)

    def begin(self, key: jax.Array, task: Rulesets) -> tuple[PyTree, PyTree]:
        """Reset XLand, whose state is a time step."""
        task = jax.tree.map(jnp.asarray, task)
        timestep = _made(self.id)[0].reset(self._params(task), key)
        return timestep, timestep.observation

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: Rulesets) -> Reply:
        """Take a step of XLand. The goal sets the discount to 0, the time limit does not.

        In the additional last step XLand steps too, but only the old observation is returned. The state is not used
        again, since a reset follows, and keeping all of it would be expensive.
        """
        del key
        over = inner.last()
        timestep = _made(self.id)[0].step(self._params(task), inner, action)
        observation, step_type = select(over, _visible(inner), _visible(timestep))
        timestep = timestep.replace(observation=observation, step_type=step_type)
        reward = jnp.where(over, 0.0, timestep.reward)
        return Reply(timestep, timestep.observation, reward, over & (inner.discount == 0), over)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the goal was reached."""
        del timestep
        return episode_return > 0

    def encode(self, inner: PyTree, seen: PyTree) -> PyTree:
        """Encode cells and direction as one-hot vectors."""
        kind, colour = jnp.moveaxis(seen["img"].astype(jnp.int32), -1, 0)
        over = jax.nn.one_hot(inner.last().astype(jnp.int32), 2)
        return {
            "view": jnp.asarray(255 * CELLS, jnp.uint8)[kind * COLOURS + colour],
            "state": jnp.concatenate([seen["direction"], over]).astype(jnp.uint8),
        }

    def tasks(self, split: Split) -> Rulesets:
        """Return the rulesets of a split. The splits share no ruleset; for "trivial", they share no goal.

        "anyside" holds out the same goals as "trivial".
        """
        return _split(self, split)

    @property
    def rungs(self) -> Mapping[str, tuple[int | str, ...]]:
        """With the rulesets "trivial": goals without a direction ("anyside"), and all goals."""
        return {"goals": (rulesets.ANYSIDE, "trivial")} if self.benchmark == "trivial" else {}

    def rung_tasks(self, option: str, value: int | str) -> Rulesets:
        """Return the training rulesets of "anyside" or "trivial", which have the same shapes."""
        del option
        return _split(dataclasses.replace(self, benchmark=str(value)), "train")


def _visible(timestep: Any) -> tuple[PyTree, jax.Array]:
    """Return the visible part of a time step: the observation, and its step type."""
    return timestep.observation, timestep.step_type


@functools.cache
def _split(env: XLand, split: Split) -> Rulesets:
    if env.benchmark == rulesets.ANYSIDE:
        return rulesets.anyside(_split(make(EnvConfig("xland-trivial"), WorkerConfig()), split))
    count = num_tasks(env.rulesets)
    order, cut = np.random.RandomState(0).permutation(count), int(TRAIN_SHARE * count)
    rows = order[:cut] if split == "train" else order[cut:]
    return jax.tree.map(lambda x: x[rows], env.rulesets)
