"""Rulesets of XLand-MiniGrid, drawn here or read from files of its benchmarks.

A ruleset is a goal, rules that turn objects into others, and the objects that are present at the start. They are drawn
by the procedure of appendix A.2 of "Human-timescale adaptation in an open-ended task space" (arXiv 2301.07608), as for
the benchmarks of XLand-MiniGrid (Nikulin et al. 2023, arXiv 2312.12044): backwards from the goal, a rule makes each
object of a level from objects of the next, branches are pruned at random, and distractors are added. The package
contains neither its benchmarks, which it downloads, nor their generator. The recipes are those of the package; the
drawn rulesets differ from its benchmarks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from relic_jax.config import ConfigError

Tile = tuple[int, int]  # (kind, color) in XLand-MiniGrid's encoding

PICKABLE = (3, 4, 5, 7, 12, 11)  # ball, square, pyramid, key, star, hexagon
GOAL_TILE = 6
COLOURS = (1, 2, 3, 4, 5, 6, 9, 10, 11, 8)
OBJECTS: list[Tile] = list(itertools.product(PICKABLE, COLOURS))
PLACES: list[Tile] = list(itertools.product((*PICKABLE, GOAL_TILE), COLOURS))  # possible neighbors of an object
PRODUCTS: list[Tile] = [*OBJECTS, (1, 7)]  # rules can also produce floor

# Codes of goals and rules: hold; agent next to a tile (any side, above, right, below, left); two tiles likewise.
HOLD_GOAL, NEAR_GOALS, TILE_GOALS = 1, (3, 11, 12, 13, 14), (4, 7, 8, 9, 10)
HOLD_RULE, NEAR_RULES, TILE_RULES = 1, (2, 8, 9, 10, 11), (3, 4, 5, 6, 7)
GOAL_LENGTH, RULE_LENGTH = 5, 7  # of an encoding, padded with zeros


@struct.dataclass
class Rulesets:
    """N rulesets, or one without the leading axis.

    Attributes:
        goal: Uint8 [N, 5].
        rules: Uint8 [N, R, 7], padded with zeros.
        init_tiles: Uint8 [N, K, 2]; objects at the start, padded with zeros.
    """

    goal: Any
    rules: Any
    init_tiles: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Parameters of a set of rulesets.

    Attributes:
        depth: Levels of rules before the goal.
        prune: Probability that an object is present at the start instead of the product of a rule.
        distractor_rules: Maximum number of rules that do not lead to the goal.
        distractor_objects: Number of additional objects.
        count: Number of rulesets.
    """

    depth: int
    prune: float
    distractor_rules: int
    distractor_objects: int
    count: int = 10_000


RECIPES = {
    "trivial": Recipe(0, 0.0, 0, 3),
    "small": Recipe(1, 0.3, 2, 2),
    "medium": Recipe(2, 0.1, 3, 2),
    "high": Recipe(3, 0.1, 4, 1),
}
"""The recipes of trivial-21k, small-1m, medium-1m and high-1m."""


ANYSIDE = "anyside"
"""A simplified "trivial", see `anyside`."""
ANYSIDE_DRAWS = {HOLD_GOAL: 50, NEAR_GOALS[0]: 50, TILE_GOALS[0]: 4}
"""Draws per goal, by kind. "trivial" has 60 goals of the first kind, 70 of the second and 2,000 of the third."""


class Drawn(NamedTuple):
    """One ruleset before padding."""

    goal: tuple[int, ...]
    rules: tuple[tuple[int, ...], ...]
    tiles: tuple[Tile, ...]


def _choice(random: np.random.RandomState, tiles: list[Tile], but: list[Tile] = []) -> Tile:  # noqa: B006
    left = [tile for tile in tiles if tile not in but] if but else tiles
    return left[random.randint(len(left))]


def draw_goal(random: np.random.RandomState) -> tuple[tuple[int, ...], list[Tile]]:
    """Draw a goal. Return its encoding and its tiles. All eleven kinds of goals are equally likely."""
    kind = random.randint(1 + len(NEAR_GOALS) + len(TILE_GOALS))
    if kind == 0:
        tiles = [_choice(random, OBJECTS)]
        return (HOLD_GOAL, *tiles[0]), tiles
    if kind <= len(NEAR_GOALS):
        tiles = [_choice(random, PLACES)]
        return (NEAR_GOALS[kind - 1], *tiles[0]), tiles
    tiles = [_choice(random, PLACES), _choice(random, OBJECTS)]
    return (TILE_GOALS[kind - 1 - len(NEAR_GOALS)], *tiles[0], *tiles[1]), tiles


def draw_rule(random: np.random.RandomState, product: Tile, used: list[Tile]) -> tuple[tuple[int, ...], list[Tile]]:
    """Draw a rule that makes `product`. Return its encoding and the tiles that it needs, none of them in `used`."""
    kind = random.randint(1 + len(NEAR_RULES) + len(TILE_RULES))
    if kind <= len(NEAR_RULES):
        tiles = [_choice(random, OBJECTS, used)]
        return ((HOLD_RULE, *NEAR_RULES)[kind], *tiles[0], *product), tiles
    tiles = [_choice(random, PLACES, used), _choice(random, OBJECTS, used)]
    return (TILE_RULES[kind - 1 - len(NEAR_RULES)], *tiles[0], *tiles[1], *product), tiles


def draw(random: np.random.RandomState, recipe: Recipe) -> Drawn:
    """Draw one ruleset."""
    goal, needed = draw_goal(random)
    used, rules, tiles = list(needed), [], []
    for _ in range(recipe.depth):
        needed, products = [], needed
        for product in reversed(products):
            if random.random_sample() < recipe.prune:
                tiles.append(product)
                continue
            rule, inputs = draw_rule(random, product, used)
            rules.append(rule)
            used += inputs
            needed += inputs
    tiles += needed  # the tiles that the last level needs are present at the start
    tiles += [_choice(random, PLACES, used) for _ in range(recipe.distractor_objects)]
    for _ in range(random.randint(recipe.distractor_rules + 1)):
        rule, inputs = draw_rule(random, _choice(random, PRODUCTS, used), [])
        rules.append(rule)
        tiles += inputs
    return Drawn(goal, tuple(rules), tuple(tiles))


@functools.cache
def generate(name: str, seed: int = 42) -> Rulesets:
    """Return the rulesets of a recipe, without duplicates of goal and rules. Takes a second."""
    recipe, random = RECIPES[name], np.random.RandomState(seed)
    unique: dict[tuple, Drawn] = {}
    while len(unique) < recipe.count:
        drawn = draw(random, recipe)
        unique.setdefault((drawn.goal, drawn.rules), drawn)
    all_drawn = list(unique.values())
    goal = np.stack([_filled(np.array(d.goal), (GOAL_LENGTH,)) for d in all_drawn])
    rules = max(1, *(len(d.rules) for d in all_drawn))
    tiles = max(len(d.tiles) for d in all_drawn)
    encoded = [[_filled(np.array(r), (RULE_LENGTH,)) for r in d.rules] for d in all_drawn]
    return Rulesets(
        goal,
        np.stack([_filled(np.array(e).reshape(-1, RULE_LENGTH), (rules, RULE_LENGTH)) for e in encoded]),
        np.stack([_filled(np.array(d.tiles), (tiles, 2)) for d in all_drawn]),
    )


def anyside(some: Rulesets, seed: int = 42) -> Rulesets:
    """Return the rulesets of "trivial" whose goal has no direction.

    The goals are to hold an object, to stand beside one, or to put one beside another. Each is repeated ANYSIDE_DRAWS
    times with different distractors.

    Args:
        some: Rulesets of "trivial".
        seed: Seed of the distractors.
    """
    random = np.random.RandomState(seed)
    drawn = []
    for goal in some.goal.tolist():
        needed = [(goal[1], goal[2]), (goal[3], goal[4])][: 1 + (goal[0] in TILE_GOALS)]
        for _ in range(ANYSIDE_DRAWS.get(goal[0], 0)):
            others = [_choice(random, PLACES, needed) for _ in range(RECIPES["trivial"].distractor_objects)]
            drawn.append((goal, [*needed, *others]))
    most = max(len(tiles) for _, tiles in drawn)
    tiles = [_filled(np.array(tiles), (most, 2)) for _, tiles in drawn]
    goals = np.array([goal for goal, _ in drawn], np.uint8)
    return Rulesets(goals, np.zeros((len(drawn), 1, RULE_LENGTH), np.uint8), np.stack(tiles))


def _filled(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, np.uint8)
    out[tuple(slice(size) for size in values.shape)] = values
    return out


def read(path: Path, name: str) -> Rulesets:
    """Read rulesets from an npz file, for the environment `name`. Raises ConfigError if the file is malformed."""
    try:
        with np.load(path) as data:
            parts = [np.asarray(data[key], np.uint8) for key in ("goals", "rules", "init_tiles")]
        if [x.shape[0] for x in parts] != [len(parts[0])] * 3 or [x.ndim for x in parts] != [2, 3, 3]:
            raise ValueError(f"arrays of shapes {[x.shape for x in parts]}")
    except (OSError, EOFError, zipfile.BadZipFile, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        allowed = "an npz file of goals, rules and init_tiles"
        raise ConfigError(f"env is {name!r}; allowed: {allowed} ('{path}': {reason})") from None
    return Rulesets(*parts)
