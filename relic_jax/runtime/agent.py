"""`Agent`: acts with a policy step by step and keeps its context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from .actions import Actions
from .arrays import Arrays, check_memory, empty_arrays
from .autoreset import AUTORESET, Autoreset, env_settings
from .backends import Backend
from .context import Rows, check_array, read_context, write_context
from .errors import ConfigError, short
from .spaces import UNBOUNDED, is_integer, named_leaves

Full = Literal["drop", "window", "error"]
FULL = ("drop", "window", "error")


class Agent:
    """A policy that acts in one environment, or in a batch of them, and learns in context.

    Call `step` for every observation, with gymnasium's conventions, and `reset(new_task=True)` when the task changes.

    `full` determines what happens if the context, which holds `capacity` steps including the next one, is full:

    drop: The oldest whole episodes are dropped, as few as necessary, and the others are numbered from the start. With
        one layer, the policy then acts exactly as with a context of only the remaining episodes. With several layers,
        the remaining keys and values were computed while the dropped episodes were still visible.
    window: Every step attends to the last `capacity` steps, as `relic-jax evaluate --context-limit` does.
    error: The step raises ConfigError.

    `autoreset` states what the environment does after the end of an episode, as in gymnasium's vector environments:

    same_step: The observation after the last action is already the first one of the next episode.
    disabled: The caller resets the environment, and passes the first observation of the next episode together with the
        end of the previous one.
    next_step: The observation after the last action is the last one of the episode. The environment ignores the next
        action and returns the first observation of the next episode. Such a row does not act: its last observation does
        not enter the context, and the returned action is 0.

    Each row of a batch has a separate context and drops episodes separately. The state of a recurrent policy has a
    constant size: it is never full, whatever the capacity, and cannot be limited to a window.

    Attributes:
        about: Content of the config.json.
        spaces: Its `spaces` section.
        actions: The action space.
        outputs: Outputs of the policy for the last step: `value` and the parameters of the distribution, [B, ...].
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        backend: Backend,
        *,
        batch: int | None,
        capacity: int,
        full: Full,
        seed: int,
        greedy: bool,
        slots: int | None = None,
        autoreset: Autoreset | None = None,
        env: Any = None,
        read: Callable[[Any], Any] | None = None,
    ) -> None:
        """Create the agent.

        Args:
            about: Content of a config.json.
            backend: Computes the steps.
            batch: Number of environments; None for one environment without a leading axis.
            capacity: Steps in the context.
            full: What happens when the context is full, see above.
            seed: Seed of the sampled actions.
            greedy: Whether to take the most likely action.
            slots: Slots of the backend's arrays, if that number is fixed.
            autoreset: See above; None for the mode of `env`, or "same_step" without `env`.
            env: A gymnasium environment to read `batch` and `autoreset` from.
            read: Converts the argument of `step` to an observation as the policy was trained on.

        Raises:
            ConfigError: At the first invalid value.
        """
        if env is not None:
            batch, autoreset = env_settings(env, batch, autoreset)
        self.autoreset = autoreset = autoreset or "same_step"
        for name, value, allowed in (("autoreset", autoreset, AUTORESET), ("full", full, FULL)):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
        for name, number in (("batch", batch), ("capacity", capacity)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} is {number}; allowed: 1 or more")
        shapes = {array["name"]: array["shape"] for array in about["step"]["memory"]}
        self._axes = {name: shape.index("context") if "context" in shape else None for name, shape in shapes.items()}
        self._is_state = all(axis is None for axis in self._axes.values())
        if self._is_state:
            if full == "window":
                raise ConfigError("full is 'window'; allowed: 'drop' or 'error' with a recurrent policy")
            capacity, slots = UNBOUNDED, 1
        elif slots is not None and (capacity > slots or (capacity < slots and full != "window")):
            raise ConfigError(f"capacity is {capacity}; allowed: {slots}, or with full='window' fewer")
        self.batch, self.capacity, self.full, self.seed, self.greedy = batch, capacity, full, seed, greedy
        self.about, self.spaces, self.actions = about, about["spaces"], Actions(about["spaces"]["action"])
        self.outputs: dict[str, np.ndarray] = {}
        self._backend, self._read, self._rows, self._count = backend, read, batch or 1, 0
        self._slots = slots or (capacity + max(capacity // 4, 64) if full == "window" else capacity)
        check_memory(self._rows * self._slots, self._rows, self._slots)
        self._context = Rows.empty(self._rows, self._slots, about["step"]["first_index"])
        self._arrays = backend.empty(self._rows, self._slots)
        self._previous = np.full((self._rows, *self.actions.shape), self.actions.null_action, self.actions.dtype)

    @property
    def steps(self) -> np.ndarray | int:
        """Steps in the context: int [B], or a number without a batch."""
        return self._context.kept.copy() if self.batch else int(self._context.kept[0])

    @property
    def last(self) -> SimpleNamespace:
        """Outputs of the policy for the last step: `value` and the parameters of the distribution, such as `logits`.

        NumPy arrays with a leading axis [B], or without it if there is no batch. No attributes before the first step.
        """
        arrays = {name: np.asarray(x) for name, x in self.outputs.items()}
        return SimpleNamespace(
            **(arrays if self.batch else {name: x.reshape(x.shape[1:]) for name, x in arrays.items()})
        )

    def reset(self, new_task: bool = True, rows: Any = None) -> None:
        """Start a new episode with the next step, if the end of an episode did not already do so.

        Args:
            new_task: Whether to clear the context; otherwise only the current episode ends.
            rows: bool [B], the rows to reset; None for all.
        """
        chosen = np.ones(self._rows, bool) if rows is None else _flags("rows", rows, self._rows)
        self._context.reset(chosen, new_task)

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
        """Return the action for an observation.

        With a batch, all arguments and the result have a leading axis [B].

        Args:
            observation: An array or tree of arrays as the policy was trained on. See `autoreset` for its meaning after
                the end of an episode.
            reward: Reward of the previous action. Ignored after a `reset` and in the first step, like the next two.
            terminated: Whether the previous action ended the episode.
            truncated: Whether the episode was cut after it.
            legal: bool [n], the legal actions, if the policy was trained with masks; with several discrete components,
                their masks one after the other. Only legal actions are taken.
            **extra: Further inputs of the backend's step.

        Returns:
            An int, or int32 or float32 [n], in the environment's units; with a batch int32 [B], or int32 or float32
            [B, n].

        Raises:
            ConfigError: If a shape, dtype or value is invalid, or the context is full.
        """
        inputs = self._observation_inputs(observation if self._read is None else self._read(observation))
        rewards = self._finite("reward", reward)
        ended = _flags("terminated", terminated, self._rows) | _flags("truncated", truncated, self._rows)
        context = self._context
        idle = ended & ~context.fresh & ~context.waiting & (self.autoreset == "next_step")
        if idle.all():
            context.wait(rewards)
            return self._returned(self._idle_action())
        inputs |= self.actions.checked_mask(legal, self._rows, self.batch is not None, ~idle)
        rewards, ended = np.where(context.waiting, context.last_reward, rewards), ended | context.waiting
        first = context.fresh | ended
        hidden = first & ~(ended & self.spaces["show_last_reward"]) | (context.new & ~context.waiting)
        self._check_position(first)
        self._make_room(first)
        mask = first.reshape(-1, *(1,) * len(self.actions.shape))
        inputs |= {
            "previous_action": np.where(mask, self.actions.null_action, self._previous).astype(self.actions.dtype),
            "previous_reward": np.where(hidden, 0, rewards).astype(np.float32),
            "first": first,
            **context.counters(first, self.capacity),
            **extra,
        }
        self._advance(inputs, idle)
        action = self._choose(self.outputs)
        action = np.where(idle.reshape(mask.shape), self._idle_action(), action).astype(self.actions.dtype)
        context.advance(first, self.capacity, idle, rewards)
        self._previous, self._count = self.actions.to_policy(action), self._count + 1
        return self._returned(action)

    def _advance(self, inputs: dict[str, np.ndarray], idle: np.ndarray) -> None:
        """Compute the step on the context's arrays. The rows `idle` (bool [B]) keep their contexts."""
        if not idle.any():
            self.outputs, self._arrays = self._backend.step(self._arrays, inputs)
        elif self._is_state:
            before = {name: np.array(x) for name, x in self._backend.to_host(self._arrays).items()}
            self.outputs, arrays = self._backend.step(self._arrays, inputs)
            for name, x in self._backend.to_host(arrays).items():
                before[name][~idle] = x[~idle]
            self._arrays = self._backend.to_device(before)
        else:
            self.outputs, arrays = self._backend.step(self._arrays, inputs)
            self._arrays = self._backend.hold(arrays, idle)

    def _idle_action(self) -> np.ndarray:
        """Return an action for every row, in the policy's units, that no environment reads."""
        return np.zeros((self._rows, *self.actions.shape), self.actions.dtype)

    def _returned(self, action: np.ndarray) -> Any:
        """Convert an action [B, ...] in the policy's units to the result of `step`."""
        applied = self.actions.to_env(action)
        if self.batch is not None:
            return applied
        return applied[0] if self.actions.shape else int(applied[0])

    def _choose(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """Return the action in the policy's units. It depends only on the outputs, the seed and the step count."""
        random = None if self.greedy else np.random.default_rng([self.seed, self._count])
        return self.actions.draw(outputs, random)

    def _observation_inputs(self, observation: Any) -> dict[str, np.ndarray]:
        """Return the arrays of an observation by name, [B, ...]."""
        inputs = {}
        for name, spec, x in named_leaves(self.spaces["observation"], observation):
            array, dtype = np.asarray(x), np.dtype(spec["dtype"])
            array = array if self.batch else array[None]
            shape = (self._rows, *spec["shape"])
            if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
                allowed = f"{dtype}{list(shape if self.batch else shape[1:])}"
                actual = f"{array.dtype}{list(array.shape if self.batch else array.shape[1:])}"
                raise ConfigError(f"{name} is {actual}; allowed: {allowed}")
            inputs[name] = cast_array(name, array, dtype)
        return inputs

    def _finite(self, name: str, value: Any) -> np.ndarray:
        """Return float32 [B]. The numbers are checked after the cast: 1e300 is infinite in float32."""
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(value).astype(np.float32)
        except (TypeError, ValueError, OverflowError):
            array = np.asarray(np.nan)
        if array.shape not in ((), (self._rows,)) or not np.isfinite(array).all():
            raise ConfigError(f"{name} is {short(value)}; allowed: a finite number{' a row' if self.batch else ''}")
        return np.broadcast_to(array, (self._rows,))

    def _check_position(self, first: np.ndarray) -> None:
        limit = self.about["step"]["max_episode_steps"]
        if limit is not None and (np.where(first, 0, self._context.position + 1) >= limit).any():
            raise ConfigError(f"the episode is longer than {limit} steps; allowed: at most that, as in training")

    def _make_room(self, first: np.ndarray) -> None:
        if self._is_state:
            self._context.length = 0  # no step is stored in a slot
        if self._context.length < self._slots:
            return
        if self.full == "error" and (self._context.kept >= self.capacity).any():
            raise ConfigError(f"the context is full ({self.capacity} steps); allowed: reset(), or another `full`")
        drop = self.full == "drop"
        shift, turn = self._context.without_oldest(first, self.capacity, drop)
        self._arrays = self._backend.shift(self._arrays, shift, turn)

    def save(self, path: str | Path) -> None:
        """Write the context to a safetensors file, atomically.

        Raises:
            OSError: If the file cannot be written.
            ConfigError: If the package safetensors is not installed.
        """
        context, start = self._context, max(self._context.length - int(self._context.kept.max()), 0)
        filled = slice(start, context.length)
        on_host = self._backend.to_host(self._arrays)
        arrays = {f"context.{name}": x[self._in(name, filled)] for name, x in on_host.items()}
        arrays |= {f"rows.{name}": np.asarray(x) for name, x in context.arrays(filled).items()}
        arrays["previous_action"] = self._previous
        meta = {"policy": self._fingerprint(), "count": self._count, "seed": self.seed, "batch": self.batch}
        write_context(Path(path), meta, arrays)

    def restore(self, path: str | Path) -> None:
        """Restore a context that `save` wrote, with the seed and the step count.

        Raises:
            ConfigError: If the file is truncated, damaged or not a context, is of another policy or batch, or holds
                more steps than `capacity`. The agent is unchanged then.
        """
        start = f"context '{path}'"
        meta, arrays = read_context(Path(path))
        for name, most in (("count", 2**62), ("seed", 2**32 - 1)):
            if not is_integer(meta.get(name), 0, most):
                raise ConfigError(f"{start} has {name} {short(meta.get(name))}; allowed: an integer of 0 or more")
        for name, own in (("policy", self._fingerprint()), ("batch", self.batch)):
            if meta.get(name) != own:
                raise ConfigError(f"context '{path}' is of {name} {short(meta.get(name))}; allowed: {short(own)}")
        opened = arrays.get("rows.opened")
        if opened is None or opened.dtype != bool or opened.ndim != 2:
            raise ConfigError(f"{start} does not fit in 'rows.opened'; allowed: one saved by this kind of agent")
        length = opened.shape[1]
        if length > self.capacity:
            raise ConfigError(f"context '{path}' holds {length} steps; allowed: {self.capacity} (capacity)")
        filled = self._filled(arrays, length, start)
        rows = {name.removeprefix("rows."): x for name, x in arrays.items() if name.startswith("rows.")}
        Rows.check(rows, self._rows, start, self.capacity if self._is_state else length)
        previous = arrays.get("previous_action")
        check_array(start, "previous_action", previous, self._previous.dtype, self._previous.shape)
        self._context = Rows.restored(rows, self._slots, self.about["step"]["first_index"])
        self._arrays, self._previous = self._backend.to_device(filled), arrays["previous_action"]
        self._count, self.seed = meta["count"], meta["seed"]

    def _filled(self, saved: Mapping[str, np.ndarray], length: int, start: str) -> Arrays:
        """Return the arrays of a context file, with room for all slots. Raises ConfigError if one does not fit."""
        filled = empty_arrays(self.about, self._rows, self._slots)
        for name, x in filled.items():
            shape = tuple(length if axis == self._axes[name] else size for axis, size in enumerate(x.shape))
            check_array(start, name, saved.get(f"context.{name}"), x.dtype, shape)
        for name, x in filled.items():
            x[self._in(name, slice(length))] = saved[f"context.{name}"]
        return filled

    def _in(self, name: str, slots: slice) -> tuple[slice, ...]:
        """Return the index of `slots` in the array `name`; of the whole array if it has no slots."""
        axis = self._axes[name]
        return () if axis is None else (*[slice(None)] * axis, slots)

    def _fingerprint(self) -> str:
        return str(self.about["weights"]["fingerprint"])


def cast_array(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `array` in `dtype`. Raises ConfigError if a value is not finite in it, or does not fit."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(dtype)
    bad = result != array if dtype.kind in "iu" else ~np.isfinite(result)
    if bad.any():
        problem = "does not fit" if dtype.kind in "iu" else "is not finite"
        value = array[bad].flat[0]
        raise ConfigError(f"{name} {problem} in {dtype} ({value}); allowed: numbers (they would stay in the context)")
    return result


def _flags(name: str, value: Any, rows: int) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype != bool or array.shape not in ((), (rows,)):
        raise ConfigError(f"{name} is {short(value)}; allowed: bool{f', one or {rows} of them' if rows > 1 else ''}")
    return np.broadcast_to(array, (rows,)).copy()
