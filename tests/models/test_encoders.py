"""From observations with images to vectors: convolutions, features in place of images, what is frozen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from relic_jax.models.encoders import EncoderConfig, image_mask, patches
from relic_jax.models.policy import Policy, PolicyConfig
from relic_jax.models.transformer import TransformerConfig
from relic_jax.types import StepInput

TRANSFORMER = TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=32)
SPEC = {
    "gps": jax.ShapeDtypeStruct((2,), jnp.float32),
    "image": jax.ShapeDtypeStruct((9, 7, 3), jnp.uint8),
    "target": jax.ShapeDtypeStruct((3,), jnp.float32),
}


def policy_with(spec=SPEC, low=(-2.0, -2.0, 0.0, 0.0, 0.0), high=(2.0, 2.0, 1.0, 1.0, 1.0), **encoder):
    return Policy(PolicyConfig(TRANSFORMER, EncoderConfig(features=5, **encoder)), 3, low, high, spec)


def random_steps(seed=0, spec=SPEC, shape=(2, 6)):
    rng = np.random.default_rng(seed)

    def draw(x):
        values = rng.integers(0, 256, (*shape, *x.shape)) if x.dtype == jnp.uint8 else rng.random((*shape, *x.shape))
        return jnp.asarray(values, x.dtype)

    return StepInput(
        observation=jax.tree.map(draw, spec),
        previous_action=jnp.asarray(rng.integers(-1, 3, shape), jnp.int32),
        previous_reward=jnp.asarray(rng.random(shape), jnp.float32),
        first=jnp.asarray(rng.random(shape) < 0.3),
    )


def fresh(policy):
    return jax.jit(policy.init)(jax.random.key(0))


def encode(policy, params, inputs):
    run = functools.partial(policy.network.apply, method=lambda network, x: network.encoder(x))
    return jax.jit(run)({"params": params}, inputs)


def perceive(policy, params, inputs):
    return jax.jit(policy.perceive)(params, inputs)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((25, 25), 4, 4), ((7, 9), 3, 2), ((16, 16), 5, 3), ((5, 2), 3, 1)]
)
def test_a_linear_layer_on_patches_is_a_convolution(size, kernel, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), jnp.float32)
    expected = lax.conv_general_dilated(x, weight, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(patches(x, kernel, stride) @ weight.reshape(-1, 4), expected, atol=1e-4)


def test_images_are_arrays_of_rank_three():
    assert image_mask(SPEC) == (False, True, False)
    assert image_mask(SPEC["gps"]) == (False,) and image_mask(SPEC["image"]) == (True,)


@pytest.mark.parametrize("observation", ["raw", "scaled"])
def test_the_vector_is_features_then_vectors_then_reward_and_action(observation):
    policy, inputs = policy_with(observation=observation), random_steps()
    params = fresh(policy)
    perceived = perceive(policy, params, inputs)
    assert perceived.observation["image"].shape == (2, 6, 5) and perceived.observation["image"].dtype == jnp.float32
    gps, target = inputs.observation["gps"], inputs.observation["target"]
    if observation == "scaled":
        gps, target = gps / 2, 2 * target - 1
    action = params["encoder"]["action"]["embedding"][inputs.previous_action + 1]
    reward = inputs.previous_reward[..., None]
    expected = jnp.concatenate([perceived.observation["image"], gps, target, reward, action], axis=-1)
    np.testing.assert_allclose(encode(policy, params, inputs), expected, atol=1e-6)


def test_perceiving_twice_is_perceiving_once():
    policy, inputs = policy_with(), random_steps()
    params = fresh(policy)
    perceived = perceive(policy, params, inputs)
    jax.tree.map(np.testing.assert_array_equal, perceive(policy, params, perceived), perceived)
    np.testing.assert_array_equal(encode(policy, params, perceived), encode(policy, params, inputs))


def test_an_image_alone_and_two_images():
    """Without other arrays, and with an encoder for each image."""
    image = SPEC["image"]
    alone = policy_with(image, (), ())
    params = fresh(alone)
    assert encode(alone, params, random_steps(spec=image)).shape == (2, 6, 5 + 1 + 8)
    two = policy_with({"left": image, "right": image}, (), ())
    params, inputs = fresh(two), random_steps(spec=two.spec)
    features = perceive(two, params, inputs).observation
    swapped = inputs.replace(observation={"left": inputs.observation["right"], "right": inputs.observation["left"]})
    assert (perceive(two, params, swapped).observation["left"] != features["right"]).any()


def test_bytes_and_unit_floats_are_the_same_picture():
    policy, inputs = policy_with(), random_steps()
    params = fresh(policy)
    image = inputs.observation["image"].astype(jnp.float32) / 127.5 - 1
    as_float = inputs.replace(observation={**inputs.observation, "image": image})
    found = perceive(policy, params, as_float).observation["image"]
    np.testing.assert_allclose(found, perceive(policy, params, inputs).observation["image"], atol=1e-6)
    assert (found > 0).mean() > 0.2  # not all of it behind the last ReLU


def test_acting_equals_unrolling_with_images():
    """From images and from their features, step by step and as a block."""
    policy, inputs = policy_with(), random_steps(1)
    params = jax.tree.map(lambda x: 3 * x, fresh(policy))

    @jax.jit
    def run(params, inputs):
        def step(memory, x):
            output, memory = policy.act(params, memory, x)
            return memory, (output.distribution.logits, output.value)

        by_step = jax.tree.map(lambda x: x.swapaxes(0, 1), inputs)
        _, acted = lax.scan(step, policy.initial_memory(2, 6), by_step)
        blocks = [
            policy.unroll(params, policy.initial_memory(2, 0), x)[0] for x in (inputs, perceive(policy, params, inputs))
        ]
        return jax.tree.map(lambda x: x.swapaxes(0, 1), acted), [(o.distribution.logits, o.value) for o in blocks]

    acted, blocks = run(params, inputs)
    assert np.abs(acted[1]).max() > 0.1
    for block in blocks:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), acted, block)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_frozen_encoder_has_no_gradient(freeze):
    policy, inputs = policy_with(freeze=freeze), random_steps()
    params = fresh(policy)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(encode(policy, p, inputs)))))(params)["encoder"]
    assert all(np.any(x) != freeze for x in jax.tree.leaves(gradient["image_0"]))
    assert np.any(gradient["action"]["embedding"])
    assert policy.learns_images != freeze


def test_a_policy_without_images_learns_none():
    assert not dataclasses.replace(policy_with(), observation=None).learns_images
