"""Any habitat-lab task with discrete actions (ObjectNav, PointNav, …), by its config. Needs numpy and habitat-lab.

A task, the same for a whole trial, is {"split": name, "scene": id}. Its episodes are drawn from those of habitat's
dataset in this scene. `RLTaskEnv` of habitat-lab determines rewards, measures and the end of an episode.

Observations are converted. "image", uint8 [H, W, C], is rgb with depth as a fourth channel, or only depth as gray.
"objectgoal" is one-hot and "compass" becomes the cosine and sine of the angle. "semantic" is left out, since its ids
are arbitrary. All others are passed on as float32.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import platform
import random
import sys
import types
from typing import Any

import numpy as np

from relic_jax.bridge.protocol import ArraySpec, Spec
from relic_jax.bridge.worker import SetupError, activity
from relic_jax.envs.habitat.configuration import HOW
from relic_jax.envs.habitat.scene_files import SceneDataset

SOFT = "RelicSoft-v0"
SPLITS = {"train": "train", "test": "val"}
"""Splits of this library and of habitat."""
NATIVE = ("habitat_sim", "magnum", "corrade")


class _AbsentKind(type):
    """Metaclass of the classes of an absent package. Every attribute is another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AbsentKind(name, (_Absent,), {})


class _Absent(metaclass=_AbsentKind):
    """An object of an absent package."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Absent()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent()


class _AbsentModule(types.ModuleType):
    __path__ = ()  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(_Absent, name)


class AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder that returns the packages `NATIVE` as empty shells.

    habitat-lab 0.3 refers to them in class definitions, but its navigation tasks do not call them.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of a shell for names in `NATIVE`."""
        if name.partition(".")[0] not in NATIVE:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        """Create a shell."""
        return _AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: a shell has no code."""


def import_habitat() -> bool:
    """Import habitat-lab and register `SOFT`. Return whether habitat_sim is available.

    Raises:
        SetupError: habitat-lab is missing.
    """
    if not any(isinstance(finder, AbsentPackages) for finder in sys.meta_path) and not _has("habitat_sim"):
        sys.meta_path.append(AbsentPackages())
    native = not any(isinstance(finder, AbsentPackages) for finder in sys.meta_path)
    try:
        importlib.import_module("habitat")
        importlib.import_module("relic_jax.envs.habitat.lab.simulator")
    except ImportError as error:
        interpreter = f"{sys.executable} (Python {platform.python_version()})"
        how = "pip install habitat-lab for it, or give another interpreter with --host.python PATH"
        raise SetupError(f"{interpreter} has no habitat-lab ({error}); {how}") from None
    return native


def _has(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def load_config(
    config: str, split: str, data: str | None, scene_dataset: str, size: int, horizon: int | None, gpu: int
) -> Any:
    """Load a config of habitat-lab and apply the options.

    Args:
        config: A file, or a name of habitat-lab's.
        split: Split of habitat.
        data: Path of the episodes, with {split} in it; None: that of the config.
        scene_dataset: Scene dataset; "default": that of each episode, or of the config if an episode has none.
        size: Pixels of a side of all camera images.
        horizon: Steps of the longest episode; None: those of the config.
        gpu: Index of the GPU that renders; −1: software rendering.

    Raises:
        SetupError: There is no such config, or the interpreter has no simulator for it.
    """
    native = import_habitat()
    from habitat.config import read_write
    from habitat.config.default import get_config

    try:
        loaded = get_config(os.path.abspath(config) if os.path.isfile(config) else config)
    except Exception as error:  # hydra and omegaconf raise many kinds
        allowed = "a file, or a name of habitat-lab's such as benchmark/nav/objectnav/objectnav_hssd-hab.yaml"
        raise SetupError(f"config {config!r} cannot be loaded; allowed: {allowed} ({error})") from None
    with read_write(loaded):
        part = loaded.habitat
        part.dataset.split = split
        if data is not None:
            part.dataset.data_path = data
        if scene_dataset != "default":
            part.simulator.scene_dataset = scene_dataset
        if horizon is not None:
            part.environment.max_episode_steps = horizon
        part.simulator.habitat_sim_v0.gpu_device_id = gpu
        for agent in part.simulator.agents.values():
            for sensor in agent.sim_sensors.values():
                sensor.height = sensor.width = size
    if part.simulator.type != SOFT and not native:
        raise SetupError(
            f"config {config!r} wants the simulator {part.simulator.type!r}, and {sys.executable} has no habitat_sim; "
            f"{HOW.replace('leave --env.backend at soft', f'set habitat.simulator.type to {SOFT}')}"
        )
    return loaded


def load_dataset(config: Any, scene_dataset: str = "default") -> Any:
    """Load the episodes of a config's split.

    Args:
        config: The config.
        scene_dataset: Scene dataset of all episodes, since habitat-lab prefers an episode's to that of the config;
            "default": that of each episode.

    Raises:
        SetupError: The episodes are missing, malformed or empty.
    """
    from habitat.datasets import make_dataset

    part = config.habitat.dataset
    path = part.data_path.format(split=part.split)
    try:
        dataset = make_dataset(part.type, config=part)
    except (OSError, ValueError, LookupError, TypeError, AssertionError) as error:
        raise SetupError(f"episodes {path!r} cannot be loaded: {type(error).__name__}: {error}") from None
    if not dataset.episodes:
        raise SetupError(f"episodes {path!r} is an empty dataset; allowed: one episode or more")
    if scene_dataset != "default":
        for episode in dataset.episodes:
            episode.scene_dataset_config = scene_dataset
    return dataset


def survey(**options: Any) -> dict[str, Any]:
    """Return {"simulator": type, "splits": {split: [task, …]}} for the options of `LabEnvironment`."""
    splits, simulator = {}, ""
    for name, split in SPLITS.items():
        config = load_config(split=split, **_config_options(options))
        episodes = load_dataset(config, options["scene_dataset"]).episodes
        scenes = sorted({episode.scene_id for episode in episodes})
        if config.habitat.simulator.type == SOFT:
            _check_scenes(scenes)
        else:
            _check_files(episodes, config.habitat.simulator.scene_dataset)
        splits[name] = [{"split": split, "scene": scene} for scene in scenes]
        simulator = config.habitat.simulator.type
    return {"simulator": simulator, "splits": splits}


def _check_scenes(scenes: list[str]) -> None:
    from relic_jax.envs.habitat.soft.house import load_scene

    for scene in scenes:
        try:
            load_scene(scene)
        except (OSError, ValueError, LookupError) as error:
            raise SetupError(f"scene {scene!r} cannot be loaded: {error}") from None


def _check_files(episodes: list[Any], scene_dataset: str) -> None:
    """Check the files of the scene instances of all episodes. Raises SetupError if one is missing."""
    used = {(getattr(episode, "scene_dataset_config", None) or scene_dataset, episode.scene_id) for episode in episodes}
    sets: dict[str, SceneDataset] = {}
    for path, scene in sorted(used):
        if path not in sets:
            sets[path] = SceneDataset(path)
        sets[path].check(scene)


def _config_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of `load_config`: one of `gpus`, assigned to workers in turn, becomes `gpu`."""
    gpus = options.get("gpus") or [-1]
    gpu = gpus[int(os.environ.get("RELIC_WORKER", "0")) % len(gpus)]
    return {**{name: value for name, value in options.items() if name != "gpus"}, "gpu": gpu}


class LabEnvironment:
    """A task of habitat-lab. Takes the options of `load_config`, with `gpus`, assigned to workers in turn."""

    def __init__(self, **options: Any) -> None:
        config = load_config(split=SPLITS["train"], **_config_options(options))
        from habitat.core.environments import RLTaskEnv

        self._scene_dataset = options.get("scene_dataset", "default")
        dataset = load_dataset(config, self._scene_dataset)
        self._episodes = {SPLITS["train"]: _by_scene(dataset)}
        self._options = options
        try:
            with activity(f"loading scene {dataset.episodes[0].scene_id!r}"):
                self._env = RLTaskEnv(config, dataset)
                self._env.habitat_env.current_episode = dataset.episodes[0]
                observation = self._env.reset()
        except (OSError, ValueError, LookupError, TypeError, AssertionError, RuntimeError) as error:
            raise SetupError(
                f"habitat-lab cannot start {options['config']!r}: {type(error).__name__}: {error}"
            ) from None
        core = self._env.habitat_env
        if any(getattr(space, "spaces", None) or getattr(space, "shape", None) for space in core.action_space.values()):
            raise SetupError(f"config {options['config']!r} has actions with arguments; allowed: actions without")
        self._categories = _highest(core.observation_space, "objectgoal") + 1
        self._farthest = max(_highest(core.observation_space, "depth"), 1)
        self._end_on_success = bool(config.habitat.task.end_on_success)
        converted = self._converted(observation)
        self.versions = {"habitat-lab": importlib.import_module("habitat").__version__}
        self.spec = Spec(
            name="habitat-lab",
            observation={name: ArraySpec(value.dtype.name, value.shape) for name, value in converted.items()},
            action=ArraySpec("int32", ()),
            actions=len(core.task.actions),
            low=0.0,
            high=0.0,
            metrics=tuple(sorted(name for name, value in core.get_metrics().items() if np.isscalar(value))),
            horizon=int(config.habitat.environment.max_episode_steps),
            restorable=True,
            expert=False,
        )

    def reset(self, task: dict[str, str], seed: int) -> dict[str, np.ndarray]:
        """Start an episode of the scene, determined by the seed."""
        episodes = self._of_split(task["split"]).get(task["scene"])
        if not episodes:
            raise SetupError(f"scene {task['scene']!r} has no episodes in split {task['split']!r}")
        core = self._env.habitat_env
        core.current_episode = episodes[np.random.RandomState(seed).randint(len(episodes))]
        with activity(f"loading scene {task['scene']!r}"):
            observation = self._env.reset()
        random.seed(seed)  # source of the simulator's noise models
        np.random.seed(seed)
        core.sim.seed(seed)
        return self._converted(observation)

    def _of_split(self, split: str) -> dict[str, list[Any]]:
        if split not in self._episodes:
            config = load_config(split=split, **_config_options(self._options))
            self._episodes[split] = _by_scene(load_dataset(config, self._scene_dataset))
        return self._episodes[split]

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """Take one step. The episode is truncated by the time limit and terminated by any other end."""
        observation, reward, done, measures = self._env.step(action=int(action))
        inactive = not self._env.habitat_env.task.is_episode_active
        terminated = bool(done) and (inactive or (self._end_on_success and bool(self._env._episode_success())))
        metrics = {name: _finite(measures[name]) for name in self.spec.metrics}
        return self._converted(observation), float(reward), terminated, bool(done) and not terminated, metrics

    def _converted(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        vectors = {name: np.asarray(value) for name, value in observation.items() if name != "semantic"}
        rgb, depth = vectors.pop("rgb", None), vectors.pop("depth", None)
        image = [] if rgb is None else [rgb[..., :3].astype(np.uint8)]
        if depth is not None:
            grey = (255 * np.clip(depth / self._farthest, 0, 1)).astype(np.uint8).reshape(*depth.shape[:2], 1)
            image.append(grey if image else np.repeat(grey, 3, -1))
        if "objectgoal" in vectors:
            vectors["objectgoal"] = np.arange(self._categories) == vectors["objectgoal"]
        if "compass" in vectors:
            vectors["compass"] = np.concatenate([np.cos(vectors["compass"]), np.sin(vectors["compass"])])
        vectors = {name: np.asarray(value, np.float32) for name, value in vectors.items()}
        return {**vectors, "image": np.concatenate(image, -1)} if image else vectors

    def close(self) -> None:
        """Close the simulator."""
        self._env.close()


def _by_scene(dataset: Any) -> dict[str, list[Any]]:
    episodes: dict[str, list[Any]] = {}
    for episode in dataset.episodes:
        episodes.setdefault(episode.scene_id, []).append(episode)
    return episodes


def _highest(space: Any, name: str) -> int:
    """Return the largest value of an observation, or −1 if there is no such observation."""
    return int(np.max(space.spaces[name].high)) if name in space.spaces else -1


def _finite(value: Any) -> float:
    """Convert a measure to float; 0 if it is not finite, such as the distance to an unreachable goal."""
    number = float(value)
    return number if np.isfinite(number) else 0.0


def make(**options: Any) -> LabEnvironment:
    """Make the environment. Entry of the worker."""
    return LabEnvironment(**options)
