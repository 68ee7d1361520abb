"""Pretrain an image encoder on images of procedural houses, for `--policy.encoder.weights`.

    python -m experiments.pretrain_encoder house-objnav-small --out houses.safetensors

Object navigation is usually learned on features of a pretrained encoder (ReLIC: VC-1, frozen). No pretrained weights
fit these houses, but the renderer knows what every pixel shows. The encoder therefore learns to predict the kinds, the
distance and the colour of objects at each of its places (patches of 8×8 pixels), from training houses only. A kind is
predicted by a product with its learned name. The names of the 20 categories are saved as well, as queries for the
policy's spatial attention. The included weights, `--policy.encoder.weights houses`, were made with this command.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from relic_jax.config import EncoderConfig
from relic_jax.envs import registry
from relic_jax.envs.firstperson.house import HouseNav, HouseState
from relic_jax.envs.firstperson.house_plan import CATEGORIES
from relic_jax.envs.firstperson.renderer import render_depth, render_objects
from relic_jax.experiments.folders import origin
from relic_jax.files import write_atomically
from relic_jax.interop.encoders import save_encoder
from relic_jax.models.encoders import encode_image, image_encoder
from relic_jax.models.grids import PATCH_WIDTH, split_cells

ROUND, TEST_BATCHES = 100, 40
LEARNING_RATE = 3e-3  # learning rate of Adam, with a cosine decay to 0
HOUSES, POSES = 16, 16  # per batch; building a house takes as long as about ten images of it
PITCHES = jnp.array([0.1, 0.2, 0.4, 0.2, 0.1])  # probability of each pitch, from down to up
NOTHING, WALL, FURNITURE, FIRST = range(4)  # kinds of pixels: floor and ceiling, …; the first category
KINDS = FIRST + CATEGORIES
WEIGHT = jnp.where(jnp.arange(KINDS) < FIRST, 1.0, 3.0)  # objects are rare
LOOK_WEIGHT = jnp.array([0.2, 2.0, 2.0, 2.0])  # of distance and colours
FILLED = 0.25  # share of a place's pixels above which a category counts as present
SHORTER = 0.003  # weight of the squared length of the features of a place
PLACE = 8  # side of a place in pixels
CONFIG = EncoderConfig(image="patches")
Labels = dict[str, jax.Array]


def picture(env: HouseNav, key: jax.Array, state: HouseState) -> tuple[jax.Array, Labels]:
    """Render an image from a random position in the house.

    Returns:
        The image, uint8 [H, W, 3], and labels of the encoder's n places. kinds: float32 [n, KINDS], the share of each
        kind in the pixels of the place. look: float32 [n, 4], the means of the log of the distance in metres and of
        the colour in [0, 1].
    """
    episode_key, pitch_key = jax.random.split(key)
    state = env.restart(episode_key, state, jnp.zeros((), jnp.int32))
    state = state.replace(pitch=jax.random.choice(pitch_key, jnp.arange(-2, 3), p=PITCHES))  # type: ignore[attr-defined]
    scene, camera = env.scene(state.house), env.camera(state)
    view = render_objects(scene, camera, env.lens)
    furniture = jnp.full(env.config.furniture, FURNITURE)
    objects = FIRST + jnp.repeat(state.house.categories, env.config.instances)
    kind_of = jnp.concatenate([jnp.array([NOTHING, WALL]), furniture, objects])
    kinds = by_place(jax.nn.one_hot(kind_of[view.objects], KINDS))
    depth = jnp.log(jnp.maximum(render_depth(scene, camera, env.lens), 0.1))
    look = jnp.concatenate([depth[..., None], view.image / 255.0], axis=-1)
    return view.image, {"kinds": kinds, "look": by_place(look)}


def by_place(pixels: jax.Array) -> jax.Array:
    """Return the means over the pixels of each place: [H, W, C] → [n, C]."""
    height, width, channels = pixels.shape
    return pixels.reshape(height // PLACE, PLACE, width // PLACE, PLACE, channels).mean((1, 3)).reshape(-1, channels)


def pictures(env: HouseNav, key: jax.Array, tasks: jax.Array) -> tuple[jax.Array, Labels]:
    """Return a batch of images and labels: POSES in each of HOUSES houses drawn from `tasks`."""
    task_key, house_key, pose_key = jax.random.split(key, 3)
    chosen = jax.random.choice(task_key, tasks, (HOUSES,))
    states = jax.vmap(env.start)(jax.random.split(house_key, HOUSES), chosen)
    keys = jax.random.split(pose_key, (HOUSES, POSES))
    found = jax.vmap(jax.vmap(lambda key, state: picture(env, key, state), in_axes=(0, None)))(keys, states)
    return jax.tree.map(lambda x: x.reshape(HOUSES * POSES, *x.shape[2:]), found)


def loss(params: Any, image: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
    """Compute the loss of the predicted kinds, distance and colour of each place.

    A penalty keeps the features short, for the softmax of spatial attention.

    Returns:
        (the loss, int32 [3]: of places that a category fills to FILLED, the number found, present and claimed).
    """
    encoder = image_encoder(CONFIG).bind({"params": params["encoder"]})
    cells = split_cells(encode_image(CONFIG, encoder, image), PATCH_WIDTH)
    kinds = cells @ params["names"].T + params["bias"]
    objects = jnp.minimum(labels["kinds"][..., FIRST:] / FILLED, 1.0)
    target = jnp.concatenate([labels["kinds"][..., :FIRST], objects], axis=-1)
    wrong = (
        (optax.sigmoid_binary_cross_entropy(kinds, target) * WEIGHT).sum(-1)
        + jnp.square(cells @ params["look"] - labels["look"]) @ LOOK_WEIGHT
        + SHORTER * jnp.square(cells).sum(-1)
    )
    there, claimed = objects == 1, kinds[..., FIRST:] > 0
    return wrong.mean(), jnp.stack([(there & claimed).sum(), there.sum(), claimed.sum()])


def drawn(key: jax.Array) -> Any:
    """Return initial parameters. names: float32 [KINDS, PATCH_WIDTH], the vectors that predict each kind."""
    encoder_key, names_key = jax.random.split(key)
    return {
        "encoder": image_encoder(CONFIG).init(encoder_key, jnp.zeros((1, PLACE, PLACE, 3)))["params"],
        "names": jax.random.normal(names_key, (KINDS, PATCH_WIDTH)) / math.sqrt(2),  # of length 4
        "bias": jnp.full(KINDS, -4.0),  # most kinds are in few places
        "look": jnp.zeros((PATCH_WIDTH, len(LOOK_WEIGHT))),
    }


def pretrain(env: HouseNav, batches: int, key: jax.Array, report: Callable[[str], None] = print) -> Any:
    """Return the parameters after `batches` batches of images. Reports the loss every ROUND batches."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, batches))
    houses = jnp.asarray(env.tasks("train"))
    start_key, key = jax.random.split(key)

    def step(carry: Any, index: jax.Array) -> Any:
        params, moments = carry
        image, labels = pictures(env, jax.random.fold_in(key, index), houses)
        (wrong, counts), gradient = jax.value_and_grad(loss, has_aux=True)(params, image, labels)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), (wrong, counts)

    some_steps = jax.jit(lambda carry, indices: jax.lax.scan(step, carry, indices))
    params = drawn(start_key)
    carry, begin = (params, optimizer.init(params)), time.monotonic()
    for first in range(0, batches, ROUND):
        carry, (wrong, counts) = some_steps(carry, first + jnp.arange(min(ROUND, batches - first)))
        done = min(first + ROUND, batches)
        per_second = done * HOUSES * POSES / (time.monotonic() - begin)
        report(
            f"{done:,}/{batches:,} batches · {per_second:,.0f} images/s · loss {wrong.mean():.3f} · {summary(counts)}"
        )
    return carry[0]


def score(counts: jax.Array) -> dict[str, float]:
    """Return the recall (found) and the precision (right) of objects. counts: [..., 3], see `loss`."""
    found, there, claimed = np.asarray(counts).reshape(-1, 3).sum(0)
    return {"found": float(found / max(there, 1)), "right": float(found / max(claimed, 1))}


def summary(counts: jax.Array) -> str:
    """Return the recall and precision as text."""
    shares = score(counts)
    return f"{shares['found']:.0%} of the places of objects found, {shares['right']:.0%} of the claims right"


def main() -> None:
    """Train the encoder, evaluate it in held-out houses and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", choices=[name for name in registry.names() if name.startswith("house-objnav")])
    parser.add_argument("--out", type=Path, required=True, help="safetensors file")
    parser.add_argument("--pictures", type=int, default=800_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.suffix != ".safetensors":
        parser.error(f"--out is '{arguments.out}'; allowed: a name that ends in .safetensors")
    batches = arguments.pictures // (HOUSES * POSES)
    if batches < 1:
        parser.error(f"--pictures is {arguments.pictures}; allowed: {HOUSES * POSES} or more")
    env = registry.make(arguments.env)
    assert isinstance(env, HouseNav)
    params = pretrain(env, batches, jax.random.key(arguments.seed))
    test = jax.jit(lambda key: loss(params, *pictures(env, key, jnp.asarray(env.tasks("test"))))[1])
    counts = jnp.stack([test(jax.random.key(index)) for index in range(TEST_BATCHES)])
    tested = TEST_BATCHES * HOUSES * POSES
    print(f"held-out houses, {tested:,} images: {summary(counts)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(arguments.out, CONFIG.image, params["encoder"], np.asarray(params["names"][FIRST:]))
    report = {**origin(), "pictures": batches * HOUSES * POSES, "held_out": {"pictures": tested, **score(counts)}}
    write_atomically(arguments.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    print(f"wrote {arguments.out} and, beside it, its scores (.json)")
    print(f"next: --policy.encoder.image patches --policy.encoder.weights {arguments.out}")


if __name__ == "__main__":
    main()
