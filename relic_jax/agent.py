"""`Agent`: a policy of this library that acts step by step and keeps its context itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
from relic_jax.types import Params

if TYPE_CHECKING:
    from relic_jax.config import TrainConfig
    from relic_jax.loading import LoadedPolicy


class Agent(runtime.Agent):
    """See `relic_jax.runtime.Agent`. One jitted step, compiled once, which reads and writes the context in place.

    Actions are drawn with jax's keys: the i-th of its life, counted from 1, with `fold_in(key(seed), i)`, unless `step`
    is given a key of its own (`key=`, a typed PRNG key []).
    """

    @settings.with_standard
    def __init__(
        self,
        loaded: LoadedPolicy,
        *,
        batch: int | None = None,
        capacity: int | None = None,
        full: Full = "drop",
        seed: int = 0,
        greedy: bool = False,
        autoreset: Autoreset | None = None,
        env: Any = None,
    ) -> None:
        """capacity: None for `LoadedPolicy.default_context`. See `relic_jax.runtime.Agent` for the others.

        env: of a policy that was trained on `gym:ID`, `step` takes the observations as `env` gives them.
        """
        policy, self._params = loaded.policy, loaded.params
        # what is dropped turns the keys that stay, which would be rounded each time in a narrower format
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
        """See `relic_jax.runtime.Agent.step`. key: draws the action."""
        key = extra.get("key")
        inputs = {"key": key, "count": np.uint32(0)} if key is not None else self._own_key()
        return super().step(observation, reward, terminated, truncated, legal=legal, **inputs)

    def _own_key(self) -> dict[str, Any]:
        key, (high, low) = self._key, divmod(self._count + 1, 2**32)
        if high:  # beyond 32 bits; 2^32 − 1 is folded in first, so that no key comes twice
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
    """What makes observations of the gymnasium environment `env` what workers make of them. Raises ConfigError."""
    if env is None or not config.env.name.startswith("gym:"):
        return None
    try:
        return observations.reader(env, config.env.options.get("text", "omit"))
    except observations.SpaceError as error:
        raise ConfigError(f"env does not fit the policy: {error}") from None


def _step(policy: Policy, greedy: bool, params: Params, arrays: step.Arrays, inputs: step.Arrays) -> Any:
    """`step.step` with an action. inputs: also a key and a count, folded into the key where it is not 0."""
    inputs = dict(inputs)
    key, count = inputs.pop("key"), inputs.pop("count")
    outputs, arrays = runtime.in_place(functools.partial(step.step, policy, params))(arrays, inputs)
    distribution = actions.distribution_of(policy.action_space, policy.config.head, outputs)
    if greedy:
        return {**outputs, "action": distribution.mode()}, arrays
    folded = jax.lax.cond(count > 0, lambda: jax.random.fold_in(key, count), lambda: key)
    return {**outputs, "action": distribution.sample(folded)}, arrays


_run = jax.jit(_step, static_argnums=(0, 1), donate_argnums=3)  # one for all agents of a policy
