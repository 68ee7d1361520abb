"""Random arrangements of objects in a scene. Needs only numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from relic_jax.bridge.worker import SetupError
from relic_jax.envs.habitat.api import Simulation
from relic_jax.envs.habitat.receptacles import Receptacle
from relic_jax.envs.habitat.receptacles import places as places_on

APART = 0.6  # meters; minimum distance between objects on the floor
STARTS = 8  # random starts that test whether the objects of an arrangement can be reached


def arrange(
    simulation: Simulation,
    random: np.random.RandomState,
    count: int,
    categories: tuple[str, ...],
    templates: dict[str, str],
    on: list[Receptacle] | None,
    summary: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return objects at random positions that more than half of the random starts on the island can reach.

    Args:
        simulation: A simulation with a loaded scene.
        random: Determines categories and positions.
        count: Maximum number of objects.
        categories: Names of the categories.
        templates: Object template of each category; default: the name of the category.
        on: Receptacles for the objects; None: tables in `soft`, otherwise the floor.
        summary: Counts and warnings of the scene, which are updated.

    Raises:
        SetupError: There is no position.
    """
    simulation.seed(int(random.randint(2**31 - 1)))
    places = _places(simulation, random, count) if on is None else places_on(on, random, count)
    names = random.permutation(np.array(categories))[: len(places)]
    starts = [point for point in (simulation.random_point() for _ in range(STARTS)) if point is not None]
    arranged, reached = [], np.ones(len(starts), bool)
    for name, place in zip(names.tolist(), places):  # noqa: B905 (Python 3.8)
        at = simulation.reach(place)
        if at is None:
            continue
        from_here = np.array([math.isfinite(simulation.distance(start, [at])) for start in starts])
        if 2 * from_here.sum() > len(starts):
            position = [round(float(x), 4) for x in place]
            arranged.append({"category": name, "position": position, "template": templates.get(name, name)})
            reached &= from_here
    if not arranged:
        raise SetupError(f"scene {simulation.scene!r} has no reachable position for an object")
    counts = {"objects": len(arranged), "requested": count, "starts": int(reached.sum()), "tried": len(starts)}
    summary.update({name: summary[name] + number for name, number in counts.items()})
    summary["warnings"] += _inside_others(simulation, arranged)
    return arranged


def _places(simulation: Simulation, random: np.random.RandomState, count: int) -> list[np.ndarray]:
    """Return up to `count` positions on tables, or on the floor if there are none.

    Scene datasets describe receptacles in different ways. Datasets that list poses do not need this function.
    """
    tops = simulation.table_tops()
    if tops:
        return [tops[index] for index in random.permutation(len(tops))[:count]]
    points: list[np.ndarray] = []
    for _ in range(20 * count):
        point = simulation.random_point()
        if point is not None and all(np.linalg.norm(point - other) >= APART for other in points):
            points.append(point)
        if len(points) == count:
            break
    return points


def _inside_others(simulation: Simulation, arranged: list[dict[str, Any]]) -> list[str]:
    """Place the objects, and return a warning for each that stands inside furniture or another object."""
    positions = [np.array(item["position"], np.float32) for item in arranged]
    pairs = zip(arranged, positions)  # noqa: B905 (Python 3.8)
    simulation.place([(item["template"], position, 1 + i) for i, (item, position) in enumerate(pairs)])
    found = zip(arranged, simulation.containers(positions))  # noqa: B905 (Python 3.8)
    return [f"{item['category']} at {item['position']} is inside {name}" for item, name in found if name is not None]
