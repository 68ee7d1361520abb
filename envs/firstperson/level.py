"""A level of Miniworld: find the red box (Chevalier-Boisvert et al. 2023, arXiv 2306.13831).

Geometry, steps, collisions, rewards and time limits follow the package; its textures and meshes are not used. The
package draws a new world for each episode. Here the world with its box is the task, which lasts for a trial, and only
the agent's start is drawn for each episode.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.environment.base import Discrete, Image, Split, TimeStep, TrialRecord, VisualEnvironment
from relic_jax.envs.firstperson import draw
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.plan import Plan, Rectangle, touches_walls
from relic_jax.envs.firstperson.renderer import render
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
)

AGENT_RADIUS = 0.4
BOX_RADIUS = 0.8 / math.sqrt(2)
FORWARD, TURN = 0.15, math.radians(15)
REACH = AGENT_RADIUS + BOX_RADIUS + 1.1 * 0.17  # 0.17: longest step under the package's domain randomization
INSET = 0.45  # meters; distance of the fallback starts from both walls of a corner

Walls = jax.Array | np.ndarray


@struct.dataclass
class LevelTask:
    """A world.

    Attributes:
        box: Float32 [2]; position (x, z).
        yaw: Float32 []; rotation of the box, in radians.
        passages: Bool [P]; which doors of a maze are open.
    """

    box: jax.Array | np.ndarray
    yaw: jax.Array | np.ndarray
    passages: jax.Array | np.ndarray


@struct.dataclass
class LevelState:
    """The state of an episode.

    Attributes:
        position: Float32 [2]; (x, z).
        heading: Float32 []; heading at the start of the episode, in radians.
        turns: Int32 []; turns of 15° to the left since then.
        step: Int32 []; steps taken.
    """

    position: jax.Array
    heading: jax.Array
    turns: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Level(VisualEnvironment):
    """Reach the red box. This earns 1 − 0.2·t/T at step t of at most T and ends the episode.

    Actions: 0 turn left 15°, 1 turn right 15°, 2 move forward 0.15 m. A step into a wall or the box has no effect.

    Attributes:
        name: Name of the environment.
        plan: Floor plan.
        horizon: T, steps of the longest episode.
        box_regions: Areas of the box, uniform over their union; None: the whole plan.
        start_regions: Areas of the agent's start; None: the whole plan.
        start_spread: Headings at the start are uniform in ± this angle, in radians.
        open_sky: Draw a sky and a building instead of a ceiling.
        lens: The agent's camera.
        textured: Draw floor tiles and wall boards instead of flat colors.
        tries: Positions drawn for a start. With 8, all of them are blocked with a probability of at most 1e-4.
        train_tasks: Number of training tasks.
        test_tasks: Number of held-out tasks.
    """

    ends_in_time = True

    expensive_reset = True  # each drawn position is compared with every wall

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
        """Raise SceneError if the box or the agent does not fit, or no door connects them."""
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
        """The agent's view, uint8 [H, W, 3]."""
        return Image((self.lens.height, self.lens.width, 3), jnp.uint8)

    @property
    def observation_range(self) -> tuple[np.ndarray, np.ndarray]:
        """0 and 255, uint8 [H, W, 3] each."""
        shape = self.observation_spec.shape
        return np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)

    @property
    def reference_episodes(self) -> int:
        """Episodes of the reference returns: few, since episodes are long."""
        return 512

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions."""
        return ("turn left", "turn right", "forward")

    @property
    def action_space(self) -> Discrete:
        """0 left, 1 right, 2 forward."""
        return Discrete(3)

    def walls(self, task: LevelTask) -> Walls:
        """Return both ends of every wall, float32 [S, 2, 2]."""
        del task
        return self.plan.walls()

    def start(self, key: jax.Array, task: LevelTask) -> LevelState:
        """Draw a uniformly random position clear of walls and box, and a random heading.

        The position is the first clear one of `tries` draws, or the corner farthest from the box if there is none.
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
        """Return whether walls or the box block `position`, bool []."""
        inside_box = jnp.sum((position - task.box) ** 2) < (AGENT_RADIUS + BOX_RADIUS) ** 2
        return touches_walls(position, AGENT_RADIUS, walls) | inside_box

    def transition(
        self, key: jax.Array, state: LevelState, action: jax.Array, task: LevelTask
    ) -> tuple[LevelState, TimeStep]:
        """Move the agent. Deterministic. Reaching the box takes precedence over the time limit."""
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
        """Render the agent's view."""
        return state, render(self.scene(task), self.camera(state), self.lens)

    def camera(self, state: LevelState) -> Camera:
        """Return the agent's camera."""
        return Camera(state.position, jnp.stack(direction(state.heading, state.turns)))

    def scene(self, task: LevelTask) -> Scene:
        """Return the world with its box."""
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
        """Return `train_tasks` worlds drawn by RandomState(0), or `test_tasks` worlds drawn by RandomState(1)."""
        return self.draw_tasks(self.train_tasks, 0) if split == "train" else self.draw_tasks(self.test_tasks, 1)

    def draw_tasks(self, count: int, seed: int) -> LevelTask:
        """Return `count` random worlds. Raises RoomTooSmallError if there is no room for a box."""
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
        """Return positions in the corners of the first and of the last start region, float32 [n, 2]."""
        regions = self.start_regions or self.plan.rooms
        places = []
        for x0, x1, z0, z1 in dict.fromkeys((regions[0], regions[-1])):
            places += [(x, z) for x in (x0 + INSET, x1 - INSET) for z in (z0 + INSET, z1 - INSET)]
        return np.array(places, np.float32)

    def record(self, state: LevelState) -> LevelState:
        """Return the state, which cannot be recovered from observations."""
        return state

    def render_input(self, state: LevelState, task: LevelTask) -> draw.RenderInput:
        """Return the scene, camera and targets to draw for `state`."""
        scene = self.scene(task)
        return draw.RenderInput(scene, self.camera(state), jnp.arange(scene.solids.top.shape[0]) == 0)

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Return frames of a trial, uint8 [n, H, W, 3]: the view, and a map with the path and a ring around the box."""
        return draw.trial_frames(self.render_input, trial, self.lens)


def direction(heading: jax.Array, turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (cos, sin) of the heading `turns` steps of 15° to the left of `heading`, modulo whole circles."""
    angle = heading + (turns % 24).astype(jnp.float32) * TURN
    return jnp.cos(angle), jnp.sin(angle)


def _draw_places(random: np.random.RandomState, regions: np.ndarray, count: int) -> np.ndarray:
    """Draw positions [count, 2], uniform over the union of disjoint regions [R, 4]."""
    sizes = (regions[:, 1] - regions[:, 0]) * (regions[:, 3] - regions[:, 2])
    chosen = regions[random.choice(len(regions), count, p=sizes / sizes.sum())]
    return chosen[:, ::2] + random.uniform(size=(count, 2)) * (chosen[:, 1::2] - chosen[:, ::2])


def _distances(places: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Return the distances [n, S] from positions [n, 2] to walls [S, 2, 2]."""
    start, along = walls[:, 0], walls[:, 1] - walls[:, 0]
    share = ((places[:, None] - start) * along).sum(-1) / (along**2).sum(-1)
    return np.linalg.norm(start + np.clip(share, 0, 1)[..., None] * along - places[:, None], axis=-1)


def building() -> Solids:
    """Return the large building behind the walls of WallGap, as a plain block."""
    return Solids(
        centre=np.array([[30.0, 30.0]], np.float32),
        yaw=np.zeros(1, np.float32),
        half=np.array([[16.0, 10.6]], np.float32),
        bottom=np.zeros(1, np.float32),
        top=np.full(1, 30.0, np.float32),
        colour=np.full((1, 3), 0.6, np.float32),
        shape=np.full(1, BOX, np.int32),
    )
