"""Encoders of observations with images: convolutions, stored features, frozen weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from relic_jax.config import ConfigError, EncoderConfig, PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete, Image
from relic_jax.interop import files, layout
from relic_jax.interop.encoders import check, load, save_encoder, vit_entries
from relic_jax.models import vision
from relic_jax.models.encoders import PATCHES, extract_patches, num_cells
from relic_jax.models.grids import CELL_WIDTH, PATCH_WIDTH, SPATIAL_HEADS
from relic_jax.models.policy import Policy
from relic_jax.models.vision import ViTConfig
from relic_jax.spaces import Spaces, image_mask
from relic_jax.types import StepInput

TRANSFORMER = TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=32)
SPEC = {
    "gps": jax.ShapeDtypeStruct((2,), jnp.float32),
    "image": Image((9, 7, 3), jnp.uint8),
    "target": jax.ShapeDtypeStruct((3,), jnp.float32),
}


def policy_with(spec=SPEC, low=(-2.0, -2.0, 0.0, 0.0, 0.0), high=(2.0, 2.0, 1.0, 1.0, 1.0), **encoder):
    return Policy(
        PolicyConfig(TRANSFORMER, EncoderConfig(features=5, **encoder)), Spaces(spec, low, high, Discrete(3), 1)
    )


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


def encode_images(policy, params, inputs):
    return jax.jit(policy.encode_images)(params, inputs)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((25, 25), 4, 4), ((7, 9), 3, 2), ((16, 16), 5, 3), ((5, 2), 3, 1)]
)
def test_a_linear_layer_on_patches_is_a_convolution(size, kernel, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), jnp.float32)
    expected = lax.conv_general_dilated(x, weight, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(extract_patches(x, kernel, stride) @ weight.reshape(-1, 4), expected, atol=1e-4)


def test_images_are_arrays_of_rank_three():
    assert image_mask(SPEC) == (False, True, False)
    assert image_mask(SPEC["gps"]) == (False,) and image_mask(SPEC["image"]) == (True,)


@pytest.mark.parametrize("observation", ["raw", "scaled"])
def test_the_vector_is_features_then_vectors_then_reward_and_action(observation):
    policy, inputs = policy_with(observation=observation), random_steps()
    params = fresh(policy)
    encoded = encode_images(policy, params, inputs)
    assert encoded.observation["image"].shape == (2, 6, 5) and encoded.observation["image"].dtype == jnp.float32
    gps, target = inputs.observation["gps"], inputs.observation["target"]
    if observation == "scaled":
        gps, target = gps / 2, 2 * target - 1
    action = params["encoder"]["action"]["embedding"][inputs.previous_action + 1]
    reward = inputs.previous_reward[..., None]
    expected = jnp.concatenate([encoded.observation["image"], gps, target, reward, action], axis=-1)
    np.testing.assert_allclose(encode(policy, params, inputs), expected, atol=1e-6)


def test_encoding_images_twice_equals_encoding_them_once():
    policy, inputs = policy_with(), random_steps()
    params = fresh(policy)
    encoded = encode_images(policy, params, inputs)
    jax.tree.map(np.testing.assert_array_equal, encode_images(policy, params, encoded), encoded)
    np.testing.assert_array_equal(encode(policy, params, encoded), encode(policy, params, inputs))


def test_an_image_alone_and_two_images():
    """Covers images without other arrays, and one encoder per image."""
    image = SPEC["image"]
    alone = policy_with(image, (), ())
    params = fresh(alone)
    assert encode(alone, params, random_steps(spec=image)).shape == (2, 6, 5 + 1 + 8)
    two = policy_with({"left": image, "right": image}, (), ())
    params, inputs = fresh(two), random_steps(spec=two.spaces.observation)
    features = encode_images(two, params, inputs).observation
    swapped = inputs.replace(observation={"left": inputs.observation["right"], "right": inputs.observation["left"]})
    assert (encode_images(two, params, swapped).observation["left"] != features["right"]).any()


def test_bytes_and_unit_floats_are_the_same_image():
    policy, inputs = policy_with(), random_steps()
    params = fresh(policy)
    image = inputs.observation["image"].astype(jnp.float32) / 127.5 - 1
    as_float = inputs.replace(observation={**inputs.observation, "image": image})
    found = encode_images(policy, params, as_float).observation["image"]
    np.testing.assert_allclose(found, encode_images(policy, params, inputs).observation["image"], atol=1e-6)
    assert (found > 0).mean() > 0.2  # the last ReLU does not zero all of it


def test_acting_equals_unrolling_with_images():
    """Compare images and their features, step by step and as a block."""
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
            policy.unroll(params, policy.initial_memory(2, 0), x)[0]
            for x in (inputs, encode_images(policy, params, inputs))
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
    assert policy.trains_image_encoder != freeze


def test_a_policy_without_images_learns_none():
    assert not policy_with(SPEC["gps"], (-2.0,) * 2, (2.0,) * 2).trains_image_encoder


# --- vectors with separate layers, and the larger encoders -------------------------------------------------------

TINY_VIT = ViTConfig(size=32, patch=16, layers=1, width=12, heads=2, mlp_width=8)


@pytest.mark.parametrize("observation", ["raw", "scaled"])
def test_embedded_vectors_each_have_a_layer(observation):
    """Short vectors have 32 features, long ones as many as the width. Features pass through a ReLU."""
    spec = {**SPEC, "target": jax.ShapeDtypeStruct((5,), jnp.float32)}
    low, high = (-2.0, -2.0, *(0.0,) * 5), (2.0, 2.0, *(1.0,) * 5)
    policy = policy_with(spec, low, high, vectors="embedded", observation=observation, reward=False)
    params, inputs = fresh(policy), random_steps(spec=spec)
    p, seen = params["encoder"], encode_images(policy, params, inputs).observation
    gps, target = inputs.observation["gps"], inputs.observation["target"]
    if observation == "scaled":
        gps, target = gps / 2, 2 * target - 1

    def linear(x, q):
        return x @ q["kernel"] + q["bias"]

    parts = [jnp.maximum(linear(seen["image"], p["visual_0"]), 0), linear(gps, p["vector_0"]["linear"])]
    parts += [linear(target, p["vector_1"]["linear"]), p["action"]["embedding"][inputs.previous_action + 1]]
    assert [x.shape[-1] for x in parts] == [8, 32, 8, 8]
    np.testing.assert_allclose(encode(policy, params, inputs), jnp.concatenate(parts, axis=-1), atol=1e-5)


def test_cells_are_encoded_separately():
    policy, inputs = policy_with(image="cells"), random_steps(shape=(2, 3))
    params = random_params(policy, 0)
    layer, image = params["encoder"]["image_0"]["linear"], inputs.observation["image"].astype(jnp.float32) / 255
    expected = (image @ layer["kernel"] + layer["bias"]).reshape(2, 3, -1)
    found = encode_images(policy, params, inputs).observation["image"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    cells = expected.shape[-1] // CELL_WIDTH
    assert cells == 9 * 7
    seen = encode(policy, params, inputs)[..., : expected.shape[-1]]
    np.testing.assert_allclose(seen, 2 * expected / cells**0.5, rtol=1e-4, atol=1e-5)


def test_patches_are_the_convolutions_place_by_place():
    policy, inputs = policy_with(image="patches"), random_steps(shape=(2, 3))
    params = random_params(policy, 0)
    x = inputs.observation["image"].astype(jnp.float32).reshape(6, 9, 7, 3) / 127.5 - 1
    for index, (channels, kernel, stride) in enumerate(PATCHES):
        layer = params["encoder"]["image_0"][f"Dense_{index}"]
        weight = layer["kernel"].reshape(kernel, kernel, -1, channels)
        axes = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, weight, (stride, stride), "SAME", dimension_numbers=axes)
        x = jax.nn.relu(x + layer["bias"])
    layer = params["encoder"]["image_0"][f"Dense_{len(PATCHES)}"]
    expected = (x @ layer["kernel"] + layer["bias"]).reshape(2, 3, -1)
    assert expected.shape[-1] == num_cells("patches", 9, 7) * PATCH_WIDTH == 2 * 1 * PATCH_WIDTH
    found = encode_images(policy, params, inputs).observation["image"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    seen = encode(policy, params, inputs)[..., : expected.shape[-1]]
    np.testing.assert_allclose(seen, 2 * expected / 2**0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("image", ["resnet18", "vit-b16"])
def test_larger_encoders_give_features_of_bytes(image, monkeypatch):
    monkeypatch.setattr(vision, "VIT_B16", TINY_VIT)
    policy, inputs = policy_with(image=image, freeze=image == "vit-b16"), random_steps(shape=(2, 3))
    found = encode_images(policy, random_params(policy, 0), inputs).observation["image"]
    assert found.shape == (2, 3, 12 if image == "vit-b16" else 5) and found.dtype == jnp.float32
    assert np.ptp(found, axis=(0, 1)).max() > 1e-4


def random_params(policy, seed):
    """Return random parameters of the right shapes without running the initializers."""
    rng, like = np.random.default_rng(seed), jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), like)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_frozen_encoder_has_no_optimizer_state(freeze):
    policy = policy_with(freeze=freeze)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    trained = policy.trainable(params)
    assert ("image_0" in trained["encoder"]) != freeze and "action" in trained["encoder"]
    assert jax.tree.structure(policy.with_frozen(trained, params)) == jax.tree.structure(params)


# --- weights from files ----------------------------------------------------------------------------------------------


def with_file(policy, file):
    encoder = dataclasses.replace(policy.config.encoder, weights=str(file))
    return dataclasses.replace(policy, config=dataclasses.replace(policy.config, encoder=encoder))


@pytest.mark.slow
@pytest.mark.parametrize("image", ["small", "nature", "cells", "patches", "resnet18", "vit-b16"])
def test_weights_are_restored_exactly_from_a_file(image, tmp_path, monkeypatch):
    monkeypatch.setattr(vision, "VIT_B16", TINY_VIT)
    spec = {"left": SPEC["image"], "right": SPEC["image"]}
    policy = policy_with(spec, (), (), image=image, freeze=True)
    source, params = (random_params(policy, seed) for seed in (1, 2))
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, image, source["encoder"]["image_0"])
    policy = with_file(policy, file)
    check(policy, weights=True)
    loaded = load(policy, params)
    for name in ("image_0", "image_1"):  # both images start from the same weights
        jax.tree.map(np.testing.assert_array_equal, loaded["encoder"][name], source["encoder"]["image_0"])
    jax.tree.map(np.testing.assert_array_equal, loaded["encoder"]["action"], params["encoder"]["action"])
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, params)


GOAL = {"image": SPEC["image"], "target": jax.ShapeDtypeStruct((6,), jnp.float32)}


def test_names_of_a_goal_become_queries_of_half_the_heads(tmp_path):
    policy = policy_with(GOAL, (0.0,) * 6, (1.0,) * 6, image="patches")
    source, params = (random_params(policy, seed) for seed in (1, 2))
    names = np.random.default_rng(0).normal(size=(6, PATCH_WIDTH)).astype(np.float32)
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, "patches", source["encoder"]["image_0"], names)
    loaded = load(with_file(policy, file), params)
    jax.tree.map(np.testing.assert_array_equal, loaded["encoder"]["image_0"], source["encoder"]["image_0"])
    for head in range(SPATIAL_HEADS):
        expected = names if head < SPATIAL_HEADS // 2 else params["spatial_attention"]["names"][:, head]
        np.testing.assert_array_equal(loaded["spatial_attention"]["names"][:, head], expected)
    rest = ("query", "places", "mix", "out")
    both = ([tree["spatial_attention"][name] for name in rest] for tree in (loaded, params))
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize(
    ("goal", "allowed"), [(7, r"float32 \[7, 32\]"), (None, "none, for observations without a goal")]
)
def test_names_that_do_not_fit_are_one_line(goal, allowed, tmp_path):
    spec = {"image": SPEC["image"]} | ({} if goal is None else {"target": jax.ShapeDtypeStruct((goal,), jnp.float32)})
    policy = policy_with(spec, (0.0,) * (goal or 0), (1.0,) * (goal or 0), image="patches")
    names = np.zeros((6, PATCH_WIDTH), np.float32)
    save_encoder(tmp_path / "a.safetensors", "patches", fresh(policy)["encoder"]["image_0"], names)
    with pytest.raises(ConfigError, match=rf"has 'names', float32 \[6, 32\]; allowed: {allowed}$"):
        check(with_file(policy, tmp_path / "a.safetensors"), weights=True)


def test_weights_of_timm_may_have_a_head(tmp_path, monkeypatch):
    monkeypatch.setattr(vision, "VIT_B16", TINY_VIT)
    policy = policy_with(image="vit-b16", freeze=True)
    arrays = layout.write(vit_entries(TINY_VIT), fresh(policy)["encoder"]["image_0"])
    files.write(tmp_path / "a.safetensors", {**arrays, "head.weight": np.zeros((3, 12), np.float32)}, {})
    check(with_file(policy, tmp_path / "a.safetensors"), weights=True)
    files.write(tmp_path / "b.safetensors", {**arrays, "blocks.0.ls1.gamma": np.zeros(12, np.float32)}, {})
    with pytest.raises(ConfigError, match=r"blocks\.0\.ls1\.gamma"):  # another architecture
        check(with_file(policy, tmp_path / "b.safetensors"), weights=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("Dense_0.bias"), "lacks 'Dense_0.bias'"),
        (lambda a: a.update({"Dense_0.bias": np.zeros(3, np.float32)}), r"of shape \[3\]; allowed: \[16\]"),
        (lambda a: a.update({"Dense_0.bias": np.zeros(16, np.int8)}), "of int8; allowed: float32"),
        (lambda a: a.update({"Dense_7.bias": np.zeros(3, np.float32)}), "has 'Dense_7.bias'"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(change, message, tmp_path):
    policy = policy_with()
    save_encoder(tmp_path / "a.safetensors", "small", fresh(policy)["encoder"]["image_0"])
    arrays = files.read(tmp_path / "a.safetensors", "file").arrays
    change(arrays)
    files.write(tmp_path / "a.safetensors", arrays, {})
    with pytest.raises(ConfigError, match=message) as error:
        check(with_file(policy, tmp_path / "a.safetensors"), weights=True)
    assert "\n" not in str(error.value) and "policy.encoder.weights" in str(error.value)


def test_an_encoder_that_cannot_see_these_images_is_refused():
    grey = policy_with(Image((9, 7, 1), jnp.uint8), (), (), image="vit-b16", freeze=True)
    with pytest.raises(ConfigError, match="images of 1 channels"):
        check(grey, weights=True)
    with pytest.raises(ConfigError, match=r"policy\.encoder\.weights is 'none\.safetensors'; allowed: a file"):
        check(with_file(policy_with(), "none.safetensors"), weights=True)
    check(with_file(policy_with(), "none.safetensors"), weights=False)  # a resumed run has them in its checkpoint
    blind = policy_with(jax.ShapeDtypeStruct((2,), jnp.float32), (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(ConfigError, match="no images"):
        check(with_file(blind, "none.safetensors"), weights=True)
