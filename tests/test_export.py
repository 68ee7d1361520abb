"""Exports in every format compared with the policy, loading of exports, and one-line errors."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import relic_jax
from relic_jax import export, runtime
from relic_jax.config import (
    ConfigError,
    EncoderConfig,
    EnvConfig,
    HeadConfig,
    Options,
    PolicyConfig,
    RecurrentConfig,
    TransformerConfig,
)
from relic_jax.environment.base import Box, Discrete, Image
from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING
from relic_jax.envs.registry import make
from relic_jax.evaluation.report import AgentCurves, Curve, Report
from relic_jax.export import VerificationError, card, export_policy, onnx_graph, verify, weights
from relic_jax.loading import LoadedPolicy, load_policy, pretrained, pretrained_names, pretrained_path
from relic_jax.models.policy import Policy
from relic_jax.spaces import Spaces, spaces_from_json, spaces_of, spaces_to_json

TRANSFORMER = {"layers": 2, "heads": 2, "width": 16, "mlp_width": 16, "max_positions": 64}
VECTOR = Spaces(jax.ShapeDtypeStruct((2,), jnp.float32), (0.0, 0.0), (9.0, 9.0), Discrete(5), 30)
IMAGES = Spaces(
    {"goal": jax.ShapeDtypeStruct((3,), jnp.float32), "view": Image((11, 13, 3), jnp.uint8)},
    (-1.0,) * 3,
    (1.0,) * 3,
    Discrete(4),
    30,
)
GOAL = Spaces(
    {
        "gps": jax.ShapeDtypeStruct((2,), jnp.float32),
        "target": jax.ShapeDtypeStruct((6,), jnp.float32),
        "view": Image((11, 13, 3), jnp.uint8),
    },
    (-9.0,) * 2 + (0.0,) * 6,
    (9.0,) * 2 + (1.0,) * 6,
    Discrete(4),
    30,
)
MIXED = Spaces(
    {
        "bit": jax.ShapeDtypeStruct((2,), jnp.bool_),
        "board": jax.ShapeDtypeStruct((2, 1, 3), jnp.uint8),
        "count": jax.ShapeDtypeStruct((), jnp.int32),
        "half": jax.ShapeDtypeStruct((2, 2), jnp.float16),
        "view": Image((5, 4, 3), jnp.float32),
    },
    (0.0,) * 2 + (0.0,) * 6 + (-9.0,) + (-1.0,) * 4,
    (1.0,) * 2 + (255.0,) * 6 + (9.0,) + (1.0,) * 4,
    Discrete(3),
    30,
)
CONTINUOUS = dataclasses.replace(VECTOR, action_space=Box((-2.0, 0.0), (2.0, 1.0)))


@pytest.fixture(scope="module")
def build(tiny, drawn):
    """Return `build(...)`: a policy with random parameters."""

    def make_policy(spaces=VECTOR, encoder=None, head=None, memory="transformer", **transformer):
        parts = {"encoder": encoder or EncoderConfig(), "head": head or HeadConfig(), "memory": memory}
        recurrent = RecurrentConfig(layers=2, width=16)
        config = PolicyConfig(TransformerConfig(**TRANSFORMER | transformer), **parts, recurrent=recurrent)
        policy, training = Policy(config, spaces), {"env_steps": 512, "run": "tiny-seed0"}
        return LoadedPolicy(policy, drawn(policy), tiny(policy=config), spaces, training, None, Path("nowhere/at/all"))

    return make_policy


@pytest.fixture(scope="module")
def exported(build, tmp_path_factory):
    """Return `exported(format)`: a policy and its export in that format, which tests must not change."""
    done = {}

    def export_once(name):
        if name == "onnx":
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnx")
        if name == "stablehlo":
            pytest.importorskip("flatbuffers")
        if name not in done:
            policy, folder = build(sink="token"), tmp_path_factory.mktemp(name) / "out"
            done[name] = policy, folder, export_policy(policy, folder, format=name)
        return done[name]

    return export_once


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a.params, b.params))


@pytest.mark.parametrize("name", ["safetensors", "orbax"])
def test_weights_come_back_bit_for_bit(build, tmp_path, name):
    policy = build()
    check = export_policy(policy, tmp_path / "out", format=name)
    again = load_policy(tmp_path / "out")
    assert same(policy, again) and again.config == policy.config and check["largest_difference"] == 0
    assert spaces_to_json(again.spaces) == spaces_to_json(policy.spaces)
    export_policy(again, tmp_path / "twice", format=name)
    assert same(policy, load_policy(tmp_path / "twice"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights_are_the_rounded_ones(build, tmp_path, dtype):
    policy = build()
    check = export_policy(policy, tmp_path / "out", dtype=dtype)
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), policy.params)
    assert same(dataclasses.replace(policy, params=expected), load_policy(tmp_path / "out"))
    assert check["largest_difference"] == 0 < check["largest_difference_by_rounding"]


CASES = {
    "kv0-within": {"sink": "kv0", "inter_episode": False},
    "token-normalized": {"sink": "token", "encoder": EncoderConfig(observation="normalized", reward=False)},
    "none-plain": {"sink": "none", "episode_rope": False, "step_embedding": False},
    "k0v0-int8": {"sink": "k0v0", "cache": "int8"},
    "bfloat16-cache": {"cache": "bfloat16"},
    "tanh": {"spaces": CONTINUOUS, "encoder": EncoderConfig(observation="scaled")},
    "gaussian-state": {"spaces": CONTINUOUS, "head": HeadConfig(action="gaussian", std="state")},
    "images": {"spaces": IMAGES, "encoder": EncoderConfig(features=8)},
    "images-nature": {"spaces": IMAGES, "encoder": EncoderConfig(features=8, image="nature")},
    "images-cells": {"spaces": IMAGES, "encoder": EncoderConfig(features=8, image="cells")},
    "images-patches": {"spaces": IMAGES, "encoder": EncoderConfig(features=8, image="patches")},
    "every-dtype": {"spaces": MIXED, "encoder": EncoderConfig(observation="scaled", features=8, image="patches")},
    "images-goal": {"spaces": GOAL, "encoder": EncoderConfig(observation="scaled", image="patches")},
}


@pytest.mark.parametrize("case", CASES)
def test_onnx_is_the_policy(build, case):
    """Run 200 steps across ends of episodes in onnxruntime, with a small context that drops episodes."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    policy = build(**CASES[case])
    about = export.describe(policy, policy.params, "onnx", "float32", 80, None)
    model = onnx_graph.build(policy.policy, policy.params)
    other = runtime.Onnx(model, about, threads=1)
    reference = verify.live(about, policy.policy, policy.params)
    found = verify.compare(about, reference, other, batch=3, context=80)
    # int8: a value halfway between two steps of the format can be rounded either way
    tolerance = 2e-2 if "int8" in case or "bfloat16" in case else verify.TOLERANCE
    assert found["largest_scaled_difference"] <= tolerance
    assert found["episode_ends"] > 10


def in_double_precision(model):
    """Return an ONNX model with float64 in place of float32, as bytes."""
    onnx = pytest.importorskip("onnx")
    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE

    def widened(tensor):
        if tensor.data_type == single:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))

    graph = model.graph
    for tensor in graph.initializer:
        widened(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == single:
            value.type.tensor_type.elem_type = double
    for node in graph.node:
        for attribute in node.attribute:
            widened(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == single:
                attribute.i = double
    return model.SerializeToString()


class Double(runtime.Onnx):
    """Runs a graph returned by `in_double_precision`."""

    def empty(self, batch, slots):
        return {name: wide(x) for name, x in super().empty(batch, slots).items()}

    def step(self, arrays, inputs):
        return super().step(arrays, {name: wide(np.asarray(x)) for name, x in inputs.items()})


def wide(x):
    return x.astype(np.float64) if x.dtype == np.float32 else x


def test_onnx_is_as_near_to_exact_arithmetic_as_a_trained_policy_is():
    """If logits reach 16, both programs have different float32 rounding errors of more than 1e-5."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    trained = pretrained("darkroom-dpt")
    about = export.describe(trained, trained.params, "onnx", "float32", 400, None)
    model = onnx_graph.build(trained.policy, trained.params)
    live, ours = verify.live(about, trained.policy, trained.params), runtime.Onnx(model, about)
    exact = Double(in_double_precision(onnx.load_from_string(model)), about)
    found = [verify.compare(about, program, exact, batch=2, context=400) for program in (live, ours)]
    live_off, ours_off = (check["largest_difference"] for check in found)
    print(f"from double precision: policy {live_off:.2g}, ONNX {ours_off:.2g}")
    assert ours_off <= 1.5 * live_off
    assert all(check["largest_scaled_difference"] <= verify.TOLERANCE for check in found)


@pytest.mark.parametrize("case", ["vector", "images", "gru", "lstm-tanh", "gated_delta", "lru"])
def test_stablehlo_is_the_policy(build, exported, tmp_path, case):
    pytest.importorskip("flatbuffers")
    if case == "vector":
        policy, folder, check = exported("stablehlo")
    else:
        how = CASES[case] if case in CASES else {"memory": case.split("-")[0].replace("_", "-")}
        how |= {"spaces": CONTINUOUS} if "tanh" in case else {}
        policy, folder = build(**how), tmp_path / "out"
        check = export_policy(policy, folder, format="stablehlo")
    assert check["largest_scaled_difference"] <= verify.TOLERANCE and check["episode_ends"] > 5
    from jax import export as jax_export

    program = jax_export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda")
    assert same(policy, load_policy(folder))
    agent = runtime.load(folder, batch=5)  # a batch size that the export was not verified with
    live = policy.agent(batch=5)
    observation = {"goal": np.zeros((5, 3), np.float32), "view": np.full((5, 11, 13, 3), 9, np.uint8)}
    observation = observation if case == "images" else np.ones((5, 2), np.float32)
    agent.step(observation), live.step(observation)
    np.testing.assert_allclose(agent.outputs["value"], live.outputs["value"], rtol=1e-5, atol=1e-5)


def bare_environment(folder, *packages):
    """Return the Python of a new virtual environment with only these packages and their requirements."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    wanted, there = list(packages), set()
    while wanted:
        name = wanted.pop()
        if name in there:
            continue
        there.add(name)
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
        wanted += [re.match(r"[\w.-]+", line)[0] for line in distribution.requires or () if ";" not in line]
    return folder / "bin" / "python"


BARE = """
import importlib.util, json, sys
import numpy as np
from run import load
from relic_jax import runtime
for name in {absent}:
    assert importlib.util.find_spec(name) is None, name
agent = load({folder!r}, batch=2, seed=3)
for index in range(30):
    action = agent.step(np.full((2, 2), index % 7, np.float32), 0.5, False, index % 10 == 9)
print(json.dumps([action.tolist(), agent.outputs["value"].tolist(), runtime.POLICY_FORMAT]))
"""


@pytest.mark.skipif(os.name != "posix", reason="links to installed packages")
@pytest.mark.parametrize(("name", "packages"), [("stablehlo", "jax flatbuffers"), ("onnx", "onnxruntime")])
def test_exports_run_in_a_bare_environment(exported, tmp_path, name, packages):
    """The environment has only jax and the package that reads the file, or only onnxruntime."""
    _, folder, _ = exported(name)
    python = bare_environment(tmp_path / "venv", *packages.split())
    absent = ["flax", "optax", "orbax", "safetensors", "jax" if name == "onnx" else "onnxruntime"]
    code = BARE.format(absent=absent, folder=str(folder))
    path = os.pathsep.join([str(folder), str(Path(relic_jax.__file__).parent.parent)])
    own = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, env=own)
    assert found.returncode == 0, found.stderr
    agent = runtime.load(folder, batch=2, seed=3)
    for index in range(30):
        action = agent.step(np.full((2, 2), index % 7, np.float32), 0.5, False, index % 10 == 9)
    actions, values, _ = json.loads(found.stdout)
    assert actions == action.tolist()
    np.testing.assert_allclose(values, agent.outputs["value"], rtol=1e-6)


def test_a_context_goes_from_one_kind_of_agent_to_another(exported, tmp_path):
    """An export continues with a context that was saved by this library."""
    policy, folder, _ = exported("stablehlo")
    live, other = policy.agent(), runtime.load(folder)
    for index in range(20):
        live.step(np.full(2, index % 5, np.float32), 1.0, False, index % 7 == 6)
    live.save(tmp_path / "context")
    other.restore(tmp_path / "context")
    assert other.steps == 20
    live.step(np.ones(2, np.float32), 1.0)
    other.step(np.ones(2, np.float32), 1.0)
    np.testing.assert_allclose(other.outputs["logits"], live.outputs["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["safetensors", "orbax"])
def test_recurrent_policies_come_back_bit_for_bit(build, tmp_path, name):
    policy = build(memory="lstm" if name == "orbax" else "gru")
    check = export_policy(policy, tmp_path / "out", format=name)
    assert same(policy, load_policy(tmp_path / "out")) and check["largest_difference"] == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"the state of its {policy.config.policy.memory.upper()}" in text
    assert "has no limit on the number of steps" in text
    with pytest.raises(
        ConfigError, match=r"format is 'onnx'; allowed: a policy with a transformer \(it is (gru|lstm)\)"
    ):
        onnx_graph.check(policy.policy)


def test_an_export_that_differs_is_not_left_behind(build, tmp_path, monkeypatch):
    policy = build()
    wrong = dataclasses.replace(policy, params=jax.tree.map(lambda x: x * 1.01, policy.params))
    monkeypatch.setattr(export, "load_policy", lambda folder: wrong)
    with pytest.raises(VerificationError, match="differs from the policy by"):
        export_policy(policy, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_overwritten(build, tmp_path):
    policy, out = build(), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="which has other content; allowed: a new folder"):
        export_policy(policy, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    export_policy(policy, out)
    (out / "README.md").unlink()
    export_policy(policy, out)  # an earlier export of the same format is replaced
    assert (out / "README.md").is_file()
    with pytest.raises(ConfigError, match="an earlier export of format 'orbax'"):
        export_policy(policy, out, format="orbax")


def test_bad_requests_are_one_line(build, tmp_path, monkeypatch):
    policy = build()
    for options, said in (
        ({"format": "pickle"}, "format is 'pickle'; allowed: 'safetensors', 'stablehlo', 'onnx', 'orbax'"),
        ({"dtype": "float8"}, "dtype is 'float8'; allowed: 'float32', 'float16', 'bfloat16'"),
        ({"dtype": "float16", "format": "stablehlo"}, "dtype is 'float16'; allowed: 'float32' with format 'stablehlo'"),
        ({"context": 3}, "context is 3; allowed: 30 or more"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            export_policy(policy, tmp_path / "out", **options)
        assert "\n" not in str(error.value)
    for module in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=r"it needs: pip install 'relic-jax\[onnx\]'"):
            export_policy(policy, tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_loaded_are_one_line(build, tmp_path, resealed):
    policy = build()
    export_policy(policy, tmp_path / "good")
    config = json.loads((tmp_path / "good" / "config.json").read_text())
    weights = (tmp_path / "good" / "model.safetensors").read_bytes()
    narrower = {**config, "architecture": {**config["architecture"], "transformer": TRANSFORMER | {"width": 8}}}
    unknown = {**config, "architecture": {**config["architecture"], "telepathy": True}}
    for name, broken, said in (
        (
            "format",
            {**config, "format": "relic-jax-policy-3"},
            "has format 'relic-jax-policy-3'; allowed: 'relic-jax-policy-2' or 'relic-jax-policy-1'",
        ),
        ("foreign", {"model_type": "bert"}, "a folder with a readable config.json of relic-jax"),
        ("section", {k: v for k, v in config.items() if k != "spaces"}, "its config.json lacks spaces.observation"),
        ("narrower", narrower, "allowed by its config.json"),
        ("unknown", unknown, "telepathy is unknown"),
        ("space", {**config, "spaces": {**config["spaces"], "action": {"type": "text"}}}, "action.type is 'text'"),
    ):
        _broken(tmp_path / name, json.dumps(broken), weights, said, resealed)
    _broken(
        tmp_path / "cut",
        json.dumps(config)[:100],
        weights,
        "a folder with a readable config.json of relic-jax",
        resealed,
    )
    for name, content in (("half", weights[: len(weights) // 2]), ("empty", b""), ("text", b"hello, this is no file")):
        _broken(tmp_path / name, json.dumps(config), content, "a whole safetensors file", resealed)
    with pytest.raises(ConfigError, match="no such folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no complete checkpoint in it"):
        load_policy(tmp_path)


def _broken(folder, config, weights, said, resealed):
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights)
    resealed(folder)
    with pytest.raises(ConfigError, match=said) as error:
        load_policy(folder)
    assert "\n" not in str(error.value)


def test_truncated_programs_are_one_line(exported, tmp_path, resealed):
    shutil.copytree(exported("stablehlo")[1], tmp_path / "out")
    program = tmp_path / "out" / "policy.stablehlo"
    program.write_bytes(program.read_bytes()[:1000])
    resealed(tmp_path / "out")
    with pytest.raises(ConfigError, match="a whole file of this or an older jax") as error:
        runtime.load(tmp_path / "out")
    assert "\n" not in str(error.value)
    program.unlink()
    resealed(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"one with a policy.stablehlo or a policy.onnx"):
        runtime.load(tmp_path / "out")
    with pytest.raises(ConfigError, match="capacity is 100; allowed: 80"):
        runtime.Agent(
            {
                "spaces": {"action": {"type": "discrete"}},
                "step": {"memory": [{"name": "keys.0", "shape": ["context"]}]},
            },
            None,
            batch=1,
            capacity=100,
            full="drop",
            seed=0,
            greedy=True,
            slots=80,
        )


def test_runs_and_checkpoints_load_without_their_environment(begun_run, monkeypatch):
    from relic_jax import checkpoint
    from relic_jax.envs import registry

    monkeypatch.setattr(registry, "make", lambda *_: pytest.fail("the environment was asked for"))
    newest = checkpoint.find(begun_run)
    assert same(load_policy(begun_run), load_policy(newest))
    assert load_policy(begun_run).training["run"] == "begun"
    action = relic_jax.load_policy(begun_run).agent(seed=1).step(np.zeros(2, np.float32))
    assert 0 <= action < 5


def test_checkpoints_of_before_spaces_were_saved_ask_the_environment(begun_run, tmp_path, resealed):
    from relic_jax import checkpoint
    from relic_jax.experiments.run import spaces_of_config

    shutil.copytree(checkpoint.find(begun_run), tmp_path / "0")
    meta = json.loads((tmp_path / "0" / "meta.json").read_text())
    spaces = meta.pop("spaces")
    (tmp_path / "0" / "meta.json").write_text(json.dumps(meta))
    resealed(tmp_path / "0")
    with pytest.raises(ConfigError, match=r"spaces is missing .*; allowed: .*spaces_of="):
        load_policy(tmp_path / "0")
    loaded = load_policy(tmp_path / "0", spaces_of=spaces_of_config)
    assert spaces_to_json(loaded.spaces) == spaces and same(loaded, load_policy(begun_run))


@pytest.mark.parametrize("env", ["darkroom-dpt", "pointmass-goal", "house-objnav-small", "miniworld-tmaze"])
def test_spaces_come_back_from_json(env):
    """This includes early files without a mark for images, in which arrays of rank 3 are images."""
    spaces = spaces_of(make(env))
    data = json.loads(json.dumps(spaces_to_json(spaces)))
    old = json.loads(json.dumps(data).replace(', "image": true', "").replace(', "image": false', ""))
    assert old != data
    for again in spaces_from_json(data), spaces_from_json(old):
        assert again.action_space == spaces.action_space and again.horizon == spaces.horizon
        assert again.observation == spaces.observation
        assert (again.low, again.high) == (spaces.low, spaces.high)


def test_an_array_of_rank_3_need_not_be_an_image():
    spaces = Spaces(jax.ShapeDtypeStruct((2, 2, 3), jnp.bool_), (0.0,) * 12, (1.0,) * 12, Discrete(2), 5)
    data = spaces_to_json(spaces)
    assert spaces_from_json(data).observation == spaces.observation
    for shape, image in (([2, 3], True), ([2, 2, 3], "yes"), ([2, 2, 3], None)):
        broken = {**data, "observation": {"shape": shape, "dtype": "uint8", "image": image}}
        with pytest.raises(ConfigError, match=r"image is .*; allowed: true for rank 3, or false"):
            spaces_from_json(broken)


def test_the_card_names_the_method_the_options_of_the_environment_and_the_searchers(build):
    curve = Curve(*[[1.0] * 6] * 3)
    agents = {
        name: AgentCurves(curve, curve, {"steps": Curve(*[[steps] * 6] * 3)})
        for name, steps in {FORGETFUL: 15.0, REMEMBERING: 5.0}.items()
    }
    report = Report("gridobj-9", "test", "abc", 3, 1, {"random": 0.0, "optimal": 1.0}, curve, curve, 6)
    about = {"env_options": Options(asked=2), "metrics": {"steps": Curve(*[[10.0] * 6] * 3)}}
    report = dataclasses.replace(report, reference_agents=agents, **about)

    def written(updates, sink="kv"):
        policy, env = build(sink=sink), EnvConfig("gridobj-9", options=Options(asked=2))
        trial = dataclasses.replace(policy.config.trial, updates=updates)
        config = dataclasses.replace(policy.config, trial=trial, env=env)
        loaded = dataclasses.replace(policy, config=config, evaluation=report)
        content = export.describe(loaded, policy.params, "safetensors", "float32", 80, None)
        check = json.loads((pretrained_path("gridobj-9") / "verification.json").read_text())
        return json.loads(json.dumps(content)), card.model_card("name", loaded, content, check, False, "")

    content, text = written(updates=4)
    assert Report.from_json(content["evaluation"]) == report
    assert "learning with partial updates and Sink-KV attention (ReLIC" in text and "`gridobj-9`, asked 2; " in text
    assert "\n- forgetful searcher: steps 15.00 in episode 1, 15.00 in episodes 2–6\n" in text
    assert "\n- policy: steps 10.00 in episodes 6–6, normalized score 50%" in text
    assert "learning with Sink-KV attention (ReLIC" in written(updates=1)[1]
    assert "by reinforcement learning.\n" in written(updates=1, sink="none")[1]


@pytest.mark.slow
def test_the_command_line(cli, begun_run, tmp_path):
    out = tmp_path / "out"
    code, said, err = cli("export", begun_run, "--to", out)
    assert code == 0, err
    assert "verified: 200 steps" in said and "largest difference 0 " in said
    text = (out / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: relic-jax\n") and "not evaluated" in text and "# begun" in text
    assert json.loads((out / "verification.json").read_text())["episode_ends"] > 5
    code, said, err = cli("play", out, "--episodes", 2, "--out", tmp_path / "play.gif")
    assert code == 0 and (tmp_path / "play.gif").is_file()
    for arguments, told in (
        (["export", begun_run], "to is missing; allowed: a new folder"),
        (["export", "--to", out], "paths is empty; allowed: a run, checkpoint or exported folder"),
        (["export", tmp_path / "nowhere", "--to", out], "nowhere"),
        (["export", begun_run, "--to", begun_run], "which has other content"),
        (["evaluate", "--pretrained", "darkroom-x"], "pretrained is 'darkroom-x'; allowed: 'darkroom-dpt'"),
        (["play", out, "--pretrained", "darkroom-dpt"], "pretrained is 'darkroom-dpt'; allowed: None where paths"),
    ):
        code, said, err = cli(*arguments)
        assert code == 2 and said == "" and err.count("\n") == 1 and told in err


def test_the_shipped_policy_learns_in_context(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("evaluate", "--pretrained", "darkroom-dpt", "--episodes", 3, "--limit", 4)
    assert code == 0, err
    summary = json.loads((tmp_path / "evaluate-darkroom-dpt-test-3-episodes-first-4-tasks.json").read_text())
    first, _, last = summary["return"]["mean"]
    assert last > first + 20 and summary["checkpoints"] == ["pretrained darkroom-dpt"]


@pytest.mark.slow
def test_the_shipped_policy_recalls(cli, tmp_path, monkeypatch):
    """Later episodes take about half as long as those of the searcher that forgets the trial, which needs 15 steps."""
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("evaluate", "--pretrained", "gridobj-9", "--episodes", 12, "--limit", 40)
    assert code == 0, err
    summary = json.loads((tmp_path / "evaluate-gridobj-9-test-12-episodes-first-40-tasks.json").read_text())
    steps = summary["metrics"]["steps"]["mean"]
    assert steps[0] > 14 and sum(steps[7:]) / 5 < 8


@pytest.mark.slow
def test_the_shipped_policy_remembers_houses(cli, tmp_path, monkeypatch):
    """Later episodes take longer if attention reads the current episode only."""
    monkeypatch.chdir(tmp_path)
    later = {}
    for limit in ((), ("--context-limit", 0)):
        code, _, err = cli("evaluate", "--pretrained", "house-symbols-small", "--limit", 50, *limit, "--out", "found")
        assert code == 0, err
        later[limit] = np.mean(json.loads((tmp_path / "found.json").read_text())["metrics"]["steps"]["mean"][4:])
    assert later[()] < 45 and later["--context-limit", 0] > later[()]


@pytest.mark.parametrize("name", pretrained_names())
def test_included_policies_are_small_and_name_their_origin(name):
    folder = pretrained_path(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    loaded = pretrained(name)
    assert loaded.training["preset"] == name and loaded.config.seed == 0
    assert "not the best one" in (folder / "README.md").read_text()


def test_a_weight_that_a_narrow_format_cannot_hold_is_refused():
    params = {"head": {"kernel": jnp.asarray([1.0, 1e5])}}
    assert weights.rounded(params, "bfloat16")["head"]["kernel"][1] > 9e4
    with pytest.raises(ConfigError, match=r"dtype is 'float16'; allowed: .*head/kernel is not finite"):
        weights.rounded(params, "float16")


def test_statistics_of_observations_are_exact_in_a_narrow_format(tmp_path):
    """Their count exceeds the range of float16 after 65,520 observations."""
    statistics = {"count": jnp.asarray(3e6), "mean": jnp.asarray([0.1]), "variance": jnp.asarray([1e-7])}
    params = {"encoder": {"statistics": statistics, "linear": jnp.asarray([0.1])}, "head": jnp.asarray([1.0])}
    found = weights.rounded(params, "float16")
    assert all(found["encoder"]["statistics"][name] == x for name, x in statistics.items())
    assert found["encoder"]["linear"] != params["encoder"]["linear"] and found["head"] == 1.0
    weights.write(tmp_path / "model.safetensors", found, "float16", {})
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["encoder/statistics/count"].shape == () and stored["encoder/statistics/count"] == 3e6
    assert stored["encoder/statistics/variance"].dtype == np.float32 and stored["head"].dtype == np.float16


def test_names_of_actions_and_observations_are_in_the_card_and_come_back():
    from relic_jax.envs.registry import make
    from relic_jax.export.card import _spaces

    about = spaces_to_json(spaces_of(make("darkroom-dpt")))
    back = spaces_from_json(json.loads(json.dumps(about)))
    assert back.action_names == ("right", "left", "up", "down", "stay") and back.observation_names == ("x", "y")
    text = _spaces({"spaces": about | {"action_repeat": 1, "show_last_reward": False}})
    assert "(0 right, 1 left, 2 up, 3 down, 4 stay)" in text and "float32 [2] (0 x, 1 y)" in text
    with pytest.raises(ConfigError, match="action_names is 3; allowed: a list of names"):
        spaces_from_json(about | {"action_names": 3})
    nameless = spaces_to_json(spaces_of(make("probe-bandit")))
    assert "action_names" not in nameless and spaces_from_json(nameless).action_names is None
