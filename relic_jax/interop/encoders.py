"""Load image encoder weights into a policy from files with the names of timm, habitat-baselines or this library."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import ConfigError
from relic_jax.interop import files, layout
from relic_jax.interop.layout import Entry
from relic_jax.models import vision
from relic_jax.models.encoders import IMAGE_ENCODER
from relic_jax.models.grids import SPATIAL_HEADS
from relic_jax.models.policy import Policy
from relic_jax.models.vision import ViTConfig
from relic_jax.types import Params

UNUSED = ("head.", "decoder", "mask_token")
"""Prefixes of arrays in files of a pretrained ViT that are not part of the encoder."""
FIELD = "policy.encoder.weights"
SHIPPED = {"houses": Path(__file__).resolve().parents[1] / "pretrained" / "houses.safetensors"}
"""Encoder weights that are included: `houses`, for patches of procedural houses (`experiments.pretrain_encoder`)."""
NAMES = "names"
"""Array of queries that find each of the goal's objects in the features of `patches`, float32 [g, PATCH_WIDTH]."""
NAMED_HEADS = SPATIAL_HEADS // 2
"""Number of heads of the spatial attention that start with the queries in `NAMES`. The others start at random."""


def vit_entries(cfg: ViTConfig) -> list[Entry]:
    """Return the arrays of a ViT with a class token, in timm's names."""

    def linear(theirs: str, ours: str) -> list[Entry]:
        return [Entry(f"{theirs}.weight", f"{ours}/kernel", "linear"), Entry(f"{theirs}.bias", f"{ours}/bias")]

    def norm(theirs: str, ours: str) -> list[Entry]:
        return [Entry(f"{theirs}.weight", f"{ours}/scale"), Entry(f"{theirs}.bias", f"{ours}/bias")]

    patches = (cfg.width, 3, cfg.patch, cfg.patch)
    entries = [
        Entry("cls_token", "cls_token", shape=(1, 1, cfg.width)),
        Entry("pos_embed", "pos_embed", shape=(1, cfg.tokens, cfg.width)),
        Entry("patch_embed.proj.weight", "patch_embed/kernel", "convolution", patches),
        Entry("patch_embed.proj.bias", "patch_embed/bias"),
    ]
    for layer in range(cfg.layers):
        theirs, ours = f"blocks.{layer}.", f"blocks_{layer}/"
        entries += norm(f"{theirs}norm1", f"{ours}norm1") + norm(f"{theirs}norm2", f"{ours}norm2")
        entries += linear(f"{theirs}attn.qkv", f"{ours}qkv") + linear(f"{theirs}attn.proj", f"{ours}proj")
        entries += linear(f"{theirs}mlp.fc1", f"{ours}fc1") + linear(f"{theirs}mlp.fc2", f"{ours}fc2")
    return entries + norm("norm", "norm")


def resnet_entries() -> list[Entry]:
    """Return the arrays of ResNet-18, its compression and the linear layer, in habitat-baselines' names."""

    def convolution(theirs: str, ours: str, norm: str) -> list[Entry]:
        stem, index = theirs.rsplit(".", 1)
        after = f"{stem}.{int(index) + 1}"
        return [
            Entry(f"{theirs}.weight", f"{ours}/kernel", "convolution"),
            Entry(f"{after}.weight", f"{norm}/scale"),
            Entry(f"{after}.bias", f"{norm}/bias"),
        ]

    entries = convolution("backbone.conv1.0", "conv1", "norm1")
    for stage in range(1, 5):
        for index in range(2):
            theirs, ours = f"backbone.layer{stage}.{index}.", f"layer{stage}_{index}/"
            entries += convolution(f"{theirs}convs.0", f"{ours}conv1", f"{ours}norm1")
            entries += convolution(f"{theirs}convs.3", f"{ours}conv2", f"{ours}norm2")
            if stage > 1 and not index:
                entries += convolution(f"{theirs}downsample.0", f"{ours}shortcut", f"{ours}shortcut_norm")
    entries += convolution("compression.0", "compression", "compression_norm")
    return [
        *entries,
        Entry("visual_fc.1.weight", "linear/kernel", "linear"),
        Entry("visual_fc.1.bias", "linear/bias"),
    ]


def check(policy: Policy, *, weights: bool) -> None:
    """Check that the encoder fits the images.

    Args:
        policy: The network.
        weights: Whether to also check the file with the encoder's weights.

    Raises:
        ConfigError: If the images or the file do not fit the encoder.
    """
    images = [
        x
        for x, is_image in zip(jax.tree.leaves(policy.spaces.observation), policy.spaces.images, strict=True)
        if is_image
    ]
    encoder = policy.config.encoder
    for image in images:
        if encoder.image == "vit-b16" and image.shape[-1] != 3:
            allowed = f"another encoder for images of {image.shape[-1]} channels (it takes 3)"
            raise ConfigError(f"policy.encoder.image is 'vit-b16'; allowed: {allowed}")
    if encoder.weights is None or not weights:
        return
    if not images:
        raise ConfigError(f"{FIELD} is '{encoder.weights}'; allowed: None, if observations have no images")
    read_weights(policy, jax.eval_shape(policy.init, jax.random.key(0)))


def load(policy: Policy, params: Params) -> Params:
    """Replace the encoder's parameters by those in the file `policy.encoder.weights`. All images start with them.

    Args:
        policy: The network.
        params: Its parameters.

    Returns:
        The parameters, with unchanged sharding.

    Raises:
        ConfigError: If the file does not fit.
    """
    if policy.config.encoder.weights is None:
        return params
    encoders, names = read_weights(policy, params)
    loaded = {name: jax.tree.map(placed_like, params["encoder"][name], new) for name, new in encoders.items()}
    params = {**params, "encoder": {**params["encoder"], **loaded}}
    if names is None:
        return params
    drawn = params["spatial_attention"]["names"]
    queries = np.asarray(drawn).copy()
    queries[:, :NAMED_HEADS] = names[:, None]
    return {**params, "spatial_attention": {**params["spatial_attention"], "names": placed_like(drawn, queries)}}


def placed_like(old: jax.Array, new: jax.typing.ArrayLike) -> jax.Array:
    """Return a copy of `new` with the sharding of `old`. Without a copy, an array on CPU cannot always be donated."""
    return jnp.copy(jax.device_put(new, old.sharding))


def read_weights(policy: Policy, like: Params) -> tuple[dict[str, Params], np.ndarray | None]:
    """Read the encoder weights from the file that the policy's config names.

    Args:
        policy: The network.
        like: Its parameters, or their shapes.

    Returns:
        The parameters of each image's encoder, and the array `NAMES` if the file has it.

    Raises:
        ConfigError: If the file does not fit.
    """
    encoder = policy.config.encoder
    file = SHIPPED.get(str(encoder.weights), Path(str(encoder.weights)))
    arrays = dict(files.read(file, FIELD).arrays)
    field = f"{FIELD} '{encoder.weights}'"
    names = arrays.pop(NAMES, None) if encoder.image == "patches" else None
    if names is not None and (names.shape, names.dtype) != (expected := _shape_of_names(like), np.dtype(np.float32)):
        asked = "none, for observations without a goal" if expected is None else f"float32 {list(expected)}"
        raise ConfigError(f"{field} has {NAMES!r}, {names.dtype} {list(names.shape)}; allowed: {asked}")
    found = sorted(name for name in like["encoder"] if name.startswith(IMAGE_ENCODER))
    return {name: read_encoder(encoder.image, arrays, like["encoder"][name], field) for name in found}, names


def _shape_of_names(like: Params) -> tuple[int, int] | None:
    """Return the shape of `NAMES`. None if the spatial attention has no goal."""
    names = like["spatial_attention"].get("names")
    return None if names is None else (names.shape[0], names.shape[-1])


def encoder_entries(kind: str, like: Params) -> list[Entry]:
    """Return the arrays of an encoder.

    Args:
        kind: The encoder, a value of `EncoderConfig.image`.
        like: Its parameters, or their shapes.
    """
    if kind == "vit-b16":
        return vit_entries(vision.VIT_B16)
    if kind == "resnet18":
        return resnet_entries()
    return [Entry(path.replace("/", "."), path) for path in layout.paths(like)]


def read_encoder(kind: str, arrays: dict[str, np.ndarray], like: Params, field: str) -> Params:
    """Convert arrays to the parameters of one encoder.

    Args:
        kind: The encoder, a value of `EncoderConfig.image`.
        arrays: Arrays by name.
        like: The encoder's parameters, or their shapes.
        field: Where the arrays come from, for the message.

    Returns:
        The parameters.

    Raises:
        ConfigError: If an array is missing, unknown or of another shape.
    """
    entries = encoder_entries(kind, like)
    if kind == "vit-b16":
        arrays = {name: x for name, x in arrays.items() if not name.startswith(UNUSED)}
    params = layout.read(entries, arrays, like, field)
    unknown = sorted(set(arrays) - {entry.theirs for entry in entries})
    if unknown:
        raise ConfigError(f"{field} has {unknown[0]!r}; allowed: the arrays of {kind!r} only (another architecture?)")
    return params


def save_encoder(path: Path, kind: str, params: Params, names: np.ndarray | None = None) -> None:
    """Write one encoder's parameters to a file that `policy.encoder.weights` can name.

    Args:
        path: The file.
        kind: The encoder, a value of `EncoderConfig.image`.
        params: Its parameters.
        names: The array `NAMES`, only for patches.
    """
    arrays = layout.write(encoder_entries(kind, params), params)
    files.write(path, arrays if names is None else {**arrays, NAMES: names}, {"encoder": kind})
