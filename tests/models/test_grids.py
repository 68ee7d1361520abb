"""Spatial attention over grids: equality with numpy, finding a queried cell, and a policy that uses it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import EncoderConfig, PolicyConfig, RecurrentConfig, TransformerConfig
from relic_jax.environment.base import Discrete, Image
from relic_jax.models.grids import CELL_WIDTH, PATCH_WIDTH, SPATIAL_HEADS, SPATIAL_WIDTH, SpatialAttention
from relic_jax.models.policy import Policy
from relic_jax.spaces import Spaces
from relic_jax.types import Span, StepInput

WIDTH, CELLS = 8, 6


def random_like(shapes, seed, scale=0.5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), shapes)


def attention_params(seed, goal=None):
    sizes = (WIDTH,), (CELLS, CELL_WIDTH), *([] if goal is None else [(goal,)])
    like = jax.eval_shape(SpatialAttention().init, jax.random.key(0), *(jnp.zeros((1, *size)) for size in sizes))
    return random_like(like, seed)["params"]


@pytest.mark.parametrize("goal", [None, 5])
def test_spatial_attention_equals_numpy(goal):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), attention_params(0, goal))
    rng = np.random.default_rng(1)
    hidden, cells = rng.normal(size=(2, 3, WIDTH)), rng.normal(size=(2, 3, CELLS, CELL_WIDTH))
    goals = [] if goal is None else [rng.normal(size=(2, 3, goal))]
    found = jax.jit(SpatialAttention().apply)({"params": p}, *(jnp.float32(x) for x in (hidden, cells, *goals)))
    for index in np.ndindex(2, 3):
        h, seen = hidden[index], cells[index]
        parts, matches = [], []
        for head in range(SPATIAL_HEADS):
            query = h @ p["query"]["kernel"][:, head] + p["query"]["bias"][head]
            if goals:
                query += goals[0][index] @ p["names"][:, head]
                matches += [np.log(np.exp(seen @ query).mean())]
            weights = np.exp(seen @ query)
            weights /= weights.sum()
            parts += [np.concatenate([weights @ p["places"], weights @ seen])]
        mixed = np.maximum(np.concatenate([h, *parts, matches]) @ p["mix"]["kernel"] + p["mix"]["bias"], 0)
        assert mixed.shape == (SPATIAL_WIDTH,)
        np.testing.assert_allclose(
            found[index], h + mixed @ p["out"]["kernel"] + p["out"]["bias"], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("place", range(CELLS))
def test_spatial_attention_finds_the_queried_cell(place):
    """With the object as query and one-hot places, the output is the place of the object, for every place."""
    p = jax.tree.map(jnp.zeros_like, attention_params(0))
    thing, other = jnp.eye(CELL_WIDTH)[0], jnp.eye(CELL_WIDTH)[1]
    p["query"]["kernel"] = p["query"]["kernel"].at[:CELL_WIDTH, 0].set(50 * jnp.eye(WIDTH, CELL_WIDTH))
    p["places"] = jnp.eye(CELLS, CELL_WIDTH)
    p["mix"]["kernel"] = p["mix"]["kernel"].at[WIDTH : WIDTH + CELLS, :CELLS].set(jnp.eye(CELLS))
    p["out"]["kernel"] = p["out"]["kernel"].at[:CELLS, 1 : 1 + CELLS].set(jnp.eye(CELLS))
    cells = jnp.tile(other, (CELLS, 1)).at[place].set(thing)
    found = SpatialAttention().apply({"params": p}, jnp.eye(WIDTH)[0], cells)
    np.testing.assert_allclose(found[1 : 1 + CELLS], jnp.eye(CELLS)[place], atol=1e-6)


SPEC = {
    "left": Image((2, 3, 5), jnp.uint8),
    "right": Image((3, 3, 5), jnp.uint8),
    "state": jax.ShapeDtypeStruct((2,), jnp.float32),
}
GOAL = {**SPEC, "target": jax.ShapeDtypeStruct((5,), jnp.float32)}
TRANSFORMER = TransformerConfig(layers=2, heads=2, width=WIDTH, mlp_width=16, max_positions=32)


def policy_with(memory, image="cells"):
    encoder = EncoderConfig(observation="scaled", image=image)
    config = PolicyConfig(TRANSFORMER, encoder, memory=memory, recurrent=RecurrentConfig(width=WIDTH))
    numbers = 7 if image == "patches" else 2
    spec = GOAL if image == "patches" else SPEC
    return Policy(config, Spaces(spec, (0.0,) * numbers, (1.0,) * numbers, Discrete(3), 1))


def outputs(output):
    return jnp.concatenate([output.distribution.logits, output.value[..., None]], axis=-1)


@pytest.mark.parametrize(("memory", "image"), [("transformer", "cells"), ("gru", "cells"), ("transformer", "patches")])
def test_acting_equals_unrolling_from_images_and_from_features(memory, image):
    policy, steps, rng = policy_with(memory, image), 9, np.random.default_rng(2)
    params = random_like(jax.eval_shape(policy.init, jax.random.key(0)), 3, 0.2)
    spec = policy.spaces.observation
    largest = jax.tree.map(lambda x: 255 if x.dtype == jnp.uint8 else 1, spec)
    inputs = StepInput(
        observation=jax.tree.map(
            lambda x, top: jnp.asarray(top * rng.integers(0, 2, (2, steps, *x.shape)), x.dtype),
            policy.spaces.observation,
            largest,
        ),
        previous_action=jnp.asarray(rng.integers(-1, 3, (2, steps)), jnp.int32),
        previous_reward=jnp.asarray(rng.random((2, steps)), jnp.float32),
        first=jnp.asarray(rng.random((2, steps)) < 0.3),
    )

    @jax.jit
    def unrolled(inputs, **options):
        return outputs(policy.unroll(params, policy.initial_memory(2, 0), inputs, **options)[0])

    expected = unrolled(inputs)
    encoded = jax.jit(policy.encode_images)(params, inputs)
    assert encoded.observation["right"].shape == (2, steps, 9 * CELL_WIDTH if image == "cells" else PATCH_WIDTH)
    np.testing.assert_allclose(unrolled(encoded), expected, atol=1e-5)
    np.testing.assert_allclose(unrolled(encoded, query_span=Span(3, 4)), expected[:, 3:7], atol=1e-5)
    act, carry = jax.jit(policy.act), policy.initial_memory(2, steps)
    for step in range(steps):
        output, carry = act(params, carry, jax.tree.map(lambda x, step=step: x[:, step], inputs))
        np.testing.assert_allclose(outputs(output), expected[:, step], atol=1e-5)
    for name in sorted(set(policy.spaces.observation) - {"state"}):  # the outputs depend on every view and on the goal
        changed = {**inputs.observation, name: largest[name] - inputs.observation[name]}
        other = dataclasses.replace(inputs, observation=changed)
        assert np.abs(unrolled(other) - expected).min((0, 1)).max() > 1e-3
