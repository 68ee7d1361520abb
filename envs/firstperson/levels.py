"""The standard Miniworld levels: find the red box in a room, a hallway, a maze (Chevalier-Boisvert et al. 2023).

Geometry, steps, collisions, rewards and limits are those of the package; its textures and meshes are not used. There an
episode is a new world; here the world with its box is the task and lasts for a trial, the agent's start is new in every
episode.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.environment.base import Discrete, Image, Split, TimeStep, TrialRecord, VisualEnvironment
from relic_jax.envs.firstperson import draw
from relic_jax.envs.firstperson.plan import Door, Plan, Rectangle, touches_walls
from relic_jax.envs.firstperson.renderer import Lens, render
from relic_jax.envs.firstperson.scene import (
    BOX,
    COLOURS,
    SKY,
    WHITE,
    Camera,
    RoomTooSmallError,
    Scene,
    Solids,
    UnreachableTargetError,
    cubes,
    plain_walls,
    rectangle_walls,
)

AGENT_RADIUS = 0.4
BOX_RADIUS = 0.8 / math.sqrt(2)
FORWARD, TURN = 0.15, math.radians(15)
REACH = AGENT_RADIUS + BOX_RADIUS + 1.1 * 0.17  # 0.17: the longest step that the package's randomisation allows
INSET = 0.45  # metres from both walls, of the corners that are tried last

Walls = jax.Array | np.ndarray


@struct.dataclass
class LevelTask:
    """A world. box: float32 [2]; (x, z). yaw: float32 []. passages: bool [P]; which doors of a maze are open."""

    box: jax.Array | np.ndarray
    yaw: jax.Array | np.ndarray
    passages: jax.Array | np.ndarray


@struct.dataclass
class LevelState:
    """position: float32 [2]; (x, z). heading: float32 []; radians, at the start. turns, step: int32 []; 15° to the left
    each, and steps taken.
    """

    position: jax.Array
    heading: jax.Array
    turns: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Level(VisualEnvironment):
    """Reach the red box: that earns 1 − 0.2·t/T at step t of at most T, and ends the episode.

    Actions: 0 turn left 15°, 1 turn right 15°, 2 forward 0.15 m; a step into a wall or the box is refused whole.

    box_regions, start_regions: where the box and the agent may be, by area; None: anywhere.
    start_spread: headings are uniform within ± that, radians.
    tries: places drawn for a start; of 8, all are in a wall or in the box once in 10,000 times at worst.
    open_sky: no ceiling. train_tasks, test_tasks: sizes of the splits. textured: tiles and boards, not flat colours.
    """

    ends_in_time = True

    expensive_reset = True  # each place that is tried is held against every wall

    name: str
    plan: Plan
    horizon: int
    box_regions: tuple[Rectangle, ...] | None = None
    start_regions: tuple[Rectangle, ...] | None = None
    start_spread: float = math.pi
    open_sky: bool = False
    lens: Lens = dataclasses.field(default_factory=Lens)
    textured: bool = False
    tries: int = 8
    train_tasks: int = 1000
    test_tasks: int = 100

    def __post_init__(self) -> None:
        """Rejects a world that its box or its agent does not fit in, and one without a way between them."""
        for box in self.box_regions or self.plan.rooms[:1]:
            for start in self.start_regions or self.plan.rooms:
                if not self.plan.connected(start, box):
                    raise UnreachableTargetError(f"no doors lead from {start} to {box}; allowed: connected rooms")
        boxes = self.draw_tasks(64, 0).box
        far = np.linalg.norm(boxes[:, None] - self._corners(), axis=-1).max(1)
        if far.min() < AGENT_RADIUS + BOX_RADIUS:
            raise RoomTooSmallError(f"rooms are {self.plan.rooms}; allowed: room for the agent away from the box")

    @property
    def observation_spec(self) -> Image:
        """uint8 [H, W, 3]."""
        return Image((self.lens.height, self.lens.width, 3), jnp.uint8)

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        """0 and 255."""
        shape = self.observation_spec.shape
        return np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)

    @property
    def reference_episodes(self) -> int:
        """512: episodes are long."""
        return 512

    @property
    def action_names(self) -> tuple[str, ...]:
        """As in `action_space`."""
        return ("turn left", "turn right", "forward")

    @property
    def action_space(self) -> Discrete:
        """0 left, 1 right, 2 forward."""
        return Discrete(3)

    def walls(self, task: LevelTask) -> Walls:
        """Both ends of every wall, float32 [S, 2, 2]."""
        del task
        return self.plan.walls()

    def start(self, key: jax.Array, task: LevelTask) -> LevelState:
        """A uniformly random place that is clear of walls and box, and a random heading.

        The first clear one of `tries` drawn places; should none be, the corner of a room that is farthest from the box.
        """
        region_key, place_key, heading_key = jax.random.split(key, 3)
        areas = np.array(self.start_regions or self.plan.regions(), np.float32)
        sizes = (areas[:, 1] - areas[:, 0]) * (areas[:, 3] - areas[:, 2])
        if len(areas) == 1:
            area = jnp.broadcast_to(jnp.asarray(areas), (self.tries, 4))
        else:
            area = jnp.asarray(areas)[jax.random.choice(region_key, len(areas), (self.tries,), p=sizes / sizes.sum())]
        places = area[:, ::2] + jax.random.uniform(place_key, (self.tries, 2)) * (area[:, 1::2] - area[:, ::2])
        walls = self.walls(task)
        clear = ~jax.vmap(lambda place: self.blocked(place, walls, task))(places)
        corners = jnp.asarray(self._corners())
        corner = corners[jnp.argmax(jnp.sum((corners - task.box) ** 2, -1))]
        position = jnp.where(clear.any(), places[jnp.argmax(clear)], corner)
        heading = jax.random.uniform(heading_key, (), minval=-self.start_spread, maxval=self.start_spread)
        zero = jnp.zeros((), jnp.int32)
        return LevelState(position, heading, zero, zero)

    def blocked(self, position: jax.Array, walls: Walls, task: LevelTask) -> jax.Array:
        """Whether the agent cannot be at `position`, bool []."""
        inside_box = jnp.sum((position - task.box) ** 2) < (AGENT_RADIUS + BOX_RADIUS) ** 2
        return touches_walls(position, AGENT_RADIUS, walls) | inside_box

    def transition(
        self, key: jax.Array, state: LevelState, action: jax.Array, task: LevelTask
    ) -> tuple[LevelState, TimeStep]:
        """Deterministic. Reaching the box wins over the time limit."""
        del key
        turns = state.turns + (action == 0).astype(jnp.int32) - (action == 1).astype(jnp.int32)
        cos, sin = direction(state.heading, turns)
        ahead = state.position + FORWARD * jnp.stack([cos, -sin])
        moves = (action == 2) & ~self.blocked(ahead, self.walls(task), task)
        position = jnp.where(moves, ahead, state.position)
        next_state = LevelState(position, state.heading, turns, state.step + 1)
        reached = jnp.sum((position - task.box) ** 2) < REACH**2
        return next_state, TimeStep(
            observation=None,
            reward=jnp.where(reached, 1.0 - 0.2 * (next_state.step / self.horizon), 0.0).astype(jnp.float32),
            terminated=reached,
            truncated=(next_state.step >= self.horizon) & ~reached,
        )

    def observe(self, state: LevelState, task: LevelTask) -> tuple[LevelState, jax.Array]:
        """The image."""
        return state, render(self.scene(task), self.camera(state), self.lens)

    def camera(self, state: LevelState) -> Camera:
        """The agent's eye."""
        return Camera(state.position, jnp.stack(direction(state.heading, state.turns)))

    def scene(self, task: LevelTask) -> Scene:
        """The world with its box."""
        box = cubes(jnp.asarray(task.box)[None], jnp.asarray(task.yaw)[None], np.array([COLOURS["red"]], np.float32))
        solids = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), box, self.plan.lintels())
        white = np.asarray(WHITE, np.float32)
        return Scene(
            walls=plain_walls(self.walls(task)),
            solids=solids,
            floor=white,
            ceiling=np.asarray(SKY, np.float32) if self.open_sky else white,
            backdrop=building() if self.open_sky else None,
            open_sky=self.open_sky,
            textured=self.textured,
        )

    def tasks(self, split: Split) -> LevelTask:
        """`train_tasks` worlds drawn with RandomState(0), `test_tasks` with RandomState(1)."""
        return self.draw_tasks(self.train_tasks, 0) if split == "train" else self.draw_tasks(self.test_tasks, 1)

    def draw_tasks(self, count: int, seed: int) -> LevelTask:
        """`count` random worlds. Raises RoomTooSmallError where there is no place for a box."""
        random = np.random.RandomState(seed)
        regions = np.array(self.box_regions or self.plan.regions())
        walls, boxes = np.asarray(self.plan.walls(), float), np.zeros((0, 2))
        for _ in range(100):
            drawn = _draw_places(random, regions, max(4 * count, 100))
            boxes = np.concatenate([boxes, drawn[_distances(drawn, walls).min(1) >= BOX_RADIUS]])
            if len(boxes) >= count:
                break
        else:
            raise RoomTooSmallError(f"rooms are {self.plan.rooms}; allowed: room for a box of radius {BOX_RADIUS:.3f}")
        yaw = random.uniform(-math.pi, math.pi, count).astype(np.float32)
        return LevelTask(boxes[:count].astype(np.float32), yaw, np.zeros((count, 0), bool))

    def _corners(self) -> np.ndarray:
        """Places in the corners of the first and of the last room one may start in, float32 [n, 2]."""
        regions = self.start_regions or self.plan.rooms
        places = []
        for x0, x1, z0, z1 in dict.fromkeys((regions[0], regions[-1])):
            places += [(x, z) for x in (x0 + INSET, x1 - INSET) for z in (z0 + INSET, z1 - INSET)]
        return np.array(places, np.float32)

    def record(self, state: LevelState) -> LevelState:
        """The state: nothing of it is in the observations."""
        return state

    def sight(self, state: LevelState, task: LevelTask) -> draw.Sight:
        """What there is to draw of `state`."""
        scene = self.scene(task)
        return draw.Sight(scene, self.camera(state), jnp.arange(scene.solids.top.shape[0]) == 0)

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Frames of a trial, uint8 [n, H, W, 3]: the view, and a map with the path and a ring around the box."""
        return draw.trial_frames(self.sight, trial, self.lens)


@dataclasses.dataclass(frozen=True)
class Maze(Level):
    """A maze of square cells; which of the doors between neighbours are open is part of the task.

    Its plan has all doors; P = 2·rows·columns − rows − columns of them, in the order of `maze_plan`.
    """

    rows: int = 8
    columns: int = 8

    def walls(self, task: LevelTask) -> Walls:
        """The outer walls, and two walls for each door: its jambs where it is open, the cells' own where it is not."""
        outer, closed, opened = maze_walls(self.plan, self.rows, self.columns)
        inner = jnp.where(jnp.asarray(task.passages)[:, None, None, None], jnp.asarray(opened), jnp.asarray(closed))
        return jnp.concatenate([jnp.asarray(outer), inner.reshape(-1, 2, 2)])

    def draw_tasks(self, count: int, seed: int) -> LevelTask:
        """Random mazes by recursive backtracking, in which every cell is reachable by one way, and boxes in them."""
        random = np.random.RandomState(seed)
        passages = np.array([draw_maze(random, self.rows, self.columns) for _ in range(count)])
        # In a cell a box has room in a square in its middle whatever doors are open; that is where it is put.
        cells = np.array(self.plan.rooms)
        chosen = cells[random.randint(len(cells), size=count)]
        low, high = chosen[:, ::2] + BOX_RADIUS, chosen[:, 1::2] - BOX_RADIUS
        if (high <= low).any():
            raise RoomTooSmallError(
                f"cells are {cells[0].tolist()}; allowed: room for a box of radius {BOX_RADIUS:.3f}"
            )
        boxes = low + random.uniform(size=(count, 2)) * (high - low)
        yaw = random.uniform(-math.pi, math.pi, count)
        return LevelTask(boxes.astype(np.float32), yaw.astype(np.float32), passages)


def direction(heading: jax.Array, turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of a heading `turns` steps of 15° to the left of `heading`. Whole circles are left out first."""
    angle = heading + (turns % 24).astype(jnp.float32) * TURN
    return jnp.cos(angle), jnp.sin(angle)


def _draw_places(random: np.random.RandomState, regions: np.ndarray, count: int) -> np.ndarray:
    """Places uniform over the union of disjoint regions ([R, 4]), [count, 2]."""
    sizes = (regions[:, 1] - regions[:, 0]) * (regions[:, 3] - regions[:, 2])
    chosen = regions[random.choice(len(regions), count, p=sizes / sizes.sum())]
    return chosen[:, ::2] + random.uniform(size=(count, 2)) * (chosen[:, 1::2] - chosen[:, ::2])


def _distances(places: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """From each place [n, 2] to each wall [S, 2, 2]: [n, S]."""
    start, along = walls[:, 0], walls[:, 1] - walls[:, 0]
    share = ((places[:, None] - start) * along).sum(-1) / (along**2).sum(-1)
    return np.linalg.norm(start + np.clip(share, 0, 1)[..., None] * along - places[:, None], axis=-1)


def building() -> Solids:
    """The large building behind WallGap's walls, as a plain block."""
    return Solids(
        centre=np.array([[30.0, 30.0]], np.float32),
        yaw=np.zeros(1, np.float32),
        half=np.array([[16.0, 10.6]], np.float32),
        bottom=np.zeros(1, np.float32),
        top=np.full(1, 30.0, np.float32),
        colour=np.full((1, 3), 0.6, np.float32),
        shape=np.full(1, BOX, np.int32),
    )


CELL, GAP = 3.0, 0.25  # metres: a maze's cells and what lies between them


def maze_plan(rows: int, columns: int) -> Plan:
    """Cells row by row along x, doors between all neighbours: first those along x, row by row, then those along z."""
    pitch = CELL + GAP
    cells = [(i * pitch, i * pitch + CELL, j * pitch, j * pitch + CELL) for j in range(rows) for i in range(columns)]
    doors = []
    for j in range(rows):
        for i in range(columns - 1):
            doors.append(Door("x", (i * pitch + CELL, (i + 1) * pitch, j * pitch, j * pitch + CELL)))
    for j in range(rows - 1):
        for i in range(columns):
            doors.append(Door("z", (i * pitch, i * pitch + CELL, j * pitch + CELL, (j + 1) * pitch)))
    return Plan(tuple(cells), tuple(doors))


@functools.cache
def maze_walls(plan: Plan, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(outer walls [4, 2, 2], the two walls of each closed door [P, 2, 2, 2], of each open door [P, 2, 2, 2])."""
    pitch = CELL + GAP
    outer = rectangle_walls(0, columns * pitch - GAP, 0, rows * pitch - GAP)
    closed, opened = [], []
    for door in plan.doors:
        x0, x1, z0, z1 = door.area
        across = [((x0, z0), (x0, z1)), ((x1, z0), (x1, z1))]
        aside = [((x0, z0), (x1, z0)), ((x0, z1), (x1, z1))]
        closed.append(across if door.along == "x" else aside)
        opened.append(aside if door.along == "x" else across)
    return outer, np.array(closed, np.float32), np.array(opened, np.float32)


def draw_maze(random: np.random.RandomState, rows: int, columns: int) -> np.ndarray:
    """Which doors of `maze_plan` are open, bool [P], by recursive backtracking from the first cell."""
    along_x = rows * (columns - 1)
    passages = np.zeros(along_x + (rows - 1) * columns, bool)
    visited, path = {(0, 0)}, [(0, 0)]
    while path:
        j, i = path[-1]
        near = [(j + b, i + a) for a, b in ((0, 1), (0, -1), (-1, 0), (1, 0))]
        free = [(b, a) for b, a in near if 0 <= b < rows and 0 <= a < columns and (b, a) not in visited]
        if not free:
            path.pop()
            continue
        b, a = free[random.randint(len(free))]
        if b == j:
            passages[j * (columns - 1) + min(a, i)] = True
        else:
            passages[along_x + min(b, j) * columns + i] = True
        visited.add((b, a))
        path.append((b, a))
    return passages


def _presets() -> dict[str, Level]:
    box = BOX_RADIUS  # regions reach that far, and the agent's 0.4, over the package's bounds, as its sampling does
    side_rooms = ((-7.0, -1.0, 1.0, 7.0), (1.0, 7.0, 1.0, 7.0), (1.0, 7.0, -7.0, -1.0), (-7.0, -1.0, -7.0, -1.0))
    four_doors = (
        Door("x", (-1.0, 1.0, 3.0, 5.0), 2.2),
        Door("z", (3.0, 5.0, -1.0, 1.0), 2.2),
        Door("x", (-1.0, 1.0, -5.0, -3.0), 2.2),
        Door("z", (-5.0, -3.0, -1.0, 1.0), 2.2),
    )
    hall, arms = (-1.0, 8.0, -2.0, 2.0), (8.0, 12.0, -8.0, 8.0)
    south, north = (-7.0, 7.0, 0.5, 8.0), (-7.0, 7.0, -8.0, -0.5)
    presets = (
        Level("miniworld-oneroom", Plan(((0.0, 10.0, 0.0, 10.0),)), 180),
        Level(
            "miniworld-hallway",
            Plan(((-1.0, 11.0, -2.0, 2.0),)),
            250,
            box_regions=((9.0 - box, 11.0, -2.0, 2.0),),
            start_regions=((-1.0, 9.0 + AGENT_RADIUS, -2.0, 2.0),),
            start_spread=math.pi / 4,
        ),
        Level(
            "miniworld-tmaze",
            Plan((hall, arms), (Door("x", (8.0, 8.0, -2.0, 2.0)),)),
            280,
            box_regions=((8.0, 12.0, -8.0, -6.0 + box), (8.0, 12.0, 6.0 - box, 8.0)),
            start_regions=(hall,),
            start_spread=math.pi / 4,
        ),
        Level("miniworld-fourrooms", Plan(side_rooms, four_doors), 250),
        Maze("miniworld-maze", maze_plan(8, 8), 8 * 8 * 24, start_regions=maze_plan(8, 8).rooms, tries=16),
        Level(
            "miniworld-wallgap",
            Plan((south, north), (Door("z", (-1.5, 1.5, -0.5, 0.5)),)),
            300,
            box_regions=(north,),
            start_regions=(south,),
            open_sky=True,
        ),
    )
    return {preset.name: preset for preset in presets}


PRESETS = _presets()
