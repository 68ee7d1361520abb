"""One room with four objects, one of which is the target: DPT's Miniworld task, and one with tasks to hold out.

Lee et al. 2023 (Decision-Pretrained Transformer), on a fork of Miniworld (Chevalier-Boisvert et al. 2023).
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
from relic_jax.envs.firstperson.renderer import Lens, render
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
OBJECT_RADIUS = OBJECT_SIDE / math.sqrt(2)  # of the circle that nothing may enter, also around spheres and cylinders
FORWARD = 0.7  # metres a step
TURN = math.radians(15)
REACH = OBJECT_RADIUS + AGENT_RADIUS + 1.5 * FORWARD  # of the reward, between centres
FACING = math.radians(30)
START_SPREAD = 0.4  # the agent starts that far from the centre of the room, at most, in x and in z
OBJECTS = 4
SMALL = Lens(25, 25)

PALETTE = np.array(list(COLOURS.values()), np.float32)  # blue, green, grey, purple, red, yellow
CORNER_COLOURS = np.array([list(COLOURS).index(c) for c in ("blue", "red", "green", "yellow")], np.int32)

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@struct.dataclass
class RoomTask:
    """What a trial must find out. Positions and looks of the objects are seen, which one is the target is not.

    centre: float32 [4, 2]; (x, z). yaw: float32 [4]. shape: int32 [4]; BOX, CYLINDER or SPHERE.
    colour: int32 [4]; rows of PALETTE. start: float32 [2]; the agent's. target: int32 [].
    """

    centre: jax.Array | np.ndarray
    yaw: jax.Array | np.ndarray
    shape: jax.Array | np.ndarray
    colour: jax.Array | np.ndarray
    start: jax.Array | np.ndarray
    target: jax.Array | np.ndarray


@struct.dataclass
class RoomState:
    """position: float32 [2]; (x, z). turns: int32 []; the heading, in steps of 15° to the left. step: int32 []."""

    position: jax.Array
    turns: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Room(VisualEnvironment):
    """Reward 1 on every step after which the agent is near the target and faces it.

    Actions: 0 turn left 15°, 1 turn right 15°, 2 forward 0.7 m, 3 nothing. A forward step that would leave the room or
    enter the target is refused whole; the other objects do not block.

    layout: "corners": DPT's four boxes, one colour for each corner; all episodes of a task start in the same pose.
      "open": objects anywhere, of any colour and shape; every episode starts near the centre with a random heading.
    side: of the room, metres. train_layouts, test_layouts: sizes of the splits of "open", four tasks each.
    lens: the camera's picture. observed: (width, height) that it is resized to before it is normalised with the
      ImageNet mean and deviation, as DPT does; None: observed as it is, uint8.
    textured: floor tiles and wall boards instead of flat colours.
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
        """Rejects an unknown layout and a room that its objects do not fit in."""
        if self.layout not in get_args(Layout):
            raise ValueError(f"layout must be one of {get_args(Layout)}, got {self.layout!r}")
        least = 2 * START_SPREAD + 2 * AGENT_RADIUS + 6 * OBJECT_RADIUS  # corner objects never meet the agent's start
        if self.layout == "corners" and self.side < least:
            raise RoomTooSmallError(
                f"side is {self.side}; allowed: {least:.2f} or more, for four objects in its corners"
            )
        if self.layout == "open":
            open_layouts(self.side, 1, 0)

    @property
    def observation_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """image: uint8 [H, W, 3], or float32 [observed, 3] where resized. heading: float32 [2]; its (cos, sin)."""
        image = Image((self.lens.height, self.lens.width, 3), jnp.uint8)
        if self.observed is not None:
            image = Image((self.observed[1], self.observed[0], 3), jnp.float32)
        return {"heading": jax.ShapeDtypeStruct((2,), jnp.float32), "image": image}

    @property
    def observation_range(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """−1 to 1 for the heading; 0 to 255 for the image, or the normalised colours of black and white."""
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
        """As in `action_space`."""
        return ("turn left", "turn right", "forward", "nothing")

    @property
    def action_space(self) -> Discrete:
        """0 left, 1 right, 2 forward, 3 nothing."""
        return Discrete(4)

    def start(self, key: jax.Array, task: RoomTask) -> RoomState:
        """The task's own start, or a random one."""
        zero = jnp.zeros((), jnp.int32)
        if self.layout == "corners":
            return RoomState(jnp.asarray(task.start), zero, zero)
        place_key, turn_key = jax.random.split(key)
        offset = jax.random.uniform(place_key, (2,), minval=-START_SPREAD, maxval=START_SPREAD)
        return RoomState(self.side / 2 + offset, jax.random.randint(turn_key, (), 0, 24, jnp.int32), zero)

    def transition(
        self, key: jax.Array, state: RoomState, action: jax.Array, task: RoomTask
    ) -> tuple[RoomState, TimeStep]:
        """Deterministic."""
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
        """Image and heading."""
        heading = jnp.stack(direction(state.turns))
        image = render(self.scene(task), Camera(state.position, heading), self.lens)
        if self.observed is not None:
            image = (resize(image, self.observed[1], self.observed[0]) - IMAGENET_MEAN) / IMAGENET_STD
        return state, {"heading": heading, "image": image}

    def scene(self, task: RoomTask) -> Scene:
        """The room and its objects."""
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
        """Turns towards the target, the shorter way, until it is within 30°; then goes there, then stays."""
        distance, bearing = _target_seen_from(state, task)
        turn = jnp.where(bearing > 0, 0, 1)
        return jnp.where(jnp.abs(bearing) > FACING, turn, jnp.where(distance < REACH, 3, 2)).astype(jnp.int32)

    def tasks(self, split: Split) -> RoomTask:
        """The split's tasks.

        "corners": environment ids 0 … 9999 train and 8000 … 8019 test, as published: the test tasks ARE training tasks,
        and there are only four that differ in more than centimetres, the target's colour (which is also its corner).
        "open": `train_layouts` and `test_layouts` layouts, no layout in both, each with each of its objects as target.
        """
        if self.layout == "corners":
            tasks = corner_tasks(self.side, 10_000)
            return tasks if split == "train" else jax.tree.map(lambda x: x[8000:8020], tasks)
        layouts = open_layouts(self.side, self.train_layouts + self.test_layouts, 0)
        chosen = slice(0, self.train_layouts) if split == "train" else slice(self.train_layouts, None)
        return each_target(jax.tree.map(lambda x: x[chosen], layouts))

    def record(self, state: RoomState) -> RoomState:
        """The state: random starts are not in the observations."""
        return state

    def sight(self, state: RoomState, task: RoomTask) -> draw.Sight:
        """What there is to draw of `state`."""
        camera = Camera(state.position, jnp.stack(direction(state.turns)))
        return draw.Sight(self.scene(task), camera, jnp.arange(OBJECTS) == task.target)

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Frames of a trial, uint8 [n, H, W, 3]: the view, and a map with the path and a ring around the target."""
        return draw.trial_frames(self.sight, trial, self.lens)


def direction(turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of a heading given in steps of 15°, from a table: no rounding builds up over turns."""
    angles = np.arange(24) * TURN
    index = turns % 24
    return jnp.asarray(np.cos(angles), jnp.float32)[index], jnp.asarray(np.sin(angles), jnp.float32)[index]


def _target_seen_from(state: RoomState, task: RoomTask) -> tuple[jax.Array, jax.Array]:
    """(distance in metres, bearing in radians, positive to the left) of the target."""
    cos, sin = direction(state.turns)
    x, z = jnp.asarray(task.centre)[task.target] - state.position
    return jnp.hypot(x, z), jnp.arctan2(-x * sin - z * cos, x * cos - z * sin)


@functools.cache
def corner_tasks(side: float, count: int) -> RoomTask:
    """DPT's tasks with ids 0 … count − 1: a box in each corner, the positions jittered, a target, a start.

    With r the object radius, each box is at its corner's base plus U[0, 1]²·r; bases are r from the low and 2r from the
    high walls. (The generator's stream is ours: an id is not the layout that it is in DPT's code.)
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
    """`count` random layouts (target 0), all different: objects in the room, apart, clear of where the agent starts.

    Positions are uniform over all that fulfil this; colours are different within a layout, shapes and yaws are free.
    Raises RoomTooSmallError where 200,000 draws hold too few.
    """
    random = np.random.RandomState(seed)
    room, found = side - 2 * OBJECT_RADIUS, []
    for _ in range(20):
        if room <= 0:
            break
        centre = OBJECT_RADIUS + room * random.uniform(size=(10_000, OBJECTS, 2))
        gaps = np.linalg.norm(centre[:, :, None] - centre[:, None], axis=-1) + 2 * side * np.eye(OBJECTS)
        from_centre = np.linalg.norm(centre - side / 2, axis=-1)
        found.append(centre[(gaps.min((1, 2)) >= APART) & (from_centre.min(1) >= CLEAR_OF_CENTRE)])
        if sum(map(len, found)) >= count:
            break
    if sum(map(len, found)) < count:
        raise RoomTooSmallError(f"side is {side}; allowed: a room that {OBJECTS} objects fit in, 6 metres are plenty")
    return RoomTask(
        centre=np.concatenate(found)[:count].astype(np.float32),
        yaw=random.uniform(0, math.pi / 2, (count, OBJECTS)).astype(np.float32),
        shape=random.randint(0, 3, (count, OBJECTS)).astype(np.int32),
        colour=random.uniform(size=(count, len(PALETTE))).argsort(1)[:, :OBJECTS].astype(np.int32),
        start=np.full((count, 2), side / 2, np.float32),
        target=np.zeros(count, np.int32),
    )


def each_target(layouts: RoomTask) -> RoomTask:
    """Every layout with each of its objects as the target; the targets of a layout follow one another."""
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
