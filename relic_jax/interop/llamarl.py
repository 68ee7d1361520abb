"""Convert the weights of the original transformer (LlamaRL in PyTorch), and compute its outputs with our code.

An importer must know two facts about the original, both of which the golden files reproduce:

- It reads its rotary table with an offset of `max_position_embeddings` M. Between steps, only differences of the index
  matter. A rotated query and the unrotated sink key, however, have an angle of M + index, so the import rotates the
  sink key by −M.
- With a sink token, its step-by-step decoding differs from its full forward pass from layer 2 on. Our decoding agrees
  with the full forward pass for every kind of sink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import ConfigError, TransformerConfig
from relic_jax.models import cache as kv
from relic_jax.models.transformer import SinkKind, Transformer, empty_memory
from relic_jax.types import Params

# our name → the original's name, within a layer
_LINEAR = {f"{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"} | {
    f"{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")
}
_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_SINK = ("sink_key", "sink_value")
_NORM = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def transformer_config(config: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> TransformerConfig:
    """Convert the original's config to ours.

    Args:
        config: The original's config.
        arrays: The weights. A sink key or value that the config calls frozen counts as learned if it is not 0.

    Raises:
        ConfigError: If a field is missing or has a value that is not supported.
    """
    for field in _REQUIRED:
        if field not in config:
            raise ConfigError(f"config lacks {field!r}; needed: {', '.join(_REQUIRED)}")
    supported: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("gelu_new",),
        "position_embed_type": ("learnable",),
        "reset_position_index": (True,),
        "num_sink_tokens": (1,),
        "gated_residual": (False,),
        "banded_attention": (False,),
        "orphan_steps_attention": (True,),
        "num_key_value_heads": (config["num_attention_heads"],),
    }
    if config.get("add_sequence_idx_embed", False):
        supported["sequence_embed_type"] = ("rope",)
    for field, allowed in supported.items():
        if config.get(field, allowed[0]) not in allowed:
            raise ConfigError(f"{field} is {config[field]!r}; allowed: {', '.join(map(repr, allowed))}")
    return TransformerConfig(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        width=config["hidden_size"],
        mlp_width=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        sink=_sink_kind(config, arrays or {}),
        episode_rope=bool(config.get("add_sequence_idx_embed", False)),
        inter_episode=bool(config.get("inter_episodes_attention", True)),
        depth_dropout=float(config.get("depth_dropout_p", 0.0)),
    )


def _sink_kind(config: Mapping[str, Any], arrays: Mapping[str, Any]) -> SinkKind:
    if config.get("add_sink_kv", False):
        key, value = (
            bool(config.get(f"is_sink_{half}_trainable", True))
            or any(np.any(array) for name, array in arrays.items() if name.endswith(f"head_bias_{word}"))
            for half, word in (("k", "key"), ("v", "value"))
        )
        kinds: dict[tuple[bool, bool], SinkKind] = {
            (True, True): "kv",
            (True, False): "kv0",
            (False, True): "k0v",
            (False, False): "k0v0",
        }
        return kinds[key, value]
    return "token" if config.get("add_sink_tokens", False) else "none"


def import_transformer(arrays: Mapping[str, Any], config: Mapping[str, Any]) -> Params:
    """Convert the original's arrays to parameters of `Transformer`.

    Args:
        arrays: Arrays in PyTorch's layout, by the names of the original's state dict.
        config: The original's config.

    Returns:
        float32 parameters.

    Raises:
        ConfigError: If an array is missing.
    """
    cfg = transformer_config(config, arrays)

    def get(name: str) -> np.ndarray:
        if name not in arrays:
            raise ConfigError(f"arrays lacks {name!r}; it has: {', '.join(sorted(arrays)[:4])} …")
        return np.asarray(arrays[name], np.float32)

    params: dict[str, Any] = {"norm": {"scale": get("norm.weight")}, "step_embedding": get("embed_pos.weight")}
    if cfg.sink == "token":
        params["sink_token"] = get("sink_tokens").reshape(cfg.width)
    for layer in range(cfg.layers):
        prefix = f"layers.{layer}."
        block: dict[str, Any] = {ours: {"kernel": get(f"{prefix}{name}.weight").T} for ours, name in _LINEAR.items()}
        block |= {ours: {"scale": get(f"{prefix}{name}.weight")} for ours, name in _NORM.items()}
        params[f"blocks_{layer}"] = block | _import_sink(get, cfg, prefix)
    return jax.tree.map(jnp.asarray, params)


def export_transformer(params: Params, cfg: TransformerConfig) -> dict[str, np.ndarray]:
    """Convert parameters of `Transformer` to the original's arrays, the inverse of `import_transformer`.

    Sink keys and values that are not learned are 0, as is an unused sink token. The sink keys are rotated by +M. In
    float32, this does not invert the import's rotation exactly. `relic_jax.interop.policy` therefore stores both keys.

    Args:
        params: The parameters.
        cfg: Configuration of the transformer.

    Returns:
        float32 arrays in PyTorch's layout, by the names of the original's state dict.
    """
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    arrays = {"norm.weight": params["norm"]["scale"], "embed_pos.weight": params["step_embedding"]}
    if cfg.sink != "none":
        token = params["sink_token"] if cfg.sink == "token" else np.zeros(cfg.width, np.float32)
        arrays["sink_tokens"] = token.reshape(1, 1, cfg.width)
    for layer in range(cfg.layers):
        block, prefix = params[f"blocks_{layer}"], f"layers.{layer}."
        arrays |= {f"{prefix}{name}.weight": block[ours]["kernel"].T for ours, name in _LINEAR.items()}
        arrays |= {f"{prefix}{name}.weight": block[ours]["scale"] for ours, name in _NORM.items()}
        if cfg.sink in ("none", "token"):
            continue
        key, value = (block.get(name, np.zeros((cfg.heads, cfg.head_width), np.float32)) for name in _SINK)
        if cfg.episode_rope and "sink_key" in block:
            key = _rotate_sink(key, cfg.max_positions)
        arrays[f"{prefix}self_attn.head_bias_key"] = key[None, :, None]
        arrays[f"{prefix}self_attn.head_bias_value"] = value[None, :, None]
    return arrays


def _import_sink(get: Callable[[str], np.ndarray], cfg: TransformerConfig, prefix: str) -> dict[str, np.ndarray]:
    shape = cfg.heads, cfg.head_width
    sink = {}
    if cfg.sink in ("kv", "kv0"):
        key = get(f"{prefix}self_attn.head_bias_key").reshape(shape)
        sink["sink_key"] = _rotate_sink(key, -cfg.max_positions) if cfg.episode_rope else key
    if cfg.sink in ("kv", "k0v"):
        sink["sink_value"] = get(f"{prefix}self_attn.head_bias_value").reshape(shape)
    return sink


def _rotate_sink(key: np.ndarray, index: int) -> np.ndarray:
    """Rotate a sink key ``[H, D]`` by the angle of `index`, in float64 because the angle is large."""
    half = key.shape[-1] // 2
    angle = index * 10_000.0 ** (-np.arange(half) / half)
    a, b = key[:, :half].astype(np.float64), key[:, half:].astype(np.float64)
    rotated = np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)
    return rotated.astype(np.float32)


def hidden_states(
    arrays: Mapping[str, Any],
    config: Mapping[str, Any],
    inputs_embeds: np.ndarray,
    not_done: np.ndarray,
    *,
    step_by_step: bool = False,
) -> np.ndarray:
    """Compute the original's last_hidden_state with our transformer in float32.

    Args:
        arrays: Arrays in the original's layout, by name.
        config: The original's config.
        inputs_embeds: Embedded steps ``[B, T, d]``.
        not_done: ``[B, T]``, 0 at the first step of an episode.
        step_by_step: Whether to decode one step at a time with the cache instead of the whole block at once.

    Returns:
        float32 ``[B, T, d]``.

    Raises:
        ConfigError: If the config is not supported, an array is missing, or a shape does not fit.
    """
    cfg, params = transformer_config(config, arrays), import_transformer(arrays, config)
    x, first = jnp.asarray(inputs_embeds, jnp.float32), jnp.asarray(not_done) == 0
    if x.ndim != 3 or x.shape[-1] != cfg.width:
        raise ConfigError(f"inputs_embeds has shape {x.shape}; allowed: [B, T, {cfg.width}]")
    if first.shape != x.shape[:2]:
        raise ConfigError(f"not_done has shape {first.shape}; allowed: {x.shape[:2]}, as inputs_embeds")
    run = _decode if step_by_step else _forward
    return np.asarray(jax.jit(run, static_argnums=0)(cfg, params, x, first))


def _apply(cfg: TransformerConfig, params: Params, *inputs: Any, decode: bool = False) -> Any:
    return Transformer(cfg).apply({"params": params}, *inputs, decode=decode)


def _forward(cfg: TransformerConfig, params: Params, x: jax.Array, first: jax.Array) -> jax.Array:
    return _apply(cfg, params, x, first, empty_memory(cfg, x.shape[0], 0))[0]


def _decode(cfg: TransformerConfig, params: Params, x: jax.Array, first: jax.Array) -> jax.Array:
    def step(cache: kv.KVCache, inputs: tuple[jax.Array, jax.Array]) -> tuple[kv.KVCache, jax.Array]:
        x_t, first_t = inputs
        hidden, cache = _apply(cfg, params, x_t[:, None], first_t[:, None], cache, decode=True)
        return cache, hidden[:, 0]

    cache = empty_memory(cfg, x.shape[0], x.shape[1])
    _, hidden = jax.lax.scan(step, cache, (x.swapaxes(0, 1), first.T))
    return hidden.swapaxes(0, 1)
