"""Checkpoints are exact and atomic, and damaged ones are refused with a one-line error."""

import ast
import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import checkpoint
from relic_jax.config import ConfigError
from relic_jax.envs.registry import make
from relic_jax.rl.train import prepare, restore

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup(tiny):
    return prepare(tiny(), make("darkroom-ad-9-random"))


@pytest.fixture(scope="module")
def state(setup):
    """Return a state with distinct arrays and extreme values, without NaN."""
    state, _ = restore(setup, Path("no checkpoints here"))
    rng = np.random.default_rng(0)

    def fill(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        values = rng.normal(size=x.shape).astype(x.dtype)
        return jnp.asarray(np.where(rng.random(x.shape) < 0.1, np.array(-1e-42, x.dtype), values))  # subnormal

    return jax.tree.map(fill, state)


def save(folder, step, state, setup):
    return checkpoint.save(folder, step, state, setup.config, {"env_steps": step, "seconds": 1.5})


def load(path, setup):
    assert checkpoint.complete_steps(path.parent)[-1] == int(path.name)  # `restore` reads the newest
    return restore(setup, path.parent)[0]


def arrays(tree):
    """Return every leaf as (path, dtype, shape, bytes). Equal lists are equal bit for bit."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if typed else leaf)
        found.append((jax.tree_util.keystr(path), str(leaf.dtype), array.shape, array.tobytes()))
    return found


def test_state_comes_back_bit_for_bit_with_its_typed_key(tmp_path, setup, state):
    loaded = load(save(tmp_path, 64, state, setup), setup)
    assert arrays(loaded) == arrays(state)
    assert loaded.key.dtype == jax.random.key(0).dtype
    assert jax.random.bits(loaded.key) == jax.random.bits(state.key)


def test_loading_prints_nothing(tmp_path, setup, state, capfd):
    path = save(tmp_path, 64, state, setup)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, setup)
        checkpoint.load_params(path, jax.eval_shape(setup.policy.init, jax.random.key(0)))
    assert capfd.readouterr() == ("", "")


def test_parameters_can_be_loaded_without_the_rest(tmp_path, setup, state):
    path = save(tmp_path, 64, state, setup)
    shutil.rmtree(path / "arrays" / "rest")
    loaded = checkpoint.load_params(path, jax.eval_shape(setup.policy.init, jax.random.key(0)))
    assert arrays(loaded) == arrays(state.params)


def test_meta_holds_config_and_counters(tmp_path, setup, state):
    config, counters = checkpoint.load_meta(save(tmp_path, 64, state, setup))
    assert config == setup.config and counters == {"env_steps": 64, "seconds": 1.5}


def test_two_are_kept(tmp_path, setup, state):
    for step in (8, 64, 128, 1000):
        save(tmp_path, step, state, setup)
    assert checkpoint.complete_steps(tmp_path) == [128, 1000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1000", "128"]


def test_saving_a_step_again_replaces_it(tmp_path, setup, state):
    save(tmp_path, 64, state.replace(env_steps=state.env_steps + 1), setup)
    assert arrays(load(save(tmp_path, 64, state, setup), setup)) == arrays(state)


class Crash(BaseException):
    """Represents the end of the process."""


@pytest.mark.parametrize("where", ["arrays", "sync", "replace"])
def test_a_crash_before_the_rename_leaves_the_previous_one_and_is_cleaned_up_later(
    tmp_path, setup, state, monkeypatch, where
):
    save(tmp_path, 64, state, setup)

    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patch:
        target, name = {
            "arrays": (Path, "write_text"),  # meta.json is written after the arrays
            "sync": (os, "fsync"),
            "replace": (os, "replace"),
        }[where]
        patch.setattr(target, name, crash)
        with pytest.raises(Crash):
            save(tmp_path, 128, state, setup)
    assert (tmp_path / "128.tmp").is_dir()
    assert checkpoint.complete_steps(tmp_path) == [64]
    assert arrays(load(tmp_path / "64", setup)) == arrays(state)
    save(tmp_path, 192, state, setup)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["192", "64"]


def test_what_is_no_checkpoint_is_ignored(tmp_path, setup, state):
    save(tmp_path, 64, state, setup)
    for name in ("0128", "256.tmp", "notes", "²", "٣", "64.aside"):
        (tmp_path / name).mkdir()
    (tmp_path / "256.tmp" / "meta.json").write_text("{}")
    (tmp_path / "300").write_text("a file")
    assert checkpoint.complete_steps(tmp_path) == [64]
    assert checkpoint.complete_steps(tmp_path / "nowhere") == []


def test_find_takes_a_run_or_a_checkpoint(tmp_path, setup, state):
    path = save(tmp_path / "checkpoints", 64, state, setup)
    assert checkpoint.find(tmp_path) == path == checkpoint.find(path)
    for wrong, reason in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "checkpoints", "no complete checkpoint"),
    ):
        with pytest.raises(ConfigError, match=reason):
            checkpoint.find(wrong)


def refused(action):
    with pytest.raises(ConfigError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("part", ["params", "rest"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "folder deleted"])
def test_damaged_arrays_are_refused_in_one_line(tmp_path, setup, state, capfd, part, damage):
    path = save(tmp_path, 64, state, setup)
    folder = path / "arrays" / part
    if damage == "folder deleted":
        shutil.rmtree(folder)
    else:
        for file in folder.rglob("d/*"):  # the files that hold the numbers
            if damage == "deleted":
                file.unlink()
            else:
                os.truncate(file, file.stat().st_size // 2 if damage == "truncated" else 0)
    message = refused(lambda: load(path, setup))
    assert str(path) in message and "truncated" in message
    assert capfd.readouterr() == ("", "")


def test_every_single_file_of_the_arrays_matters_or_is_not_needed(tmp_path, setup, state):
    """If a file is truncated, the exact state is restored or the checkpoint is refused."""
    path = save(tmp_path, 64, state, setup)
    for file in sorted(p for p in (path / "arrays").rglob("*") if p.is_file() and p.stat().st_size):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        try:
            loaded = load(path, setup)
        except ConfigError:
            pass
        else:
            assert arrays(loaded) == arrays(state), file
        file.write_bytes(content)
    assert arrays(load(path, setup)) == arrays(state)


@pytest.mark.parametrize(
    "content",
    ["", '{"format": "relic', "[]", '"text"', "3", '{"step": 64}', "\ud800", '{"format": "other-checkpoint-7"}'],
)
def test_foreign_or_truncated_meta_is_refused(tmp_path, setup, state, content):
    path = save(tmp_path, 64, state, setup)
    (path / "meta.json").write_bytes(content.encode(errors="surrogatepass"))
    message = refused(lambda: checkpoint.load_meta(path))
    assert str(path) in message and "allowed" in message
    assert ("'other-checkpoint-7'" in message) == ("other" in content)


@pytest.mark.parametrize("change", [{"config": None}, {"config": {"seed": "x"}}, {"config": {"x": 1}}, {"counters": 3}])
def test_meta_with_a_bad_part_is_refused_and_names_the_checkpoint(tmp_path, setup, state, change):
    path = save(tmp_path, 64, state, setup)
    meta = json.loads((path / "meta.json").read_text())
    for broken in (meta | change, {name: value for name, value in meta.items() if name not in change}):
        (path / "meta.json").write_text(json.dumps(broken))
        assert str(path) in refused(lambda: checkpoint.load_meta(path))


@pytest.mark.parametrize("field", ["width", "layers", "mlp_width", "heads"])
def test_arrays_of_another_shape_are_refused(tmp_path, setup, state, field):
    path = save(tmp_path, 64, state, setup)
    transformer = setup.config.policy.transformer
    other = replace(transformer, **{field: 2 * getattr(transformer, field)})
    policy = replace(setup.config.policy, transformer=other)
    other = prepare(replace(setup.config, policy=policy), make("darkroom-ad-9-random"))
    assert str(path) in refused(lambda: load(path, other))


def test_loaded_state_may_be_donated(tmp_path, setup, state):
    path = save(tmp_path, 64, state, setup)
    loaded = load(path, setup)
    out = jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)(loaded)
    assert arrays(out) == arrays(state) == arrays(load(path, setup))


PICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("package", ["relic_jax", "envs", "experiments"])
def test_no_file_imports_a_pickler(package):
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & PICKLERS, file
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", file


def test_only_checkpoint_imports_orbax():
    users = [file for package in ("relic_jax", "envs", "experiments") for file in (ROOT / package).rglob("*.py")]
    users = [file.name for file in users if "import orbax" in file.read_text() or "from orbax" in file.read_text()]
    assert users == ["checkpoint.py"]
