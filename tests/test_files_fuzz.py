"""Edited and damaged files are used, or refused with a one-line error that names the place."""

import contextlib
import copy
import json
import os
import shutil
import time

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from relic_jax import checkpoint, runtime
from relic_jax.bridge.worker import SetupError
from relic_jax.config import ConfigError
from relic_jax.envs import gym
from relic_jax.envs.habitat import dataset, receptacles
from relic_jax.experiments import folders, import_llamarl
from relic_jax.experiments.plots import read_report
from relic_jax.export import export_policy
from relic_jax.interop import files
from relic_jax.loading import is_export, load_policy
from relic_jax.runtime import CONTEXT_FORMAT
from relic_jax.runtime.context import context_checksum
from relic_jax.validation import MAX_LAYERS

pytestmark = pytest.mark.slow

SLOW = 240.0  # seconds, enough on a busy machine; more means a hang
ODD = (
    *(0, -1, 1, 2, 7, 2**31, 2**63, 2**64, 10**30, 1.5, -0.5, 1e38, 1e300, 1e-320, float("nan"), float("inf")),
    *(True, False, None, "", "x", "1", "nan", "../../x", "a\nb", "\x00", "\ud800", "batch", "float32", "object"),
    *([], {}, [1], [[]], ["x"], {"x": 1}, {"shape": [1], "dtype": "float32"}, [None], [1e300], [2**40, 2**40]),
)
RAW = ('{"a": 1, "a": 2}', "[" * 5000 + "]" * 5000, "1e400", "-1e999", "1" * 5000, "NaN", '"\\ud800"', "tru", "")


def places(value, way=()):
    """Yield the path to every value in a JSON value."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*way, key))


class Raw:
    """Text that is written to a JSON file without quotes."""

    def __init__(self, text):
        self.text = text


def written(value):
    """Return JSON text, with NaN and infinities as Python writes them."""
    texts = []

    def marked(x):
        if isinstance(x, Raw):
            texts.append(x.text)
            return f"@raw{len(texts) - 1}@"
        if isinstance(x, dict):
            return {key: marked(item) for key, item in x.items()}
        return [marked(item) for item in x] if isinstance(x, list) else x

    text = json.dumps(marked(value), indent=1)
    for index, raw in enumerate(texts):
        text = text.replace(f'"@raw{index}@"', raw)
    return text


def changed(value, way, new):
    """Return a copy with the value at `way` replaced. `...` removes it."""
    if not way:
        return {} if new is ... else new
    value = copy.deepcopy(value)
    place = value
    for key in way[:-1]:
        place = place[key]
    if new is ...:
        del place[way[-1]]
    else:
        place[way[-1]] = new
    return value


def mutations(original):
    """Return a strategy for JSON texts with one or two values replaced or removed, or with invalid syntax."""
    found = sorted(places(original), key=str)
    new = st.one_of(st.sampled_from(ODD), st.just(...), st.sampled_from(RAW).map(Raw))

    def apply(edits):
        value = original
        for way, replacement in edits:
            with contextlib.suppress(KeyError, IndexError, TypeError):  # the first edit removed the place
                value = changed(value, way, replacement)
        return written(value)

    return st.lists(st.tuples(st.sampled_from(found), new), min_size=1, max_size=2).map(apply)


def one_line(action):
    """Run a function and return the message of its ConfigError, or None. Other errors fail the test."""
    start = time.monotonic()
    try:
        action()
    except ConfigError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 5000
        return str(error)
    finally:
        assert time.monotonic() - start < SLOW
    return None


FUZZ = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture(scope="module")
def policy(begun_run):
    return load_policy(begun_run)


@pytest.fixture(scope="module")
def exported(policy, tmp_path_factory):
    """Return an export to edit, without checksums, which would detect every edit."""
    folder = tmp_path_factory.mktemp("exports") / "out"
    export_policy(policy, folder)
    about = json.loads((folder / "config.json").read_text())
    del about["checksums"]
    summary = {part: {"mean": [1.0, 2.0], "low": [0.5, 1.0], "high": [2.0, 3.0]} for part in ("return", "success")}
    summary |= {"env": "darkroom-ad-9", "split": "test", "split_hash": "h", "tasks": 3, "episodes": 2, "repeats": 1}
    summary |= {"seeds": 1, "expert_episodes": 0, "reference_returns": {"random": 0.5, "optimal": None}}
    about["evaluation"] = summary
    (folder / "checksums.json").unlink()
    return folder, about


def used(policy):
    """Use a policy as users do: describe it and act with its agent."""
    from relic_jax.export import card, describe

    about = describe(policy, policy.params, "safetensors", "float32", 100, None)
    check = {"steps": 1, "batch": 1, "episode_ends": 1, "largest_difference": 0.0, "largest_scaled_difference": 0.0}
    json.dumps(about), card.model_card("name", policy, about, check, False, "")
    policy.agent(capacity=4)


def test_the_config_of_an_export(exported):
    folder, about = exported
    (folder / "config.json").write_text(json.dumps(about))
    used(load_policy(folder))
    refused = set()

    @FUZZ
    @given(text=mutations(about))
    def check(text):
        (folder / "config.json").write_text(text, errors="surrogatepass")
        message = one_line(lambda: used(load_policy(folder)))
        assert message is None or str(folder) in message or "capacity" in message
        refused.add(message is not None)

    check()
    assert refused == {True, False}


KINDS = [
    (("spaces", "horizon"), "spaces.horizon"), (("spaces", "low"), "spaces.low"),
    (("spaces", "high", 0), "spaces.high"), (("spaces", "action", "n"), "action.n"), (("spaces", "action"), "action"),
    (("spaces", "observation"), "observation"), (("spaces", "observation", "shape"), "observation.shape"),
    (("spaces", "observation", "dtype"), "observation.dtype"),
    (("step", "memory"), "step.memory"), (("step", "context"), "step.context"),
    (("architecture", "transformer", "layers"), "policy.transformer.layers"),
    (("architecture", "transformer", "heads"), "policy.transformer.heads"),
    (("architecture", "transformer", "width"), "policy.transformer.width"),
    (("training", "config", "eval", "episodes"), "eval.episodes"),
    (("training", "config", "trial", "steps"), "trial.steps"), (("training", "config", "env"), "env"),
    (("training", "env_steps"), "training.env_steps"),
    (("training", "config", "host", "workers"), "host.workers"), (("training", "config", "seed"), "seed"),
    (("evaluation", "return"), "evaluation.return"),
    (("evaluation", "reference_returns"), "evaluation.reference_returns"),
]  # fmt: skip


@pytest.mark.parametrize(("way", "field"), KINDS, ids=[field for _, field in KINDS])
def test_edited_configs_of_exports_name_their_field(exported, way, field):
    folder, about = exported
    for new in ("x", -1, 2**63, [[]], {"x": 1}, True):
        if field == "spaces.high" and new == 2**63:
            continue  # such a wide range is allowed
        if (field in ("env", "evaluation.reference_returns") and isinstance(new, str | dict)) or new is ...:
            continue
        (folder / "config.json").write_text(json.dumps(changed(about, way, new)))
        message = one_line(lambda: load_policy(folder))
        assert message is not None and field in message and str(folder) in message, (new, message)


def test_many_layers_are_refused_in_time(exported):
    folder, about = exported
    (folder / "config.json").write_text(
        json.dumps(changed(about, ("architecture", "transformer", "layers"), MAX_LAYERS))
    )
    assert one_line(lambda: load_policy(folder)) is not None


def test_the_stand_alone_runner_reads_configs_as_strictly(exported, monkeypatch):
    folder, about = exported
    (folder / "policy.onnx").write_bytes(b"")
    monkeypatch.setattr(runtime.exports, "Onnx", lambda path, about: Empty(about))

    @FUZZ
    @given(text=mutations({name: about[name] for name in ("format", "spaces", "step", "weights")}))
    def check(text):
        (folder / "config.json").write_text(text, errors="surrogatepass")
        one_line(lambda: runtime.load(folder, batch=2))

    try:
        check()
        (folder / "config.json").write_text(json.dumps(changed(about, ("step", "context"), 2**31 - 1)))
        assert "MiB of memory" in one_line(lambda: runtime.load(folder, batch=2**20))
    finally:
        (folder / "policy.onnx").unlink()


class Empty:
    """A backend without a program."""

    def __init__(self, about):
        self.about = about

    def empty(self, batch, slots):
        return runtime.empty_arrays(self.about, batch, min(slots, 8))


@pytest.fixture(scope="module")
def run_copy(begun_run, tmp_path_factory):
    """Return a run whose checkpoint has no checksums, as in format 1."""
    folder = shutil.copytree(begun_run, tmp_path_factory.mktemp("runs") / "run")
    saved = checkpoint.find(folder)
    (saved / "checksums.json").unlink()
    meta = json.loads((saved / "meta.json").read_text()) | {"format": "relic-jax-checkpoint-1"}
    (saved / "meta.json").write_text(json.dumps(meta))
    return folder, meta


def test_the_meta_of_a_checkpoint(run_copy):
    folder, meta = run_copy
    saved = checkpoint.find(folder)
    one_line(lambda: used(load_policy(folder)))

    @FUZZ
    @given(text=mutations(meta))
    def check(text):
        (saved / "meta.json").write_text(text, errors="surrogatepass")

        def read():
            checkpoint.verify(saved)
            config, counters = checkpoint.load_meta(saved)
            assert isinstance(counters["env_steps"], int)
            checkpoint.load_owner(saved)
            used(load_policy(folder))
            return config

        message = one_line(read)
        assert message is None or str(saved) in message or "capacity" in message

    try:
        check()
    finally:
        (saved / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("name", ["origin.json", "curve.json"])
def test_what_else_lies_in_a_run_never_keeps_its_policy_from_loading(run_copy, exported, name):
    folder, _ = run_copy
    (folder / "curve.json").write_text("{}")
    about = {**exported[1]["evaluation"], "checkpoints": [str(checkpoint.find(folder))]}
    original = json.loads((folder / "origin.json").read_text()) if name == "origin.json" else about

    @FUZZ
    @given(text=mutations(original))
    def check(text):
        (folder / name).write_text(text, errors="surrogatepass")
        assert one_line(lambda: used(load_policy(folder))) is None
        folders.is_own(folder, checkpoint.load_meta(checkpoint.find(folder))[0])

    check()
    (folder / name).write_text(json.dumps(original))


def test_the_config_of_a_run(run_copy):
    folder, _ = run_copy
    original = json.loads((folder / "config.json").read_text())

    @FUZZ
    @given(text=mutations(original))
    def check(text):
        (folder / "config.json").write_text(text, errors="surrogatepass")
        one_line(lambda: folders.read_config(folder))
        assert is_export(folder) is False  # the run has checkpoints

    check()
    (folder / "config.json").write_text(json.dumps(original))


def test_curves_to_be_drawn(tmp_path, exported):
    from relic_jax.plotting import curves_figure

    @FUZZ
    @given(text=mutations(exported[1]["evaluation"]))
    def check(text):
        (tmp_path / "curve.json").write_text(text, errors="surrogatepass")

        def draw():
            curves_figure([read_report(tmp_path / "curve.json")], ["name"])

        one_line(draw)

    check()


# --- safetensors ---


def header_of(data):
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(text, body):
    raw = text.encode(errors="surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + body


def test_headers_of_weights(exported):
    folder, about = exported
    (folder / "config.json").write_text(json.dumps(about))
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    header, body = header_of(data)

    @FUZZ
    @given(text=mutations(header))
    def check(text):
        weights.write_bytes(with_header(text, body))
        one_line(lambda: load_policy(folder))
        one_line(lambda: files.read(weights, "checkpoint"))

    try:
        check()
        for size in (0, 1, 2**62, 2**64 - 1, 100_000_001):
            weights.write_bytes(size.to_bytes(8, "little") + data[8:])
            assert one_line(lambda: load_policy(folder)) is not None
        for name, array in header.items():
            if name != "__metadata__":
                weights.write_bytes(with_header(json.dumps({**header, name: {**array, "dtype": "I32"}}), body))
                assert one_line(lambda: load_policy(folder)) is not None
                break
    finally:
        weights.write_bytes(data)


def test_what_an_import_kept(tmp_path):
    kept = tmp_path / import_llamarl.KEPT
    files.write(kept, {"x": np.zeros(3, np.float32)}, {"dtypes": {"x": "float16"}, "config": {"heads": 2}})
    data = kept.read_bytes()
    header, body = header_of(data)
    inner = json.loads(header["__metadata__"]["relic_jax"])

    @FUZZ
    @given(text=mutations(inner))
    def check(text):
        metadata = {"relic_jax": text.encode(errors="replace").decode()}
        kept.write_bytes(with_header(json.dumps({**header, "__metadata__": metadata}), body))
        one_line(lambda: import_llamarl.read_kept(kept))

    check()


# --- the context of an agent ---


@pytest.fixture(scope="module")
def context(policy, tmp_path_factory):
    """Return (agent that loads contexts, file, the metadata of the file, its arrays)."""
    agent = policy.agent(batch=2, capacity=12)
    for step in range(9):
        agent.step(np.full((2, 2), step % 9, np.float32), 0.5, step == 4)
    file = tmp_path_factory.mktemp("contexts") / "context.safetensors"
    agent.save(file)
    with safe_open(file, framework="np") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        meta = json.loads(opened.metadata()["relic_jax"])
    return policy.agent(batch=2, capacity=12), file, meta, arrays


def sealed(meta, arrays):
    """Write a context file with a valid checksum, as someone who edits it could."""
    meta = {**meta, "sha256": context_checksum(meta, arrays)}
    return save(arrays, {"relic_jax": json.dumps(meta)})


def goes_on(agent, file):
    agent.restore(file)
    for step in range(6):  # long enough to drop episodes
        agent.step(np.zeros((2, 2), np.float32), 0.0, step == 3)


def test_one_byte_of_a_context(context):
    agent, file, _, _ = context
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    goes_on(agent, file)
    for index in [*range(8), *range(8, 8 + size, 97), *range(8 + size, len(data), 131), len(data) - 1]:
        file.write_bytes(data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :])
        assert "context" in one_line(lambda: agent.restore(file)), index
    file.write_bytes(data)
    goes_on(agent, file)


def test_what_a_context_says_of_itself(context):
    agent, file, meta, arrays = context
    data = file.read_bytes()

    @FUZZ
    @given(text=mutations(meta))
    def check(text):
        file.write_bytes(save(arrays, {"relic_jax": text.encode(errors="replace").decode()}))
        one_line(lambda: goes_on(agent, file))
        try:
            value = json.loads(text)
            content = sealed(value, arrays)
        except (ValueError, TypeError, RecursionError):
            return
        file.write_bytes(content)
        one_line(lambda: goes_on(agent, file))

    try:
        check()
    finally:
        file.write_bytes(data)


def test_arrays_of_a_context(context):
    agent, file, meta, arrays = context
    data, numbers = file.read_bytes(), st.sampled_from([-1, -(2**31), 0, 1, 5, 8, 9, 12, 100, 2**31 - 1, 2**62])

    def edited(name, kind, number):
        x = arrays[name]
        if kind == "gone":
            return {key: value for key, value in arrays.items() if key != name}
        if kind == "short":
            x = x[..., :-1] if x.ndim else x
        elif kind == "wide":
            x = np.repeat(x, 2, axis=-1)
        elif kind == "flat":
            x = x.reshape(-1)
        elif kind == "type":
            x = x.astype(np.int8 if x.dtype.kind == "f" else np.float64)
        elif x.dtype.kind == "f":
            x = np.full_like(x, {"number": np.float32(number), "nan": np.nan, "inf": np.inf}[kind])
        else:
            x = np.full_like(x, number % 2 if x.dtype == bool else np.array(number).astype(x.dtype))
        return {**arrays, name: np.ascontiguousarray(x)}

    kinds = st.sampled_from(["gone", "short", "wide", "flat", "type", "number", "nan", "inf"])
    results = set()

    @FUZZ
    @given(name=st.sampled_from(sorted(arrays)), kind=kinds, number=numbers)
    def check(name, kind, number):
        file.write_bytes(sealed(meta, edited(name, kind, number)))
        message = one_line(lambda: goes_on(agent, file))
        results.add(message is None)
        if kind in ("gone", "nan", "inf") and name.split(".")[0] == "context" and arrays[name].dtype.kind == "f":
            assert message is not None

    try:
        check()
    finally:
        file.write_bytes(data)
    assert results == {True, False}


# --- data sets ---


def refused_setup(action):
    """Do the same as `one_line` for files that workers read."""
    try:
        return one_line(action)
    except SetupError as error:
        assert "\n" not in str(error)
        return str(error)


def test_tasks_of_gym(tmp_path):
    original = {"train": [{"seed": 1, "options": {"x": 1}}, {"arguments": {"gravity": 9}}], "test": [{"seed": 2}]}
    file = tmp_path / "tasks.json"

    @FUZZ
    @given(text=mutations(original))
    def check(text):
        file.write_text(text, errors="surrogatepass")
        message = one_line(lambda: gym.read_tasks(str(file)))
        assert message is None or "env.dataset" in message

    check()


def test_episodes_of_object_navigation(tmp_path):
    thing = {"category": "mug", "position": [0.5, 0.25, 1.0], "template": "mug"}
    task = {"scene": "house-0", "objects": [thing]}
    original = {"format": dataset.FORMAT, "backend": "soft", "scene_dataset": "default", "categories": ["mug"]}
    original |= {"train": [task], "test": [{**task, "scene": "house-1"}]}
    file = tmp_path / "episodes.json"

    def make():
        from relic_jax.config import EnvConfig, WorkerConfig
        from relic_jax.envs.habitat.env import make

        env = make(EnvConfig("extobjnav", options={"dataset": str(file)}), WorkerConfig())
        jax.tree.map(np.shape, (env.tasks("train"), env.tasks("test"), env.observation_spec))

    file.write_text(json.dumps(original))
    make()

    @FUZZ
    @given(text=mutations(original))
    def check(text):
        file.write_text(text, errors="surrogatepass")
        message = one_line(make)
        assert message is None or "env." in message

    check()


def test_receptacles(tmp_path):
    original = {"scene": {"receptacle_table": {"position": [0, 1, 2], "scale": [1, 0, 1]}, "other": 3}}
    file = tmp_path / "receptacles.json"

    @FUZZ
    @given(text=mutations(original))
    def check(text):
        file.write_text(text, errors="surrogatepass")
        refused_setup(lambda: receptacles.read(str(file)))

    check()


def test_configs_for_an_import(tmp_path):
    original = {"transformer_config": {"num_attention_heads": 2, "num_hidden_layers": 2}}
    file = tmp_path / "config.json"

    @FUZZ
    @given(text=mutations(original))
    def check(text):
        from relic_jax.interop import policy as llamarl

        file.write_text(text, errors="surrogatepass")
        one_line(lambda: llamarl.transformer_fields(import_llamarl.read_json(file)))

    check()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_named_pipe_is_not_waited_for(exported, tmp_path, name):
    folder = shutil.copytree(exported[0], tmp_path / "out")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert one_line(lambda: load_policy(folder)) is not None


def test_the_checksum_is_of_format_2():
    assert CONTEXT_FORMAT.endswith("-2")
