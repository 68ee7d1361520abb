"""Time the parts of a step of object navigation, and the bare simulator. Runs in a worker: Python 3.8 and numpy.

`profile` plays one sequence of random moves through one scene several times: in the bare simulator with only the RGB
camera (`raw`), in the environment (`environment`), and in a worker's slot with shared memory (`slot`), and then times
the parts of a step. `experiments.navigation_speed` adds the rates of pools of workers.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from relic_jax.bridge import protocol
from relic_jax.bridge.worker import Slot
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.configuration import ACTIONS
from relic_jax.envs.habitat.worker import STOP, ExtObjNav

ROUNDS = 3  # the fastest one counts, because other programs can slow a round down


class OnlyRgb(Simulation):
    """A simulation without the camera of object ids."""

    def configuration(self, scene: str) -> Any:
        """Return the configuration without the camera."""
        configuration = super().configuration(scene)
        agent = configuration.agents[0]
        agent.sensor_specifications = [spec for spec in agent.sensor_specifications if spec.uuid == "rgb"]
        return configuration


def moves(count: int, seed: int = 0) -> list[int]:
    """Return random actions except stop, half of them forward."""
    random = np.random.RandomState(seed)
    return [int(action) for action in random.choice(np.arange(1, len(ACTIONS)), count, p=[0.5, 0.2, 0.2, 0.05, 0.05])]


def profile(options: dict[str, Any], task: dict[str, Any], steps: int, raw: bool) -> dict[str, float]:
    """Return rates in steps per second, and microseconds per step of each part.

    Args:
        options: Options of `ExtObjNav`.
        task: A task, with the objects that the geodesic distance leads to.
        steps: Number of moves.
        raw: Whether to measure the bare simulator (a process can have only one) or the environment.
    """
    env = ExtObjNav(**options)
    if raw:
        env.simulation = OnlyRgb(env.simulation.settings)
    env.reset(task, 0)
    actions = moves(steps)
    return _raw(env, actions) if raw else _environment(env, task, actions)


def _rate(actions: list[int], play: Any) -> float:
    """Return the steps per second of the fastest of several rounds of `play(action)`."""
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for action in actions:
            play(action)
        best = max(best, len(actions) / (time.perf_counter() - start))
    return best


def _raw(env: ExtObjNav, actions: list[int]) -> dict[str, float]:
    simulation = env.simulation
    simulator, module = simulation._simulator, simulation.module
    path = module.nav.MultiGoalShortestPath()
    path.requested_ends = [goal.at for goal in env.goals]
    frame = np.zeros((*env.spec.observation["rgb"].shape,), np.uint8)

    def play(action: int) -> None:
        frame[:] = np.asarray(simulator.step(ACTIONS[action])["rgb"])[..., :3]
        path.requested_start = simulator.get_agent(0).get_state().position
        simulator.pathfinder.find_path(path)

    return {"raw": _rate(actions, play), "raw, without the geodesic distance": _rate(
        actions, lambda action: simulator.step(ACTIONS[action])
    )}  # fmt: skip


def _environment(env: ExtObjNav, task: dict[str, Any], actions: list[int]) -> dict[str, float]:
    rates = {"environment": _rate(actions, env.step)}
    env.reset(task, 0)
    size, _ = protocol.layout(env.spec, 1)
    buffer = protocol.views(memoryview(bytearray(size)), env.spec, 1)[0]
    slot = Slot(env, 0)
    slot.reset(buffer, task, 0, 0, [])

    def play(action: int) -> None:
        buffer["action"][0] = action
        slot.step(buffer)

    rates["slot"] = _rate(actions, play)
    env.reset(task, 0)
    return {**rates, **_parts(env, actions)}


def _parts(env: ExtObjNav, actions: list[int]) -> dict[str, float]:
    """Return the microseconds per step of the parts of a step, each timed on the same path."""
    simulation = env.simulation
    seconds: dict[str, float] = {}

    def timed(name: str, function: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        value = function(*arguments)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return value

    place = np.zeros(env.spec.observation["rgb"].shape, np.uint8)
    for action in actions:
        timed("move", simulation.move, action)
        rgb = timed("render and read RGB", simulation.rgb)
        timed("copy RGB to shared memory", np.copyto, place, rgb)
        position, _ = timed("pose", simulation.pose)
        timed("geodesic distance", env._distance, position)
        timed("render and read object ids (at stop)", simulation.ids)
    assert STOP not in actions
    return {f"µs {name}": 1e6 * total / len(actions) for name, total in seconds.items()}
