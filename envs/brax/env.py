"""Locomotion tasks of the meta-RL literature with the half-cheetah and ant of brax, for any of its physics backends.

The task is a target speed, direction or position, which is not observed. Rewards follow MAML and PEARL (Finn et al.
2017, arXiv 1703.03400; Rakelly et al. 2019, arXiv 1903.08254). Bodies and physics are those of brax, so returns are not
comparable with those of MuJoCo, or between backends.
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
"""Physics backends of brax. The default, spring, is the fastest to compile and to run on a CPU."""

TASKS = {"train": 100, "test": 30}
SPLIT_SEEDS = {"train": 0, "test": 1}
"""Seeds of numpy's RandomState for the tasks of each split."""


@struct.dataclass
class BraxState:
    """The state of an episode.

    Attributes:
        brax: The State of brax.
        step: Int32 []; steps taken.
    """

    brax: Any
    step: jax.Array


@functools.cache
def body(name: str, options: tuple[tuple[str, Any], ...], backend: str) -> Any:
    """Return the environment `name` of brax. Raises ConfigError if brax is missing."""
    require_brax(name)
    envs = importlib.import_module("brax.envs")
    with jax.ensure_compile_time_eval():  # the cached object must not hold tracers
        return envs.get_environment(name, backend=backend, **dict(options))


def require_brax(name: str) -> None:
    """Raise ConfigError if brax is not installed. Does not import it, which takes seconds."""
    if importlib.util.find_spec("brax") is None:
        raise ConfigError(f"env {name!r} needs the package brax, which is missing; pip install relic-jax[brax]")


@dataclasses.dataclass(frozen=True)
class Locomotion(Environment):
    """Base of the tasks. A subclass defines the body and the reward (`earned`).

    Episodes are truncated after `horizon` steps. They terminate when the environment of brax does.

    Attributes:
        name: Name of the environment.
        backend: Physics backend.
        horizon: Steps of the longest episode.
    """

    ends_in_time = True

    expensive_reset = True

    name: str
    backend: Backend = "spring"
    horizon: int = 200

    base = ""
    """Name of the body in brax."""
    options: ClassVar[tuple[tuple[str, Any], ...]] = ()
    """Arguments of the body's constructor."""
    sizes = (0, 0)
    """Number of components of an observation and of an action."""

    def __post_init__(self) -> None:
        """Raise ConfigError if the backend is unknown or brax is missing."""
        if self.backend not in get_args(Backend):
            allowed = ", ".join(f"{self.name.partition(':')[0]}:{backend}" for backend in get_args(Backend))
            raise ConfigError(f"env is {self.name!r}; allowed: {allowed}")
        require_brax(self.name)

    @property
    def reference_episodes(self) -> int:
        """Episodes of the reference returns: few, since physics is slow."""
        return 256

    @property
    def brax(self) -> Any:
        """The environment of brax."""
        return body(self.base, self.options, self.backend)

    @property
    def observation_spec(self) -> jax.ShapeDtypeStruct:
        """The body's observation of brax, float32."""
        return jax.ShapeDtypeStruct((self.sizes[0],), jnp.float32)

    @property
    def action_space(self) -> Box:
        """Controls of the joints, each in [−1, 1]."""
        return Box((-1.0,) * self.sizes[1], (1.0,) * self.sizes[1])

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[BraxState, TimeStep]:
        """Reset the body, with the noise of brax."""
        del task
        state = self.brax.reset(key)
        return BraxState(state, jnp.zeros((), jnp.int32)), first_timestep(state.obs)

    def step(self, key: jax.Array, state: BraxState, action: jax.Array, task: jax.Array) -> tuple[BraxState, TimeStep]:
        """Step the body. The reward of the task replaces that of brax."""
        del key
        metrics = dict(state.brax.metrics)  # brax modifies this dictionary
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
        """Return the reward of a step, float32 [].

        Args:
            position: Float32 [3]; position of the torso after the step.
            velocity: Float32 [3]; mean velocity of the torso during the step.
            action: The action.
            task: The task.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class CheetahVel(Locomotion):
    """Run at a speed. The reward is −|v − v*| − 0.05·‖a‖²; the task is v*, float32 [], uniform in [0, 3].

    Episodes never terminate.
    """

    base, sizes = "halfcheetah", (17, 6)

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return the reward of a step, see the class."""
        return -jnp.abs(velocity[0] - task) - 0.05 * jnp.sum(jnp.square(action))

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the mean error of the speed is below 0.5, including the cost of the actions."""
        del timestep
        return episode_return > -0.5 * self.horizon

    def tasks(self, split: Split) -> np.ndarray:
        """Return speeds, float32 [N]."""
        return _uniform(split, 0.0, 3.0)


@dataclasses.dataclass(frozen=True)
class CheetahDir(Locomotion):
    """Run forwards or backwards. The reward is d·v − 0.05·‖a‖²; the task is d = ±1. Both splits have both tasks.

    Episodes never terminate.
    """

    base, sizes = "halfcheetah", (17, 6)

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return the reward of a step, see the class."""
        return task * velocity[0] - 0.05 * jnp.sum(jnp.square(action))

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the mean speed in the right direction is above 1 m/s, minus the cost of the actions."""
        del timestep
        return episode_return > self.horizon

    def tasks(self, split: Split) -> np.ndarray:
        """Return both directions, float32 [2]. They test adaptation, not generalization."""
        del split
        return np.array([-1.0, 1.0], np.float32)


@dataclasses.dataclass(frozen=True)
class AntDir(Locomotion):
    """Walk in a direction. The reward is v·(cos θ, sin θ) − 0.5·‖a‖² + 1; the task is θ, float32 [], in [0, 2π).

    Episodes terminate as those of brax's ant: when the torso is below 0.2 m or above 1 m.
    """

    base, sizes = "ant", (27, 8)

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return the reward of a step, see the class."""
        along = velocity[0] * jnp.cos(task) + velocity[1] * jnp.sin(task)
        return along - 0.5 * jnp.sum(jnp.square(action)) + 1.0

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the return exceeds that of standing still."""
        del timestep
        return episode_return > self.horizon

    def tasks(self, split: Split) -> np.ndarray:
        """Return angles, float32 [N]."""
        return _uniform(split, 0.0, 2 * np.pi)


@dataclasses.dataclass(frozen=True)
class AntGoal(Locomotion):
    """Walk to a position. The reward is −‖p − g‖ − 0.1·‖a‖²; the task is g, float32 [2].

    Goals are on the upper half of the circle of radius `radius`. Episodes never terminate: rewards are negative, so
    falling over would pay. The ant observes its position.
    """

    base, sizes = "ant", (29, 8)
    options = (("exclude_current_positions_from_observation", False), ("terminate_when_unhealthy", False))

    radius: float = 2.0

    def earned(self, position: jax.Array, velocity: jax.Array, action: jax.Array, task: jax.Array) -> jax.Array:
        """Return the reward of a step, see the class."""
        distance = jnp.sqrt(jnp.sum(jnp.square(position[:2] - task)))
        return -distance - 0.1 * jnp.sum(jnp.square(action))

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the step ends within about half a meter of the goal."""
        del episode_return
        return timestep.reward > -0.5

    def tasks(self, split: Split) -> np.ndarray:
        """Return positions, float32 [N, 2]."""
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
    """Make a task, one of `KINDS` with or without a backend, as in `halfcheetah-vel:mjx`.

    Args:
        env: Its name.
        workers: Not used.

    Raises:
        ConfigError: The backend is unknown or brax is missing.
    """
    del workers
    kind, _, backend = env.name.partition(":")
    task = KINDS[kind](env.name)
    return dataclasses.replace(task, backend=backend) if backend else task  # type: ignore[arg-type]  # it is checked
