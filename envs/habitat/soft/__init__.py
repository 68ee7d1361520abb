"""A small software simulator with the part of habitat-sim's interface that `api` uses, under the same names.

It needs no files and no GPU: scenes are procedural houses ("house-SEED") or JSON files, objects are cubes, cameras are
a ray caster in numpy (RGB, depth, object ids), and geodesic distances are exact. Runs in a worker process: Python 3.8
and numpy.
"""

from __future__ import annotations

from types import SimpleNamespace

from relic_jax.envs.habitat.soft.config import (
    ActionSpec,
    ActuationSpec,
    AgentConfiguration,
    AgentState,
    CameraSensorSpec,
    Configuration,
    MotionType,
    SensorType,
    SimulatorConfiguration,
)
from relic_jax.envs.habitat.soft.navmesh import MultiGoalShortestPath, NavMeshSettings, PathFinder, ShortestPath
from relic_jax.envs.habitat.soft.rays import Ray
from relic_jax.envs.habitat.soft.simulator import Simulator

__all__ = [
    "ActionSpec",
    "ActuationSpec",
    "AgentConfiguration",
    "AgentState",
    "CameraSensorSpec",
    "Configuration",
    "MultiGoalShortestPath",
    "SensorType",
    "ShortestPath",
    "Simulator",
    "SimulatorConfiguration",
    "agent",
    "geo",
    "nav",
    "physics",
]

__version__ = "soft-1"

agent = SimpleNamespace(
    AgentConfiguration=AgentConfiguration, ActionSpec=ActionSpec, ActuationSpec=ActuationSpec, AgentState=AgentState
)
geo = SimpleNamespace(Ray=Ray)
physics = SimpleNamespace(MotionType=MotionType)
nav = SimpleNamespace(
    PathFinder=PathFinder,
    ShortestPath=ShortestPath,
    MultiGoalShortestPath=MultiGoalShortestPath,
    NavMeshSettings=NavMeshSettings,
)
