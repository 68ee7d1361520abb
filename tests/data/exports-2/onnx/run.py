"""Acting with a policy, step by step, where nothing is trained: numpy, and jax or onnxruntime.

`load(folder)` reads what `relic-jax export --format stablehlo` or `--format onnx` wrote and returns an `Agent`. This
file imports nothing else of this project; exports hold a copy of it, `run.py`, so that they run where only jax and
flatbuffers, or only numpy and onnxruntime, are installed:

    from run import load
    agent = load(".")
    action = agent.step(observation)
    ...
    action = agent.step(observation, reward, terminated, truncated)

The context, all that the policy has learned so far in its task, stays in the agent. `relic_jax.Agent` is the same class
around a policy of this library.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import operator
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

POLICY_FORMAT = "relic-jax-policy-1"
CONTEXT_FORMAT = "relic-jax-context-2"
CONTEXTS = (CONTEXT_FORMAT, "relic-jax-context-1")
"""Formats that can be read. Contexts of format 1 have no checksum."""
CHECKSUMS = "checksums.json"
"""The file in exports and checkpoints that lists the SHA-256 of every other file, and of itself."""
CHECKSUMS_FORMAT = "relic-jax-checksums-1"
Full = Literal["drop", "window", "error"]
FULL = ("drop", "window", "error")
Autoreset = Literal["next_step", "same_step", "disabled"]
AUTORESET = ("next_step", "same_step", "disabled")
_ROPE_BASE = 10_000.0  # as relic_jax.models.attention.rotate
_ENDLESS = 2**31 - 1  # steps that a recurrent state has room for, as an int32
_LARGEST = 1 - 2.0**-20  # of a squashed action, as relic_jax.distributions.TanhGaussian
MASKED = -1e30  # the logit of an action that is not legal, as relic_jax.distributions
Arrays = dict[str, Any]


class ConfigError(ValueError):
    """Bad input. The message is one line that names the field, the value and what is allowed."""

    def __str__(self) -> str:
        """The message; what would break its line or control a terminal is escaped."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """The text in one line: spaces for line breaks, escapes for other characters that cannot be printed."""

    def shown(c: str) -> str:
        return c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode()

    return "".join(map(shown, text.strip()))


class Actions:
    """A policy's actions, from the `action` of a config.json: how they are drawn, shown to it, and applied.

    To a policy, the components of continuous actions are −1 … 1 whatever their bounds.
    """

    def __init__(self, action: Mapping[str, Any]) -> None:
        """Raises ConfigError where the type is unknown."""
        kinds = ("discrete", "multi_discrete", "box")
        if action.get("type") not in kinds:
            raise ConfigError(f"action.type is {action.get('type')!r}; allowed: {', '.join(map(repr, kinds))}")
        self.continuous = action["type"] == "box"
        self.masked = bool(action.get("masked", False))
        self.squashed = action.get("distribution") == "tanh"
        self.low, self.high = (np.asarray(action.get(end, ()), np.float32) for end in ("low", "high"))
        self.sizes: list[int] = []
        self.shape: tuple[int, ...] = self.low.shape
        if action["type"] == "discrete":
            self.sizes, self.shape = [action["n"]], ()
        elif action["type"] == "multi_discrete":
            self.sizes, self.shape = action["nvec"], (len(action["nvec"]),)
        self.dtype: Any = np.float32 if self.continuous else np.int32
        self.nothing = 0 if self.continuous else -1

    def draw(self, outputs: Mapping[str, np.ndarray], random: np.random.Generator | None) -> np.ndarray:
        """One action per row from the parameters of their distributions. random: None for the most likely."""
        if not self.continuous:
            logits = outputs["logits"]
            scores = logits if random is None else logits + random.gumbel(size=logits.shape)
            choices = [part.argmax(-1) for part in self.parts(scores)]
            return (np.stack(choices, axis=-1) if self.shape else choices[0]).astype(np.int32)
        action = outputs["mean"]
        if random is not None:
            action = action + np.exp(outputs["log_std"]) * random.normal(size=action.shape)
        action = action.astype(np.float32)
        return np.tanh(action).clip(-_LARGEST, _LARGEST) if self.squashed else action

    def parts(self, choices: np.ndarray) -> list[np.ndarray]:
        """[..., one for each choice] by component of the action; discrete ones have one."""
        return np.split(choices, np.cumsum(self.sizes)[:-1], axis=-1)

    def checked_mask(self, legal: Any, rows: int, batch: bool, acting: np.ndarray) -> dict[str, np.ndarray]:
        """The mask of legal actions as an input of the step, bool [rows, n]. batch: whether `legal` has rows.

        acting: bool [rows], whose masks are read.

        Raises ConfigError where there is none and the policy was trained with masks, or the other way round, where it
        has another shape or dtype, and where it leaves no action.
        """
        if not self.masked and legal is None:
            return {}
        size = sum(self.sizes)
        allowed = f"bool[{rows}, {size}]" if batch else f"bool[{size}]"
        if not self.masked:
            raise ConfigError("legal is given; allowed: None, the policy was trained without masks of legal actions")
        if legal is None:
            raise ConfigError(f"legal is None; allowed: {allowed}, the policy was trained with masks of legal actions")
        mask = np.asarray(legal)
        if mask.dtype != bool or mask.shape != ((rows, size) if batch else (size,)):
            raise ConfigError(f"legal is {mask.dtype}{list(mask.shape)}; allowed: {allowed}")
        mask = mask.reshape(rows, size) | ~acting[:, None]
        if not all(part.any(-1).all() for part in self.parts(mask)):
            component = " of every component" if self.shape else ""
            raise ConfigError(f"legal is {_short(legal)}; allowed: one with a legal action{component} in every row")
        return {"legal": mask}

    def shown(self, action: np.ndarray) -> np.ndarray:
        """What the policy reads of its own action at the next step."""
        return action.clip(-1, 1) if self.continuous else action

    def applied(self, action: np.ndarray) -> np.ndarray:
        """In the environment's units, within its bounds."""
        if not self.continuous:
            return action
        return (self.low + (self.shown(action) + 1) * (0.5 * (self.high - self.low))).clip(self.low, self.high)


class Backend(Protocol):
    """What computes a policy's step, with the keys and values of its context as named arrays, [B, H, S, D] each."""

    def empty(self, batch: int, slots: int) -> Arrays:
        """Arrays with room for `slots` steps of `batch` rows."""
        ...

    def step(self, arrays: Arrays, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Arrays]:
        """Returns what is computed of the step, by name, and the arrays with the step in them. May consume `arrays`."""
        ...

    def placed(self, arrays: dict[str, np.ndarray]) -> Arrays:
        """Arrays with other content in place of `empty` ones. Keeps them."""
        ...

    def taken(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The inverse of `placed`."""
        ...

    def moved(self, arrays: Arrays, shift: int, turn: np.ndarray | None) -> Arrays:
        """`moved` on all arrays. May consume them."""
        ...

    def held(self, arrays: Arrays, rows: np.ndarray) -> Arrays:
        """`held` on all arrays. May consume them."""
        ...


def moved(xp: Any, arrays: Arrays, shift: Any, turn: Any) -> Arrays:
    """The first `shift` slots taken away; episodes numbered lower by `turn` (int32 [B]), keys turned back accordingly.

    xp: numpy or jax.numpy. Of keys rotated by the index of their episode, those of a smaller index are a rotation away.
    """

    def back(keys: Any) -> Any:
        half = keys.shape[-1] // 2
        angle = xp.asarray(turn, xp.float32)[:, None, None, None] * xp.asarray(_ROPE_BASE ** (-np.arange(half) / half))
        cos, sin = xp.cos(angle).astype(xp.float32), xp.sin(angle).astype(xp.float32)
        a, b = keys[..., :half], keys[..., half:]
        return xp.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)

    found = {name: xp.roll(x, -shift, axis=1 if name == "episodes" else 2) for name, x in arrays.items()}
    if turn is None:
        return found
    found["episodes"] = found["episodes"] - turn[:, None]
    return {name: back(x) if name.startswith("rotated_keys") else x for name, x in found.items()}


def held(xp: Any, arrays: Arrays, rows: Any) -> Arrays:
    """The slots of `rows` (bool [B]) moved up by one, so that their contexts end where those of the other rows end.

    xp: numpy or jax.numpy. For rows that did not act in a step: what the step wrote for them leaves their contexts.
    """

    def up(name: str, x: Any) -> Any:
        chosen = rows.reshape(-1, *(1,) * (x.ndim - 1))
        return xp.where(chosen, xp.roll(x, 1, axis=1 if name == "episodes" else 2), x)

    return {name: up(name, x) for name, x in arrays.items()}


class Agent:
    """A policy that acts in one environment, or in a batch of them, and learns in context.

    step, then step, … in gymnasium's conventions; `reset(new_task=True)` where the task changes. The context holds at
    most `capacity` steps, the one to come included. What happens when there are more, `full`:

    drop: the oldest whole episodes go, as few as needed, and those that stay are numbered from the start. Where the
      policy has one layer, what follows is what a context of only the remaining episodes would give. In deeper ones
      the keys and values that stay were computed when the dropped episodes could still be seen.
    window: every step sees the last `capacity` steps, as `relic-jax evaluate --context-limit` does.
    error: ConfigError.

    What an environment does after the end of an episode, `autoreset`, as in gymnasium's vector environments:

    same_step: the observation that comes with the end is already the next episode's first.
    disabled: nothing; the caller resets, and passes the next episode's first observation with the end.
    next_step: the observation that comes with the end is the episode's last. The next action is ignored, and answered
      with the next episode's first observation. Such a row does not act: its context stays as it is, its last
      observation does not enter it, and the action returned for it is 0.

    Every row of a batch has a context of its own; each drops its own episodes. The state of a recurrent policy has one
    size, however long the trial: it is never full, whatever the capacity, and cannot be limited to a window.
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
        """about: the content of a config.json. batch: None for one environment without a leading axis.

        capacity: steps. seed: of the sampled actions. greedy: the most likely action instead of a sampled one. slots:
        how many there are, where that is not ours to decide. autoreset: None for `env`'s own, or same_step without.
        env: a gymnasium environment that says itself what `batch` and `autoreset` are. read: from what `step` is given
        to observations as the policy was trained on; None: they are these.
        Raises ConfigError at the first value that cannot work.
        """
        if env is not None:
            batch, autoreset = _of_env(env, batch, autoreset)
        autoreset = autoreset or "same_step"
        if autoreset not in AUTORESET:
            raise ConfigError(f"autoreset is {autoreset!r}; allowed: {', '.join(map(repr, AUTORESET))}")
        self.autoreset, self._read = autoreset, read
        if full not in FULL:
            raise ConfigError(f"full is {full!r}; allowed: {', '.join(map(repr, FULL))}")
        for name, value in (("batch", batch), ("capacity", capacity)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; allowed: 1 or more")
        shapes = {array["name"]: array["shape"] for array in about["step"]["memory"]}
        self._axes = {name: shape.index("context") if "context" in shape else None for name, shape in shapes.items()}
        self._endless = all(axis is None for axis in self._axes.values())
        if self._endless and full == "window":
            raise ConfigError("full is 'window'; allowed: 'drop' or 'error' with a recurrent policy")
        if self._endless:
            capacity, slots = _ENDLESS, 1
        elif slots is not None and (capacity > slots or (capacity < slots and full != "window")):
            raise ConfigError(f"capacity is {capacity}; allowed: {slots}, or with full='window' fewer")
        self.batch, self.capacity, self.full, self.seed, self.greedy = batch, capacity, full, seed, greedy
        self._about, self._backend, self._spaces = about, backend, about["spaces"]
        self._actions, self._rows = Actions(self._spaces["action"]), batch or 1
        self._slots = slots or (capacity + max(capacity // 4, 64) if full == "window" else capacity)
        _check_memory(self._rows * self._slots, self._rows, self._slots)
        self._context = Rows.empty(self._rows, self._slots, about["step"]["first_index"])
        self._arrays = backend.empty(self._rows, self._slots)
        self._previous = np.full((self._rows, *self._actions.shape), self._actions.nothing, self._actions.dtype)
        self._count = 0
        self.outputs: dict[str, np.ndarray] = {}
        """What the policy made of the last step: `value` and the parameters of the distribution, [B, ...]."""

    @property
    def steps(self) -> np.ndarray | int:
        """Steps in the context, int [B], or a number without a batch."""
        return self._context.kept.copy() if self.batch else int(self._context.kept[0])

    def reset(self, new_task: bool = True, rows: Any = None) -> None:
        """Before the first observation of an episode that no end of an episode led to.

        new_task: forget everything; otherwise only the running episode is over. rows: bool [B], which; None: all.
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
        """The action for `observation`, an array or tree of arrays as the policy was trained on.

        reward, terminated, truncated: of the action before, not read after a `reset` and at the very first step. What
        `observation` is after the end of an episode: see `autoreset`. With a batch all have a leading axis [B], else
        none.
        legal: bool [n], which actions can be taken for `observation`, where the policy was trained with masks; of
        several discrete actions at a time the choices of one after those of the other. No other is taken.
        Returns an int, or int32 or float32 [n], in the environment's units; with a batch int32 [B] or [B, n] or float32
        [B, n]. Raises ConfigError where a shape, dtype or value cannot be, or the context is full.
        """
        inputs = self._observed(observation if self._read is None else self._read(observation))
        rewards = self._numbers("reward", reward)
        ended = _flags("terminated", terminated, self._rows) | _flags("truncated", truncated, self._rows)
        context = self._context
        idle = ended & ~context.fresh & ~context.waiting & (self.autoreset == "next_step")
        if idle.all():
            context.wait(rewards)
            return self._returned(self._nothing_done())
        inputs |= self._actions.checked_mask(legal, self._rows, self.batch is not None, ~idle)
        rewards, ended = np.where(context.waiting, context.last_reward, rewards), ended | context.waiting
        first = context.fresh | ended
        unseen = first & ~(ended & self._spaces["show_last_reward"]) | (context.new & ~context.waiting)
        self._check_position(first)
        self._make_room(first)
        mask = first.reshape(-1, *(1,) * len(self._actions.shape))
        inputs |= {
            "previous_action": np.where(mask, self._actions.nothing, self._previous).astype(self._actions.dtype),
            "previous_reward": np.where(unseen, 0, rewards).astype(np.float32),
            "first": first,
            **context.counters(first, self.capacity),
            **extra,
        }
        self._advance(inputs, idle)
        action = self._choose(self.outputs)
        action = np.where(idle.reshape(mask.shape), self._nothing_done(), action).astype(self._actions.dtype)
        context.advance(first, self.capacity, idle, rewards)
        self._previous, self._count = self._actions.shown(action), self._count + 1
        return self._returned(action)

    def _advance(self, inputs: dict[str, np.ndarray], idle: np.ndarray) -> None:
        """The step on the context's arrays, which stay as they are in the rows `idle` (bool [B])."""
        if not idle.any():
            self.outputs, self._arrays = self._backend.step(self._arrays, inputs)
        elif self._endless:  # a state has no slots
            before = {name: np.array(x) for name, x in self._backend.taken(self._arrays).items()}
            self.outputs, arrays = self._backend.step(self._arrays, inputs)
            for name, x in self._backend.taken(arrays).items():
                before[name][~idle] = x[~idle]
            self._arrays = self._backend.placed(before)
        else:
            self.outputs, arrays = self._backend.step(self._arrays, inputs)
            self._arrays = self._backend.held(arrays, idle)

    def _nothing_done(self) -> np.ndarray:
        """An action for every row, in the policy's units, that no environment reads."""
        return np.zeros((self._rows, *self._actions.shape), self._actions.dtype)

    def _returned(self, action: np.ndarray) -> Any:
        """What `step` returns. action: in the policy's units, [B, ...]."""
        applied = self._actions.applied(action)
        if self.batch is not None:
            return applied
        return applied[0] if self._actions.shape else int(applied[0])

    def _choose(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """The action, in the policy's units. What is drawn depends on the seed and the number of steps so far alone."""
        random = None if self.greedy else np.random.default_rng([self.seed, self._count])
        return self._actions.draw(outputs, random)

    def _observed(self, observation: Any) -> dict[str, np.ndarray]:
        found = {}
        for name, spec, x in named_leaves(self._spaces["observation"], observation):
            array, dtype = np.asarray(x), np.dtype(spec["dtype"])
            array = array if self.batch else array[None]
            shape = (self._rows, *spec["shape"])
            if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
                allowed = f"{dtype}{list(shape if self.batch else shape[1:])}"
                given = f"{array.dtype}{list(array.shape if self.batch else array.shape[1:])}"
                raise ConfigError(f"{name} is {given}; allowed: {allowed}")
            found[name] = _cast(name, array, dtype)
        return found

    def _numbers(self, name: str, value: Any) -> np.ndarray:
        """float32 [B]. The numbers are tested after the cast: 1e300 is infinite in float32."""
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(value).astype(np.float32)
        except (TypeError, ValueError, OverflowError):
            array = np.asarray(np.nan)
        if array.shape not in ((), (self._rows,)) or not np.isfinite(array).all():
            raise ConfigError(f"{name} is {_short(value)}; allowed: a finite number{' a row' if self.batch else ''}")
        return np.broadcast_to(array, (self._rows,))

    def _check_position(self, first: np.ndarray) -> None:
        limit = self._about["step"]["max_episode_steps"]
        if limit is not None and (np.where(first, 0, self._context.position + 1) >= limit).any():
            raise ConfigError(f"the episode is longer than {limit} steps; allowed: at most that, by what was trained")

    def _make_room(self, first: np.ndarray) -> None:
        if self._endless:
            self._context.length = 0  # nothing is kept in slots
        if self._context.length < self._slots:
            return
        if self.full == "error" and (self._context.kept >= self.capacity).any():
            raise ConfigError(f"the context is full ({self.capacity} steps); allowed: reset(), or another `full`")
        drop = self.full == "drop"
        shift, turn = self._context.without_oldest(first, self.capacity, drop)
        self._arrays = self._backend.moved(self._arrays, shift, turn)

    def save(self, path: str | Path) -> None:
        """Writes the context to a safetensors file, whole or not at all (needs the package safetensors)."""
        context, start = self._context, max(self._context.length - int(self._context.kept.max()), 0)
        filled = slice(start, context.length)
        own = self._backend.taken(self._arrays)
        arrays = {f"context.{name}": x[self._in(name, filled)] for name, x in own.items()}
        arrays |= {f"rows.{name}": np.asarray(x) for name, x in context.arrays(filled).items()}
        arrays["previous_action"] = self._previous
        meta = {
            "format": CONTEXT_FORMAT,
            "policy": self._fingerprint(),
            "count": self._count,
            "seed": self.seed,
            "batch": self.batch,
        }
        contiguous = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
        meta["sha256"] = _context_checksum(meta, contiguous)
        _safetensors()
        from safetensors.numpy import save

        data = save(contiguous, {"relic_jax": json.dumps(meta)})
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def restore(self, path: str | Path) -> None:
        """Goes on with the context of a file that `save` wrote, as if it had been here: seed and all.

        Raises ConfigError, and leaves the agent as it was, where the file is truncated, damaged or foreign, of another
        policy or batch, or holds more steps than there is room for.
        """
        start = f"context '{path}'"
        meta, arrays = read_context(Path(path))
        for name, most in (("count", 2**62), ("seed", 2**32 - 1)):
            if not _whole(meta.get(name), 0, most):
                raise ConfigError(f"{start} has {name} {_short(meta.get(name))}; allowed: a whole number, 0 or more")
        for name, own in (("policy", self._fingerprint()), ("batch", self.batch)):
            if meta.get(name) != own:
                raise ConfigError(f"context '{path}' is of {name} {_short(meta.get(name))}; allowed: {_short(own)}")
        opened = arrays.get("rows.opened")
        if opened is None or opened.dtype != bool or opened.ndim != 2:
            raise ConfigError(f"{start} does not fit in 'rows.opened'; allowed: one saved by this kind of agent")
        length = opened.shape[1]
        if length > self.capacity:
            raise ConfigError(f"context '{path}' holds {length} steps; allowed: {self.capacity} (capacity)")
        fresh = empty_arrays(self._about, self._rows, self._slots)
        for name, x in fresh.items():
            found = arrays.get(f"context.{name}")
            allowed = tuple(length if axis == self._axes[name] else size for axis, size in enumerate(x.shape))
            _check_array(start, name, found, x.dtype, allowed)
        filled: Arrays = {}
        for name, x in fresh.items():
            filled[name] = x.copy()
            filled[name][self._in(name, slice(length))] = arrays[f"context.{name}"]
        rows = {name.removeprefix("rows."): x for name, x in arrays.items() if name.startswith("rows.")}
        Rows.check(rows, self._rows, start, self.capacity if self._endless else length)
        _check_array(
            start, "previous_action", arrays.get("previous_action"), self._previous.dtype, self._previous.shape
        )
        self._context = Rows.restored(rows, self._slots, self._about["step"]["first_index"])
        self._arrays, self._previous = self._backend.placed(filled), arrays["previous_action"]
        self._count, self.seed = meta["count"], meta["seed"]

    def _in(self, name: str, slots: slice) -> tuple[slice, ...]:
        """Indexes those slots in the array `name`; all of it where it has none."""
        axis = self._axes[name]
        return () if axis is None else (*[slice(None)] * axis, slots)

    def _fingerprint(self) -> str:
        return str(self._about["weights"]["fingerprint"])


class Rows:
    """What is known of the context besides keys and values: counters for each of B rows. The slots are shared.

    length: slots filled. kept: int [B], how many of the last of them belong to the row's context. opened: bool [B, S],
    the step in the slot opened an episode. fresh: bool [B], the step to come opens one. new: bool [B], it is the first
    of a context. position, episode: int [B], index of the last step in its episode, and of its episode.
    """

    kept: np.ndarray
    opened: np.ndarray
    fresh: np.ndarray
    new: np.ndarray
    position: np.ndarray
    episode: np.ndarray
    waiting: np.ndarray
    last_reward: np.ndarray
    length: int
    first_index: int

    _BY_ROW = ("kept", "fresh", "new", "position", "episode", "waiting", "last_reward")
    _ADDED = ("waiting", "last_reward")  # not in the first files of `Agent.save`

    @classmethod
    def empty(cls, rows: int, slots: int, first_index: int) -> Rows:
        """Nothing has happened yet. first_index: of the first episode."""
        found = cls()
        found.kept, found.position = np.zeros(rows, np.int64), np.full(rows, -1)
        found.episode = np.full(rows, first_index)
        found.fresh, found.new = np.ones(rows, bool), np.ones(rows, bool)
        found.waiting, found.last_reward = np.zeros(rows, bool), np.zeros(rows, np.float32)
        found.opened = np.zeros((rows, slots), bool)
        found.length, found.first_index = 0, first_index
        return found

    @classmethod
    def check(cls, arrays: Mapping[str, np.ndarray], rows: int, start: str, most: int) -> None:
        """Raises ConfigError where arrays are not those of `rows` rows with at most `most` steps each.

        start: what errors begin with.
        """
        length, blank = arrays["opened"].shape[1], cls.empty(rows, 0, 0)
        _check_array(start, "rows.opened", arrays["opened"], np.dtype(bool), (rows, length))
        limits = {"kept": (0, most), "position": (-1, _ENDLESS), "episode": (-_ENDLESS, _ENDLESS)}
        for name in cls._BY_ROW:
            if name in cls._ADDED and name not in arrays:
                continue
            expected, found = getattr(blank, name), arrays.get(name)
            _check_array(start, f"rows.{name}", found, expected.dtype, expected.shape)
            low, high = limits.get(name, (-np.inf, np.inf))
            if found is not None and ((found < low) | (found > high)).any():
                raise ConfigError(f"{start} has rows.{name} {_short(found.tolist())}; allowed: {low} … {high}")

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], slots: int, first_index: int) -> Rows:
        """The inverse of `arrays`, with room for `slots`."""
        opened = arrays["opened"]
        found = cls.empty(len(opened), slots, first_index)
        for name in cls._BY_ROW:
            if name in arrays or name not in cls._ADDED:
                setattr(found, name, arrays[name].copy())
        found.length = opened.shape[1]
        found.opened[:, : found.length] = opened
        return found

    def arrays(self, filled: slice) -> dict[str, np.ndarray]:
        """By name, for saving; of the slots those in `filled`, the last ones."""
        return {name: getattr(self, name) for name in self._BY_ROW} | {"opened": self.opened[:, filled]}

    def reset(self, rows: np.ndarray, new_task: bool) -> None:
        """The next step of `rows` opens an episode, or a whole new context."""
        self.fresh |= rows
        self.waiting &= ~rows
        if new_task:
            self.new |= rows
            self.kept[rows] = 0
            self.position[rows], self.episode[rows] = -1, self.first_index
            if self.new.all():
                self.length = 0

    def _episode_after(self, first: np.ndarray) -> np.ndarray:
        return np.where(self.new, self.first_index, self.episode + first)

    def counters(self, first: np.ndarray, capacity: int) -> dict[str, np.ndarray]:
        """What the step to come reads. `episode` is the index before it: it is one higher where `first`, but for the
        very first step of all."""
        before = self._episode_after(first) - (first if self.length else 0)
        return {
            "position": self.position.astype(np.int32),
            "episode": before.astype(np.int32),
            "length": np.int32(self.length),
            "window": np.minimum(self.kept + 1, capacity).astype(np.int32),
        }

    def wait(self, rewards: np.ndarray) -> None:
        """Books an end in all rows. rewards: float32 [B], what came with it."""
        self.waiting, self.last_reward = np.ones_like(self.waiting), rewards.astype(np.float32)

    def advance(self, first: np.ndarray, capacity: int, idle: np.ndarray | None = None, rewards: Any = 0) -> None:
        """Books the step. idle: bool [B], rows that ended and did not act. rewards: float32 [B], see `wait`."""
        idle = np.zeros_like(self.waiting) if idle is None else idle
        self.position = np.where(idle, self.position, np.where(first, 0, self.position + 1))
        self.episode = np.where(idle, self.episode, self._episode_after(first))
        self.kept = np.where(idle, self.kept, np.minimum(self.kept + 1, capacity))
        self.opened[:, self.length] = first
        self.opened[idle] = np.roll(self.opened[idle], 1, axis=1)  # as `held`
        self.length += 1
        self.fresh, self.new = np.zeros_like(self.fresh), self.new & idle
        self.waiting, self.last_reward = idle.copy(), np.where(idle, rewards, 0).astype(np.float32)

    def without_oldest(self, first: np.ndarray, capacity: int, drop: bool) -> tuple[int, np.ndarray | None]:
        """Makes room for a step. Returns (slots to take away, by how much episodes are numbered lower, int32 [B]).

        drop: whole episodes (None of them is numbered lower otherwise). first: whether the step to come opens one.
        """
        turn = np.zeros(len(self.kept), np.int32)
        kept = np.minimum(self.kept, capacity - 1)
        for row in np.flatnonzero(self.kept == capacity) if drop else ():
            start = self.length - capacity
            later = start + 1 + np.flatnonzero(self.opened[row, start + 1 : self.length])
            if not len(later) and not first[row]:
                raise ConfigError(f"the running episode fills the context; allowed: a capacity of more than {capacity}")
            kept[row] = self.length - later[0] if len(later) else 0
            turn[row] = 1
        self.episode = self.episode - turn
        self.new |= kept == 0
        self.kept = kept
        shift = self.length - int(kept.max())
        self.opened = np.roll(self.opened, -shift, axis=1)
        self.length -= shift
        return shift, turn if drop else None


def _of_env(env: Any, batch: int | None, autoreset: Autoreset | None) -> tuple[int | None, Autoreset]:
    """(batch, autoreset) of a gymnasium environment, as `env` and its metadata say. Raises ConfigError.

    batch, autoreset: what the caller says; autoreset is taken where the metadata has none (gymnasium before 1.1).
    """
    count = getattr(env, "num_envs", None)
    if batch is not None and batch != count:
        raise ConfigError(f"batch is {batch}; allowed: {count}, the environments of env, or None")
    if count is None:
        layer, resets = env, False
        while layer is not None and not resets:
            resets, layer = type(layer).__name__ == "Autoreset", getattr(layer, "env", None)
        own = "next_step" if resets else "disabled"
    else:
        mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode", autoreset)
        modes = {name.replace("_", ""): name for name in AUTORESET}
        own = modes.get(str(getattr(mode, "value", mode)).replace("_", "").lower(), "")
    if not own:
        given = f"env.metadata['autoreset_mode'] is {_short(mode)}"
        raise ConfigError(f"{given}; allowed: an AutoresetMode of gymnasium's, or none and autoreset= in its place")
    if autoreset not in (None, own):
        raise ConfigError(f"autoreset is {autoreset!r}; allowed: {own!r}, the mode of env")
    return count, cast(Autoreset, own)


def named_leaves(spec: Mapping[str, Any], tree: Any, name: str = "observation") -> Iterator[tuple[str, Any, Any]]:
    """(name, spec, leaf) of every array in an observation, in tree order. Raises ConfigError where it has another tree.

    spec: `observation` of a config.json: {"keys": {name: spec}}, {"items": [spec]}, or {"shape", "dtype"} of an array.
    """
    if "keys" in spec:
        if not isinstance(tree, Mapping) or set(tree) != set(spec["keys"]):
            given = sorted(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
            raise ConfigError(f"{name} is {given}; allowed: a dictionary with the keys {sorted(spec['keys'])}")
        for key in sorted(spec["keys"]):
            yield from named_leaves(spec["keys"][key], tree[key], f"{name}.{key}")
    elif "items" in spec:
        if not isinstance(tree, tuple | list) or len(tree) != len(spec["items"]):
            raise ConfigError(f"{name} is {type(tree).__name__}; allowed: a tuple of {len(spec['items'])}")
        for index, item in enumerate(spec["items"]):
            yield from named_leaves(item, tree[index], f"{name}.{index}")
    else:
        yield name, spec, tree


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` in `dtype`. Raises ConfigError that names a value which is not finite there, or does not fit."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(dtype)
    bad = found != array if dtype.kind in "iu" else ~np.isfinite(found)
    if bad.any():
        what = "does not fit" if dtype.kind in "iu" else "is not finite"
        value = array[bad].flat[0]
        raise ConfigError(f"{name} {what} in {dtype} ({value}); allowed: numbers (they would stay in the context)")
    return found


def _flags(name: str, value: Any, rows: int) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype != bool or array.shape not in ((), (rows,)):
        raise ConfigError(f"{name} is {_short(value)}; allowed: bool{f', one or {rows} of them' if rows > 1 else ''}")
    return np.broadcast_to(array, (rows,)).copy()


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError:
        raise ConfigError("a context is kept in a safetensors file, which needs: pip install safetensors") from None
    return safetensors


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _check_array(start: str, name: str, found: np.ndarray | None, dtype: Any, shape: tuple[int, ...]) -> None:
    """Raises ConfigError where an array of a context is missing, of another type or shape, or not finite."""
    if found is None or (found.dtype, found.shape) != (dtype, shape):
        raise ConfigError(f"{start} does not fit in {name!r}; allowed: one saved by this kind of agent")
    if found.dtype.kind not in "biu" and not np.isfinite(found.astype(np.float32)).all():
        raise ConfigError(f"{start} has {name!r} that is not finite; allowed: numbers")


def _context_checksum(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over all that a context file says. meta: whatever `sha256` it has is left out."""
    said = {name: value for name, value in meta.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.name} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def read_context(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `Agent.save` wrote: (what it says of itself, arrays by name). Raises ConfigError where it is not that."""
    arrays, header = read_safetensors(path, "context")
    try:
        meta = parse_json(header.get("relic_jax", "{}"))
    except ValueError:
        meta = {}
    found = meta.get("format") if isinstance(meta, dict) else None
    if found not in CONTEXTS:
        raise ConfigError(f"context '{path}' has format {_short(found)}; allowed: {CONTEXT_FORMAT!r}")
    if found == CONTEXT_FORMAT and meta.get("sha256") != _context_checksum(meta, arrays):
        raise ConfigError(f"context '{path}' is damaged: its content does not have the checksum that it was saved with")
    return meta, arrays


def read_safetensors(path: Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, and the header's metadata. what: names the file in errors.

    Raises ConfigError where it is missing, truncated or something else.
    """
    safetensors = _safetensors()
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            raise FileNotFoundError("no such file")
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, ValueError, LookupError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    raise ConfigError(f"{what} is '{path}'; allowed: a whole safetensors file ({reason})")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises OSError where it cannot be read, else ValueError, also for what `parse_json`
    refuses."""
    if not path.is_file():  # opening a named pipe would wait for ever
        raise FileNotFoundError(f"'{path}' is not a file")
    return parse_json(path.read_bytes().decode())


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError also for numbers that are not finite (NaN, 1e400), for a key that
    occurs twice in an object, and for nesting too deep to be parsed."""

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{_short(text)} is not a finite number")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {_short(key)} occurs twice")
            found[key] = value
        return found

    try:
        return json.loads(text, parse_float=number, parse_constant=number, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checksum(path: Path) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return "sha256:" + digest.hexdigest()


def checksums_text(files: Mapping[str, str]) -> str:
    """The content of CHECKSUMS. files: checksum by name, relative to the folder."""
    body = {"format": CHECKSUMS_FORMAT, "files": {name: files[name] for name in sorted(files)}}
    own = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({**body, "self": f"sha256:{own}"}, indent=1) + "\n"


def verify_files(folder: Path, what: str, required: bool = True) -> None:
    """Compares every file that CHECKSUMS of a folder lists with its checksum, and CHECKSUMS with its own.

    what: names the folder in errors. required: whether CHECKSUMS must be there (folders of earlier versions have none).
    Raises ConfigError, which names the first file that is missing or differs.
    """
    path, start = folder / CHECKSUMS, f"{what} '{folder}' is truncated or damaged: "
    if not required and not os.path.lexists(path):
        return
    if not path.is_file():
        raise ConfigError(f"{start}file {CHECKSUMS} is missing")
    try:
        text = path.read_bytes().decode()  # as bytes: reading as text makes one of all kinds of line ends
        files = parse_json(text)["files"]
        whole = text == checksums_text(files) and all(_is_inside(name) for name in files)
    except (OSError, ValueError, LookupError, TypeError):
        whole = False
    if not whole:
        raise ConfigError(f"{start}file {CHECKSUMS} does not have the content that was written")
    for name, expected in files.items():
        try:
            found = checksum(folder / name) if (folder / name).is_file() else ""
        except OSError as error:
            raise ConfigError(f"{start}file {name} cannot be read ({error.strerror})") from None
        if not found:
            raise ConfigError(f"{start}file {name} is missing")
        if found != expected:
            raise ConfigError(f"{start}file {name} has {found[:19]}…, allowed: {_short(expected)[1:20]}…")


def _is_inside(name: str) -> bool:
    path = Path(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def read_about(folder: Path) -> dict[str, Any]:
    """The config.json of an export. Raises ConfigError where it is missing, foreign, newer or truncated."""
    try:
        about = read_json(folder / "config.json")
        found = about["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        allowed = f"a folder with a readable config.json of ours{reason}"
        raise ConfigError(f"export is '{folder}'; allowed: {allowed}") from None
    if found != POLICY_FORMAT:
        raise ConfigError(f"export '{folder}' has format {_short(found)}; allowed: {POLICY_FORMAT!r}")
    return dict(about)


def open_export(folder: Path) -> dict[str, Any]:
    """The config.json of an export, all of whose files are undamaged.

    Exports of before checksums were kept are not compared with any. Raises ConfigError also where a file differs from
    its checksum, and where a section is missing.
    """
    about = read_about(folder)
    verify_files(folder, "export", required="checksums" in about)
    for section, names in _REQUIRED.items():
        found = about.get(section)
        lacking = [name for name in names if not isinstance(found, dict) or name not in found]
        if lacking:
            raise ConfigError(f"export is '{folder}'; its config.json lacks {section}.{lacking[0]}")
    try:
        check_spaces(about["spaces"])
        shown = about["spaces"]["show_last_reward"]
        _require(isinstance(shown, bool), "spaces.show_last_reward", shown, "true or false")
        _check_step(about["step"])
        _require(isinstance(about["weights"]["fingerprint"], str), "weights.fingerprint", about["weights"], "text")
    except ConfigError as error:
        raise ConfigError(f"export is '{folder}'; its config.json does not fit: {error}") from None
    return about


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {_short(value)}; allowed: {allowed}")


def _numbers(value: Any) -> bool:
    """Whether a JSON value is a list of finite numbers."""
    return isinstance(value, list) and all(type(x) in (int, float) and abs(x) < 1e300 for x in value)


def check_spaces(spaces: Any) -> None:
    """Raises ConfigError where a JSON value does not describe what a policy sees and does."""
    _require(isinstance(spaces, dict), "spaces", spaces, "an object")
    for name in ("observation", "low", "high", "action", "horizon"):
        _require(name in spaces, f"spaces.{name}", None, "a value")
    check_observation(spaces["observation"])
    for end in ("low", "high"):
        _require(_numbers(spaces[end]), f"spaces.{end}", spaces[end], "a list of numbers")
    low, high = spaces["low"], spaces["high"]
    ordered = len(low) == len(high) and all(map(operator.le, low, high))
    _require(ordered, "spaces.high", high, f"as many numbers as spaces.low ({_short(low)}) has, none of them lower")
    _require(_whole(spaces["horizon"], 1, _ENDLESS), "spaces.horizon", spaces["horizon"], "1 … 2^31 − 1")
    check_action(spaces["action"])


def check_observation(spec: Any, name: str = "observation", depth: int = 0) -> None:
    """Raises ConfigError where a JSON value does not describe an observation, see `named_leaves`."""
    whole = isinstance(spec, dict) and depth < 32
    _require(whole, name, spec, 'an object with "keys", "items", or "shape" and "dtype"')
    if "keys" in spec:
        _require(isinstance(spec["keys"], dict), f"{name}.keys", spec["keys"], "an object")
        for key, item in spec["keys"].items():
            check_observation(item, f"{name}.{key}", depth + 1)
    elif "items" in spec:
        _require(isinstance(spec["items"], list), f"{name}.items", spec["items"], "a list")
        for index, item in enumerate(spec["items"]):
            check_observation(item, f"{name}.{index}", depth + 1)
    else:
        shape, dtype = spec.get("shape"), spec.get("dtype")
        sizes = isinstance(shape, list) and all(_whole(size, 0, _ENDLESS) for size in shape)
        fits = sizes and len(shape) <= 8 and math.prod(shape) <= _ENDLESS
        _require(fits, f"{name}.shape", shape, "a list of at most 8 whole numbers, whose product is below 2^31")
        _require(dtype in DTYPES, f"{name}.dtype", dtype, ", ".join(DTYPES))


def check_action(action: Any) -> None:
    """Raises ConfigError where a JSON value does not describe an action space."""
    _require(isinstance(action, dict), "action", action, "an object")
    fields = {"discrete": ("n",), "multi_discrete": ("nvec",), "box": ("low", "high")}
    kind = action.get("type")
    _require(isinstance(kind, str) and kind in fields, "action.type", kind, ", ".join(map(repr, fields)))
    for name in fields[kind]:
        _require(name in action, f"action.{name}", None, "a value")
    if kind == "discrete":
        _require(_whole(action["n"], 1, 2**20), "action.n", action["n"], "1 … 2^20")
    if kind == "multi_discrete":
        sizes = action["nvec"]
        fits = isinstance(sizes, list) and len(sizes) > 0 and all(_whole(size, 1, 2**20) for size in sizes)
        _require(fits, "action.nvec", sizes, "a list of numbers, each 1 … 2^20")
    if kind == "box":
        low, high = action["low"], action["high"]
        fits = _numbers(low) and _numbers(high) and 0 < len(low) == len(high) and all(map(operator.lt, low, high))
        _require(fits, "action.low", low, f"as many numbers as action.high ({_short(high)}) has, each below its own")
    Actions(action)


def _check_step(step: Mapping[str, Any]) -> None:
    """Raises ConfigError where the `step` of a config.json cannot be one."""
    _require(step["first_index"] in (0, 1), "step.first_index", step["first_index"], "0 or 1")
    for name in ("context", "max_episode_steps"):
        endless = name == "max_episode_steps" and step[name] is None
        _require(endless or _whole(step[name], 1, _ENDLESS), f"step.{name}", step[name], "1 … 2^31 − 1")
    memory = step["memory"]
    _require(isinstance(memory, list) and 0 < len(memory) < 10_000, "step.memory", memory, "a list of arrays")
    for array in memory:
        named = isinstance(array, dict) and isinstance(array.get("name"), str) and array.get("dtype") in DTYPES
        _require(named, "step.memory", array, "objects with name, shape and dtype")
        shape = array.get("shape")
        sizes = isinstance(shape, list) and all(x in ("batch", "context") or _whole(x, 1, 2**24) for x in shape)
        _require(sizes and 0 < len(shape) <= 8 and shape[0] == "batch", f"{array['name']}.shape", shape, '["batch", …]')


DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
)
"""Of arrays in files."""
_REQUIRED = {
    "weights": ("dtype", "fingerprint"),
    "spaces": ("observation", "low", "high", "action", "horizon", "show_last_reward"),
    "step": ("memory", "first_index", "max_episode_steps", "context"),
}


def load(
    folder: str | Path,
    *,
    batch: int | None = None,
    capacity: int | None = None,
    full: Full = "drop",
    seed: int = 0,
    greedy: bool = False,
    autoreset: Autoreset | None = None,
    env: Any = None,
) -> Agent:
    """The agent of a folder that `relic-jax export` wrote with `--format stablehlo` or `--format onnx`; see `Agent`.

    capacity: None for the one it was exported with. Raises ConfigError where the folder holds something else, or what
    runs it is not installed.
    """
    folder = Path(folder)
    about = open_export(folder)
    capacity = int(about["step"]["context"]) if capacity is None else capacity
    backend: Backend
    if (folder / "policy.onnx").is_file():
        backend, slots = Onnx(folder / "policy.onnx", about), None
    elif (folder / "policy.stablehlo").is_file():
        backend, slots = stable_hlo(folder / "policy.stablehlo", about), int(about["step"]["context"])
    else:
        raise ConfigError(f"export is '{folder}'; allowed: one with a policy.stablehlo or a policy.onnx")
    options: Any = {"batch": batch, "full": full, "seed": seed, "greedy": greedy, "autoreset": autoreset, "env": env}
    return Agent(about, backend, capacity=capacity, slots=slots, **options)


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """(arrays, inputs) → (outputs, arrays) with arrays of one row without their leading axis, to be jitted.

    With an axis of length 1, XLA on CPU writes a step twice, once to read it and once to keep it, each time into a copy
    of the whole context.
    """

    def run(arrays: Arrays, inputs: Mapping[str, Any]) -> tuple[Any, Arrays]:
        rows = inputs["first"].shape[0]
        outputs, arrays = function(_with_rows(arrays, rows), inputs)
        return outputs, _without_row(arrays, rows)

    return run


def _with_rows(arrays: Arrays, rows: int) -> Arrays:
    return {name: x[None] for name, x in arrays.items()} if rows == 1 else arrays


def _without_row(arrays: Arrays, rows: int) -> Arrays:
    return {name: x[0] for name, x in arrays.items()} if rows == 1 else arrays


class Jax:
    """A step that jax computes. function: made by `in_place` and jitted, the arrays donated."""

    def __init__(self, about: Mapping[str, Any], function: Callable[..., Any]) -> None:
        """about: a config.json. function: compiled at the first step, once per shape."""
        import jax
        import jax.numpy as jnp

        def move(arrays: Arrays, shift: int, turn: Any) -> Arrays:
            return _without_row(moved(jnp, _with_rows(arrays, self._rows), shift, turn), self._rows)

        self._about, self._function, self._rows = about, function, 0
        self._moved = jax.jit(move, donate_argnums=0)
        self._held = jax.jit(functools.partial(held, jnp), donate_argnums=0)
        self._own = jnp.array  # a copy: memory that numpy allocated is not ours to donate

    def empty(self, batch: int, slots: int) -> Arrays:
        """See `Backend`."""
        return self.placed(empty_arrays(self._about, batch, slots))

    def placed(self, arrays: dict[str, np.ndarray]) -> Arrays:
        """See `Backend`."""
        self._rows = len(next(iter(arrays.values())))
        return {name: self._own(x) for name, x in _without_row(arrays, self._rows).items()}

    def taken(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """See `Backend`."""
        return {name: np.asarray(x) for name, x in _with_rows(arrays, self._rows).items()}

    def step(self, arrays: Arrays, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Arrays]:
        """See `Backend`."""
        outputs, arrays = self._function(arrays, inputs)
        return {name: np.asarray(x) for name, x in outputs.items()}, arrays

    def moved(self, arrays: Arrays, shift: int, turn: np.ndarray | None) -> Arrays:
        """See `Backend`."""
        return dict(self._moved(arrays, shift, turn))

    def held(self, arrays: Arrays, rows: np.ndarray) -> Arrays:
        """See `Backend`. Of several rows: one that does not act takes no step."""
        return dict(self._held(arrays, rows))


def stable_hlo(path: Path, about: Mapping[str, Any]) -> Jax:
    """The step in a policy.stablehlo. Raises ConfigError where the file is truncated or a package is missing."""
    try:
        import flatbuffers  # noqa: F401  # jax reads the file with it, and does not require it
        import jax
        from jax import export
    except ImportError as error:
        raise ConfigError(f"'{path}' is run by jax and flatbuffers; {error.name} is missing: pip install it") from None
    reason = ""
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers and MLIR raise many kinds; a user needs one line
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    if reason:
        raise ConfigError(f"export is '{path}'; allowed: a whole file of this or an older jax ({reason})")
    return Jax(about, jax.jit(in_place(exported.call), donate_argnums=0))


class Onnx:
    """A step that onnxruntime computes. It reads the context in place and gives back only what the step adds to it."""

    def __init__(self, model: Path | bytes, about: Mapping[str, Any], threads: int = 0) -> None:
        """model: a file or its content. threads: 0 for the runtime's own choice.

        Raises ConfigError where the model is truncated or onnxruntime is missing.
        """
        path = "the model" if isinstance(model, bytes) else model
        try:
            import onnxruntime
        except ImportError:
            raise ConfigError(
                f"'{path}' is run by onnxruntime, which is not installed: pip install onnxruntime"
            ) from None
        options, reason = onnxruntime.SessionOptions(), ""
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common class
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        if reason:
            raise ConfigError(f"export is '{path}'; allowed: a whole ONNX file of ours ({reason})")
        self._about = about
        self._inputs = {x.name for x in self._session.get_inputs()}
        self._outputs = [x.name for x in self._session.get_outputs()]

    def empty(self, batch: int, slots: int) -> Arrays:
        """See `Backend`."""
        return empty_arrays(self._about, batch, slots)

    def placed(self, arrays: dict[str, np.ndarray]) -> Arrays:
        """See `Backend`."""
        return arrays

    def taken(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """See `Backend`."""
        return arrays

    def step(self, arrays: Arrays, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Arrays]:
        """See `Backend`."""
        given = {name: np.asarray(x) for name, x in {**arrays, **inputs}.items() if name in self._inputs}
        found = dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))
        slot = int(inputs["length"])
        for name, x in arrays.items():
            if name == "episodes":
                x[:, slot] = found["episode_after"]
            else:
                x[:, :, slot] = found[f"new_{name}"][:, :, 0]
        return {name: x for name, x in found.items() if not name.startswith("new_")}, arrays

    def moved(self, arrays: Arrays, shift: int, turn: np.ndarray | None) -> Arrays:
        """See `Backend`."""
        return moved(np, arrays, shift, turn)

    def held(self, arrays: Arrays, rows: np.ndarray) -> Arrays:
        """See `Backend`."""
        return held(np, arrays, rows)


def empty_arrays(about: Mapping[str, Any], batch: int, slots: int) -> dict[str, np.ndarray]:
    """The context's arrays, with nothing in them: `memory` of a config.json, with its two open sizes put in."""
    sizes = {"batch": batch, "context": slots}
    shapes = [[sizes.get(size, size) for size in array["shape"]] for array in about["step"]["memory"]]
    dtypes = [_dtype(array["dtype"]) for array in about["step"]["memory"]]
    needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True))
    _check_memory(needed, batch, slots)
    names = [array["name"] for array in about["step"]["memory"]]
    return {name: np.zeros(shape, dtype) for name, shape, dtype in zip(names, shapes, dtypes, strict=True)}


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":  # numpy knows it from this package, which jax brings
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _check_memory(needed: int, batch: int, slots: int) -> None:
    """Raises ConfigError where contexts take more bytes than this machine has memory, as far as it says."""
    try:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        most = 2**50
    if needed > most:
        allowed = f"what fits into {most / 2**20:,.0f} MiB of memory; this takes {needed / 2**20:,.0f} MiB"
        raise ConfigError(f"capacity is {slots}, of {batch} contexts; allowed: {allowed}")


def _blank(spec: Mapping[str, Any]) -> Any:
    if "keys" in spec:
        return {key: _blank(item) for key, item in spec["keys"].items()}
    if "items" in spec:
        return tuple(_blank(item) for item in spec["items"])
    return np.zeros(spec["shape"], spec["dtype"])


def main() -> None:
    """`python run.py [FOLDER]`: loads an export and takes 100 steps on blank observations, to see that it runs."""
    start = time.perf_counter()
    try:
        agent = load(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent)
    except ConfigError as error:
        sys.exit(f"run.py: {error}")
    observation, times = _blank(agent._spaces["observation"]), []
    legal = np.ones(sum(agent._actions.sizes), bool) if agent._actions.masked else None
    agent.step(observation, legal=legal)
    print(f"loaded, first action after {time.perf_counter() - start:.2f} s")
    for _ in range(99):
        start = time.perf_counter()
        agent.step(observation, legal=legal)
        times.append(time.perf_counter() - start)
    print(f"{1e3 * float(np.median(times)):.2f} ms a step (median), {agent.steps} steps in the context")


if __name__ == "__main__":
    main()
