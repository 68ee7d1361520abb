"""Import and export of the original's policies: equal outputs, and a round trip without loss."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as some_array

from relic_jax.config import ConfigError
from relic_jax.environment.base import Discrete, Image
from relic_jax.envs import registry
from relic_jax.interop import files, layout
from relic_jax.interop import policy as interop
from relic_jax.interop.encoders import vit_entries
from relic_jax.interop.files import OURS
from relic_jax.interop.llamarl import hidden_states
from relic_jax.interop.policy import Foreign, export_policy, full_config, import_policy, policy_config, sink_name
from relic_jax.models import vision
from relic_jax.models.policy import Policy
from relic_jax.models.vision import VisionTransformer, ViTConfig, vit_pixels
from relic_jax.spaces import Spaces, vector_spaces
from relic_jax.types import StepInput

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ACTIONS, TARGETS, WIDTH = 6, 20, 32
SMALL_VIT = ViTConfig(size=32, patch=16, layers=1, width=12, heads=2, mlp_width=8)
PICTURE = (24, 28, 3)
SPEC = {  # gps is before the target in tree order and after it in the original
    "gps": jax.ShapeDtypeStruct((2,), jnp.float32),
    "image": Image(PICTURE, jnp.uint8),
    "target": jax.ShapeDtypeStruct((TARGETS,), jnp.float32),
}


@pytest.fixture(autouse=True)
def small_vit(monkeypatch):
    monkeypatch.setattr(vision, "VIT_B16", SMALL_VIT)


@functools.cache
def golden(name="sink_kv"):
    """Return (config, arrays) of the original's transformer, with a float sink key, so that its rotation rounds."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        found = dict(file)
    arrays = {n.removeprefix("param/"): a.astype(np.float32) for n, a in found.items() if n.startswith("param/")}
    return json.loads(found["config"].tobytes()), arrays


def state_dict(kind="objnav", name="sink_kv", seed=0):
    """Return (arrays of the original's state dict, its transformer's config).

    Arrays are random except those of the golden transformer. The visual encoder is in half precision, as in the
    original.
    """
    config, transformer = golden(name)
    rng = np.random.default_rng(seed)
    inputs = {"visual_fc.0": (12, WIDTH), "ohts_embeding": (TARGETS, WIDTH), "gps_embedding": (2, 32)}
    linear = {f"net.{n}": shape for n, shape in inputs.items()} if kind == "objnav" else {}
    projected = WIDTH + WIDTH + 32 + WIDTH if kind == "objnav" else 2 + 1 + WIDTH
    linear |= {"net.state_encoder.feats_proj": (projected, WIDTH), "net.state_encoder.feats_out": (WIDTH, WIDTH)}
    linear |= {"action_distribution.linear": (WIDTH, ACTIONS), "critic.fc": (WIDTH, 1)}
    arrays = {f"{n}.weight": rng.normal(size=shape[::-1]) / np.sqrt(shape[0]) for n, shape in linear.items()}
    arrays |= {f"{n}.bias": rng.normal(size=shape[1]) for n, shape in linear.items()}
    arrays["net.prev_action_embedding.weight"] = rng.normal(size=(ACTIONS + 1, WIDTH))
    arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    if kind == "objnav":
        model = VisionTransformer(SMALL_VIT)
        like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        for entry in vit_entries(SMALL_VIT):
            shape = layout.their_shape(entry, layout.get(like, entry.ours).shape)
            arrays[f"net.visual_encoder.net.{entry.theirs}"] = rng.normal(size=shape).astype(np.float16)
    return arrays | {f"net.state_encoder.model.{n}": a for n, a in transformer.items()}, config


def imported(kind="objnav", name="sink_kv"):
    """Return (arrays, policy, params, foreign)."""
    arrays, config = state_dict(kind, name)
    config = full_config(arrays, interop.transformer_fields(config))
    cfg = policy_config(arrays, config)
    cfg = dataclasses.replace(cfg, encoder=dataclasses.replace(cfg.encoder, vit_dtype="float32"))
    policy = Policy(cfg, Spaces(SPEC, (0.0,) * 22, (1.0,) * 22, Discrete(ACTIONS), 1))
    if kind == "darkroom":
        policy = Policy(cfg, vector_spaces((0.0, 0.0), (9.0, 9.0), Discrete(ACTIONS)))
    return arrays, policy, *import_policy(arrays, policy, config)


def assert_same_files(a, b):
    """Assert that two files hold the same arrays, bit for bit."""
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert (array.dtype, array.shape) == (b[name].dtype, b[name].shape), name
        assert array.tobytes() == b[name].tobytes(), name


def theirs_only(arrays):
    return {name: array for name, array in arrays.items() if not name.startswith(OURS)}


# --- outputs ------------------------------------------------------------------------------------------------------


def original_outputs(p, config, steps):
    """Compute the original's (logits, values), [B, T, …], in NumPy around the transformer with the golden weights.

    Another test compares `hidden_states` with the original's outputs.
    """

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    parts = []
    if "image" in steps:
        flat = steps["image"].reshape(-1, *PICTURE)
        params = layout.nested(
            {
                e.ours: layout.to_ours(p[f"net.visual_encoder.net.{e.theirs}"], e, like.shape)
                for e, like in ((e, layout.get(VIT_LIKE(), e.ours)) for e in vit_entries(SMALL_VIT))
            }
        )
        model = VisionTransformer(SMALL_VIT, "float32")
        token = np.asarray(model.apply({"params": params}, vit_pixels(jnp.asarray(flat), 32)))
        token = token.reshape(*steps["first"].shape, -1)
        parts = [np.maximum(linear(token, "net.visual_fc.0"), 0), linear(steps["target"], "net.ohts_embeding")]
        parts.append(linear(steps["gps"], "net.gps_embedding"))
    else:
        parts = [steps["vector"], steps["reward"][..., None]]
    action = np.where(steps["first"], 0, steps["action"] + 1)  # 0: the start token
    parts.append(p["net.prev_action_embedding.weight"][action])
    x = linear(np.concatenate(parts, -1), "net.state_encoder.feats_proj")
    transformer = {
        n.removeprefix("net.state_encoder.model."): a for n, a in p.items() if n.startswith("net.state_encoder.model.")
    }
    hidden = linear(hidden_states(transformer, config, x, ~steps["first"]), "net.state_encoder.feats_out")
    return linear(hidden, "action_distribution.linear"), linear(hidden, "critic.fc")[..., 0]


@functools.cache
def VIT_LIKE():
    return jax.eval_shape(VisionTransformer(SMALL_VIT).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]


def random_steps(kind, shape=(2, 9)):
    rng = np.random.default_rng(5)
    first = rng.random(shape) < 0.3
    first[:, 0] = True
    steps = {"first": first, "action": rng.integers(0, ACTIONS, shape), "reward": rng.random(shape).astype(np.float32)}
    if kind == "darkroom":
        return steps | {"vector": rng.integers(0, 10, (*shape, 2)).astype(np.float32)}
    return steps | {
        "image": rng.integers(0, 256, (*shape, *PICTURE), np.uint8),
        "gps": rng.normal(size=(*shape, 2)).astype(np.float32),
        "target": np.eye(TARGETS, dtype=np.float32)[rng.integers(0, TARGETS, shape)],
    }


@pytest.mark.parametrize(("kind", "name"), [("objnav", "sink_kv"), ("darkroom", "no_sink")])
def test_ours_computes_what_the_original_does(kind, name):
    arrays, policy, params, _ = imported(kind, name)
    steps = random_steps(kind)
    logits, values = original_outputs(arrays, golden(name)[0], steps)
    seen = {n: jnp.asarray(steps[n]) for n in SPEC} if kind == "objnav" else jnp.asarray(steps["vector"])
    inputs = StepInput(
        observation=seen,
        previous_action=jnp.where(steps["first"], -1, jnp.asarray(steps["action"], jnp.int32)),
        previous_reward=jnp.asarray(steps["reward"]),
        first=jnp.asarray(steps["first"]),
    )
    output, _ = jax.jit(lambda p, x: policy.unroll(p, policy.initial_memory(2, 0), x))(params, inputs)
    shift = logits - np.asarray(output.distribution.logits)  # only differences of logits matter
    assert np.ptp(logits) > 1 and np.ptp(values) > 1
    np.testing.assert_allclose(shift - shift[..., :1], 0, atol=1e-4)
    np.testing.assert_allclose(output.value, values, atol=1e-4)


# --- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("objnav", "sink_kv"), ("darkroom", "no_sink"), ("darkroom", "sink_token")])
def test_there_and_back_every_array_is_equal_bit_for_bit(kind, name):
    arrays, policy, params, foreign = imported(kind, name)
    back = export_policy(params, policy, foreign)
    assert_same_files(theirs_only(back), arrays)
    again, _ = import_policy(back, policy, foreign.config)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_rotating_forth_and_back_alone_would_lose_bits():
    """This shows that the stored pairs are needed for exactness."""
    arrays, policy, params, foreign = imported()
    kept = {n: a for n, a in foreign.kept.items() if not n.startswith(OURS)}
    back = export_policy(params, policy, foreign._replace(kept=kept))
    keys = [sink_name(layer) for layer in range(2)]
    assert any(np.any(back[name] != arrays[name]) for name in keys)
    for name in keys:
        np.testing.assert_allclose(back[name], arrays[name], atol=1e-6)


def with_sink_keys(params, keys):
    transformer = dict(params["transformer"])
    for layer, key in enumerate(keys):
        transformer[f"blocks_{layer}"] = {**transformer[f"blocks_{layer}"], "sink_key": jnp.asarray(key)}
    return {**params, "transformer": transformer}


finite = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


@settings(max_examples=15, deadline=None)
@given(some_array(np.float32, (2, 4, 8), elements=finite))
def test_any_sink_key_of_ours_comes_back_as_it_was(keys):
    """This includes keys whose halves differ so much that a rotated float32 cannot hold the smaller one."""
    _, policy, params, foreign = once()
    changed = with_sink_keys(params, keys)
    with np.errstate(over="ignore", invalid="ignore"):
        there = export_policy(changed, policy, foreign)
        back, _ = import_policy(there, policy, foreign.config)
    for layer, key in enumerate(keys):
        assert np.asarray(back["transformer"][f"blocks_{layer}"]["sink_key"]).tobytes() == key.tobytes()


@functools.cache
def once():
    return imported("darkroom")


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_sink_key_that_was_trained_since_is_rotated_anew(side):
    arrays, policy, params, foreign = imported("darkroom")
    if side == "ours":
        key = np.asarray(params["transformer"]["blocks_1"]["sink_key"]) * 2
        back = export_policy(
            with_sink_keys(params, [params["transformer"]["blocks_0"]["sink_key"], key]), policy, foreign
        )
        np.testing.assert_allclose(back[sink_name(1)], 2 * arrays[sink_name(1)], atol=1e-5)
        assert back[sink_name(0)].tobytes() == arrays[sink_name(0)].tobytes()
    else:
        there = export_policy(params, policy, foreign)
        there[sink_name(1)] = 2 * there[sink_name(1)]
        back, _ = import_policy(there, policy, foreign.config)
        key = params["transformer"]["blocks_1"]["sink_key"]
        np.testing.assert_allclose(back["transformer"]["blocks_1"]["sink_key"], 2 * key, atol=1e-5)


def test_what_the_original_does_not_use_comes_back_too():
    """The export restores the sink token beside a Sink-KV, and the zeros of frozen halves."""
    arrays, config = state_dict("darkroom")
    values = [n for n in arrays if n.endswith("head_bias_value")]
    arrays |= {n: -np.zeros_like(arrays[n]) for n in values}  # −0 has its own bit pattern
    config = full_config(arrays, {**config, "is_sink_v_trainable": False})
    cfg = policy_config(arrays, config)
    assert cfg.transformer.sink == "kv0"
    policy = Policy(cfg, vector_spaces((0.0, 0.0), (9.0, 9.0), Discrete(ACTIONS)))
    params, foreign = import_policy(arrays, policy, config)
    assert "sink_value" not in params["transformer"]["blocks_0"]
    assert_same_files(theirs_only(export_policy(params, policy, foreign)), arrays)


def test_a_policy_of_ours_goes_there_and_back():
    """Export a policy of relic-jax to a file and import it again."""
    _, policy, params, _ = imported("darkroom")
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(0), x.shape), params)
    arrays = export_policy(params, policy, Foreign.nothing())
    config = full_config(arrays, interop.transformer_fields(interop.original_config(policy.config.transformer)))
    assert policy_config(arrays, config).transformer == policy.config.transformer
    back, _ = import_policy(arrays, policy, config)
    jax.tree.map(np.testing.assert_array_equal, back, params)


# --- errors, and configs inferred from arrays -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("critic.fc.bias"), "lacks 'critic.fc.bias'"),
        (lambda a: a.update({"critic.fc.bias": np.zeros(2, np.float32)}), r"'critic.fc.bias' of shape \[2\]"),
        (lambda a: a.update({"critic.fc.bias": np.zeros(1)}), "'critic.fc.bias' of float64"),
        (lambda a: a.update({"net.locs_embeding.weight": np.zeros((4, 4), np.float32)}), "net.locs_embeding.weight"),
        (lambda a: a.pop("net.state_encoder.model.layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight"),
        (lambda a: a.pop("net.state_encoder.model.embed_pos.weight"), "embed_pos.weight"),
        (lambda a: a.update({sink_name(1): np.zeros((1, 4, 1, 7), np.float32)}), r"head_bias_key' of shape"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, message):
    arrays, config = state_dict("darkroom")
    _, policy, _, _ = once()
    change(arrays)
    with pytest.raises(ConfigError, match=message) as error:
        import_policy(arrays, policy, full_config(arrays, config))
    assert "\n" not in str(error.value)


def test_the_config_may_come_in_three_places_and_two_spellings():
    inner = {"model_name": "llamarl", "n_layers": 2, "n_heads": 4, "activation": "gelu_new", "kv_size": None}
    agent = {"main_agent": {"name": "P", "transformer_config": inner}}
    whole = {"config": {"habitat": {"seed": 1}, "habitat_baselines": {"rl": {"policy": agent}}}}
    found = {"model_name": "llamarl", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu_new"}
    for config in (inner, agent, whole):
        assert interop.transformer_fields(config) == found
    assert interop.transformer_fields({"a": 1}) == {} == interop.transformer_fields(None)
    with pytest.raises(ConfigError, match="transformerxl"):
        interop.transformer_fields({"n_layers": 1, "model_name": "transformerxl"})


def test_without_a_config_arrays_tell_all_but_the_heads_of_a_policy_without_sink():
    arrays, config = state_dict("darkroom")
    assert policy_config(arrays, full_config(arrays, {})) == policy_config(arrays, full_config(arrays, config))
    arrays, config = state_dict("darkroom", "no_sink")
    with pytest.raises(ConfigError, match="num_attention_heads"):
        full_config(arrays, {})
    with pytest.raises(ConfigError, match="hidden_size 33; allowed: 32"):
        full_config(arrays, {**config, "hidden_size": 33})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": "scaled"}, "policy.encoder.observation"),
        ({"vectors": "raw"}, "policy.encoder.vectors"),
        ({"image": "small"}, "policy.encoder.image"),
        ({"reward": True}, "policy.encoder.reward"),
    ],
)
def test_policies_that_the_original_cannot_hold_are_refused(changes, message):
    _, policy, params, foreign = imported()
    encoder = dataclasses.replace(policy.config.encoder, **changes)
    other = dataclasses.replace(policy, config=dataclasses.replace(policy.config, encoder=encoder))
    with pytest.raises(ConfigError, match=message):
        export_policy(params, other, foreign)


# --- files and the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_hold_arrays_of_every_dtype_and_what_is_said_beside(tmp_path, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=(3, 4)).astype(jnp.dtype(n)) for n in ("float32", "float16", "bfloat16")}
    arrays["transposed"] = rng.normal(size=(3, 4)).astype(np.float32).T  # a transposed layout in memory
    arrays[OURS + "beside"] = np.ones(2, np.float32)
    files.write(tmp_path / f"x{suffix}", arrays, {"config": {"n_heads": 4}})
    found, about = files.read(tmp_path / f"x{suffix}", "file")
    assert_same_files(found, {n: np.ascontiguousarray(a) for n, a in arrays.items()})
    assert about["config"] == {"n_heads": 4}
    assert [f.name for f in tmp_path.iterdir()] == [f"x{suffix}"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_that_are_truncated_foreign_or_missing_are_one_line(tmp_path, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    file = tmp_path / f"x{suffix}"
    files.write(file, {"a": np.ones(1000, np.float32)}, {})
    whole = file.read_bytes()
    for content in (whole[:-200], whole[:3], b"", b"not a file of arrays at all"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="checkpoint is ") as error:
            files.read(file, "checkpoint")
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="allowed: a file that exists"):
        files.read(tmp_path / "none.safetensors", "checkpoint")


def test_a_checkpoint_with_a_config_of_foreign_classes_is_read_and_runs_nothing(tmp_path):
    torch = pytest.importorskip("torch")
    omegaconf = pytest.importorskip("omegaconf")
    policy = {"main_agent": {"transformer_config": {"model_name": "llamarl", "n_layers": 2, "n_heads": 4}}}
    config = omegaconf.OmegaConf.create({"habitat_baselines": {"rl": {"policy": policy}, "list": [1, 2.5]}})
    torch.save({"state_dict": {"a": torch.ones(2)}, "config": config, "run": Trap()}, tmp_path / "x.pth")
    arrays, about = files.read(tmp_path / "x.pth", "checkpoint")
    assert not Trap.sprung and arrays.keys() == {"a"}
    assert about["config"] == {"habitat_baselines": {"rl": {"policy": policy}, "list": [1, 2.5]}}
    assert interop.transformer_fields(about)["num_attention_heads"] == 4


def spring():
    Trap.sprung = True


class Trap:
    """Calls `spring` when unpickled."""

    sprung = False

    def __reduce__(self):
        return spring, ()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_command_imports_evaluates_and_goes_back(tmp_path, cli, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    arrays, config = state_dict("darkroom", "sink_kv")
    actions = registry.make("darkroom-dpt").action_space.n
    for name in ("action_distribution.linear.weight", "action_distribution.linear.bias"):
        arrays[name] = arrays[name][:actions]
    embedding = "net.prev_action_embedding.weight"
    arrays[embedding] = arrays[embedding][: actions + 1]
    positions = "net.state_encoder.model.embed_pos.weight"
    arrays[positions] = np.concatenate([arrays[positions]] * 4)  # an episode of 100 steps must fit
    config = {**config, "max_position_embeddings": 256}
    source, folder = tmp_path / f"original{suffix}", tmp_path / "imported"
    files.write(source, arrays, {"config": config})
    code, out, err = cli("import-llamarl", source, "--to", folder)
    assert (code, err) == (0, "") and "every array is equal" in out
    code, out, err = cli("evaluate", folder, "--episodes", 1, "--limit", 2)
    assert (code, err) == (0, "")
    code, out, err = cli("import-llamarl", folder, "--reverse", "--to", tmp_path / f"back{suffix}")
    assert (code, err) == (0, "")
    assert_same_files(theirs_only(files.read(tmp_path / f"back{suffix}", "file").arrays), arrays)
    code, out, err = cli("train", "--resume", folder)
    assert code == 2 and "holds only parameters" in err and err.count("\n") == 1
    code, out, err = cli("import-llamarl", source, "--to", folder)
    assert code == 2 and "is already there" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.safetensors", "--to", "x"), "allowed: a file that exists"),
        (("empty.safetensors", "--to", "x"), "state dict of the original"),
        (("empty.safetensors", "--to", "x", "--config", "none.json"), "config is 'none.json'"),
        (("none", "--to", "x.safetensors", "--reverse"), "no such folder"),
        (("none", "--to", "x.safetensors", "--reverse", "--env", "darkroom-dpt"), "env is 'darkroom-dpt'"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, cli, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    files.write(tmp_path / "empty.safetensors", {"a": np.zeros(1, np.float32)}, {})
    code, _, err = cli("import-llamarl", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
