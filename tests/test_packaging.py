"""Wheels and editable installs in fresh environments, used in a project that has its own `envs/` and `experiments/`.

The environments see the packages of the running one through a .pth file, so nothing is downloaded.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ("--policy.transformer.layers=1", "--trial.environments=2", "--trial.steps=64", "--trial.updates=1")
SMALL += ("--ppo.minibatches=1", "--ppo.accumulate=1")
MAX_WHEEL_BYTES = 3_000_000  # most of it are the weights of three policies and an encoder

pytest.importorskip("pip")
if not importlib.util.find_spec("setuptools") or int(metadata.version("setuptools").split(".")[0]) < 77:
    pytest.skip("the build needs setuptools 77 or newer", allow_module_level=True)

ENVS = """
from dataclasses import dataclass

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.environment.base import Discrete, Environment, TimeStep, first_timestep


@dataclass(frozen=True)
class Mine(Environment):
    name: str = "mine"
    horizon: int = 5
    observation_spec = jax.ShapeDtypeStruct((1,), jnp.float32)
    action_space = Discrete(2)

    def tasks(self, split):
        return np.arange(2) if split == "train" else np.arange(2, 4)

    def reset(self, key, task):
        return jnp.zeros((), int), first_timestep(jnp.zeros(1))

    def step(self, key, state, action, task):
        reward = (action == task % 2).astype(jnp.float32)
        return state + 1, TimeStep(jnp.zeros(1), reward, jnp.zeros((), bool), state == 4)


class Worker(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        return np.full(2, 0.5, np.float32), {}

    def step(self, action):
        return np.full(2, 0.5, np.float32), 1.0, False, False, {}


MINE = Mine()
gymnasium.register("Worker-v0", Worker, max_episode_steps=7)
"""

IMPORTS = """
import importlib, pkgutil
from pathlib import Path

import envs, experiments
import relic_jax, relic_jax.envs, relic_jax.experiments

here, skipped, count = Path.cwd(), [], 0
assert Path(envs.__file__).parents[1] == Path(experiments.__file__).parents[1] == here
assert Path(relic_jax.__file__).is_relative_to(EXPECTED), relic_jax.__file__
for package in (relic_jax, relic_jax.envs, relic_jax.experiments):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
            count += 1
        except ImportError as error:  # an extra that is not installed
            assert error.name and error.name.split(".")[0] in EXTRAS, f"{module.name}: {error}"
            skipped.append(module.name)
assert count > 150 and len(skipped) < 10, (count, skipped)

import envs.mine, experiments.study
from relic_jax.experiments.presets import PRESETS

assert relic_jax.make_env("darkroom-dpt").horizon == 100 and "darkroom-dpt" in PRESETS
assert relic_jax.make_env("python:envs.mine:MINE") is envs.mine.MINE
assert relic_jax.pretrained("darkroom-dpt").agent().step([0.0, 0.0]) in range(5)
worker = relic_jax.make_env("gym:envs.mine:Worker-v0")
assert worker.horizon == 7 and worker.observation_spec.shape == (2,)
"""

EXTRAS = {"brax", "craftax", "gymnax", "habitat", "habitat_sim", "metaworld", "miniworld", "minigrid", "mujoco"}
EXTRAS |= {"mujoco_playground", "navix", "quaternion", "ray", "tensorboardX", "torch", "wandb", "xminigrid", "tkinter"}


def run(*command, cwd, timeout=240, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_INDEX": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def tracked():
    """Return the repository's files by name, without build outputs."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a copy of the files that a build reads."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        if not name.startswith(("tests/", "docs/", "experiments/results/")) or name.endswith("figure.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "experiments" / "results").mkdir(exist_ok=True)
    (folder / "experiments" / "results" / "numbers.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, source, tmp_path_factory):
    """Return (scripts of a fresh environment, the folder that relic_jax is imported from)."""
    folder = tmp_path_factory.mktemp(request.param) / "environment"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(scripts / "python", "-c", code, cwd=folder).strip())
    running = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "running.pth").write_text("\n".join(running) + "\n", encoding="utf-8")
    options = ["--no-deps", "--no-build-isolation", "--ignore-installed"]
    what = [request.getfixturevalue("wheel")] if request.param == "wheel" else ["--editable", source]
    run(scripts / "python", "-m", "pip", "install", *options, *what, cwd=folder)
    return scripts, packages if request.param == "wheel" else source


@pytest.fixture
def project(tmp_path):
    """Return a project with its own packages `envs` and `experiments`."""
    for name, content in {
        "envs/__init__.py": "",
        "envs/mine.py": ENVS,
        "experiments/__init__.py": "",
        "experiments/study.py": "import relic_jax.experiments.presets\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [Path(name).parent for name in tracked() if name.endswith("__init__.py")]
    names = {".".join(folder.parts) for folder in folders if folder.parts[0] != "tests"}
    mapped = {name if name.startswith("relic_jax") else f"relic_jax.{name}" for name in names}
    assert mapped == set(settings["packages"]) and len(settings["packages"]) == len(mapped)


def test_the_wheel_holds_code_and_weights_only(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    folders = ("envs/", "experiments/")
    code = [name for name in tracked() if name.startswith(folders) and name.endswith((".py", ".toml"))]
    code = [name for name in code if not name.startswith("experiments/results/")]
    library = [name for name in tracked() if name.startswith("relic_jax/")]
    assert names == {f"relic_jax/{name}" for name in code} | set(library)
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


@pytest.mark.slow
def test_all_of_it_is_imported_beside_a_project_with_the_same_names(installed, project):
    scripts, expected = installed
    run(scripts / "python", "-c", f"EXPECTED, EXTRAS = {str(expected)!r}, {EXTRAS}\n{IMPORTS}", cwd=project)
    assert "darkroom-dpt" in run(scripts / "relic-jax", "presets", cwd=project)


@pytest.mark.slow
def test_the_console_script_trains_on_the_projects_environments(installed, project):
    scripts, _ = installed
    for name, env in (("inside", "python:envs.mine:MINE"), ("worker", "gym:envs.mine:Worker-v0")):
        options = ["--env", env, "--name", name, "--total-steps", 512, "--eval.episodes", 2, "--eval.tasks", 2, *SMALL]
        run(scripts / "relic-jax", "train", "darkroom-smoke", *options, cwd=project)
        assert (project / "runs" / name / "curve.json").is_file()
