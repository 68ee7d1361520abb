"""Shared by the tests: one compilation cache, a tiny training run, and the command line in this process."""

import os
import shutil
import sys
import tempfile

import pytest

# Compiled programs are shared between tests, and with the processes that tests start. Before jax is imported.
_OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="relic-jax-test-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# The key that marks runs as the user's own, see relic_jax.trust; of the tests, not of who runs them.
_OWN_CONFIG = "PYTEST_XDIST_WORKER" not in os.environ
if _OWN_CONFIG:
    os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="relic-jax-test-")
# Compiling is the cost here, not running: machine code need not be fast. XLA_FLAGS="" compiles as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)  # so that what runs on several devices can be tested on any machine


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=6, help="workers killed at random while training goes on")


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
    """`tiny(chunk=..., **fields)`: a config of two trials of four updates each, 64 environment steps per update."""
    from relic_jax.experiments.faults.small import small_config

    return small_config


@pytest.fixture(scope="session")
def drawn():
    """`drawn(policy)`: parameters that all matter, sinks and statistics included; nothing is compiled for them."""
    import jax.numpy as jnp
    import numpy as np

    def draw(policy):
        random = np.random.default_rng(0)

        def one(x):
            if x.ndim < 2:  # biases, scales and statistics, of which some must not be negative
                return jnp.asarray(random.uniform(0.1, 0.6, x.shape), x.dtype)
            return jnp.asarray(random.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1])), x.dtype)

        return jax.tree.map(one, jax.eval_shape(policy.init, jax.random.key(0)))

    return draw


@pytest.fixture(scope="module")
def begun_run(tiny, tmp_path_factory):
    """A run folder whose one checkpoint is that of a run that has just begun."""
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
    """`resealed(folder)`: writes the checksums of an export or a checkpoint anew, of its files as they are now."""
    from relic_jax.files import write_checksums

    return write_checksums


@pytest.fixture
def cli(capsys, monkeypatch):
    """`cli(*arguments)` runs the console script's main here; returns (exit code, stdout, stderr)."""
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
