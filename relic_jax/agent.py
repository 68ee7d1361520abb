"""`Agent`: acts with a policy of this library step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from relic_jax import prng, runtime, settings, step
from relic_jax.bridge.gym import observations
from relic_jax.models import actions
from relic_jax.models.cache import KVCache
from relic_jax.models.kv_formats import KVFormat
from relic_jax.models.policy import Policy
from relic_jax.parameters import fingerprint
from relic_jax.runtime import Autoreset, ConfigError, Full
from relic_jax.spaces import Spaces
from relic_jax.types import Params

if TYPE_CHECKING:
    from relic_jax.config import TrainConfig


class TrainedPolicy(Protocol):
    """What an agent needs from a policy, see `relic_jax.LoadedPolicy`."""

    @property
    def policy(self) -> Policy:
        """The network."""

    @property
    def params(self) -> Params:
        """Its parameters."""

    @property
    def config(self) -> TrainConfig:
        """Configuration of the training run."""

    @property
    def spaces(self) -> Spaces:
        """Observations and actions."""

    @property
    def default_context(self) -> int:
        """Steps in the context if the user does not choose."""


class Agent(runtime.Agent):
    """See `relic_jax.runtime.Agent`. The step is jitted, compiled once, and updates the context in place.

    Action number i, counted from 1, is drawn with the key `fold_in(key(seed), i)`, unless `step` gets a typed PRNG key
    [] as the argument `key`.
    """

    @settings.with_standard
    def __init__(
        self,
        loaded: TrainedPolicy,
        *,
        batch: int | None = None,
        capacity: int | None = None,
        full: Full = "drop",
        seed: int = 0,
        greedy: bool = False,
        autoreset: Autoreset | None = None,
        env: Any = None,
    ) -> None:
        """Create the agent.

        Args:
            loaded: The policy.
            batch: See `relic_jax.runtime.Agent`, also for the other arguments.
            capacity: Steps in the context; None for `LoadedPolicy.default_context`.
            full: What happens when the context is full.
            seed: Seed of the sampled actions.
            greedy: Whether to take the most likely action.
            autoreset: What the environment does after the end of an episode.
            env: A gymnasium environment to read `batch` and `autoreset` from. If the policy was trained on `gym:ID`,
                `step` takes observations in the form that `env` returns them.

        Raises:
            ConfigError: At the first invalid value.
        """
        policy, self._params = loaded.policy, loaded.params
        # dropping episodes rotates the remaining keys; a narrower format would round them each time
        memory = policy.for_acting(policy.initial_memory(1, 1))
        own = memory.kv_format if isinstance(memory, KVCache) else "float32"
        form: KVFormat = "float32" if full == "drop" and policy.config.transformer.episode_rope else own
        capacity = loaded.default_context if capacity is None else capacity
        trial = loaded.config.trial
        about = {
            "spaces": step.described_spaces(loaded.spaces, policy, trial.show_last_reward, trial.action_repeat),
            "step": step.description(policy, form, capacity),
        }
        self._key = prng.key(seed)
        backend = runtime.Jax(about, functools.partial(_run, policy, greedy, self._params))
        options: Any = {
            "batch": batch,
            "full": full,
            "seed": seed,
            "greedy": greedy,
            "autoreset": autoreset,
            "env": env,
        }
        super().__init__(about, backend, capacity=capacity, read=_reader(loaded.config, env), **options)

    @settings.with_standard
    def step(
        self,
        observation: Any,
        reward: Any = 0.0,
        terminated: Any = False,
        truncated: Any = False,
        *,
        legal: Any = None,
        **extra: Any,
    ) -> Any:
        """See `relic_jax.runtime.Agent.step`. The argument `key`, a typed PRNG key [], draws the action."""
        key = extra.get("key")
        inputs = {"key": key, "count": np.uint32(0)} if key is not None else self._own_key()
        return super().step(observation, reward, terminated, truncated, legal=legal, **inputs)

    def _own_key(self) -> dict[str, Any]:
        key, (high, low) = self._key, divmod(self._count + 1, 2**32)
        if high:  # beyond 32 bits; folding in 2^32 − 1 first keeps all keys distinct
            key = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), high)
        return {"key": key, "count": np.uint32(low)}

    @settings.with_standard
    def restore(self, path: Any) -> None:
        """See `relic_jax.runtime.Agent.restore`."""
        super().restore(path)
        self._key = prng.key(self.seed)

    def _choose(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        return outputs.pop("action")

    @functools.cached_property
    def _print(self) -> str:
        return fingerprint(self._params)

    def _fingerprint(self) -> str:
        return self._print


def _reader(config: TrainConfig, env: Any) -> Callable[[Any], Any] | None:
    """Return the conversion that workers apply to observations of a gymnasium environment; None for none.

    Raises:
        ConfigError: If `env` does not fit the policy.
    """
    if env is None or not config.env.name.startswith("gym:"):
        return None
    try:
        return observations.reader(env, config.env.options.get("text", "omit"))
    except observations.SpaceError as error:
        raise ConfigError(f"env does not fit the policy: {error}") from None


def _step(policy: Policy, greedy: bool, params: Params, arrays: step.Arrays, inputs: step.Arrays) -> Any:
    """`step.step` with a sampled action. inputs: also a key, and a count to fold into it unless it is 0."""
    inputs = dict(inputs)
    key, count = inputs.pop("key"), inputs.pop("count")
    if jax.default_backend() == "cpu":  # XLA copies the context of one environment for the compiled kernel
        transformer = dataclasses.replace(policy.config.transformer, decode="xla")
        policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, transformer=transformer))
    outputs, arrays = runtime.in_place(functools.partial(step.step, policy, params))(arrays, inputs)
    distribution = actions.distribution_of(policy.action_space, policy.config.head, outputs)
    if greedy:
        return {**outputs, "action": distribution.mode()}, arrays
    folded = jax.lax.cond(count > 0, lambda: jax.random.fold_in(key, count), lambda: key)
    return {**outputs, "action": distribution.sample(folded)}, arrays


_run = jax.jit(_step, static_argnums=(0, 1), donate_argnums=3)  # shared by all agents of a policy
