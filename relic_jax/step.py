"""A policy's step as a function of flat dictionaries of arrays. `Agent` runs it and exports contain it.

    step(params, arrays, inputs) → (outputs, arrays)

`arrays` are the context's keys and values, or a recurrent state. `inputs` are the observation, the previous action and
reward, and the counters of the context, which the caller keeps (`relic_jax.runtime.Rows`). The names are the same in
`Agent`, StableHLO, ONNX and files.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.config import PolicyConfig
from relic_jax.config.memories import MEMORIES
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
from relic_jax.validation import require

Arrays = dict[str, jax.Array]
STATE = "state"  # name of a recurrent memory's array


def step(policy: Policy, params: Params, arrays: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
    """Compute one step of B environments.

    Args:
        policy: The network.
        params: Its parameters.
        arrays: The memory's arrays, see `arrays_of`.
        inputs: The observation's arrays ``[B, ...]`` by the names in `observation_names`; `previous_action`,
            `previous_reward` and `first` as in `StepInput`; `legal` if the policy was trained with masks; the memory's
            `position` and `episode`, int32 ``[B]``, and `length`, int32 ``[]``; `window`, int32 ``[B]``, the number of
            last steps that each row attends to, including this one. A window of 1 resets a recurrent state.

    Returns:
        The outputs, which are `value` and the parameters of the action distribution, and the memory's arrays after the
        step.
    """
    memory, window = memory_of(arrays, inputs), None if policy.is_recurrent else inputs["window"]
    leaves = [inputs[name] for name in observation_names(policy)]
    observation = jax.tree.unflatten(jax.tree.structure(policy.spaces.observation), leaves)
    before = inputs["previous_action"], inputs["previous_reward"], inputs["first"]
    seen = StepInput(observation, *before, legal=inputs["legal"] if policy.spaces.masked else None)
    output, memory = policy.act(params, memory, seen, window=window)
    return {**actions.parameters(output.distribution), "value": output.value}, arrays_of(policy, memory)


def observation_names(policy: Policy) -> list[str]:
    """Return the names of the observation's arrays in tree order: `observation`, or `observation.KEY` and so on."""
    return [
        name for name, _, _ in named_leaves(spaces_to_json(policy.spaces)["observation"], policy.spaces.observation)
    ]


def check_exports(config: PolicyConfig) -> None:
    """Raise ConfigError if an `Agent` and exported policies do not support the memory of a policy."""
    supported = " or ".join(repr(name) for name, traits in MEMORIES.items() if traits.exports)
    require(config.traits.exports, "policy.memory", config.memory, f"{supported} in an agent or an export")


def keys_name(policy: Policy) -> str:
    """Return the name of the keys, which depends on whether they are rotated by the index of their episode."""
    return "rotated_keys" if policy.config.transformer.episode_rope else "keys"


def arrays_of(policy: Policy, memory: Memory) -> Arrays:
    """Return the memory's arrays by name, without its counters."""
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
    """Invert `arrays_of`, with the counters from the inputs of the step."""
    if STATE in arrays:
        state, known = arrays[STATE], jnp.asarray(inputs["window"]) > 1
        state = jnp.where(jnp.expand_dims(known, range(1, state.ndim)), state, 0)
        return Carry(state, _per_row(inputs["length"], known.shape[0]))

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
    """Return an empty memory.

    Args:
        policy: The network.
        batch: B, number of environments.
        context: Number of steps that the memory has room for.
        form: Format of keys and values, which can differ from the policy's.
    """
    memory = policy.initial_memory(batch, context)
    return kv.in_kv_format(memory, form) if isinstance(memory, KVCache) else memory


def description(policy: Policy, form: KVFormat, context: int) -> dict[str, Any]:
    """Return the field `step` of an export's config.json.

    Args:
        policy: The network.
        form: Format of keys and values.
        context: Number of steps that the context is meant for.

    Returns:
        The names, shapes and dtypes of the memory's arrays, and the constants of the step. `max_episode_steps` is None
        if the policy has no step embeddings.

    Raises:
        ConfigError: If agents and exports do not support the policy's memory.
    """
    check_exports(policy.config)
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
    """Return the field `spaces` of an export's config.json."""
    found = spaces_to_json(spaces)
    if found["action"]["type"] == "box":
        found["action"]["distribution"] = policy.config.head.action
    return {**found, "show_last_reward": show_last_reward, "action_repeat": action_repeat}


def input_specs(policy: Policy, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of the inputs. ``batch`` is a number or a symbolic size."""
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
