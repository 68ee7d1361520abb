"""The form of a training state in a checkpoint, which stays the same while `TrainState` and its memories change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.rl.state import TrainState
from relic_jax.types import PyTree


def compact(state: TrainState, first: Callable[[Any], Any] = lambda length: length[0]) -> TrainState:
    """Convert a state to its stored form.

    Fields of an environment, of a policy input or of a curriculum that are None are left out, and the length of the
    memory, which is equal for all environments, is one number.

    Args:
        state: The state, or a tree of the same structure.
        first: Returns this number for the length of the memory.
    """

    def fields(record: Any) -> Any:
        return {name: x for name, x in vars(record).items() if x is not None}

    trajectory = replace(state.trajectory, inputs=fields(state.trajectory.inputs))
    memory: Any = {**fields(state.memory), "length": first(state.memory.length)}
    curriculum: Any = state.curriculum and fields(state.curriculum)
    return replace(state, trial=fields(state.trial), trajectory=trajectory, memory=memory, curriculum=curriculum)


def expanded(state: TrainState, like: TrainState, shardings: TrainState) -> TrainState:
    """Invert `compact`.

    Args:
        state: The stored form.
        like: A state with the structure and shapes to restore.
        shardings: The sharding of every array, in the same structure.
    """

    def record(found: Any, kind: type) -> Any:
        return kind(**found)

    inputs = record(state.trajectory.inputs, type(like.trajectory.inputs))
    trial = record(state.trial, type(like.trial))
    stored: Any = state.memory
    length = jnp.full(like.memory.length.shape, stored["length"], jnp.int32)
    length = jax.device_put(length, shardings.memory.length)
    memory = record({**stored, "length": length}, type(like.memory))
    curriculum = state.curriculum and record(state.curriculum, type(like.curriculum))
    trajectory = replace(state.trajectory, inputs=inputs)
    return replace(state, trial=trial, trajectory=trajectory, memory=memory, curriculum=curriculum)


def without_params(state: TrainState) -> dict[str, Any]:
    """Return the fields of a stored state, with {} for the parameters, and without a curriculum if there is none."""
    return {name: x for name, x in vars(state).items() if x is not None} | {"params": {}}


def with_renamed(state: TrainState, rename: Callable[[PyTree], PyTree]) -> TrainState:
    """Rename the parameters and the optimizer's moments with a function of `relic_jax.parameters`."""
    return replace(state, params=rename(state.params), opt_state=rename(state.opt_state))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def without_typed_keys(state: TrainState) -> TrainState:
    """Replace typed random keys by their data."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def with_typed_key(abstract: Any, x: Any) -> Any:
    """Wrap the data of a random key if ``abstract`` is a typed key."""
    return jax.random.wrap_key_data(x) if _is_key(abstract) else x
