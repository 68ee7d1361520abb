"""Locomotion tasks of the meta-RL literature on brax's own half-cheetah and ant, for any of its physics backends.

Which speed, direction or place is asked for is the task; it is not observed. Rewards follow MAML and PEARL (Finn et al.
2017, arXiv 1703.03400; Rakelly et al. 2019, arXiv 1903.08254), bodies and physics are brax's: returns are not to be
compared with MuJoCo's, nor those of one backend with another's.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.base import Box, Environment, Split, TimeStep, first_timestep

Backend = Literal["spring", "generalized", "positional", "mjx"]
"""brax's physics. spring, the default, is the fastest on a CPU and to compile."""

TASKS = {"train": 100, "test": 30}
SPLIT_SEEDS = {"train": 0, "test": 1}
"""Of numpy's RandomState, from which a split's tasks are drawn."""


@struct.dataclass
class BraxState:
    """brax: its own State, of the body. step: int32 [], steps taken in this episode."""

    brax: Any
    step: jax.Array


@functools.cache
def body(name: str, options: tuple[tuple[str, Any], ...], backend: str) -> Any:
    """brax's environment `name`. Raises ConfigError where brax is missing or does not know the backend."""
    require_brax(name)
    envs = importlib.import_module("brax.envs")
    with jax.ensure_compile_time_eval():  # it is kept, so it must not hold what belongs to a trace
        return envs.get_environment(name, backend=backend, **dict(options))


def require_brax(name: str) -> None:
    """Raises ConfigError where brax is not installed; does not import it, which takes seconds."""
    if importlib.util.find_spec("brax") is None:
        raise ConfigError(f"env {name!r} needs the package brax, which is missing; pip install relic-jax[brax]")


@dataclasses.dataclass(frozen=True)
class Locomotion(Environment):
    """What the tasks share. Subclasses say which body and what is rewarded (`earned`).

    Episodes are cut after `horizon` steps; where the body's environment ends them they terminate.
    """

    ends_in_time = True

    expensive_reset = True

    name: str
    backend: Backend = "spring"
    horizon: int = 200

    base = ""
    """brax's name of the body."""
    options: ClassVar[tuple[tuple[str, Any], ...]] = ()
    """Arguments of its constructor."""
    sizes = (0, 0)
    """Components of an observation and of an action."""

    def __post_init__(self) -> None:
        """Raises ConfigError where the backend is unknown or brax is missing."""
        if self.backend not in get_args(Backend):
            allowed = ", ".join(f"{self.name.partition(':')[0]}:{backend}" for backend in get_args(Backend))
            raise ConfigError(f"env is {self.name!r}; allowed: {allowed}")
        require_brax(self.name)

    @property
    def reference_episodes(self) -> int:
        """Few: physics is slow."""
        return 256

    @property
    def brax(self) -> Any:
        """brax's environment."""
        return body(self.base, self.options, self.backend)

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """brax's observation of the body, float32."""
        return jax.ShapeDtypeStruct((self.sizes[0],), jnp.float32)

    @property
    def action_space(self) -> Box:
        """Controls of the joints, −1 … 1."""
        return Box((-1.0,) * self.sizes[1], (1.0,) * self.sizes[1])

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[BraxState, TimeStep]:
        """brax's reset, with its noise."""
        del task
        state = self.brax.reset(key)
        return BraxState(state, jnp.zeros((), jnp.int32)), first_timestep(state.obs)

    def step(self, key: jax.Array, state: BraxState, action: jax.Array, task: jax.Array) -> tuple[BraxState, TimeStep]:
        """brax's step, with the task's reward in place of its own."""
        del key
        metrics = dict(state.brax.metrics)  # brax writes into the dictionary that it is given
        moved = self.brax.step(state.brax.replace(metrics=metrics), action)
        before, after = (s.pipeline_state.x.pos[0] for s in (state.brax, moved))
        next_state = BraxState(moved, state.step + 1)
        terminated = jnp.asarray(moved.done > 0)  # a Python float in environments that never terminate
        return next_state, TimeStep(
            observation=moved.obs,
            reward=self.earned(after, (after - before) / self.brax.dt, action, task),
            terminated=terminated,
            truncated=(next_state.step >= self.horizon) & ~terminated,
        )

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """Reward, float32 []. position, velocity: of the torso after the step, float32 [3], velocity over it."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class CheetahVel(Locomotion):
    """Run at a speed: −|v − v*| − 0.05·‖a‖², v* uniform in [0, 3]. Never terminates. The task is v*, float32 []."""

    base, sizes = "halfcheetah", (17, 6)

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """As above."""
        return -jnp.abs(velocity[0] - task) - 0.05 * jnp.sum(jnp.square(action))

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """On average within 0.5 of the speed, the cost of the actions included."""
        del timestep
        return episode_return > -0.5 * self.horizon

    def tasks(self, split: Split) -> np.ndarray:
        """Speeds, float32 [N]."""
        return _uniform(split, 0.0, 3.0)


@dataclasses.dataclass(frozen=True)
class CheetahDir(Locomotion):
    """Run forwards or backwards: d·v − 0.05·‖a‖². Never terminates. The task is d, ±1; both are in both splits."""

    base, sizes = "halfcheetah", (17, 6)

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """As above."""
        return task * velocity[0] - 0.05 * jnp.sum(jnp.square(action))

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """On average at 1 m/s or more the right way, less the cost of the actions."""
        del timestep
        return episode_return > self.horizon

    def tasks(self, split: Split) -> np.ndarray:
        """float32 [2]. What is tested is adaptation, not generalisation."""
        del split
        return np.array([-1.0, 1.0], np.float32)


@dataclasses.dataclass(frozen=True)
class AntDir(Locomotion):
    """Walk in a direction: v·(cos θ, sin θ) − 0.5·‖a‖² + 1, θ uniform in [0, 2π). The task is θ, float32 [].

    Terminates where brax's ant does: its torso is below 0.2 or above 1 m.
    """

    base, sizes = "ant", (27, 8)

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """As above."""
        along = velocity[0] * jnp.cos(task) + velocity[1] * jnp.sin(task)
        return along - 0.5 * jnp.sum(jnp.square(action)) + 1.0

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Has earned more than standing still does."""
        del timestep
        return episode_return > self.horizon

    def tasks(self, split: Split) -> np.ndarray:
        """Angles, float32 [N]."""
        return _uniform(split, 0.0, 2 * np.pi)


@dataclasses.dataclass(frozen=True)
class AntGoal(Locomotion):
    """Walk to a place: −‖p − g‖ − 0.1·‖a‖², g on the upper half of the circle of radius 2. The task is g, float32 [2].

    Never terminates (rewards are negative: falling over would be the way out). The ant sees where it is.
    """

    base, sizes = "ant", (29, 8)
    options = (("exclude_current_positions_from_observation", False), ("terminate_when_unhealthy", False))

    radius: float = 2.0

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """As above."""
        distance = jnp.sqrt(jnp.sum(jnp.square(position[:2] - task)))
        return -distance - 0.1 * jnp.sum(jnp.square(action))

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Ends within about half a metre of the goal."""
        del episode_return
        return timestep.reward > -0.5

    def tasks(self, split: Split) -> np.ndarray:
        """Places, float32 [N, 2]."""
        angle = _uniform(split, 0.0, np.pi)
        return (self.radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).astype(np.float32)


def _uniform(split: Split, low: float, high: float) -> np.ndarray:
    return np.random.RandomState(SPLIT_SEEDS[split]).uniform(low, high, TASKS[split]).astype(np.float32)


KINDS: dict[str, type[Locomotion]] = {
    "halfcheetah-vel": CheetahVel,
    "halfcheetah-dir": CheetahDir,
    "ant-dir": AntDir,
    "ant-goal": AntGoal,
}


def make(env: EnvConfig, workers: WorkerConfig) -> Locomotion:
    """The task `env.name`: one of `KINDS`, or that with a backend, as in `halfcheetah-vel:mjx`. Raises ConfigError."""
    del workers
    kind, _, backend = env.name.partition(":")
    task = KINDS[kind](env.name)
    return dataclasses.replace(task, backend=backend) if backend else task  # type: ignore[arg-type]  # it is checked
