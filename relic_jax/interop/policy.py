"""Convert the original's policy (`PointNavResNetTransformerPolicy` in PyTorch) to ours and back, bit for bit.

Two kinds of observations are supported: an image encoded by a frozen ViT-B/16, a one-hot target and GPS, each of them
embedded (object navigation); or raw vectors and the reward (Darkroom). Names are those of the original's state dict.

The round trip is exact. All arrays except the sink keys are only permuted. The sink keys are rotated (see `llamarl`),
and a rotation in float32 has no exact inverse. Each file therefore stores the pair (ours, theirs) of every sink key. A
conversion in either direction takes the other key from the pair if the key still equals the pair's bit for bit, and
rotates the key if it has been trained since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import ConfigError, EncoderConfig, PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.interop import layout, llamarl
from relic_jax.interop.encoders import vit_entries
from relic_jax.interop.files import OURS
from relic_jax.interop.layout import Entry
from relic_jax.models import vision
from relic_jax.models.encoders import SHORT, SHORT_WIDTH
from relic_jax.models.policy import Policy
from relic_jax.types import Params

NET = "net."
TRANSFORMER = "net.state_encoder.model."
VISION = "net.visual_encoder.net."
PROJECTION = "net.state_encoder.feats_proj.weight"
SENSORS = ("ohts_embeding", "gps_embedding")
"""Embeddings of vectors in the order in which the original concatenates them, in the original's spelling."""
POLICY_FIELDS = {
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_hidden": "hidden_size",
    "n_mlp_hidden": "intermediate_size",
    "activation": "hidden_act",
}
"""Fields with two names in the original: in the policy's config and in the transformer's."""


class Foreign(NamedTuple):
    """Content of the original's file that our parameters do not represent.

    Attributes:
        kept: Arrays by name.
        dtypes: Dtypes of the arrays that are not float32, by name.
        config: Configuration of the transformer, in the original's names.
    """

    kept: dict[str, np.ndarray]
    dtypes: dict[str, str]
    config: dict[str, Any]

    @classmethod
    def nothing(cls) -> Foreign:
        """Return the value for a policy that was not imported."""
        return cls({}, {}, {})

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype of an array in the original's file."""
        return jnp.dtype(self.dtypes.get(name, "float32"))


# --- architecture ----------------------------------------------------------------------------------------------------


def transformer_fields(config: Any) -> dict[str, Any]:
    """Find the transformer's config within the original's config. Returns plain values, or {} if there is none."""
    if not isinstance(config, dict):
        return {}
    if "transformer_config" in config:
        return transformer_fields(config["transformer_config"])
    if {"num_attention_heads", "n_heads", "num_hidden_layers", "n_layers"} & set(config):
        name = config.get("model_name", "llamarl")
        if name != "llamarl":
            raise ConfigError(f"model_name is {name!r}; allowed: 'llamarl'")
        return {
            POLICY_FIELDS.get(str(field), str(field)): value for field, value in config.items() if value is not None
        }
    for value in config.values():
        if found := transformer_fields(value):
            return found
    return {}


def full_config(arrays: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the transformer's config from the arrays.

    Args:
        arrays: The original's arrays by name.
        given: The known fields.

    Raises:
        ConfigError: If the arrays contradict a field, or a field or an array is missing.
    """
    own = {name.removeprefix(TRANSFORMER): x for name, x in arrays.items() if name.startswith(TRANSFORMER)}
    for name in ("embed_pos.weight", "layers.0.mlp.gate_proj.weight"):
        if name not in own:
            raise ConfigError(f"checkpoint lacks '{TRANSFORMER}{name}'; allowed: a state dict of the original's policy")
    key = own.get("layers.0.self_attn.head_bias_key")
    sizes: dict[str, Any] = {
        "num_hidden_layers": len({name.split(".")[1] for name in own if name.startswith("layers.")}),
        "hidden_size": own["embed_pos.weight"].shape[1],
        "max_position_embeddings": own["embed_pos.weight"].shape[0],
        "intermediate_size": own["layers.0.mlp.gate_proj.weight"].shape[0],
        "add_sink_kv": key is not None,
    }
    if key is not None:
        sizes["num_attention_heads"] = key.shape[1]
    for field, found in sizes.items():
        if field in given and given[field] != found:
            raise ConfigError(f"config has {field} {given[field]!r}; allowed: {found!r}, as the checkpoint's arrays")
    heads, width = {**sizes, **given}.get("num_attention_heads"), sizes["hidden_size"]
    if heads is None:
        raise ConfigError("config lacks 'num_attention_heads'; arrays without a sink do not determine it: use --config")
    shapes = {"sink_tokens": (1, 1, width), "head_bias_key": (1, heads, 1, width // heads)}
    shapes["head_bias_value"] = shapes["head_bias_key"]
    for name, array in own.items():
        expected = shapes.get(name.rsplit(".", 1)[-1], array.shape)
        if array.shape != expected:
            raise ConfigError(f"checkpoint has '{TRANSFORMER}{name}' of shape {list(array.shape)}; allowed: {expected}")
    frozen = {
        f"is_sink_{half}_trainable": any(np.any(x) for name, x in own.items() if name.endswith(f"head_bias_{word}"))
        for half, word in (("k", "key"), ("v", "value"))
    }
    flags = {"add_sequence_idx_embed": True, "inter_episodes_attention": True, **frozen}
    flags["add_sink_tokens"] = key is None and "sink_tokens" in own
    return {**flags, **given, **sizes}


def policy_config(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> PolicyConfig:
    """Return our config for the original's arrays and its transformer's config from `full_config`."""
    own = {name.removeprefix(TRANSFORMER): x for name, x in arrays.items() if name.startswith(TRANSFORMER)}
    embedded = any(name.startswith((VISION, NET + SENSORS[0], NET + SENSORS[1])) for name in arrays)
    encoder = EncoderConfig()
    if embedded:
        encoder = EncoderConfig(vectors="embedded", reward=False, image="vit-b16", freeze=True)
    return PolicyConfig(llamarl.transformer_config(config, own), encoder)


# --- layout ----------------------------------------------------------------------------------------------------------


def sensors(policy: Policy) -> list[tuple[int, str]]:
    """Return the embeddings of the observation's vectors in the original's order.

    Args:
        policy: The network.

    Returns:
        For each embedding, the index of its vector in the observation, and the original's name.

    Raises:
        ConfigError: If the observation has several goals or several GPS vectors.
    """
    leaves = jax.tree.leaves(policy.spaces.observation)
    sizes = [int(np.prod(x.shape)) for x, image in zip(leaves, policy.spaces.images, strict=True) if not image]
    names = [SENSORS[1] if size <= SHORT else SENSORS[0] for size in sizes]
    if len(set(names)) < len(names):
        raise ConfigError(f"observation has vectors of {sizes}; allowed: one goal, and one GPS of at most {SHORT}")
    return sorted(((index, name) for index, name in enumerate(names)), key=lambda pair: SENSORS.index(pair[1]))


def entries(policy: Policy) -> list[Entry]:
    """Return the arrays outside of the transformer and the input projection, all of which are only permuted."""
    found = [
        Entry("net.prev_action_embedding.weight", "encoder/action/embedding"),
        Entry("net.state_encoder.feats_proj.bias", "proj_in/bias"),
        *_linear("net.state_encoder.feats_out", "proj_out"),
        *_linear("action_distribution.linear", "actor"),
        *_linear("critic.fc", "critic"),
    ]
    if policy.config.encoder.vectors == "embedded":
        for index, name in sensors(policy):
            found += _linear(NET + name, f"encoder/vector_{index}/linear")
        if any(policy.spaces.images):
            found += _linear("net.visual_fc.0", "encoder/visual_0")
            found += [
                entry._replace(theirs=VISION + entry.theirs, ours=f"encoder/image_0/{entry.ours}")
                for entry in vit_entries(vision.VIT_B16)
            ]
    return found


def _linear(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.weight", f"{ours}/kernel", "linear"), Entry(f"{theirs}.bias", f"{ours}/bias")]


def input_order(policy: Policy, inputs: int) -> np.ndarray:
    """Return the index of the original's input for each input of our projection, int ``[inputs]``."""
    if policy.config.encoder.vectors == "raw":  # same order in both: vectors, reward, action
        return np.arange(inputs)
    width = policy.config.transformer.width
    visual = [("visual", width)] if any(policy.spaces.images) else []
    theirs = [(str(i), SHORT_WIDTH if name == SENSORS[1] else width) for i, name in sensors(policy)]
    start, places = 0, {}
    for name, size in [*visual, *theirs, ("action", width)]:
        places[name] = np.arange(start, start + size)
        start += size
    ours = [*(name for name, _ in visual), *map(str, range(len(theirs))), "action"]
    return np.concatenate([places[name] for name in ours])


def check_expressible(policy: Policy) -> None:
    """Raise ConfigError if the original does not support a policy."""
    encoder, transformer, images = (
        policy.config.encoder,
        policy.config.transformer,
        policy.spaces.images,
    )
    embedded = encoder.vectors == "embedded"
    rules = (
        ("policy.encoder.observation", encoder.observation, encoder.observation == "raw", "'raw'"),
        ("policy.encoder.vectors", encoder.vectors, embedded or not any(images), "'embedded', if there are images"),
        ("policy.encoder.image", encoder.image, not any(images) or encoder.image == "vit-b16", "'vit-b16'"),
        ("policy.encoder.reward", encoder.reward, not (embedded and encoder.reward), "False, with embedded vectors"),
        ("policy.transformer.step_embedding", transformer.step_embedding, transformer.step_embedding, "True"),
        ("images", sum(images), sum(images) <= 1, "at most one"),
        ("actions", policy.action_space, isinstance(policy.action_space, Discrete), "discrete ones"),
        ("masks of legal actions", policy.spaces.masked, not policy.spaces.masked, "False"),
    )
    for field, value, holds, allowed in rules:
        if not holds:
            raise ConfigError(f"{field} is {value!r}; allowed for the original's policy: {allowed}")


# --- conversion ------------------------------------------------------------------------------------------------------


def import_policy(
    arrays: Mapping[str, np.ndarray], policy: Policy, config: Mapping[str, Any]
) -> tuple[Params, Foreign]:
    """Convert the original's arrays to parameters of `policy`.

    Args:
        arrays: The original's arrays by name.
        policy: The network, with the config that `policy_config` returns.
        config: Configuration of the transformer, from `full_config`.

    Returns:
        The parameters, and the additional content that `export_policy` needs.

    Raises:
        ConfigError: If an array is missing, unknown or of another shape, or if exporting the parameters would not
            restore every array bit for bit, which is checked.
    """
    check_expressible(policy)
    like = jax.eval_shape(policy.init, jax.random.key(0))
    known = {name: x for name, x in arrays.items() if not name.startswith(OURS)}
    params = layout.read(entries(policy), known, like, "checkpoint")
    kernel = layout.read([Entry(PROJECTION, "proj_in/kernel", "linear")], known, like, "checkpoint")
    order = input_order(policy, like["proj_in"]["kernel"].shape[0])
    params["proj_in"]["kernel"] = kernel["proj_in"]["kernel"][order]
    own = {name.removeprefix(TRANSFORMER): x for name, x in known.items() if name.startswith(TRANSFORMER)}
    params["transformer"] = jax.tree.map(np.asarray, llamarl.import_transformer(own, config))
    _check_shapes(params, like)
    for layer, ours, theirs in _pairs(arrays):
        if _same(known.get(sink_name(layer)), theirs):
            params["transformer"][f"blocks_{layer}"]["sink_key"] = ours
    foreign = _foreign(known, params, policy, config)
    back = export_policy(params, policy, foreign)
    for name, array in known.items():
        if name not in back:
            raise ConfigError(f"checkpoint has {name!r}; allowed: arrays that this library's policy has")
        if not _same(back[name], array):
            raise ConfigError(f"checkpoint has {name!r}, which an export would change; allowed: finite numbers")
    return jax.tree.map(jnp.asarray, params), foreign


def export_policy(params: Params, policy: Policy, foreign: Foreign) -> dict[str, np.ndarray]:
    """Convert a policy's parameters to the original's arrays.

    Args:
        params: The parameters.
        policy: The network.
        foreign: The additional content from `import_policy`, or `Foreign.nothing()`.

    Returns:
        The original's arrays by name, and the pairs of sink keys, whose names start with `OURS`.

    Raises:
        ConfigError: If the original does not support such a policy.
    """
    check_expressible(policy)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    kernel = params["proj_in"]["kernel"]
    transformer = llamarl.export_transformer(params["transformer"], policy.config.transformer)
    arrays = layout.write(entries(policy), params)
    arrays[PROJECTION] = kernel[np.argsort(input_order(policy, len(kernel)))].T
    arrays |= {TRANSFORMER + name: array for name, array in transformer.items()}
    pairs = {layer: (ours, theirs) for layer, ours, theirs in _pairs(foreign.kept)}
    for layer in range(policy.config.transformer.layers):
        ours = params["transformer"][f"blocks_{layer}"].get("sink_key")
        if ours is None:
            continue
        known, theirs = pairs.get(layer, (None, ours))
        name = sink_name(layer)
        arrays[name] = theirs if _same(known, ours) else arrays[name].astype(foreign.dtype(name))
        arrays[f"{OURS}ours.{layer}"], arrays[f"{OURS}theirs.{layer}"] = ours, arrays[name]
    arrays |= {name: array for name, array in foreign.kept.items() if not name.startswith(OURS)}
    return {name: x if name.startswith(OURS) else x.astype(foreign.dtype(name)) for name, x in arrays.items()}


def sink_name(layer: int) -> str:
    """Return the original's name of a layer's sink key."""
    return f"{TRANSFORMER}layers.{layer}.self_attn.head_bias_key"


def original_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Convert the config of a transformer to the original's, in the names of its policy's config."""
    config = {"n_layers": cfg.layers, "n_heads": cfg.heads, "n_hidden": cfg.width, "n_mlp_hidden": cfg.mlp_width}
    return {
        "model_name": "llamarl",
        **config,
        "activation": "gelu_new",
        "inter_episodes_attention": cfg.inter_episode,
        "reset_position_index": True,
        "add_sequence_idx_embed": cfg.episode_rope,
        "position_embed_type": "learnable",
        "sequence_embed_type": "rope",
        "gated_residual": False,
        "depth_dropout_p": cfg.depth_dropout,
        "max_position_embeddings": cfg.max_positions,
        "add_sink_kv": cfg.sink not in ("token", "none"),
        "is_sink_k_trainable": cfg.sink in ("kv", "kv0"),
        "is_sink_v_trainable": cfg.sink in ("kv", "k0v"),
        "add_sink_tokens": cfg.sink == "token",
        "num_sink_tokens": 1,
    }


def _foreign(arrays: Mapping[str, np.ndarray], params: Params, policy: Policy, config: Mapping[str, Any]) -> Foreign:
    """Collect the arrays that our parameters do not represent, and the pairs of sink keys."""
    sink, kept = policy.config.transformer.sink, {}
    unused = {"sink_tokens": sink != "token", "head_bias_key": sink not in ("kv", "kv0")}
    unused["head_bias_value"] = sink not in ("kv", "k0v")
    for name, array in arrays.items():
        if name.startswith(TRANSFORMER) and unused.get(name.rsplit(".", 1)[-1], False):
            kept[name] = array
    for layer in range(policy.config.transformer.layers):
        ours = params["transformer"][f"blocks_{layer}"].get("sink_key")
        if ours is not None:
            kept[f"{OURS}ours.{layer}"] = ours
            kept[f"{OURS}theirs.{layer}"] = arrays[sink_name(layer)]
    dtypes = {name: array.dtype.name for name, array in arrays.items() if array.dtype != np.float32}
    return Foreign(kept, dtypes, dict(config))


def _pairs(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the layer, our sink key and theirs for each pair."""
    for name, ours in arrays.items():
        layer = name.removeprefix(f"{OURS}ours.")
        theirs = arrays.get(f"{OURS}theirs.{layer}")
        if layer != name and layer.isdecimal() and theirs is not None:
            yield int(layer), ours, theirs


def _same(a: np.ndarray | None, b: np.ndarray) -> bool:
    """Return whether two arrays are equal bit for bit."""
    return a is not None and (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def _check_shapes(params: Params, like: Params) -> None:
    for path in layout.paths(like):
        found, expected = layout.get(params, path).shape, layout.get(like, path).shape
        if found != expected:
            allowed = f"{list(expected)}, for the observations and actions of the environment"
            raise ConfigError(f"checkpoint has {path!r} of shape {list(found)}; allowed: {allowed}")
