"""Counters of a batch of contexts, and the file that a context is saved in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, short
from .files import parse_json, read_safetensors, safetensors_package, write_atomically
from .spaces import UNBOUNDED

CONTEXT_FORMAT = "relic-jax-context-2"
CONTEXTS = (CONTEXT_FORMAT, "relic-jax-context-1")
"""Formats that can be read. Contexts of format 1 have no checksum."""


class Rows:
    """Counters of the contexts of B rows, which share S slots for keys and values.

    Attributes:
        length: Filled slots.
        kept: int [B], how many of the last filled slots belong to the row's context.
        opened: bool [B, S], whether the step in the slot is the first of its episode.
        fresh: bool [B], whether the next step is the first of an episode.
        new: bool [B], whether the next step is the first of a context.
        position: int [B], index of the last step in its episode.
        episode: int [B], index of its episode.
        waiting: bool [B], whether the episode ended and the row did not act on its last observation.
        last_reward: float32 [B], the reward of that end.
        first_index: Index of the first episode.
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
    _ADDED = ("waiting", "last_reward")  # missing in the first files of `Agent.save`

    @classmethod
    def empty(cls, rows: int, slots: int, first_index: int) -> Rows:
        """Return the counters before the first step."""
        result = cls()
        result.kept, result.position = np.zeros(rows, np.int64), np.full(rows, -1)
        result.episode = np.full(rows, first_index)
        result.fresh, result.new = np.ones(rows, bool), np.ones(rows, bool)
        result.waiting, result.last_reward = np.zeros(rows, bool), np.zeros(rows, np.float32)
        result.opened = np.zeros((rows, slots), bool)
        result.length, result.first_index = 0, first_index
        return result

    @classmethod
    def check(cls, arrays: Mapping[str, np.ndarray], rows: int, start: str, most: int) -> None:
        """Check saved counters.

        Args:
            arrays: As `arrays` returns them.
            rows: Rows that they must have.
            start: Text that errors start with.
            most: Largest number of steps in a row's context.

        Raises:
            ConfigError: If an array is missing, or has another shape or impossible values.
        """
        length, blank = arrays["opened"].shape[1], cls.empty(rows, 0, 0)
        check_array(start, "rows.opened", arrays["opened"], np.dtype(bool), (rows, length))
        limits = {"kept": (0, most), "position": (-1, UNBOUNDED), "episode": (-UNBOUNDED, UNBOUNDED)}
        for name in cls._BY_ROW:
            if name in cls._ADDED and name not in arrays:
                continue
            expected, array = getattr(blank, name), arrays.get(name)
            check_array(start, f"rows.{name}", array, expected.dtype, expected.shape)
            low, high = limits.get(name, (-np.inf, np.inf))
            if array is not None and ((array < low) | (array > high)).any():
                raise ConfigError(f"{start} has rows.{name} {short(array.tolist())}; allowed: {low} … {high}")

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], slots: int, first_index: int) -> Rows:
        """Return the inverse of `arrays`, with room for `slots` steps."""
        opened = arrays["opened"]
        result = cls.empty(len(opened), slots, first_index)
        for name in cls._BY_ROW:
            if name in arrays or name not in cls._ADDED:
                setattr(result, name, arrays[name].copy())
        result.length = opened.shape[1]
        result.opened[:, : result.length] = opened
        return result

    def arrays(self, filled: slice) -> dict[str, np.ndarray]:
        """Return the counters by name, for saving. filled: slots to save, the last ones."""
        return {name: getattr(self, name) for name in self._BY_ROW} | {"opened": self.opened[:, filled]}

    def reset(self, rows: np.ndarray, new_task: bool) -> None:
        """Start a new episode in `rows` (bool [B]) with the next step, or a new context."""
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
        """Return the counters that the next step reads.

        `episode` is the index before the step, which adds 1 if `first`, except in the very first step.

        Args:
            first: bool [B], whether the step is the first of an episode.
            capacity: Steps in a context.
        """
        before = self._episode_after(first) - (first if self.length else 0)
        return {
            "position": self.position.astype(np.int32),
            "episode": before.astype(np.int32),
            "length": np.int32(self.length),
            "window": np.minimum(self.kept + 1, capacity).astype(np.int32),
        }

    def wait(self, rewards: np.ndarray) -> None:
        """Record the end of an episode in all rows. rewards: float32 [B], of the last action."""
        self.waiting, self.last_reward = np.ones_like(self.waiting), rewards.astype(np.float32)

    def advance(self, first: np.ndarray, capacity: int, idle: np.ndarray | None = None, rewards: Any = 0) -> None:
        """Record a step.

        Args:
            first: bool [B], whether it was the first of an episode.
            capacity: Steps in a context.
            idle: bool [B], rows whose episode ended and that did not act.
            rewards: float32 [B], see `wait`.
        """
        idle = np.zeros_like(self.waiting) if idle is None else idle
        self.position = np.where(idle, self.position, np.where(first, 0, self.position + 1))
        self.episode = np.where(idle, self.episode, self._episode_after(first))
        self.kept = np.where(idle, self.kept, np.minimum(self.kept + 1, capacity))
        self.opened[:, self.length] = first
        self.opened[idle] = np.roll(self.opened[idle], 1, axis=1)  # as `hold_rows`
        self.length += 1
        self.fresh, self.new = np.zeros_like(self.fresh), self.new & idle
        self.waiting, self.last_reward = idle.copy(), np.where(idle, rewards, 0).astype(np.float32)

    def without_oldest(self, first: np.ndarray, capacity: int, drop: bool) -> tuple[int, np.ndarray | None]:
        """Make room for a step.

        Args:
            first: bool [B], whether the next step is the first of an episode.
            capacity: Steps in a context.
            drop: Whether to drop whole episodes, and number the others from the start.

        Returns:
            (slots to remove, int32 [B] by how much episodes are numbered lower, or None without `drop`).

        Raises:
            ConfigError: If one episode fills the context.
        """
        turn = np.zeros(len(self.kept), np.int32)
        kept = np.minimum(self.kept, capacity - 1)
        for row in np.flatnonzero(self.kept == capacity) if drop else ():
            start = self.length - capacity
            later = start + 1 + np.flatnonzero(self.opened[row, start + 1 : self.length])
            if not len(later) and not first[row]:
                raise ConfigError(f"the current episode fills the context; allowed: a capacity of more than {capacity}")
            kept[row] = self.length - later[0] if len(later) else 0
            turn[row] = 1
        self.episode = self.episode - turn
        self.new |= kept == 0
        self.kept = kept
        shift = self.length - int(kept.max())
        self.opened = np.roll(self.opened, -shift, axis=1)
        self.length -= shift
        return shift, turn if drop else None


def check_array(start: str, name: str, array: np.ndarray | None, dtype: Any, shape: tuple[int, ...]) -> None:
    """Raise ConfigError if an array of a context is missing, of another dtype or shape, or not finite."""
    if array is None or (array.dtype, array.shape) != (dtype, shape):
        raise ConfigError(f"{start} does not fit in {name!r}; allowed: one saved by this kind of agent")
    if array.dtype.kind not in "biu" and not np.isfinite(array.astype(np.float32)).all():
        raise ConfigError(f"{start} has {name!r} that is not finite; allowed: numbers")


def context_checksum(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the content of a context file, except for `sha256` in `meta`."""
    content = {name: value for name, value in meta.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.name} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def write_context(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a context file atomically. Raises OSError; ConfigError if safetensors is not installed."""
    contiguous = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    header = {"format": CONTEXT_FORMAT, **meta}
    header["sha256"] = context_checksum(header, contiguous)
    safetensors_package()
    from safetensors.numpy import save

    write_atomically(path, save(contiguous, {"relic_jax": json.dumps(header)}))


def read_context(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (metadata, arrays by name) of a context file.

    Raises:
        ConfigError: If the file is missing, truncated, damaged or not a context.
    """
    arrays, header = read_safetensors(path, "context")
    try:
        meta = parse_json(header.get("relic_jax", "{}"))
    except ValueError:
        meta = {}
    version = meta.get("format") if isinstance(meta, dict) else None
    if version not in CONTEXTS:
        raise ConfigError(f"context '{path}' has format {short(version)}; allowed: {CONTEXT_FORMAT!r}")
    if version == CONTEXT_FORMAT and meta.get("sha256") != context_checksum(meta, arrays):
        raise ConfigError(f"context '{path}' is damaged: its content does not have the checksum that it was saved with")
    return meta, arrays
