"""Labels of rendered houses, the included encoder on held-out houses, and a short training run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.envs import registry
from relic_jax.envs.firstperson.renderer import render_objects
from relic_jax.experiments import pretrain_encoder
from relic_jax.experiments.pretrain_encoder import (
    CONFIG,
    FIRST,
    FURNITURE,
    KINDS,
    PLACE,
    WALL,
    by_place,
    pictures,
    pretrain,
)
from relic_jax.interop import files
from relic_jax.interop.encoders import NAMES, SHIPPED, read_encoder, save_encoder
from relic_jax.models.encoders import encode_image, image_encoder
from relic_jax.models.grids import PATCH_WIDTH, split_cells

ENV = registry.make("house-objnav-small")
TEST = jnp.asarray(ENV.tasks("test"))


@pytest.fixture
def few(monkeypatch):
    """Use batches of 3 houses with 2 images each."""
    monkeypatch.setattr(pretrain_encoder, "HOUSES", 3)
    monkeypatch.setattr(pretrain_encoder, "POSES", 2)


def test_places_are_means_of_their_pixels():
    pixels = np.random.default_rng(0).normal(size=(2 * PLACE, 3 * PLACE, 2)).astype(np.float32)
    found = by_place(jnp.asarray(pixels))
    for row in range(2):
        for column in range(3):
            part = pixels[row * PLACE : (row + 1) * PLACE, column * PLACE : (column + 1) * PLACE]
            np.testing.assert_allclose(found[3 * row + column], part.mean((0, 1)), atol=1e-6)


@pytest.mark.slow
def test_labels_are_what_the_renderer_drew():
    """Shares sum to 1, and the pixels of walls, furniture and categories match the renderer's ids."""
    state = jax.jit(ENV.start)(jax.random.key(1), TEST[0])
    for seed in range(4):
        key = jax.random.key(seed)
        image, labels = jax.jit(pretrain_encoder.picture, static_argnums=0)(ENV, key, state)
        np.testing.assert_allclose(labels["kinds"].sum(-1), 1, atol=1e-5)
        episode_key, pitch_key = jax.random.split(key)
        there = ENV.restart(episode_key, state, TEST[0])
        there = there.replace(pitch=jax.random.choice(pitch_key, jnp.arange(-2, 3), p=pretrain_encoder.PITCHES))
        view = render_objects(ENV.scene(there.house), ENV.camera(there), ENV.lens)
        np.testing.assert_array_equal(image, view.image)
        ids, pixels = np.asarray(view.objects), np.asarray(labels["kinds"]).sum(0) * PLACE**2
        furniture = (ids >= 2) & (ids < 2 + ENV.config.furniture)
        expected = np.zeros(KINDS)
        expected[0], expected[WALL], expected[FURNITURE] = (ids == 0).sum(), (ids == 1).sum(), furniture.sum()
        for index in range(ENV.config.objects):
            category = int(there.house.categories[index // ENV.config.instances])
            expected[FIRST + category] += (ids == 2 + ENV.config.furniture + index).sum()
        np.testing.assert_allclose(pixels, expected, atol=0.05)


@pytest.mark.slow
def test_the_included_encoder_finds_objects_by_name_in_held_out_houses():
    """If an object fills half a place, its name mostly matches one of its places best. Chance is one in 64."""
    arrays = dict(files.read(SHIPPED["houses"], "file").arrays)
    names = arrays.pop(NAMES)
    encoder = image_encoder(CONFIG)
    like = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    params = read_encoder("patches", arrays, like, "file")
    image, labels = jax.jit(lambda key: pictures(ENV, key, TEST))(jax.random.key(3))
    cells = split_cells(encode_image(CONFIG, encoder.bind({"params": params}), image), PATCH_WIDTH)
    scores = np.asarray(cells @ names.T)
    shares = np.asarray(labels["kinds"][..., FIRST:])
    picture, category = np.nonzero(shares.max(1) > 0.5)
    best = scores[picture, :, category].argmax(-1)
    assert len(picture) > 50
    assert (shares[picture, best, category] > 0.1).mean() > 0.9


def test_scores_are_shares_of_what_is_there_and_of_what_is_claimed():
    """In two batches 3 + 1 are found of 6 + 2 present and 4 + 1 claimed."""
    counts = jnp.array([[3, 6, 4], [1, 2, 1]])
    assert pretrain_encoder.score(counts) == {"found": 0.5, "right": 0.8}
    assert pretrain_encoder.summary(counts) == "50% of the places of objects found, 80% of the claims right"
    assert pretrain_encoder.score(jnp.zeros((1, 3), int)) == {"found": 0.0, "right": 0.0}


@pytest.mark.slow
def test_a_short_training_learns_and_its_file_fits(few, tmp_path):
    messages = []
    params = pretrain(ENV, 40, jax.random.key(0), messages.append)
    assert messages[-1].startswith("40/40 batches") and "loss" in messages[-1]
    image, labels = jax.jit(lambda key: pictures(ENV, key, TEST))(jax.random.key(1))
    after, _ = pretrain_encoder.loss(params, image, labels)
    before, _ = pretrain_encoder.loss(pretrain_encoder.drawn(jax.random.key(0)), image, labels)
    assert after < 0.6 * before
    save_encoder(tmp_path / "a.safetensors", "patches", params["encoder"], np.asarray(params["names"][FIRST:]))
    assert files.read(tmp_path / "a.safetensors", "file").arrays[NAMES].shape == (20, PATCH_WIDTH)
