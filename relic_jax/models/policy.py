"""The policy: one interface over every kind of memory.

`init(key)`, `initial_memory(batch, capacity)`, `act` for one step and `unroll` for a block. Memory is an explicit
argument and result. The two ways agree to rounding: acting K times equals unrolling K steps. Both take observations
with images, or what `encode_images` has made of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.config.policy import PolicyConfig
from relic_jax.distributions import Categorical, Distribution, MultiCategorical
from relic_jax.environment.base import ActionSpace, Discrete, Environment
from relic_jax.models import actions
from relic_jax.models import cache as kv
from relic_jax.models.cache import KVCache
from relic_jax.models.encoders import GRIDS, IMAGE_ENCODER, StepEncoder, image_mask, vector_part
from relic_jax.models.grids import SpatialAttention
from relic_jax.models.memory import Memory
from relic_jax.models.recurrent import Recurrent, empty_carry
from relic_jax.models.statistics import merged
from relic_jax.models.transformer import Linear, Transformer, empty_memory, kernel_init
from relic_jax.runtime import ConfigError
from relic_jax.types import Params, PyTree, Span, StepInput


@struct.dataclass
class PolicyOutput:
    """distribution: over actions, leading axes as the inputs'. value: float32, same leading axes."""

    distribution: Distribution
    value: jax.Array


class PolicyNetwork(nn.Module):
    """encoder → linear → transformer or recurrent network → linear → actor and critic, both linear.

    With an encoder that keeps places apart (`encoders.GRIDS`), what comes out of memory glances at the view before it
    goes to actor and critic.
    """

    config: PolicyConfig
    action_space: ActionSpace
    low: tuple[float, ...]
    high: tuple[float, ...]
    images: tuple[bool, ...] = (False,)

    def setup(self) -> None:
        """Declares the parameters."""
        width = self.config.width
        recurrent = self.config.memory != "transformer"  # it has no norm that would make small inputs large again
        init = nn.initializers.lecun_normal() if recurrent else kernel_init(self.config.transformer)
        self.encoder = StepEncoder(self.config.encoder, self.action_space, width, self.low, self.high, self.images)
        self.proj_in, self.proj_out = Linear(width, kernel_init=init), Linear(width, kernel_init=init)
        if self.config.memory == "transformer":
            self.transformer = Transformer(self.config.transformer)
        else:
            self.recurrent = Recurrent(self.config.recurrent, self.config.memory)
        if self.glances:
            self.glance = SpatialAttention()
        self.actor = actions.head(self.action_space, self.config.head)
        self.critic = Linear(1, kernel_init=nn.initializers.orthogonal(1.0))

    @property
    def glances(self) -> bool:
        """Whether there are views whose places are kept apart."""
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
        """A block of steps, leading axes [B, Q]; see `Transformer.__call__`. A recurrent network has no such options:
        one step is a block of one.
        """
        inputs = self.encoder.encode_images(inputs)
        x = self.proj_in(self.encoder(inputs))
        if self.config.memory == "transformer":
            options: dict[str, Any] = {
                "valid": valid,
                "window": window,
                "dropout_key": dropout_key,
                "query_span": query_span,
            }
            hidden, memory = self.transformer(x, inputs.first, memory, decode=decode, **options)
        elif window is not None:
            raise ValueError("window: a recurrent memory cannot be limited to the last steps")
        else:
            hidden, memory = self.recurrent(x, inputs.first, memory)
            hidden = hidden if query_span is None else query_span.of(hidden)
        hidden = self.proj_out(hidden.astype(jnp.float32))
        if self.glances:
            seen = (self.encoder.cells(inputs), self.encoder.goal(inputs))
            hidden = self.glance(hidden, *(seen if query_span is None else jax.tree.map(query_span.of, seen)))
        distribution = self.actor(hidden)
        if inputs.legal is not None:
            assert isinstance(distribution, Categorical | MultiCategorical)
            distribution = distribution.masked(inputs.legal if query_span is None else query_span.of(inputs.legal))
        return PolicyOutput(distribution, self.critic(hidden)[..., 0]), memory

    def encode_images(self, inputs: StepInput) -> StepInput:
        """See `StepEncoder.encode_images`."""
        return self.encoder.encode_images(inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """Pure functions around `PolicyNetwork`; nothing here holds arrays.

    actions: the space of them, or a number: so many discrete ones.
    low, high: range of each vector component of the observation, one after the other in tree order.
    observation: jax.ShapeDtypeStructs (`Image` for images) of one observation, in its tree; None: one vector, as long
      as `low`.
    masked: every step comes with a mask of legal actions (`StepInput.legal`). The parameters do not depend on it.
    """

    config: PolicyConfig
    actions: ActionSpace | int
    low: tuple[float, ...]
    high: tuple[float, ...]
    observation: PyTree = None
    masked: bool = False

    @property
    def spec(self) -> PyTree:
        """jax.ShapeDtypeStructs of one observation."""
        vector = jax.ShapeDtypeStruct((len(self.low),), jnp.float32)
        return vector if self.observation is None else self.observation

    @property
    def action_space(self) -> ActionSpace:
        """What it chooses from."""
        return Discrete(self.actions) if isinstance(self.actions, int) else self.actions

    @property
    def network(self) -> PolicyNetwork:
        """The Flax module."""
        return PolicyNetwork(self.config, self.action_space, self.low, self.high, image_mask(self.spec))

    @property
    def learns_images(self) -> bool:
        """Whether an update needs the images themselves: there are some, and their encoder is trained."""
        return any(image_mask(self.spec)) and not self.config.encoder.freeze

    def trained(self, params: Params) -> Params:
        """The parameters that updates change and that the optimiser knows: all but those of a frozen image encoder."""
        if not self.config.encoder.freeze:
            return params
        kept = {name: x for name, x in params["encoder"].items() if not name.startswith(IMAGE_ENCODER)}
        return {**params, "encoder": kept}

    def completed(self, trained: Params, params: Params) -> Params:
        """`trained` with what `trained()` leaves out taken from `params`."""
        return {**trained, "encoder": {**params["encoder"], **trained["encoder"]}}

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters. key: typed PRNG key []."""
        inputs = StepInput(
            observation=jax.tree.map(lambda x: jnp.zeros((1, 1, *x.shape), x.dtype), self.spec),
            previous_action=jnp.zeros((1, 1, *self.action_space.shape), self.action_space.dtype),
            previous_reward=jnp.zeros((1, 1), jnp.float32),
            first=jnp.ones((1, 1), bool),
        )
        return self.network.init(key, inputs, self.initial_memory(1, 0))["params"]

    @property
    def is_recurrent(self) -> bool:
        """Whether the memory is a state of fixed size, and not all the steps."""
        return self.config.memory != "transformer"

    def initial_memory(self, batch: int, capacity: int) -> Memory:
        """An empty context with room for `capacity` steps of `batch` environments."""
        if self.config.memory != "transformer":
            return empty_carry(self.config.recurrent, self.config.memory, batch)
        return empty_memory(self.config.transformer, batch, capacity)

    def for_acting(self, memory: Memory) -> Memory:
        """A copy of the memory in the format that `act` reads fastest on this platform; `stored` leads back.

        XLA on CPU would convert a whole bfloat16 or int8 cache to float32 at every step. The numbers are the same.
        """
        if not isinstance(memory, KVCache):
            return memory
        form = self.config.transformer.cache_format
        return kv.in_kv_format(memory, "float32") if form != "float32" and jax.default_backend() == "cpu" else memory

    def for_steps(self, params: Params) -> Params:
        """The parameters with the blocks' weights in the dtype that they are multiplied in: same numbers come out.

        For a loop over `act`, in which XLA on a GPU would convert them at every step.
        """
        dtype = self.config.transformer.dtype
        if self.is_recurrent or dtype == "float32":
            return params

        def converted(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            return x.astype(dtype) if path[-1].key == "kernel" else x

        return {**params, "transformer": jax.tree_util.tree_map_with_path(converted, params["transformer"])}

    def stored(self, memory: Memory) -> Memory:
        """A memory in the configured format."""
        form = self.config.transformer.cache_format
        return memory if not isinstance(memory, KVCache) or memory.kv_format == form else kv.in_kv_format(memory, form)

    def encode_images(self, params: Params, inputs: StepInput) -> StepInput:
        """The inputs with features in place of images, any leading axes; without images as they are."""
        if not any(image_mask(self.spec)):
            return inputs
        encoded: Any = self.network.apply({"params": params}, inputs, method="encode_images")
        return encoded

    def features(self, observation: PyTree) -> list[jax.Array]:
        """Those arrays of an observation that are images, or the features that `encode_images` made of them."""
        leaves = jax.tree.leaves(observation)
        return [x for x, is_image in zip(leaves, image_mask(self.spec), strict=True) if is_image]

    def with_features(self, observation: PyTree, features: list[jax.Array]) -> PyTree:
        """The observation with `features` in place of its images, all else as it is."""
        leaves, tree = jax.tree.flatten(observation)
        given, mask = iter(features), image_mask(self.spec)
        return jax.tree.unflatten(tree, [next(given) if m else x for x, m in zip(leaves, mask, strict=True)])

    def act(
        self, params: Params, memory: Memory, inputs: StepInput, *, window: jax.Array | None = None
    ) -> tuple[PolicyOutput, Memory]:
        """One step. inputs: leading axis [B]. Returns output with leading axis [B] and the memory with the step in it.

        window: int32 [], or [B], the context is limited to that many last steps.
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
        """A block of Q steps. inputs: leading axes [B, Q]. Gradients go through the block, never into `memory`.

        valid: int32 [], only that many first steps matter (the rest of the block is not computed and comes out as
        garbage). dropout_key: given in training passes only. query_span: only these steps are returned, which costs
        less; None: all. A memory of capacity 0 may be given for a pass over a whole trial whose keys and values are not
        read again.
        """
        return self._apply(params, inputs, memory, valid=valid, dropout_key=dropout_key, query_span=query_span)

    def _apply(self, params: Params, inputs: StepInput, memory: Memory, **options: Any) -> tuple[PolicyOutput, Memory]:
        result: Any = self.network.apply({"params": params}, inputs, memory, **options)
        return result

    def observed(
        self, params: Params, observation: PyTree, valid: jax.Array | None, total: Callable[[PyTree], PyTree]
    ) -> Params:
        """The parameters after more observations, where these are normalised: their statistics are among them.

        observation: leading axes [B, K]. valid: bool [B, K], which of them count; None: all. total: sums over devices.
        """
        if self.config.encoder.observation != "normalized":
            return params
        x = vector_part(observation, image_mask(self.spec), 2)
        weight = jnp.ones(x.shape[:2]) if valid is None else valid.astype(jnp.float32)
        encoder = params["encoder"]
        return {**params, "encoder": {**encoder, "statistics": merged(encoder["statistics"], x, weight, total)}}

    def peek(self, params: Params, memory: Memory, inputs: StepInput) -> jax.Array:
        """Value of a step that is not taken into the memory. inputs: leading axis [B]. Returns float32 [B]."""
        output, _ = self.unroll(params, memory, jax.tree.map(lambda x: x[:, None], inputs))
        return output.value[:, 0]


def policy_for(env: Environment, config: PolicyConfig) -> Policy:
    """The policy that fits an environment's observations and actions. Without a range, inputs are taken as they are.

    Raises ConfigError where inputs are to be scaled by a range that float32 cannot hold.
    """
    spec = env.observation_spec
    unit = tuple(jax.tree.map(lambda x, end=end: np.full(x.shape, end), spec) for end in (-1.0, 1.0))
    low, high = (_vector_values(end, spec) for end in env.observation_range or unit)
    if config.encoder.observation == "scaled":
        _check_range(env.name, low, high)
    return Policy(config, env.action_space, low, high, spec, env.masks_actions)


def _vector_values(values: PyTree, spec: PyTree) -> tuple[float, ...]:
    """The components that are no images of arrays in the tree of `spec`, one after the other."""
    vectors = [x for x, is_image in zip(jax.tree.leaves(values), image_mask(spec), strict=True) if not is_image]
    return tuple(float(component) for x in vectors for component in np.ravel(x))


def _check_range(name: str, low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        bottom, top = np.asarray(low, np.float32), np.asarray(high, np.float32)
        bad = np.flatnonzero(~(np.isfinite(top - bottom) & (bottom < top)))
    if len(bad):
        found = f"{low[bad[0]]} … {high[bad[0]]} in component {bad[0]}"
        allowed = "low below high and finite, in float32, with policy.encoder.observation 'scaled'"
        raise ConfigError(f"env {name!r} has the observation range {found}; allowed: {allowed}")
