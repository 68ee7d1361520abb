"""The policy: one interface for every kind of memory.

The memory is an explicit argument and result. `act` takes one step and `unroll` takes a block of steps. They agree up
to rounding: acting K times gives the same outputs as unrolling K steps. Both accept observations that contain images,
or the features that `encode_images` computed from them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.config.policy import PolicyConfig
from relic_jax.distributions import Categorical, Distribution, MultiCategorical
from relic_jax.environment.base import ActionSpace, Environment
from relic_jax.models import actions
from relic_jax.models import cache as kv
from relic_jax.models.attention import select
from relic_jax.models.cache import KVCache
from relic_jax.models.encoders import GRIDS, IMAGE_ENCODER, StepEncoder, concatenate_vectors
from relic_jax.models.grids import SpatialAttention
from relic_jax.models.kv_formats import KVFormat
from relic_jax.models.memories import KINDS
from relic_jax.models.memory import Memory
from relic_jax.models.sharded import ContextShards, as_part, own_steps
from relic_jax.models.statistics import merge
from relic_jax.models.transformer import Linear
from relic_jax.runtime import ConfigError
from relic_jax.spaces import Spaces, spaces_of
from relic_jax.types import Params, PyTree, Span, StepInput


@struct.dataclass
class PolicyOutput:
    """Output of the policy for one step or a block of steps.

    Attributes:
        distribution: over actions, with the leading axes of the inputs.
        value: float32, with the leading axes of the inputs.
        recall: log-probabilities of the answers of the recall head (`PolicyConfig.recall`), one float32
          [..., classes] per answer.
    """

    distribution: Distribution
    value: jax.Array
    recall: tuple[jax.Array, ...] = ()


class PolicyNetwork(nn.Module):
    """encoder → linear → transformer or recurrent network → linear → actor and critic, which are linear.

    If the image encoder keeps a feature vector per cell (`encoders.GRIDS`), the output of the memory also attends over
    the cells of the current images before it goes to the actor and the critic (`grids.SpatialAttention`).
    """

    config: PolicyConfig
    action_space: ActionSpace
    low: tuple[float, ...]
    high: tuple[float, ...]
    images: tuple[bool, ...] = (False,)

    def setup(self) -> None:
        """Declare the parameters."""
        width = self.config.width
        kind = KINDS[self.config.memory]
        init = kind.initializer(self.config)
        self.encoder = StepEncoder(self.config.encoder, self.action_space, width, self.low, self.high, self.images)
        self.proj_in = Linear(self.config.input_width, kernel_init=init)
        self.proj_out = Linear(self.config.output_width, kernel_init=init)
        self.memory_network = kind.network(self.config, self.config.traits.section)
        if self.has_spatial_attention:
            self.spatial_attention = SpatialAttention()
        self.actor = actions.head(self.action_space, self.config.head)
        self.critic = Linear(1, kernel_init=nn.initializers.orthogonal(1.0))
        if self.config.recall:
            self.recall = Linear(sum(self.config.recall))

    @property
    def has_spatial_attention(self) -> bool:
        """Whether there are images whose encoder keeps a feature vector per cell."""
        return self.config.encoder.image in GRIDS and any(self.images)

    def __call__(
        self,
        inputs: StepInput,
        memory: Any,
        *,
        decode: bool = False,
        valid: jax.Array | None = None,
        window: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        query_span: Span | None = None,
    ) -> tuple[PolicyOutput, Memory]:
        """Apply the network to a block of steps with leading axes [B, Q]; see `Transformer.__call__`.

        A recurrent network ignores `decode`, `valid` and `dropout_key`. Only "transformer" supports `window`.
        """
        inputs = self.encoder.encode_images(inputs)
        every = Span(0, inputs.first.shape[1])
        own, asked = own_steps(memory, every), query_span
        if own is not None:
            asked = own_steps(memory, query_span or every)
        x = self.proj_in(self.encoder(inputs if own is None else jax.tree.map(own.of, inputs)))
        if window is not None and not self.config.traits.keeps_steps:
            raise ValueError(f"window: the memory {self.config.memory!r} cannot be limited to the last steps")
        options = {"valid": valid, "window": window, "dropout_key": dropout_key, "query_span": query_span}
        hidden, memory = self.memory_network(x, inputs.first, memory, decode=decode, **options)
        hidden = self.proj_out(hidden.astype(jnp.float32))
        if self.has_spatial_attention:
            view = (self.encoder.cells(inputs), self.encoder.goal(inputs))
            view = view if asked is None else jax.tree.map(asked.of, view)
            hidden = self.spatial_attention(hidden, *view)
        distribution = self.actor(hidden)
        if inputs.legal is not None:
            assert isinstance(distribution, Categorical | MultiCategorical)
            distribution = distribution.masked(inputs.legal if asked is None else asked.of(inputs.legal))
        return PolicyOutput(distribution, self.critic(hidden)[..., 0], self.answers(hidden)), memory

    def answers(self, hidden: jax.Array) -> tuple[jax.Array, ...]:
        """Return `PolicyOutput.recall` for the hidden states [..., d]."""
        if not self.config.recall:
            return ()
        parts = jnp.split(self.recall(hidden), np.cumsum(self.config.recall)[:-1], axis=-1)
        return tuple(jax.nn.log_softmax(part) for part in parts)

    def encode_images(self, inputs: StepInput) -> StepInput:
        """See `StepEncoder.encode_images`."""
        return self.encoder.encode_images(inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """Pure functions around `PolicyNetwork`. A policy holds no arrays.

    Attributes:
        config: architecture of the network.
        spaces: observations and actions of the environments it acts in.
        shards: the devices over which the context is split (`over_devices`), or None if it is whole.
    """

    config: PolicyConfig
    spaces: Spaces
    shards: ContextShards | None = None

    @property
    def action_space(self) -> ActionSpace:
        """The set of actions."""
        return self.spaces.action_space

    @functools.cached_property
    def within_episode(self) -> Policy:
        """The policy with the same parameters whose attention reads the current episode only.

        It is the same object every time, so that evaluations share what is compiled for it.
        """
        transformer = dataclasses.replace(self.config.transformer, inter_episode=False)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, transformer=transformer))

    @property
    def network(self) -> PolicyNetwork:
        """The Flax module."""
        spaces = self.spaces
        return PolicyNetwork(self.config, spaces.action_space, spaces.low, spaces.high, spaces.images)

    @property
    def trains_image_encoder(self) -> bool:
        """Whether updates train an image encoder. They then need the images, not only their features."""
        return any(self.spaces.images) and not self.config.encoder.freeze

    @property
    def is_recurrent(self) -> bool:
        """Whether the memory is the state of a recurrent network, which processes one step after the other."""
        return self.config.traits.section != "transformer"

    def init(self, key: jax.Array) -> Params:
        """Return newly initialized float32 parameters. key: typed PRNG key []."""
        inputs = StepInput(
            observation=jax.tree.map(lambda x: jnp.zeros((1, 1, *x.shape), x.dtype), self.spaces.observation),
            previous_action=jnp.zeros((1, 1, *self.action_space.shape), self.action_space.dtype),
            previous_reward=jnp.zeros((1, 1), jnp.float32),
            first=jnp.ones((1, 1), bool),
        )
        return self.network.init(key, inputs, self.initial_memory(1, 0))["params"]

    def trainable(self, params: Params) -> Params:
        """Return the parameters that updates change: all except those of a frozen image encoder."""
        if not self.config.encoder.freeze:
            return params
        encoder = {name: x for name, x in params["encoder"].items() if not name.startswith(IMAGE_ENCODER)}
        return {**params, "encoder": encoder}

    def with_frozen(self, trainable: Params, params: Params) -> Params:
        """Return `trainable` with the frozen parameters of `params` added, the inverse of `trainable`."""
        return {**trainable, "encoder": {**params["encoder"], **trainable["encoder"]}}

    def initial_memory(self, batch: int, capacity: int) -> Memory:
        """Return an empty memory with room for `capacity` steps of `batch` environments, or a device's part of it."""
        devices = 1 if self.shards is None else self.shards.devices
        return as_part(KINDS[self.config.memory].empty(self.config, batch, capacity // devices), self.shards)

    def over_devices(self, shards: ContextShards) -> Policy:
        """Return the policy with a context that is split over devices, and the kernels that support it.

        It can be used only inside a function that runs on all of these devices.
        """
        transformer = dataclasses.replace(self.config.transformer, attention="blocked", decode="xla")
        config = dataclasses.replace(self.config, transformer=transformer)
        return dataclasses.replace(self, config=config, shards=shards)

    @property
    def acting_format(self) -> KVFormat:
        """Format of the keys and values of the memory that `act` reads, on the default devices.

        On CPU, XLA would convert a whole bfloat16 or int8 cache to float32 at every step.
        """
        return "float32" if jax.default_backend() == "cpu" else self.config.transformer.cache_format

    @property
    def reads_filled_steps(self) -> bool:
        """Whether `act` reads only the filled steps of a memory, on the default devices.

        The time of a step then does not depend on the memory's capacity. False if the memory does not keep its steps.
        """
        if not self.config.traits.keeps_steps:
            return False
        return select(self.config.transformer, decode=True, kv_format=self.acting_format).name == "cpu"

    @property
    def acts_in_place(self) -> bool:
        """Whether a segment acts in the memory of the whole trial, without a copy of its filled part."""
        return self.reads_filled_steps and self.acting_format == self.config.transformer.cache_format

    def for_acting(self, memory: Memory) -> Memory:
        """Return the memory in the `acting_format`, with the same values. `for_storage` is the inverse."""
        if not isinstance(memory, KVCache) or memory.kv_format == self.acting_format:
            return memory
        return kv.in_kv_format(memory, self.acting_format)

    def for_storage(self, memory: Memory) -> Memory:
        """Return the memory in the configured format."""
        kv_format = self.config.transformer.cache_format
        if not isinstance(memory, KVCache) or memory.kv_format == kv_format:
            return memory
        return kv.in_kv_format(memory, kv_format)

    def cast_weights(self, params: Params) -> Params:
        """Return the parameters with the transformer's weights in the dtype of its matrix products.

        The outputs are the same. In a loop over `act`, XLA on GPU would otherwise convert the weights at every step.
        """
        dtype = self.config.transformer.dtype
        if self.is_recurrent or dtype == "float32":
            return params

        def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            return x.astype(dtype) if path[-1].key == "kernel" else x

        return {**params, "transformer": jax.tree_util.tree_map_with_path(cast, params["transformer"])}

    def encode_images(self, params: Params, inputs: StepInput) -> StepInput:
        """Replace the images of the inputs by their features. The inputs can have any leading axes."""
        if not any(self.spaces.images):
            return inputs
        encoded: Any = self.network.apply({"params": params}, inputs, method="encode_images")
        return encoded

    def image_features(self, observation: PyTree) -> list[jax.Array]:
        """Return the arrays of an observation that are images, or the features that replaced them, in tree order."""
        leaves = jax.tree.leaves(observation)
        return [x for x, is_image in zip(leaves, self.spaces.images, strict=True) if is_image]

    def with_image_features(self, observation: PyTree, features: list[jax.Array]) -> PyTree:
        """Return the observation with `features` in place of its images."""
        leaves, tree = jax.tree.flatten(observation)
        remaining = iter(features)
        return jax.tree.unflatten(
            tree, [next(remaining) if m else x for x, m in zip(leaves, self.spaces.images, strict=True)]
        )

    def act(
        self, params: Params, memory: Memory, inputs: StepInput, *, window: jax.Array | None = None
    ) -> tuple[PolicyOutput, Memory]:
        """Take one step.

        Args:
            params: parameters of the network.
            memory: the context so far, with room for one more step.
            inputs: inputs of the step, with leading axis [B].
            window: int32 [] or [B]. Limits the context to that number of last steps.

        Returns:
            The output, with leading axis [B], and the memory with the step added.
        """
        block = jax.tree.map(lambda x: x[:, None], inputs)
        output, memory = self._apply(params, block, memory, decode=True, window=window)
        return jax.tree.map(lambda x: x[:, 0], output), memory

    def unroll(
        self,
        params: Params,
        memory: Memory,
        inputs: StepInput,
        *,
        valid: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        query_span: Span | None = None,
    ) -> tuple[PolicyOutput, Memory]:
        """Process a block of Q steps. Gradients flow through the block but not into `memory`.

        Args:
            params: parameters of the network.
            memory: the context before the block. A memory of capacity 0 is allowed for a pass over a whole trial whose
              keys and values are not used again.
            inputs: inputs of the steps, with leading axes [B, Q].
            valid: int32 []. Only the first `valid` steps are computed; the outputs of the other steps are undefined.
            dropout_key: typed PRNG key [] for depth dropout. Used only in training.
            query_span: the steps whose outputs are returned. Fewer steps cost less. None returns all steps.

        Returns:
            The output, with leading axes [B, Q], and the memory with the block added. If several devices share the
            context (`over_devices`) and the memory has capacity 0, each returns its part of the steps (`own_steps`).
        """
        return self._apply(params, inputs, memory, valid=valid, dropout_key=dropout_key, query_span=query_span)

    def _apply(self, params: Params, inputs: StepInput, memory: Memory, **options: Any) -> tuple[PolicyOutput, Memory]:
        result: Any = self.network.apply({"params": params}, inputs, memory, **options)
        return result

    def value(self, params: Params, memory: Memory, inputs: StepInput) -> jax.Array:
        """Return the value of a step without adding the step to the memory.

        Args:
            params: parameters of the network.
            memory: the context before the step.
            inputs: inputs of the step, with leading axis [B].

        Returns:
            float32 [B].
        """
        output, _ = self.unroll(params, memory, jax.tree.map(lambda x: x[:, None], inputs))
        return output.value[:, 0]

    def update_statistics(
        self, params: Params, observation: PyTree, valid: jax.Array | None, total: Callable[[PyTree], PyTree]
    ) -> Params:
        """Update the running statistics of the observations, which are part of the parameters.

        Without `encoder.observation == "normalized"` there are no statistics and the parameters do not change.

        Args:
            params: parameters of the network.
            observation: observations with leading axes [B, K].
            valid: bool [B, K], the observations to include. None includes all.
            total: sums a pytree over devices.
        """
        if self.config.encoder.observation != "normalized":
            return params
        x = concatenate_vectors(observation, self.spaces.images, 2)
        weight = jnp.ones(x.shape[:2]) if valid is None else valid.astype(jnp.float32)
        encoder = params["encoder"]
        return {**params, "encoder": {**encoder, "statistics": merge(encoder["statistics"], x, weight, total)}}


def policy_for(env: Environment, config: PolicyConfig) -> Policy:
    """Return the policy for an environment's observations and actions.

    Raises:
        ConfigError: if observations are scaled by their range and float32 cannot represent it.
    """
    spaces = spaces_of(env)
    if config.encoder.observation == "scaled":
        _check_range(env.name, spaces)
    return Policy(config, spaces)


def _check_range(name: str, spaces: Spaces) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.asarray(spaces.low, np.float32), np.asarray(spaces.high, np.float32)
        bad = np.flatnonzero(~(np.isfinite(high - low) & (low < high)))
    if len(bad):
        value = f"{spaces.low[bad[0]]} … {spaces.high[bad[0]]} in component {bad[0]}"
        allowed = "low below high and finite, in float32, with policy.encoder.observation 'scaled'"
        raise ConfigError(f"env {name!r} has the observation range {value}; allowed: {allowed}")
