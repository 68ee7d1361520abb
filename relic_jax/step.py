"""A policy's step between flat dictionaries of arrays: what leaves this library, and what `Agent` runs.

    step(params, arrays, inputs) → (outputs, arrays)

arrays: the context's keys and values, or a recurrent state. inputs: the observation, what happened before, and the
counters of the context, which belong to the caller (`relic_jax.runtime.Rows`). Every name is the same in `Agent`,
StableHLO, ONNX and files.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.models import actions
from relic_jax.models import cache as kv
from relic_jax.models.cache import KVCache
from relic_jax.models.kv_formats import KVFormat, Slots
from relic_jax.models.memory import Memory
from relic_jax.models.policy import Policy
from relic_jax.models.recurrent import Carry
from relic_jax.runtime import named_leaves
from relic_jax.spaces import Spaces, spaces_to_json
from relic_jax.types import Params, StepInput

Arrays = dict[str, jax.Array]
STATE = "state"  # a recurrent memory's array


def step(policy: Policy, params: Params, arrays: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
    """One step of B environments.

    inputs: the observation's arrays [B, ...] by the names of `observation_names`; previous_action, previous_reward
    and first as in `StepInput`, and `legal` where the policy was trained with masks; position, episode (int32 [B]) and
    length (int32 []) of the memory; window: int32 [B], how many last steps each row sees, this one included; a
    recurrent state is emptied where that is 1. Returns (`value` and the parameters of the distribution over actions,
    the arrays after the step).
    """
    memory, window = memory_of(arrays, inputs), None if policy.is_recurrent else inputs["window"]
    leaves = [inputs[name] for name in observation_names(policy)]
    observation = jax.tree.unflatten(jax.tree.structure(policy.spaces.observation), leaves)
    before = inputs["previous_action"], inputs["previous_reward"], inputs["first"]
    seen = StepInput(observation, *before, legal=inputs["legal"] if policy.spaces.masked else None)
    output, memory = policy.act(params, memory, seen, window=window)
    return {**actions.parameters(output.distribution), "value": output.value}, arrays_of(policy, memory)


def observation_names(policy: Policy) -> list[str]:
    """Of the observation's arrays, in tree order: `observation`, or `observation.KEY`, …"""
    return [
        name for name, _, _ in named_leaves(spaces_to_json(policy.spaces)["observation"], policy.spaces.observation)
    ]


def keys_name(policy: Policy) -> str:
    """Keys are called differently where they are rotated by the index of their episode."""
    return "rotated_keys" if policy.config.transformer.episode_rope else "keys"


def arrays_of(policy: Policy, memory: Memory) -> Arrays:
    """The context's arrays by name, without its counters."""
    if isinstance(memory, Carry):
        return {STATE: memory.state}
    assert isinstance(memory, KVCache)
    found = {"episodes": memory.episodes}
    for name, layers in ((keys_name(policy), memory.keys), ("values", memory.values)):
        for layer, slots in enumerate(layers):
            found[f"{name}.{layer}"] = slots.data
            if slots.scale is not None:
                found[f"{name}.{layer}.scale"] = slots.scale
    return found


def memory_of(arrays: Arrays, inputs: Arrays) -> Memory:
    """The inverse of `arrays_of`; the counters are among the inputs of the step."""
    if STATE in arrays:
        known = (jnp.asarray(inputs["window"]) > 1)[:, None, None, None]
        return Carry(jnp.where(known, arrays[STATE], 0), _per_row(inputs["length"], known.shape[0]))

    def layers(kind: str) -> tuple[Slots, ...]:
        names = sorted((n for n in arrays if n.split(".")[0] in kind.split("|") and n.count(".") == 1), key=_layer)
        return tuple(Slots(arrays[name], arrays.get(f"{name}.scale")) for name in names)

    return KVCache(
        keys=layers("keys|rotated_keys"),
        values=layers("values"),
        episodes=arrays["episodes"],
        length=_per_row(inputs["length"], arrays["episodes"].shape[0]),
        position=jnp.asarray(inputs["position"], jnp.int32),
        episode=jnp.asarray(inputs["episode"], jnp.int32),
    )


def _per_row(length: jax.Array, batch: Any) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(length, jnp.int32), (batch,))


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def empty(policy: Policy, batch: int, context: int, form: KVFormat) -> Memory:
    """An empty memory. form: of keys and values, whatever the policy's own."""
    memory = policy.initial_memory(batch, context)
    return kv.in_kv_format(memory, form) if isinstance(memory, KVCache) else memory


def description(policy: Policy, form: KVFormat, context: int) -> dict[str, Any]:
    """The `step` of a config.json: what the step needs to know, and its arrays. form: of keys and values.

    context: steps that the context is meant for. `max_episode_steps`: None without step embeddings.
    """
    transformer = policy.config.transformer
    memory = jax.eval_shape(lambda: empty(policy, 1, 1, form))
    arrays = []
    for name, x in arrays_of(policy, memory).items():
        kept: dict[str, list[Any]] = {"episodes": ["context"], STATE: [*x.shape[1:]]}
        after = kept.get(name, [*x.shape[1:2], "context", *x.shape[3:]])
        arrays.append({"name": name, "shape": ["batch", *after], "dtype": jnp.dtype(x.dtype).name})
    steps = transformer.step_embedding and not policy.is_recurrent
    limit = transformer.max_positions - transformer.first_index if steps else None
    return {
        "memory": arrays,
        "first_index": transformer.first_index,
        "max_episode_steps": limit,
        "context": context,
    }


def described_spaces(spaces: Spaces, policy: Policy, show_last_reward: bool, action_repeat: int) -> dict[str, Any]:
    """The `spaces` of a config.json."""
    found = spaces_to_json(spaces)
    if found["action"]["type"] == "box":
        found["action"]["distribution"] = policy.config.head.action
    return {**found, "show_last_reward": show_last_reward, "action_repeat": action_repeat}


def input_specs(policy: Policy, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the inputs. batch: a number, or a symbolic size."""
    found = dict(zip(observation_names(policy), jax.tree.leaves(policy.spaces.observation), strict=True))
    specs = {name: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype) for name, x in found.items()}
    space = policy.action_space
    specs["previous_action"] = jax.ShapeDtypeStruct((batch, *space.shape), space.dtype)
    specs["previous_reward"] = jax.ShapeDtypeStruct((batch,), jnp.float32)
    specs["first"] = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    if policy.spaces.masked:
        specs["legal"] = jax.ShapeDtypeStruct((batch, space.mask_size), jnp.bool_)
    for name in ("position", "episode", "window"):
        specs[name] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    specs["length"] = jax.ShapeDtypeStruct((), jnp.int32)
    return specs
