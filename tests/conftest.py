"""Fixtures of all tests: one compilation cache, a tiny config, a run folder and the command line in this process."""

import gc
import os
import shutil
import sys
import tempfile

import pytest

from relic_jax.experiments.fast_compilation import compile_fast

# Tests and the processes that they start share compiled programs. Set before jax is imported.
_OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="relic-jax-test-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# The key that signs runs (relic_jax.trust) is the tests' own, not that of the user who runs them.
_OWN_CONFIG = "PYTEST_XDIST_WORKER" not in os.environ
if _OWN_CONFIG:
    os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="relic-jax-test-")
# Compilation dominates the time of the tests. XLA_FLAGS="" compiles as for users.
compile_fast()

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)  # tests of several devices run on any machine


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Drop compiled programs after each module: they add up to gigabytes that every garbage collection visits."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_collection_finish():
    """Collect garbage less often, and never visit what was imported: tracing allocates millions of small objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=6, help="workers that are killed at random during training")


@pytest.fixture
def kills(request):
    return request.config.getoption("--kills")


def pytest_unconfigure():
    if _OWN_CACHE and "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    if _OWN_CONFIG:
        shutil.rmtree(os.environ["XDG_CONFIG_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny():
    """Return `tiny(chunk=..., **fields)`, a config of two trials of four updates, 64 environment steps each."""
    from relic_jax.experiments.faults.small import small_config

    return small_config


@pytest.fixture(scope="session")
def drawn():
    """Return `drawn(policy)`: random parameters in which every leaf, such as sinks and statistics, has an effect."""
    import jax.numpy as jnp
    import numpy as np

    def draw(policy):
        random = np.random.default_rng(0)

        def one(x):
            if x.ndim < 2:  # biases, scales and statistics, some of which must be positive
                return jnp.asarray(random.uniform(0.1, 0.6, x.shape), x.dtype)
            return jnp.asarray(random.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1])), x.dtype)

        return jax.tree.map(one, jax.eval_shape(policy.init, jax.random.key(0)))

    return draw


@pytest.fixture(scope="module")
def compile_once():
    """Share compiled chunks of training between the runs of a module whose programs are equal."""
    from shared_programs import cached

    from relic_jax.rl import runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "compile_chunk", cached(runner.compile_chunk))
        yield


@pytest.fixture(scope="module")
def begun_run(tiny, tmp_path_factory):
    """Return a run folder with one checkpoint, from before the first update."""
    from relic_jax.envs.registry import make
    from relic_jax.experiments import folders
    from relic_jax.rl.train import prepare, restore, save

    folder = tmp_path_factory.mktemp("runs") / "begun"
    setup = prepare(tiny(env="darkroom-ad-9"), make("darkroom-ad-9"))
    folders.create_folder(folder, setup.config)
    save(setup, folder / "checkpoints", *restore(setup, folder / "checkpoints"))
    return folder


@pytest.fixture(scope="session")
def resealed():
    """Return `resealed(folder)`, which writes the checksums of the present files of an export or a checkpoint."""
    from relic_jax.files import write_checksums

    return write_checksums


@pytest.fixture
def cli(capsys, monkeypatch):
    """Return `cli(*arguments)`, which runs the console script in this process: (exit code, stdout, stderr)."""
    from relic_jax.experiments.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["relic-jax", *map(str, arguments)])
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main replaces it when it fails
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
