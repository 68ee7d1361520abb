"""The outputs of the original PyTorch code (tests/golden) compared with ours and with a NumPy transformer."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError
from relic_jax.interop.llamarl import hidden_states, import_transformer, transformer_config
from relic_jax.models.transformer import Transformer, empty_memory

MLP = ("gate", "up", "down")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SETS = ["no_sink", "sink_kv", "sink_kv_no_inter_episode", "sink_token"]
TOLERANCE = 2e-5  # float32 against float64; outputs reach 6, keys and values 5


@functools.cache
def golden(name):
    """Return (config, arrays, parameters, gradients)."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)

    def under(prefix):
        return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

    return json.loads(arrays["config"].tobytes()), arrays, under("param/"), under("grad/")


# --- the method in NumPy, in float64, in the original's layout -------------------------------------------------------


def turn(x, index):
    """Rotate x [..., D] by `index` [...]: component i of the halves by the angle index·10000^(−2i/D)."""
    half = x.shape[-1] // 2
    angle = np.asarray(index)[..., None] / 10_000.0 ** (np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_transformer(params, config, x, not_done):
    """Return (hidden [B, T, d], [(keys, values) of each layer, [B, H, T, D]]) of the whole sequence at once."""
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    heads, offset = config["num_attention_heads"], config["max_position_embeddings"]
    token, sink_kv = config["add_sink_tokens"], config["add_sink_kv"]
    batch, steps, width = x.shape
    position, episode = np.zeros((2, batch, steps), int)
    for b, t in np.ndindex(batch, steps):
        opens = t == 0 or not not_done[b, t]
        position[b, t] = 0 if opens else position[b, t - 1] + 1
        episode[b, t] = 0 if t == 0 else episode[b, t - 1] + opens
    if token or sink_kv:  # index 0 is the sink
        position, episode = position + 1, episode + 1
    if token:
        x = np.concatenate([np.broadcast_to(p["sink_tokens"], (batch, 1, width)), x], axis=1)
        position, episode = (np.pad(a, [(0, 0), (1, 0)]) for a in (position, episode))
    visible = np.tril(np.ones((x.shape[1],) * 2, bool))[None].repeat(batch, 0)
    if not config["inter_episodes_attention"]:
        visible &= (episode[:, :, None] == episode[:, None, :]) | (token & (episode[:, None, :] == 0))
    x = x + p["embed_pos.weight"][position]
    caches = []
    for layer in range(config["num_hidden_layers"]):
        weight = {
            n[len(f"layers.{layer}.") :].removesuffix(".weight"): a for n, a in p.items() if f"layers.{layer}." in n
        }
        y = rms_norm(x, weight["input_layernorm"])
        q, k, v = (
            (y @ weight[f"self_attn.{name}_proj"].T).reshape(*y.shape[:2], heads, -1).swapaxes(1, 2) for name in "qkv"
        )
        if config["add_sequence_idx_embed"]:
            q, k = (turn(a, episode[:, None] + offset) for a in (q, k))
        caches.append((k[:, :, token:], v[:, :, token:]))
        scores = np.where(visible[:, None], q @ k.swapaxes(2, 3), -np.inf)
        if sink_kv:
            sink_key, sink_value = (weight[f"self_attn.head_bias_{half}"][0] for half in ("key", "value"))
            scores = np.concatenate([q @ sink_key.swapaxes(1, 2), scores], axis=-1)
            v = np.concatenate([np.broadcast_to(sink_value, (batch, *sink_value.shape)), v], axis=2)
        scores = scores / np.sqrt(width / heads)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (attention / attention.sum(-1, keepdims=True)) @ v
        x = x + attended.swapaxes(1, 2).reshape(x.shape) @ weight["self_attn.o_proj"].T
        y = rms_norm(x, weight["post_attention_layernorm"])
        gated = gelu(y @ weight["mlp.gate_proj"].T) * (y @ weight["mlp.up_proj"].T)
        x = x + gated @ weight["mlp.down_proj"].T
    return rms_norm(x, p["norm.weight"])[:, token:], caches


# --- our results in the original's layout -----------------------------------------------------------------------------


def to_original(tree, config):
    """Convert gradients of our parameters to the original's, by the chain rule of the import."""
    linear = {f"{n}_proj": f"self_attn.{n}_proj" for n in "qkvo"} | {f"{n}_proj": f"mlp.{n}_proj" for n in MLP}
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    result = {"norm.weight": tree["norm"]["scale"], "embed_pos.weight": tree["step_embedding"]}
    if "sink_token" in tree:
        result["sink_tokens"] = tree["sink_token"][None, None]
    for layer in range(config["num_hidden_layers"]):
        block, prefix = tree[f"blocks_{layer}"], f"layers.{layer}."
        result |= {f"{prefix}{theirs}.weight": block[ours]["kernel"].T for ours, theirs in linear.items()}
        result |= {f"{prefix}{theirs}.weight": block[ours]["scale"] for ours, theirs in norms.items()}
        if "sink_key" in block:
            offset = config["max_position_embeddings"] if config["add_sequence_idx_embed"] else 0
            result[f"{prefix}self_attn.head_bias_key"] = turn(np.asarray(block["sink_key"]), offset)[None, :, None]
        if "sink_value" in block:
            result[f"{prefix}self_attn.head_bias_value"] = block["sink_value"][None, :, None]
    return result


def run_ours(params, config, x, not_done, cotangent):
    """Return (hidden, cache, gradients of Σ hidden·cotangent in the original's layout)."""
    cfg = transformer_config(config, params)
    cache = empty_memory(cfg, *x.shape[:2])
    x, cotangent = jnp.asarray(x, jnp.float32), jnp.asarray(cotangent, jnp.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(tree):
        hidden, after = Transformer(cfg).apply({"params": tree}, x, jnp.asarray(not_done) == 0, cache)
        return jnp.sum(hidden * cotangent), (hidden, after)

    gradients, (hidden, after) = run(import_transformer(params, config))
    return np.asarray(hidden), after, to_original(jax.tree.map(np.asarray, gradients), config)


def assert_gradients_close(actual, expected, tolerance):
    """Compare gradients relative to the largest entry of each, because they are sums over steps and reach 50."""
    for name, gradient in expected.items():
        np.testing.assert_allclose(
            actual[name], gradient, rtol=0, atol=tolerance * np.abs(gradient).max(), err_msg=name
        )


# --- the golden sets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_hidden_states_cache_and_every_gradient_equal_the_originals(name):
    config, arrays, params, grads = golden(name)
    inputs = arrays["inputs_embeds"], arrays["not_done_mask"]
    hidden, cache, gradients = run_ours(params, config, *inputs, arrays["cotangent"])
    np.testing.assert_allclose(hidden, arrays["last_hidden_state"], rtol=0, atol=TOLERANCE)

    offset = config["max_position_embeddings"] if config["add_sequence_idx_embed"] else 0
    for layer in range(config["num_hidden_layers"]):
        keys = turn(np.asarray(cache.keys[layer].data), offset)
        np.testing.assert_allclose(keys, arrays[f"cache/{layer}/key"], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(cache.values[layer].data, arrays[f"cache/{layer}/value"], rtol=0, atol=TOLERANCE)

    if config["add_sink_kv"]:  # the token exists there but is not used
        assert not np.any(grads["sink_tokens"])
        grads = {n: g for n, g in grads.items() if n != "sink_tokens"}
    assert gradients.keys() == grads.keys()
    assert_gradients_close(gradients, grads, TOLERANCE)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("step_by_step", [False, True])
def test_hidden_states_function_in_both_ways(name, step_by_step):
    config, arrays, params, _ = golden(name)
    hidden = hidden_states(params, config, arrays["inputs_embeds"], arrays["not_done_mask"], step_by_step=step_by_step)
    assert hidden.dtype == np.float32
    np.testing.assert_allclose(hidden, arrays["last_hidden_state"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", SETS)
def test_numpy_transformer_equals_the_original(name):
    config, arrays, params, _ = golden(name)
    hidden, caches = numpy_transformer(params, config, arrays["inputs_embeds"], arrays["not_done_mask"])
    np.testing.assert_allclose(hidden, arrays["last_hidden_state"], rtol=0, atol=1e-5)
    for layer, (keys, values) in enumerate(caches):
        np.testing.assert_allclose(keys, arrays[f"cache/{layer}/key"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(values, arrays[f"cache/{layer}/value"], rtol=0, atol=1e-5)


# --- every sink, other sizes -----------------------------------------------------------------------------------------

KINDS = ["kv", "kv0", "k0v", "k0v0", "token", "none"]
LEARNED = {"kv": {"key", "value"}, "kv0": {"key"}, "k0v": {"value"}}


def frozen(params, config, kind):
    """Return a set with a sink whose frozen halves stay 0, as in the original's training."""
    halves = LEARNED.get(kind, set())
    config = {**config, "is_sink_k_trainable": "key" in halves, "is_sink_v_trainable": "value" in halves}
    return {n: a * ("head_bias" not in n or n.split("head_bias_")[1] in halves) for n, a in params.items()}, config


def random_model(kind, rope, inter, seed=0, layers=3, heads=2, width=24, mlp=40, positions=100):
    config = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": mlp,
        "max_position_embeddings": positions,
        "hidden_act": "gelu_new",
        "add_sequence_idx_embed": rope,
        "inter_episodes_attention": inter,
        "add_sink_kv": kind not in ("token", "none"),
        "add_sink_tokens": kind == "token",
    }
    rng = np.random.default_rng(seed)
    shapes = {f"self_attn.{n}_proj.weight": (width, width) for n in "qkvo"}
    shapes |= {"mlp.gate_proj.weight": (mlp, width), "mlp.up_proj.weight": (mlp, width)}
    shapes |= {"mlp.down_proj.weight": (width, mlp)}
    shapes |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    if config["add_sink_kv"]:
        shapes |= {f"self_attn.head_bias_{half}": (1, heads, 1, width // heads) for half in ("key", "value")}
    shapes = {f"layers.{layer}.{n}": s for layer in range(layers) for n, s in shapes.items()}
    shapes |= {"embed_pos.weight": (positions, width), "norm.weight": (width,), "sink_tokens": (1, 1, width)}
    # exact in float32, so both sides compute with the same values
    params = {
        n: (rng.normal(size=s) * (s[-1] ** -0.5 if len(s) == 2 else 1.0)).astype(np.float32) for n, s in shapes.items()
    }
    if kind not in ("token", "none"):
        params, config = frozen(params, config, kind)
    return params, config, rng


@pytest.mark.parametrize("kind", ["kv", "kv0", "k0v", "k0v0"])
def test_frozen_halves_of_the_golden_sink_map_to_our_sinks(kind):
    config, arrays, params, _ = golden("sink_kv")
    params, config = frozen(params, config, kind)
    inputs = arrays["inputs_embeds"], arrays["not_done_mask"]
    assert transformer_config(config, params).sink == kind
    expected, _ = numpy_transformer(params, config, *inputs)
    np.testing.assert_allclose(hidden_states(params, config, *inputs), expected, rtol=0, atol=TOLERANCE)
    if kind != "kv":
        assert np.abs(expected - arrays["last_hidden_state"]).max() > 1e-2


def test_a_frozen_half_that_is_not_zero_counts_as_learned():
    config, _, params, _ = golden("sink_kv")
    config = {**config, "is_sink_k_trainable": False, "is_sink_v_trainable": False}
    assert transformer_config(config, params).sink == "kv"
    assert transformer_config(config).sink == "k0v0"


@pytest.mark.parametrize(
    ("kind", "rope", "inter"),
    [(kind, True, True) for kind in KINDS] + [("kv", True, False), ("token", False, False), ("none", False, True)],
)
def test_every_sink_equals_numpy_in_outputs_steps_and_gradients(kind, rope, inter):
    """Compare gradients along one random direction per parameter with central differences in float64."""
    params, config, rng = random_model(kind, rope, inter)
    x, cotangent = rng.normal(size=(2, 2, 70, 24)).astype(np.float32)
    not_done = rng.random((2, 70)) > 0.15
    not_done[:, 0] = [True, False]  # the first step starts the first episode, flagged or not
    expected, _ = numpy_transformer(params, config, x, not_done)
    hidden, _, gradients = run_ours(params, config, x, not_done, cotangent)
    stepped = hidden_states(params, config, x, not_done, step_by_step=True)
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(stepped, expected, rtol=0, atol=TOLERANCE)

    def loss(name, array):
        return np.sum(numpy_transformer({**params, name: array}, config, x, not_done)[0] * cotangent)

    assert {n.split(".")[-1] for n in gradients if "head_bias" in n} == {
        f"head_bias_{half}"
        for half, letter in (("key", "k"), ("value", "v"))
        if letter in kind.replace("k0", "").replace("v0", "") and kind not in ("token", "none")
    }
    for name, gradient in gradients.items():
        direction = rng.normal(size=gradient.shape)
        point = params[name].astype(np.float64)
        numeric = (loss(name, point + 1e-5 * direction) - loss(name, point - 1e-5 * direction)) / 2e-5
        norm = np.linalg.norm(gradient)
        assert norm > 1e-3, name
        assert abs(np.sum(gradient * direction) - numeric) < TOLERANCE * norm * max(1, np.sqrt(gradient.size)), name


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "silu"),
        ("position_embed_type", "rope"),
        ("reset_position_index", False),
        ("num_sink_tokens", 2),
        ("sequence_embed_type", "learnable"),
        ("gated_residual", True),
        ("num_key_value_heads", 2),
    ],
)
def test_a_config_we_cannot_reproduce_is_refused_by_field(field, value):
    config, _, params, _ = golden("sink_kv")
    with pytest.raises(ConfigError, match=f"{field} is {value!r}"):
        import_transformer(params, {**config, field: value})


def test_the_type_of_an_unused_embedding_does_not_matter():
    config, _, params, _ = golden("sink_kv_no_inter_episode")
    assert transformer_config({**config, "sequence_embed_type": "learnable"}, params).episode_rope is False


def test_a_missing_array_and_wrong_shapes_are_named():
    config, arrays, params, _ = golden("sink_kv")
    x, not_done = arrays["inputs_embeds"], arrays["not_done_mask"]
    missing = "layers.1.mlp.up_proj.weight"
    with pytest.raises(ConfigError, match=missing):
        import_transformer({n: a for n, a in params.items() if n != missing}, config)
    with pytest.raises(ConfigError, match="inputs_embeds"):
        hidden_states(params, config, x[..., :-1], not_done)
    with pytest.raises(ConfigError, match="inputs_embeds"):
        hidden_states(params, config, x[0], not_done)
    with pytest.raises(ConfigError, match="not_done"):
        hidden_states(params, config, x, not_done[:, :-1])


def test_a_config_without_a_size_names_it():
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        transformer_config({"hidden_size": 8, "intermediate_size": 8})
