"""Files with legacy names of parameters: runs resume, exports act, and saved contexts are restored.

`tests/data/parameters-1.tar.xz` holds files in earlier formats, written by a policy with spatial attention: a run of
`Signs` after one update, an export of its policy in float16, a context that was saved after 4 steps, and an encoder.
`expected.json` holds the metrics of the next three updates, and the actions and outputs of 8 steps.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from relic_jax import checkpoint
from relic_jax.export import export_policy
from relic_jax.interop.encoders import read_encoder
from relic_jax.interop.files import read
from relic_jax.loading import load_policy
from relic_jax.parameters import LEGACY_NAMES, fingerprint, named_parameters
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.train import prepare, records, restore, save
from relic_jax.runtime import read_safetensors
from tests.support.signs import Signs

NEW = "spatial_attention"
OLD = LEGACY_NAMES[NEW]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the folder of the files."""
    archive = Path(__file__).parent / "data" / "parameters-1.tar.xz"
    folder = tmp_path_factory.mktemp("earlier")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(files):
    return json.loads((files / "expected.json").read_text())


@pytest.fixture(scope="module")
def setup(files):
    return prepare(checkpoint.load_meta(checkpoint.find(files / "run"))[0], Signs(), resume=True)


def test_every_parameter_and_moment_of_a_checkpoint_is_restored(files, setup):
    state, progress = restore(setup, files / "run" / "checkpoints")
    stored = ocp.load_checkpointables(checkpoint.find(files / "run") / "arrays")
    adam, moments = state.opt_state[1], stored["rest"]["opt_state"][1]
    assert progress.env_steps == 8
    for found, old in ((state.params, stored["params"]), (adam.mu, moments["mu"]), (adam.nu, moments["nu"])):
        assert OLD not in found and NEW not in old
        old = {NEW if name == OLD else name: x for name, x in old.items()}
        assert np.any(old[NEW]["mix"]["kernel"])
        jax.tree.map(np.testing.assert_array_equal, found, old)


def test_a_run_continues_and_writes_current_names(files, setup, expected, tmp_path):
    state, progress = restore(setup, files / "run" / "checkpoints")
    chunk, lines = compile_chunk(setup), []
    for _ in range(3):
        state, metrics = chunk(state)
        lines += records(setup.config, progress.env_steps, jax.device_get(metrics))
        progress.env_steps = lines[-1]["env_steps"]
    for line, same in zip(lines, expected["metrics"], strict=True):
        assert line.keys() == same.keys()
        np.testing.assert_allclose(list(line.values()), list(same.values()), rtol=1e-4, atol=1e-6)
    save(setup, tmp_path / "checkpoints", state, progress)
    path = checkpoint.find(tmp_path)
    assert json.loads((path / "meta.json").read_text())["format"] == "relic-jax-checkpoint-3"
    stored = ocp.load_checkpointables(path / "arrays")
    for params in (stored["params"], stored["rest"]["opt_state"][1]["mu"], stored["rest"]["opt_state"][1]["nu"]):
        assert NEW in params and OLD not in params
    again, _ = restore(setup, tmp_path / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, again.opt_state, state.opt_state)


def act(agent, expected, start):
    for t in range(start, len(expected)):
        observation = np.random.default_rng(t).integers(0, 256, (2, 2, 1)).astype(np.uint8)
        action = agent.step(observation, reward=float(t % 3 == 0), terminated=t > 0 and t % 2 == 0)
        assert action == expected[t]["action"]
        for name in ("value", "logits"):
            np.testing.assert_allclose(agent.outputs[name][0], expected[t][name], rtol=1e-5, atol=1e-6)


def orbax_export(files, folder):
    """Return an export of the run's parameters with `--format orbax`, as it was written with the legacy names."""
    shutil.copytree(checkpoint.find(files / "run") / "arrays", folder / "arrays")
    shutil.rmtree(folder / "arrays" / "rest")
    about = json.loads((files / "export" / "config.json").read_text())
    del about["checksums"]
    (folder / "config.json").write_text(json.dumps({**about, "artefact": "arrays"}))
    return folder


def test_an_export_acts_and_continues_with_a_saved_context(files, expected):
    policy = load_policy(files / "export")
    about = json.loads((files / "export" / "config.json").read_text())
    assert about["format"] == "relic-jax-policy-1" and about["weights"]["fingerprint"] == fingerprint(policy.params)
    act(policy.agent(capacity=16, seed=3), expected["steps"], 0)
    agent = policy.agent(capacity=16, seed=3)
    agent.restore(files / "context.safetensors")
    act(agent, expected["steps"], 4)


def test_every_file_holds_the_same_parameters(files, tmp_path):
    params = load_policy(files / "run").params
    found = load_policy(orbax_export(files, tmp_path)).params
    jax.tree.map(np.testing.assert_array_equal, found, params)
    found = load_policy(files / "export").params
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.float32(np.float16(y))), found, params)
    arrays = read(files / "encoder.safetensors", "file").arrays
    encoder = read_encoder("cells", arrays, params["encoder"]["image_0"], "file")
    jax.tree.map(np.testing.assert_array_equal, encoder, params["encoder"]["image_0"])


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_a_new_export_has_current_names(files, format, tmp_path):
    policy = load_policy(files / "run")
    export_policy(policy, tmp_path / "export", format=format)
    assert json.loads((tmp_path / "export" / "config.json").read_text())["format"] == "relic-jax-policy-2"
    found = load_policy(tmp_path / "export").params
    jax.tree.map(np.testing.assert_array_equal, found, policy.params)
    if format == "safetensors":
        arrays, _ = read_safetensors(tmp_path / "export" / "model.safetensors", "weights")
        assert sorted(arrays) == sorted(named_parameters(policy.params)) and f"{NEW}/mix/kernel" in arrays
