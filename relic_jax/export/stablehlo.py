"""Export the step as StableHLO with `jax.export`: weights included, any batch size, a fixed context, CPU and CUDA."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import export

from relic_jax import step
from relic_jax.models.policy import Policy
from relic_jax.types import Params

PLATFORMS = ("cpu", "cuda")


def build(policy: Policy, params: Params, context: int) -> bytes:
    """Lower the step, which does not need a GPU.

    Args:
        policy: The network.
        params: Its parameters.
        context: Number of slots of the context.

    Returns:
        The serialized step.
    """
    transformer = dataclasses.replace(policy.config.transformer, decode="xla")  # StableHLO cannot contain our kernels
    policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, transformer=transformer))
    (batch,) = export.symbolic_shape("b")
    memory = jax.eval_shape(lambda: step.empty(policy, 1, context, "float32"))
    arrays = {
        name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in step.arrays_of(policy, memory).items()
    }
    run = jax.jit(functools.partial(step.step, policy, jax.tree.map(jnp.asarray, params)))
    exported = export.export(run, platforms=PLATFORMS)(arrays, step.input_specs(policy, batch))
    return bytes(exported.serialize())
