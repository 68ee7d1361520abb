"""Measure one process of object navigation. Runs in a worker's interpreter: Python 3.8 and numpy.

All measurements of `experiments.navigation_speed` play rounds of the same random moves from the same starts in one
scene: `simulator` in the bare simulator, and `environment` in the environment. A round is reported as its rate and the
geodesic distance at its end. Equal distances show that the paths are the same.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from relic_jax.bridge import protocol
from relic_jax.bridge.worker import Slot, episode_seed
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.configuration import ACTIONS
from relic_jax.envs.habitat.worker import METRICS, STOP, ExtObjNav

DISTANCE = METRICS.index("distance")


class OnlyRgb(Simulation):
    """A simulation without the camera of object ids, which `Simulator.step` would render too."""

    def configuration(self, scene: str) -> Any:
        """Return the configuration without the camera."""
        configuration = super().configuration(scene)
        agent = configuration.agents[0]
        agent.sensor_specifications = [spec for spec in agent.sensor_specifications if spec.uuid == "rgb"]
        return configuration


class Pausing(ExtObjNav):
    """An environment that sleeps for `task["pause"]` seconds in every 20th step."""

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """Take one step."""
        if self.steps % 20 == 19 and "pause" in self._task:
            time.sleep(self._task["pause"])
        return super().step(action)


def moves(count: int, seed: int = 0) -> list[int]:
    """Return random actions except stop, half of them forward."""
    random = np.random.RandomState(seed)
    return [int(action) for action in random.choice(np.arange(1, len(ACTIONS)), count, p=[0.5, 0.2, 0.2, 0.05, 0.05])]


def simulator(options: dict[str, Any], task: dict[str, Any], steps: int, rounds: int) -> dict[str, list[list[float]]]:
    """Return the rounds [steps per second, final distance] of the bare simulator with only an RGB camera, by case.

    `raw` makes the fewest calls that give the same image and the same distance as the environment: it computes the
    geodesic distance only if the position has changed. `raw, Simulator.step` calls the simulator's `step`, which also
    simulates physics, and computes the distance in every step.

    Args:
        options: Options of `ExtObjNav`.
        task: A task, with the objects that the geodesic distance leads to.
        steps: Number of moves in a round.
        rounds: Number of rounds.
    """
    env = ExtObjNav(**options)
    env.simulation = OnlyRgb(env.simulation.settings)
    frame = np.zeros(env.spec.observation["rgb"].shape, np.uint8)
    start = functools.partial(env.reset, task, episode_seed(0, 0))
    start()
    habitat = env.simulation._simulator
    path = env.simulation.module.nav.MultiGoalShortestPath()
    agent, sensor = habitat.get_agent(0), _rgb_sensor(habitat)
    state: dict[str, Any] = {"distance": 0.0, "position": np.zeros(3, np.float32)}

    def copy(rgba: Any) -> None:
        for channel in range(3):
            frame[..., channel] = rgba[..., channel]

    def measure_path(position: Any) -> None:
        path.requested_start = position
        if habitat.pathfinder.find_path(path) and math.isfinite(path.geodesic_distance):
            state["distance"] = float(path.geodesic_distance)

    def fewest_calls(action: int) -> None:
        agent.act(ACTIONS[action])
        sensor.draw_observation()
        copy(sensor.get_observation())
        position = np.array(agent.scene_node.absolute_translation)
        if not np.array_equal(position, state["position"]):
            state["position"] = position
            measure_path(position)

    def simulator_step(action: int) -> None:
        copy(habitat.step(ACTIONS[action])["rgb"])
        measure_path(agent.get_state().position)

    def begin() -> None:
        start()
        path.requested_ends = [goal.at for goal in env.goals]
        measure_path(np.array(agent.scene_node.absolute_translation))

    cases = {"raw": fewest_calls, "raw, Simulator.step": simulator_step}
    return {name: _rounds(begin, play, lambda: state["distance"], steps, rounds) for name, play in cases.items()}


def _rgb_sensor(habitat: Any) -> Any:
    """Return the RGB sensor of a simulator of habitat-sim, whose versions name the sensors differently."""
    return (getattr(habitat, "sensors", None) or habitat._sensors)["rgb"]


def environment(options: dict[str, Any], task: dict[str, Any], steps: int, rounds: int) -> dict[str, Any]:
    """Return the rounds of the environment and of a worker's slot, and the parts of a step.

    For the arguments, see `simulator`.
    """
    env = ExtObjNav(**options)
    start = functools.partial(env.reset, task, episode_seed(0, 0))
    start()
    cases = {"environment": _rounds(start, env.step, lambda: env.distance, steps, rounds)}
    size, _ = protocol.layout(env.spec, 1)
    buffer = protocol.views(memoryview(bytearray(size)), env.spec, 1)[0]
    slot = Slot(env, 0)

    def play(action: int) -> None:
        buffer["action"][0] = action
        slot.step(buffer)

    def begin() -> None:
        slot.reset(buffer, task, 0, 0, [])

    cases["slot"] = _rounds(begin, play, lambda: float(buffer["metrics"][0, DISTANCE]), steps, rounds)
    start()
    return {"cases": cases, "microseconds": _parts(env, moves(steps))}


def _rounds(
    begin: Callable[[], Any], play: Callable[[int], Any], distance: Callable[[], float], steps: int, rounds: int
) -> list[list[float]]:
    """Return [steps per second, final distance] of rounds of the moves of environment 0. `begin` is not timed."""
    actions, results = moves(steps), []
    for _ in range(rounds):
        begin()
        start = time.perf_counter()
        for action in actions:
            play(action)
        results.append([steps / (time.perf_counter() - start), distance()])
    return results


def _parts(env: ExtObjNav, actions: list[int]) -> dict[str, float]:
    """Return the mean microseconds of the parts of a step, each timed on the same path."""
    simulation = env.simulation
    seconds: dict[str, float] = {}

    def timed(name: str, function: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        value = function(*arguments)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return value

    assert STOP not in actions
    sensor, target = _rgb_sensor(simulation._simulator), np.zeros(env.spec.observation["rgb"].shape, np.uint8)
    previous = env.position
    for action in actions:
        timed("move", simulation.move, action)
        timed("render: draw", sensor.draw_observation)
        timed("render: wait for the renderer and read RGBA", sensor.get_observation)
        rgb = timed("render again, read, and copy to RGB", simulation.rgb)
        timed("copy RGB to shared memory", np.copyto, target, rgb)
        position, _ = timed("pose", simulation.pose)
        if not np.array_equal(position, previous):
            previous = position
            timed("geodesic distance, if the position has changed", env._distance, position)
        timed("reward, metrics and other observations", lambda: (env._observe(), env._metrics(False)))
        timed("render and read object ids (only at stop)", simulation.ids)
    return {name: 1e6 * total / len(actions) for name, total in seconds.items()}
