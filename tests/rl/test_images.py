"""Learning from images: they are encoded once for acting, and again with gradient in the loss window only."""

import dataclasses
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import (
    ConfigError,
    EncoderConfig,
    PolicyConfig,
    PPOConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
)
from relic_jax.environment.base import Image
from relic_jax.envs.probes.env import PolicyProbe
from relic_jax.interop.encoders import save_encoder
from relic_jax.models import encoders
from relic_jax.rl import update as up
from relic_jax.rl.memory_budget import check_memory, segment_image_bytes
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.rollout import collect
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.segment import learn, segment_step
from relic_jax.rl.state import init_state, make_setup, step_input
from relic_jax.rl.train import Progress, prepare, restore, save
from relic_jax.rl.trial import continue_trial

TRANSFORMER = TransformerConfig(layers=1, heads=2, width=16, mlp_width=16, max_positions=32, attention="reference")


@dataclasses.dataclass(frozen=True)
class ImageProbe(PolicyProbe):
    """Rewards actions that name the bright half of the image."""

    name: str = "probe-image"
    horizon: int = 2

    @property
    def observation_spec(self):
        image = Image((6, 6, 1), jnp.uint8)
        return {"image": image, "step": jax.ShapeDtypeStruct((), jnp.float32)}

    def observe(self, state):
        bright = (jnp.arange(6) >= 3) == state.cue
        image = jnp.broadcast_to(jnp.where(bright, 200, 50)[:, None], (6, 6, 1)).astype(jnp.uint8)
        return {"image": image, "step": state.step.astype(jnp.float32)}


def randomised(params):
    """Return random parameters, with which images affect the outputs."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.4 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def config(freeze=False, **ppo):
    settings = {"minibatches": 2, "accumulate": 1, "epochs": 2, "lr": 3e-3, "warmup_steps": 0, "value_clip": None}
    return TrainConfig(
        total_steps=4000,
        devices=1,
        policy=PolicyConfig(TRANSFORMER, EncoderConfig(features=6, freeze=freeze)),
        trial=TrialConfig(environments=4, steps=24, updates=3),
        ppo=PPOConfig(**{**settings, "context_gradient": "stopped", "last_update": "partial", **ppo}),
    )


@functools.cache
def gathered():
    """Return (setup, state, batch, collected steps) before the second update of a trial."""
    setup = make_setup(config(), ImageProbe())

    @jax.jit
    def gather():
        state = init_state(setup)
        state = state.replace(params=randomised(state.params))
        for index in range(2):
            before = state.memory
            found = collect(setup, state.params, state.trial, before, jax.random.key(index))
            trajectory = up.context.write_window(state.trajectory, found.steps, 8 * index)
            state = state.replace(
                trial=found.trial, memory=found.memory, trajectory=trajectory, segment=jnp.asarray(index)
            )
        batch = up.make_batch(setup, state, before, found.last_value)
        return state, batch._replace(observation=found.observation), found

    return setup, *gather()


WINDOW = up.Window(8, 8, full=False)
PLACES = {"before": slice(0, 8), "inside": slice(8, 16)}


def poisoned(batch, place, value=jnp.nan):
    """Return the batch with the trajectory's features before or inside the window replaced."""
    inputs = batch.trajectory.inputs
    features = inputs.observation["image"].at[:, PLACES[place]].set(value)
    inputs = inputs.replace(observation={**inputs.observation, "image": features})
    return batch._replace(trajectory=batch.trajectory.replace(inputs=inputs))


def loss_function(setup):
    """Return the window's loss as a function of (params, batch), without dropout."""
    return lambda params, batch: up.minibatch_loss(setup, 0, params, batch, WINDOW, jax.random.key(0))[0]


@pytest.mark.slow
def test_what_is_stored_is_what_the_images_mean_at_the_same_weights():
    setup, state, batch, found = gathered()
    assert batch.observation["image"].dtype == jnp.uint8 and batch.observation["image"].shape == (4, 8, 6, 6, 1)
    stored = found.steps.inputs
    assert stored.observation["image"].shape == (4, 8, 6)
    again = setup.policy.encode_images(state.params, stored.replace(observation=batch.observation))
    chex.assert_trees_all_close(again, stored, atol=1e-6)
    assert np.ptp(stored.observation["image"], axis=(0, 1)).max() > 0.1  # the two images have different features


@pytest.mark.slow
def test_the_state_that_is_carried_and_saved_holds_no_image_but_the_current_one():
    _, state, _, _ = gathered()
    images = [x for x in jax.tree.leaves(state) if x.dtype == jnp.uint8 and x.ndim > 3]
    assert [x.shape for x in images] == [(4, 6, 6, 1)]


@pytest.mark.parametrize("context_gradient", ["stopped", "full"])
def test_the_encoder_learns_through_the_loss_window_only(context_gradient):
    """The gradient equals that of a loss with constant features in the context and recomputed ones in the window."""
    _, state, batch, _ = gathered()
    loss = loss_function(make_setup(config(context_gradient=context_gradient), ImageProbe()))
    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params, batch)
    encoder = gradient["encoder"]["image_0"]
    assert all(np.any(x) for x in jax.tree.leaves(encoder))
    # the window's features are recomputed, not read
    chex.assert_trees_all_close(jax.jit(jax.grad(loss))(state.params, poisoned(batch, "inside")), gradient, atol=1e-6)
    # the context's features are read if the cache is not
    changed = jax.jit(loss)(state.params, poisoned(batch, "before", 3.0))
    assert (abs(float(changed - value)) > 1e-5) == (context_gradient == "full")
    # nothing else depends on the encoder: central differences with the unchanged batch
    leaves, tree = jax.tree.flatten(encoder)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    way = [jax.random.normal(k, x.shape) / x.size**0.5 for k, x in zip(keys, leaves, strict=True)]

    def moved(size):
        image = jax.tree.map(
            lambda x, w: x + size * w, state.params["encoder"]["image_0"], jax.tree.unflatten(tree, way)
        )
        return loss({**state.params, "encoder": {**state.params["encoder"], "image_0": image}}, batch)

    slope = jax.jit(lambda size: (moved(size) - moved(-size)) / (2 * size))(1e-2)
    np.testing.assert_allclose(slope, sum(jnp.vdot(x, w) for x, w in zip(leaves, way, strict=True)), rtol=0.02)


def test_the_gradient_through_the_context_encodes_images_once():
    """Images are not encoded once per context size, and the gradient is that of the loss."""
    _, state, batch, _ = gathered()
    setup = make_setup(config(context_gradient="full"), ImageProbe())
    expected = jax.jit(jax.grad(loss_function(setup)))(state.params, batch)
    key = jax.random.key(0)
    with mock.patch.object(encoders, "encode_image", side_effect=encoders.encode_image) as looked:
        run = jax.jit(lambda p, b: up.gradient(setup, 0, p, b, WINDOW, key)[0])
        chex.assert_trees_all_close(run(state.params, batch), expected, atol=1e-6)
    assert looked.call_count == 1


def test_a_trial_of_one_update_encodes_all_images_again():
    """Stored features are not used: the outputs equal those of a pass over the images."""
    setup, state, batch, _ = gathered()
    images = jax.random.randint(jax.random.key(0), (4, 24, 6, 6, 1), 0, 256).astype(jnp.uint8)
    inputs = batch.trajectory.inputs
    seen = {**inputs.observation, "image": images}

    @jax.jit
    def both(params):
        whole = up.Window(0, 24, full=True)
        found = up.window_output(setup, params, batch._replace(observation=seen), whole, jax.random.key(0))
        nothing = setup.policy.initial_memory(4, 0)
        return found, setup.policy.unroll(params, nothing, inputs.replace(observation=seen))[0]

    chex.assert_trees_all_close(*both(state.params), atol=1e-5)


def test_a_refresh_reads_features_and_encodes_no_image():
    """With an encoder that returns NaN, the context is finite and equals that of an intact encoder."""
    setup, state, _, _ = gathered()
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params["encoder"]["image_0"])
    blind = {**state.params, "encoder": {**state.params["encoder"], "image_0": broken}}
    run = jax.jit(lambda s: continue_trial(setup, s, jax.random.key(1)))
    chex.assert_trees_all_equal(run(state.replace(params=blind)).memory, run(state).memory)


@pytest.mark.slow
def test_a_frozen_encoder_stays_and_its_images_are_not_kept():
    setup = make_setup(config(freeze=True), ImageProbe())
    state = jax.jit(lambda: init_state(setup))()
    found = jax.eval_shape(lambda s: collect(setup, s.params, s.trial, s.memory, s.key), state)
    assert found.observation is None and segment_image_bytes(setup) == 0
    after, _ = jax.jit(lambda s: segment_step(setup, s))(state)
    before, after = state.params["encoder"], after.params["encoder"]
    chex.assert_trees_all_equal(after["image_0"], before["image_0"])
    assert (after["action"]["embedding"] != before["action"]["embedding"]).any()


@pytest.mark.slow
def test_updates_and_the_optimizer_do_not_use_a_frozen_encoder():
    """With NaN as its weights after acting, all other parameters are updated as before."""
    setup = make_setup(config(freeze=True), ImageProbe())
    key = jax.random.key(0)

    @jax.jit
    def act():
        state = init_state(setup)
        return state, collect(setup, state.params, state.trial, state.memory, key)

    state, found = act()
    assert not any("image_0" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state))
    encoder = state.params["encoder"]
    gone = {**encoder, "image_0": jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), encoder["image_0"])}
    step = jax.jit(lambda state: learn(setup, state, state.memory, found, key, key))
    healthy, metrics = step(state)
    blinded, same = step(state.replace(params={**state.params, "encoder": gone}))
    metrics.pop("nonfinite/params"), same.pop("nonfinite/params")
    chex.assert_trees_all_equal(same, metrics)
    chex.assert_trees_all_equal(setup.policy.trainable(blinded.params), setup.policy.trainable(healthy.params))
    chex.assert_trees_all_equal(blinded.memory, healthy.memory)  # the refresh of the context does not use it either
    assert np.isnan(jax.tree.leaves(blinded.params["encoder"]["image_0"])[0]).all()


def test_a_run_starts_from_pretrained_weights_and_its_checkpoints_hold_them(tmp_path):
    plain = make_setup(config(freeze=True), ImageProbe())
    source = jax.tree.map(lambda x: x + 1, initial_state(plain).params["encoder"]["image_0"])
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, "small", source)
    encoder = EncoderConfig(features=6, freeze=True, weights=str(file))
    own = dataclasses.replace(config(), policy=PolicyConfig(TRANSFORMER, encoder))
    setup = prepare(own, ImageProbe())
    state = initial_state(setup)
    chex.assert_trees_all_equal(state.params["encoder"]["image_0"], source)
    save(setup, tmp_path / "checkpoints", state, Progress())
    file.unlink()
    with pytest.raises(ConfigError, match=r"policy\.encoder\.weights is .*; allowed: a file that exists"):
        prepare(own, ImageProbe())
    restored, _ = restore(prepare(own, ImageProbe(), resume=True), tmp_path / "checkpoints")
    chex.assert_trees_all_equal(restored.params, state.params)


def test_a_vit_must_be_frozen():
    vit = PolicyConfig(TRANSFORMER, EncoderConfig(image="vit-b16"))
    with pytest.raises(ConfigError, match=r"policy\.encoder\.freeze is False; allowed: True, with a vit-b16"):
        prepare(dataclasses.replace(config(), policy=vit), ImageProbe())


def test_full_updates_need_all_images_and_are_refused():
    with pytest.raises(ConfigError, match=r"ppo\.last_update is 'full'; allowed: 'partial' if an image encoder"):
        prepare(config(last_update="full"), ImageProbe())
    prepare(config(last_update="full", freeze=True), ImageProbe())
    with pytest.raises(ConfigError, match=r"policy\.encoder\.features is 0"):
        broken = PolicyConfig(TRANSFORMER, EncoderConfig(features=0))
        prepare(dataclasses.replace(config(), policy=broken), ImageProbe())


def test_memory_by_hand():
    """Every step of the trial stores 6 float32 features, every step of a segment 36 + 4 bytes of observations."""
    setup = make_setup(config(), ImageProbe())
    state = jax.eval_shape(lambda: init_state(setup))
    features = state.trajectory.inputs.observation["image"]
    assert features.shape == (4, 24, 6) and features.dtype == jnp.float32
    assert segment_image_bytes(setup) == 4 * 8 * (36 + 4)
    huge = dataclasses.replace(setup, config=dataclasses.replace(setup.config, trial=TrialConfig(4, 2**20, 2)))
    with pytest.raises(ConfigError, match=r"images of a segment, twice, 160 MiB"):
        check_memory(huge, available=2**20)


@pytest.mark.slow
def test_images_are_learned_from():
    """Train on two devices."""
    trials = 30
    trial = TrialConfig(environments=16, steps=48, updates=3)
    ppo = dataclasses.replace(config().ppo, lr_final=1e-4, max_grad_norm=0.5)
    settings = {"total_steps": trials * 16 * 48, "trial": trial, "ppo": ppo, "devices": 2}
    setup = prepare(dataclasses.replace(config(), **settings), ImageProbe())
    chunk, state = compile_chunk(setup), initial_state(setup)
    for _ in range(trials):
        state, metrics = chunk(state)
    assert float(metrics["return_sum"].sum() / metrics["episodes"].sum()) > 1.9  # chance: 1
    assert step_input(state.trial).observation["image"].dtype == jnp.uint8
