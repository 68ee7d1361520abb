"""A room with four objects, one of which is the target: DPT's Miniworld task, and a variant with held-out tasks.

DPT (Lee et al. 2023, arXiv 2306.14892) uses a fork of Miniworld (Chevalier-Boisvert et al. 2023, arXiv 2306.13831).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.environment.base import Discrete, Image, Split, TimeStep, TrialRecord, VisualEnvironment
from relic_jax.envs.firstperson import draw
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.renderer import render
from relic_jax.envs.firstperson.resize import resize
from relic_jax.envs.firstperson.scene import (
    BOX,
    COLOURS,
    CYLINDER,
    SPHERE,
    WHITE,
    Camera,
    RoomTooSmallError,
    Scene,
    Solids,
    plain_walls,
    rectangle_walls,
)

Layout = Literal["corners", "open"]

AGENT_RADIUS = 0.4
OBJECT_SIDE = 0.8
OBJECT_RADIUS = OBJECT_SIDE / math.sqrt(2)  # of the circle that the agent cannot enter, for all shapes
FORWARD = 0.7  # meters per step
TURN = math.radians(15)
REACH = OBJECT_RADIUS + AGENT_RADIUS + 1.5 * FORWARD  # distance between centers that is rewarded
FACING = math.radians(30)
START_SPREAD = 0.4  # meters; maximum distance of the start from the center of the room, in x and in z
OBJECTS = 4
SMALL = Lens(25, 25)

PALETTE = np.array(list(COLOURS.values()), np.float32)  # blue, green, grey, purple, red, yellow
CORNER_COLOURS = np.array([list(COLOURS).index(c) for c in ("blue", "red", "green", "yellow")], np.int32)

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@struct.dataclass
class RoomTask:
    """A task. The objects are visible; which of them is the target is not.

    Attributes:
        centre: Float32 [4, 2]; (x, z).
        yaw: Float32 [4]; headings in radians.
        shape: Int32 [4]; BOX, CYLINDER or SPHERE.
        colour: Int32 [4]; rows of PALETTE.
        start: Float32 [2]; position of the agent's start.
        target: Int32 []; index of the target.
    """

    centre: jax.Array | np.ndarray
    yaw: jax.Array | np.ndarray
    shape: jax.Array | np.ndarray
    colour: jax.Array | np.ndarray
    start: jax.Array | np.ndarray
    target: jax.Array | np.ndarray


@struct.dataclass
class RoomState:
    """The state of an episode.

    Attributes:
        position: Float32 [2]; (x, z).
        turns: Int32 []; heading in steps of 15° to the left.
        step: Int32 []; steps taken.
    """

    position: jax.Array
    turns: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Room(VisualEnvironment):
    """Earns reward 1 for every step after which the agent is near the target and faces it.

    Actions: 0 turn left 15°, 1 turn right 15°, 2 move forward 0.7 m, 3 do nothing. A step forward that would leave the
    room or enter the target has no effect. Other objects do not block.

    Attributes:
        name: Name of the environment.
        layout: "corners": DPT's four boxes, one color per corner; all episodes of a task start in the same pose.
            "open": objects at random positions, of random color and shape; episodes start near the center with a random
            heading.
        horizon: Steps of an episode.
        side: Side of the room in meters.
        lens: The agent's camera.
        observed: (width, height) to which images are resized before they are normalized with the ImageNet mean and
            standard deviation, as in DPT; None: observe uint8 images without resizing.
        textured: Draw floor tiles and wall boards instead of flat colors.
        train_layouts: Training layouts of "open", with four tasks each.
        test_layouts: Held-out layouts of "open", with four tasks each.
    """

    ends_in_time = True

    name: str
    layout: Layout
    horizon: int = 50
    side: float = 6.0
    lens: Lens = SMALL
    observed: tuple[int, int] | None = None
    textured: bool = False
    train_layouts: int = 2000
    test_layouts: int = 50

    def __post_init__(self) -> None:
        """Raise ValueError if the layout is unknown, or RoomTooSmallError if the objects do not fit."""
        if self.layout not in get_args(Layout):
            allowed = ", ".join(map(repr, get_args(Layout)))
            raise ValueError(f"layout is {self.layout!r}; allowed: {allowed}")
        # objects in the corners never overlap the agent's start
        least = 2 * START_SPREAD + 2 * AGENT_RADIUS + 6 * OBJECT_RADIUS
        if self.layout == "corners" and self.side < least:
            raise RoomTooSmallError(
                f"side is {self.side}; allowed: {least:.2f} or more, for four objects in its corners"
            )
        if self.layout == "open":
            open_layouts(self.side, 1, 0)

    @property
    def observation_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The observation. image: uint8 [H, W, 3], or float32 if resized. heading: float32 [2]; (cos, sin)."""
        image = Image((self.lens.height, self.lens.width, 3), jnp.uint8)
        if self.observed is not None:
            image = Image((self.observed[1], self.observed[0], 3), jnp.float32)
        return {"heading": jax.ShapeDtypeStruct((2,), jnp.float32), "image": image}

    @property
    def observation_range(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """−1 to 1 for the heading; 0 to 255 for the image, or normalized black to white."""
        spec = self.observation_spec["image"]
        ends = [np.full(3, value, np.float32) for value in (0, 255)]
        if self.observed is not None:
            ends = [(value - IMAGENET_MEAN) / IMAGENET_STD for value in (0, 1)]
        low, high = (np.broadcast_to(colour, spec.shape).astype(spec.dtype) for colour in ends)
        return (
            {"heading": np.full(2, -1, np.float32), "image": low},
            {"heading": np.full(2, 1, np.float32), "image": high},
        )

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions."""
        return ("turn left", "turn right", "forward", "nothing")

    @property
    def action_space(self) -> Discrete:
        """0 left, 1 right, 2 forward, 3 nothing."""
        return Discrete(4)

    def start(self, key: jax.Array, task: RoomTask) -> RoomState:
        """Start at the position of the task, or at a random one."""
        zero = jnp.zeros((), jnp.int32)
        if self.layout == "corners":
            return RoomState(jnp.asarray(task.start), zero, zero)
        place_key, turn_key = jax.random.split(key)
        offset = jax.random.uniform(place_key, (2,), minval=-START_SPREAD, maxval=START_SPREAD)
        return RoomState(self.side / 2 + offset, jax.random.randint(turn_key, (), 0, 24, jnp.int32), zero)

    def transition(
        self, key: jax.Array, state: RoomState, action: jax.Array, task: RoomTask
    ) -> tuple[RoomState, TimeStep]:
        """Take one step. Deterministic."""
        del key
        turns = state.turns + (action == 0).astype(jnp.int32) - (action == 1).astype(jnp.int32)
        cos, sin = direction(turns)
        ahead = state.position + FORWARD * jnp.stack([cos, -sin])
        target = jnp.asarray(task.centre)[task.target]
        inside = jnp.all((ahead >= AGENT_RADIUS) & (ahead <= self.side - AGENT_RADIUS))
        clear = jnp.sum((ahead - target) ** 2) >= (AGENT_RADIUS + OBJECT_RADIUS) ** 2
        position = jnp.where((action == 2) & inside & clear, ahead, state.position)
        next_state = RoomState(position, turns, state.step + 1)
        distance, bearing = _target_seen_from(next_state, task)
        return next_state, TimeStep(
            observation=None,
            reward=((distance < REACH) & (jnp.abs(bearing) <= FACING)).astype(jnp.float32),
            terminated=jnp.zeros((), bool),
            truncated=next_state.step >= self.horizon,
        )

    def observe(self, state: RoomState, task: RoomTask) -> tuple[RoomState, dict[str, jax.Array]]:
        """Return image and heading."""
        heading = jnp.stack(direction(state.turns))
        image = render(self.scene(task), Camera(state.position, heading), self.lens)
        if self.observed is not None:
            image = (resize(image, self.observed[1], self.observed[0]) - IMAGENET_MEAN) / IMAGENET_STD
        return state, {"heading": heading, "image": image}

    def scene(self, task: RoomTask) -> Scene:
        """Return the room with its objects."""
        solids = Solids(
            centre=task.centre,
            yaw=task.yaw,
            half=np.full((OBJECTS, 2), OBJECT_SIDE / 2, np.float32),
            bottom=np.zeros(OBJECTS, np.float32),
            top=np.full(OBJECTS, OBJECT_SIDE, np.float32),
            colour=jnp.asarray(PALETTE)[task.colour],
            shape=task.shape,
            shapes=(BOX,) if self.layout == "corners" else (BOX, CYLINDER, SPHERE),
        )
        white = np.asarray(WHITE, np.float32)
        walls = plain_walls(rectangle_walls(0, self.side, 0, self.side))
        return Scene(walls, solids, white, white, textured=self.textured)

    def optimal_action(self, state: RoomState, task: RoomTask) -> jax.Array:
        """Return the expert's action: turn to the target until it is within 30°, then approach it, then stay."""
        distance, bearing = _target_seen_from(state, task)
        turn = jnp.where(bearing > 0, 0, 1)
        return jnp.where(jnp.abs(bearing) > FACING, turn, jnp.where(distance < REACH, 3, 2)).astype(jnp.int32)

    def tasks(self, split: Split) -> RoomTask:
        """Return the tasks of a split.

        "corners": ids 0 … 9999 for training and 8000 … 8019 for testing, as published. The test tasks ARE training
        tasks, and apart from differences of centimeters there are only four: the target's color, which determines its
        corner. "open": `train_layouts` and `test_layouts` disjoint layouts, each with each of its objects as target.
        """
        if self.layout == "corners":
            tasks = corner_tasks(self.side, 10_000)
            return tasks if split == "train" else jax.tree.map(lambda x: x[8000:8020], tasks)
        layouts = open_layouts(self.side, self.train_layouts + self.test_layouts, 0)
        chosen = slice(0, self.train_layouts) if split == "train" else slice(self.train_layouts, None)
        return each_target(jax.tree.map(lambda x: x[chosen], layouts))

    def record(self, state: RoomState) -> RoomState:
        """Return the state: observations do not contain random starts."""
        return state

    def render_input(self, state: RoomState, task: RoomTask) -> draw.RenderInput:
        """Return the scene, camera and targets to draw for `state`."""
        camera = Camera(state.position, jnp.stack(direction(state.turns)))
        return draw.RenderInput(self.scene(task), camera, jnp.arange(OBJECTS) == task.target)

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Return frames of a trial, uint8 [n, H, W, 3]: the view, and a map with path and a ring around the target."""
        return draw.trial_frames(self.render_input, trial, self.lens)


def direction(turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (cos, sin) of a heading in steps of 15°, from a table, so rounding errors do not accumulate."""
    angles = np.arange(24) * TURN
    index = turns % 24
    return jnp.asarray(np.cos(angles), jnp.float32)[index], jnp.asarray(np.sin(angles), jnp.float32)[index]


def _target_seen_from(state: RoomState, task: RoomTask) -> tuple[jax.Array, jax.Array]:
    """Return the target's distance in meters and its bearing in radians, positive to the left."""
    cos, sin = direction(state.turns)
    x, z = jnp.asarray(task.centre)[task.target] - state.position
    return jnp.hypot(x, z), jnp.arctan2(-x * sin - z * cos, x * cos - z * sin)


@functools.cache
def corner_tasks(side: float, count: int) -> RoomTask:
    """Return DPT's tasks with ids 0 … count − 1: a box in each corner with jitter, a target and a start.

    With r the object radius, each box is at the base of its corner plus U[0, 1]²·r. The bases are r from the low walls
    and 2r from the high walls. The random stream differs from that of DPT, and so do the layouts of ids.
    """
    draws = np.random.RandomState(0).uniform(size=(count, 2 * OBJECTS + 3))
    r = OBJECT_RADIUS
    low, high = r, side - 2 * r
    bases = np.array([(low, low), (high, low), (high, high), (low, high)])
    rows = np.ones((count, 1), np.int32)
    return RoomTask(
        centre=(bases + draws[:, : 2 * OBJECTS].reshape(count, OBJECTS, 2) * r).astype(np.float32),
        yaw=np.zeros((count, OBJECTS), np.float32),
        shape=rows * np.full(OBJECTS, BOX, np.int32),
        colour=rows * CORNER_COLOURS,
        start=(side / 2 + START_SPREAD * (2 * draws[:, -3:-1] - 1)).astype(np.float32),
        target=(OBJECTS * draws[:, -1]).astype(np.int32),
    )


CLEAR_OF_CENTRE = OBJECT_RADIUS + AGENT_RADIUS + START_SPREAD * math.sqrt(2) + 0.1
APART = 2 * OBJECT_RADIUS + 0.2


@functools.cache
def open_layouts(side: float, count: int, seed: int) -> RoomTask:
    """Return `count` different random layouts, with target 0.

    Positions are uniform over those in which objects are inside the room, apart from one another and from the start.
    The colors of a layout differ; shapes and headings are independent.

    Raises:
        RoomTooSmallError: 200,000 draws contain too few layouts.
    """
    random = np.random.RandomState(seed)
    room, accepted = side - 2 * OBJECT_RADIUS, []
    for _ in range(20):
        if room <= 0:
            break
        centre = OBJECT_RADIUS + room * random.uniform(size=(10_000, OBJECTS, 2))
        gaps = np.linalg.norm(centre[:, :, None] - centre[:, None], axis=-1) + 2 * side * np.eye(OBJECTS)
        from_centre = np.linalg.norm(centre - side / 2, axis=-1)
        accepted.append(centre[(gaps.min((1, 2)) >= APART) & (from_centre.min(1) >= CLEAR_OF_CENTRE)])
        if sum(map(len, accepted)) >= count:
            break
    if sum(map(len, accepted)) < count:
        raise RoomTooSmallError(f"side is {side}; allowed: a side that leaves room for {OBJECTS} objects, such as 6")
    return RoomTask(
        centre=np.concatenate(accepted)[:count].astype(np.float32),
        yaw=random.uniform(0, math.pi / 2, (count, OBJECTS)).astype(np.float32),
        shape=random.randint(0, 3, (count, OBJECTS)).astype(np.int32),
        colour=random.uniform(size=(count, len(PALETTE))).argsort(1)[:, :OBJECTS].astype(np.int32),
        start=np.full((count, 2), side / 2, np.float32),
        target=np.zeros(count, np.int32),
    )


def each_target(layouts: RoomTask) -> RoomTask:
    """Repeat every layout with each of its objects as the target, consecutively."""
    count = len(layouts.target)
    tasks = jax.tree.map(lambda x: np.repeat(x, OBJECTS, axis=0), layouts)
    return tasks.replace(target=np.tile(np.arange(OBJECTS, dtype=np.int32), count))


PRESETS = {
    preset.name: preset
    for preset in (
        Room("miniworld-dpt4", "corners", lens=Lens(80, 60, samples=4), observed=(25, 25)),
        Room("miniworld-open", "open"),
    )
}
