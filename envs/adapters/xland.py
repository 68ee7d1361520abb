"""XLand-MiniGrid (Nikulin et al. 2023, arXiv 2312.12044): `xland-trivial`, `xland-small`, `xland-medium`, and
`xland:ENVID:BENCHMARK` for its other grids and its own benchmarks. `xland-anyside` is easier than all of them.

The ruleset is the task and lasts for the whole trial; what XLand calls a trial, from a reset to the goal or the time
limit, is an episode here. Objects and agent are placed anew in every episode. Its step types are dm_env's: `LAST` says
nothing about why, so termination is read from the discount.

An episode is one step longer than XLand's: where it ended, with the reward for that, is seen before the next one opens,
whatever is done then. A policy that is never shown this cannot tell what it was rewarded for.
"""

from __future__ import annotations

import dataclasses
import functools
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
"""Grid and rulesets."""
TRAIN_SHARE = 0.9
"""Of a benchmark's rulesets, shuffled by numpy's RandomState(0); the others are held out."""
KINDS, COLOURS = 13, 12
CELLS = np.concatenate([np.eye(KINDS).repeat(COLOURS, axis=0), np.tile(np.eye(COLOURS), (KINDS, 1))], axis=1)
"""What each cell reads as, one-hot in kind and colour: float64 [13 · 12, 25]. Looked up, since a CPU is slower to
scatter ones."""


def make(env: EnvConfig, workers: WorkerConfig) -> XLand:
    """The environment called `env.name`. env.horizon: steps of an episode; None: XLand's own. Raises ConfigError."""
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
    made.rulesets  # noqa: B018  (a missing file is a complaint now, not later)
    return made


@functools.cache
def _made(id: str) -> tuple[Any, Any]:
    suite, wrappers = (load(module, PREFIX, f"{PREFIX}:{id}") for module in ("xminigrid", "xminigrid.wrappers"))
    with jax.ensure_compile_time_eval():  # it is kept, so it must not hold what belongs to a trace
        env, params = suite.make(id)
    return wrappers.DirectionObservationWrapper(env), params


@functools.cache
def _read(path: Path, name: str) -> Rulesets:
    return rulesets.read(path, name)


def _saving(benchmark: str) -> str:
    """What downloads one of XLand-MiniGrid's benchmarks, which come as a pickle that is never read here, as arrays."""
    code = f"import numpy, xminigrid; b = xminigrid.load_benchmark({benchmark!r}); "
    arrays = ", ".join(f"{name}=b.{name}" for name in ("goals", "rules", "init_tiles"))
    return f'python -c "{code}numpy.savez({benchmark + ".npz"!r}, {arrays})"'


@dataclasses.dataclass(frozen=True)
class XLand(Suite):
    """A grid of XLand-MiniGrid with the rulesets of a benchmark: one of RECIPES, drawn here, or the path of
    a file of arrays.

    Observation: "view", 5×5 cells in front of the agent, each one-hot (0 and 255) in kind and colour, uint8 [5, 5, 25];
    "state", the direction that it looks in, which some goals are about, and whether the episode is over, uint8 [6].
    What the agent carries is not seen, as in XLand-MiniGrid. Reward: 1 − 0.9·(steps/limit) for the goal. horizon:
    XLand's limit and the last look.
    """

    ends_in_time = True

    benchmark: str = "trivial"

    expensive_reset = True  # as dear as a step
    opens_alike: ClassVar[bool] = False

    @property
    def observation_spec(self) -> PyTree:
        """Of these, the view is an image."""
        spec = super().observation_spec
        return {**spec, "view": Image(spec["view"].shape, spec["view"].dtype)}

    @property
    def action_names(self) -> tuple[str, ...]:
        """As in `action_space`."""
        return ("forward", "turn right", "turn left", "pick up", "put down", "toggle")

    @property
    def action_space(self) -> Discrete:
        """Forward, turn right, turn left, pick up, put down, toggle."""
        env, params = _made(self.id)
        return Discrete(env.num_actions(params))

    @property
    def rulesets(self) -> Rulesets:
        """All of the benchmark's."""
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
        """XLand's reset: its state is a time step."""
        task = jax.tree.map(jnp.asarray, task)
        timestep = _made(self.id)[0].reset(self._params(task), key)
        return timestep, timestep.observation

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: Rulesets) -> Reply:
        """XLand's step. The goal takes the discount to 0, a time limit does not. The last look goes on as well, unseen:
        a reset follows, which takes nothing from that state, and to keep all of it where it was would be dear.
        """
        del key
        over = inner.last()
        timestep = _made(self.id)[0].step(self._params(task), inner, action)
        observation, step_type = select(over, _shown(inner), _shown(timestep))
        timestep = timestep.replace(observation=observation, step_type=step_type)
        reward = jnp.where(over, 0.0, timestep.reward)
        return Reply(timestep, timestep.observation, reward, over & (inner.discount == 0), over)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """The goal was reached."""
        del timestep
        return episode_return > 0

    def encode(self, inner: PyTree, seen: PyTree) -> PyTree:
        """One-hot."""
        kind, colour = jnp.moveaxis(seen["img"].astype(jnp.int32), -1, 0)
        over = jax.nn.one_hot(inner.last().astype(jnp.int32), 2)
        return {
            "view": jnp.asarray(255 * CELLS, jnp.uint8)[kind * COLOURS + colour],
            "state": jnp.concatenate([seen["direction"], over]).astype(jnp.uint8),
        }

    def tasks(self, split: Split) -> Rulesets:
        """Rulesets that the other split has not. Of "trivial" ones that is: goals that the other split has not; and
        those that "trivial" holds out, "anyside" does as well.
        """
        return _split(self, split)


def _shown(timestep: Any) -> tuple[PyTree, jax.Array]:
    """What is seen of a time step: the observation, and whether the episode is over."""
    return timestep.observation, timestep.step_type


@functools.cache
def _split(env: XLand, split: Split) -> Rulesets:
    if env.benchmark == rulesets.ANYSIDE:
        return rulesets.anyside(_split(make(EnvConfig("xland-trivial"), WorkerConfig()), split))
    count = num_tasks(env.rulesets)
    order, cut = np.random.RandomState(0).permutation(count), int(TRAIN_SHARE * count)
    rows = order[:cut] if split == "train" else order[cut:]
    return jax.tree.map(lambda x: x[rows], env.rulesets)
