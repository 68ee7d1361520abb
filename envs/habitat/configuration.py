"""The settings of the simulation, and habitat-sim's configuration with them.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import importlib
import platform
import sys
from typing import Any, NamedTuple

from relic_jax.bridge.worker import SetupError

HOW = (
    "install it with: conda create -n habitat -c conda-forge -c aihabitat python=3.9 habitat-sim withbullet headless, "
    "and give its interpreter with --host.python PATH; or leave --env.backend at soft"
)
"""How to get habitat-sim, with the options of `relic-jax train`."""
ON_SOFT = "backend soft, which has its own scenes and objects"
"""End of an error about an option that only habitat-sim uses."""
ACTIONS = ("stop", "move_forward", "turn_left", "turn_right", "look_up", "look_down")
"""Names of the actions by index. The simulator never receives stop."""


class Settings(NamedTuple):
    """Settings of the simulation.

    Attributes:
        backend: soft or habitat.
        scene_dataset: "default", or a *.scene_dataset_config.json.
        size: Pixels of a side of the square camera image.
        hfov: Horizontal field of view, in degrees.
        eye: Height of the camera, in meters.
        height: Height of the agent, in meters.
        radius: Radius of the agent, in meters.
        forward: Meters of a step forward.
        turn: Degrees of a turn.
        gpu: Index of the GPU that renders; −1: software rendering.
        objects: Folder of object templates.
    """

    backend: str = "soft"
    scene_dataset: str = "default"
    size: int = 256
    hfov: float = 90.0
    eye: float = 1.25
    height: float = 1.5
    radius: float = 0.18
    forward: float = 0.25
    turn: float = 30.0
    gpu: int = -1
    objects: str = ""


def load_backend(backend: str) -> Any:
    """Import the simulator. Raises SetupError with installation instructions if it is missing."""
    if backend == "soft":
        return importlib.import_module("relic_jax.envs.habitat.soft")
    if backend != "habitat":
        raise SetupError(f"backend is {backend!r}; allowed: soft, habitat")
    try:
        return importlib.import_module("habitat_sim")
    except ImportError as error:
        interpreter = f"{sys.executable} (Python {platform.python_version()})"
        raise SetupError(f"{interpreter} has no habitat_sim ({error}); {HOW}") from None


def has_physics(module: Any) -> bool:
    """Return whether the simulator was built with Bullet. Without Bullet, it drops articulated objects."""
    return bool(getattr(module, "built_with_bullet", False))


def configuration(module: Any, settings: Settings, scene: str) -> Any:
    """Return the configuration of a scene with one agent, its two cameras and its actions."""
    simulator = module.SimulatorConfiguration()
    simulator.scene_id, simulator.scene_dataset_config_file = scene, settings.scene_dataset
    simulator.gpu_device_id, simulator.allow_sliding = settings.gpu, True
    simulator.enable_physics = has_physics(module)
    agent = module.agent.AgentConfiguration()
    agent.height, agent.radius = settings.height, settings.radius
    kinds = {"rgb": module.SensorType.COLOR, "ids": module.SensorType.SEMANTIC}
    agent.sensor_specifications = [_camera(module, settings, name, kind) for name, kind in kinds.items()]
    amounts = {"move_forward": settings.forward}
    spec, actuation = module.agent.ActionSpec, module.agent.ActuationSpec
    agent.action_space = {name: spec(name, actuation(amount=amounts.get(name, settings.turn))) for name in ACTIONS[1:]}
    return module.Configuration(simulator, [agent])


def _camera(module: Any, settings: Settings, name: str, kind: Any) -> Any:
    camera = module.CameraSensorSpec()
    camera.uuid, camera.sensor_type = name, kind
    camera.resolution = [settings.size, settings.size]
    camera.position, camera.orientation = [0.0, settings.eye, 0.0], [0.0, 0.0, 0.0]
    camera.hfov = settings.hfov
    return camera
