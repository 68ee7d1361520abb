"""Object navigation in procedural houses: the task ExtObjNav (Elawady et al. 2024, arXiv 2410.02751) without assets.

A trial takes place in one house whose objects do not move. Each episode asks for one of the categories in the house and
starts at a random position, so within a trial, an agent can learn where the objects are.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax import prng
from relic_jax.environment.base import Discrete, Image, Split, TimeStep, TrialRecord, VisualEnvironment
from relic_jax.envs.firstperson import draw
from relic_jax.envs.firstperson.geodesic import distance_at
from relic_jax.envs.firstperson.house_plan import (
    CATEGORIES,
    CATEGORY_COLOUR,
    CATEGORY_SHAPE,
    CATEGORY_SIZE,
    CELL,
    OBJECT,
    House,
    HouseConfig,
    build_house,
)
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.paint import FIRST_SOLID
from relic_jax.envs.firstperson.renderer import render_objects
from relic_jax.envs.firstperson.scene import BOX, CYLINDER, SPHERE, WHITE, Camera, Scene, Solids, Walls

STOP, FORWARD, LEFT, RIGHT, UP, DOWN = range(6)
STEP = 0.25  # meters
TURN = math.radians(30)  # angle of turning, and of looking up and down
LOWEST, HIGHEST = -2, 2  # pitch, in steps of 30°
RADIUS = 0.12  # meters; the agent is a square with twice this side, which fits into a cell
EYE = 1.3
SUCCESS_DISTANCE = 2.0
SUCCESS_PIXELS, BORDER = 10, 5
SLACK, SUCCESS_REWARD = 0.001, 2.0

TRAIN_HOUSES, TEST_HOUSES = 10_000, 1_000


@struct.dataclass
class HouseState:
    """The state of an episode.

    Attributes:
        house: House of the trial.
        target: Int32 []; index into the categories of the house.
        position: Float32 [2]; (x, z).
        heading: Float32 []; heading at the start of the episode, in radians.
        turns: Int32 []; turns of 30° to the left since then.
        pitch: Int32 []; elevation of the view in steps of 30°.
        step: Int32 []; steps taken.
        start: Float32 [2]; position at the start of the episode.
        start_distance: Float32 []; meters from the start to the nearest object of the target category.
        distance: Float32 []; meters from `position` to it.
        path: Float32 []; meters traveled.
        pixels: Int32 []; number of pixels, inside the border, of the most visible target object within 2 m.
        success: Bool []; whether the episode ended with a successful stop.
    """

    house: House
    target: jax.Array
    position: jax.Array
    heading: jax.Array
    turns: jax.Array
    pitch: jax.Array
    step: jax.Array
    start: jax.Array
    start_distance: jax.Array
    distance: jax.Array
    path: jax.Array
    pixels: jax.Array
    success: jax.Array


@struct.dataclass
class HouseRecord:
    """The part of a `HouseState` that rendering needs. The house follows from the task."""

    target: jax.Array
    position: jax.Array
    heading: jax.Array
    turns: jax.Array
    pitch: jax.Array


@dataclasses.dataclass(frozen=True)
class HouseNav(VisualEnvironment):
    """Find an object of the target category, face it and stop.

    Actions: 0 stop, 1 move forward 0.25 m (sliding along obstacles), 2 turn left 30°, 3 turn right 30°, 4 look up 30°,
    5 look down 30° (at most twice in each direction). Stopping ends the episode. It is a success within 2 m of an
    object of the category that covers at least 10 pixels of the image without a border of 5 pixels. The reward is the
    decrease of the geodesic distance to the nearest such object, minus 0.001 per step, plus 2 for success.

    Attributes:
        name: Name of the environment.
        config: Parameters of the houses.
        horizon: Steps of the longest episode.
        lens: The agent's camera.
        textured: Draw floor tiles and wall boards instead of flat colors.
    """

    ends_in_time = True

    name: str
    config: HouseConfig = dataclasses.field(default_factory=HouseConfig)
    horizon: int = 500
    lens: Lens = dataclasses.field(default_factory=lambda: Lens(64, 64, 90.0, layers=6))
    textured: bool = False

    @property
    def observation_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The observation.

        gps: float32 [2]; meters (forward, right) from the start of the episode, relative to its heading. image: uint8
        [H, W, 3]. target: float32 [20]; the target category, one-hot.
        """
        return {
            "gps": jax.ShapeDtypeStruct((2,), jnp.float32),
            "image": Image((self.lens.height, self.lens.width, 3), jnp.uint8),
            "target": jax.ShapeDtypeStruct((CATEGORIES,), jnp.float32),
        }

    @property
    def observation_range(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """± the size of the house for gps, 0 to 255 for the image, 0 to 1 for the target."""
        spec, size = self.observation_spec, self.config.side * math.sqrt(2)
        ends = {"gps": (-size, size), "image": (0, 255), "target": (0, 1)}
        low = {name: np.full(spec[name].shape, end[0], spec[name].dtype) for name, end in ends.items()}
        return low, {name: np.full(spec[name].shape, end[1], spec[name].dtype) for name, end in ends.items()}

    @property
    def reference_episodes(self) -> int:
        """Episodes of the reference returns: few, since episodes are long and every stop needs an image."""
        return 256

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions."""
        return ("stop", "forward", "turn left", "turn right", "look up", "look down")

    @property
    def action_space(self) -> Discrete:
        """0 stop, 1 forward, 2 left, 3 right, 4 up, 5 down."""
        return Discrete(6)

    def start(self, key: jax.Array, task: jax.Array) -> HouseState:
        """Build the house of the task and start an episode in it."""
        return self._episode(key, build_house(prng.key(task), self.config))

    def restart(self, key: jax.Array, state: HouseState, task: jax.Array) -> HouseState:
        """Start an episode in the same house."""
        del task
        return self._episode(key, state.house)

    def _episode(self, key: jax.Array, house: House) -> HouseState:
        """Start with a random reachable category, cell and heading."""
        target_key, place_key, heading_key = jax.random.split(key, 3)
        draws = jax.random.uniform(target_key, (self.config.categories,))
        target = jnp.argmax(jnp.where(house.reachable, 1.0 + draws, draws)).astype(jnp.int32)
        cell = house.starts[jax.random.randint(place_key, (), 0, jnp.maximum(house.start_count, 1))]
        position = (jnp.stack([cell // self.config.cells, cell % self.config.cells]) + 0.5) * CELL
        distance = distance_at(house.distance[target], position, CELL)
        zero = jnp.zeros((), jnp.int32)
        return HouseState(
            house=house,
            target=target,
            position=position,
            heading=jax.random.uniform(heading_key, (), minval=-math.pi, maxval=math.pi),
            turns=zero,
            pitch=zero,
            step=zero,
            start=position,
            start_distance=distance,
            distance=distance,
            path=jnp.zeros((), jnp.float32),
            pixels=zero,
            success=jnp.zeros((), bool),
        )

    def transition(
        self, key: jax.Array, state: HouseState, action: jax.Array, task: jax.Array
    ) -> tuple[HouseState, TimeStep]:
        """Take one step. Deterministic. The success of a stop depends on the last observed image."""
        del key, task
        turns = state.turns + (action == LEFT).astype(jnp.int32) - (action == RIGHT).astype(jnp.int32)
        pitch = state.pitch + (action == UP).astype(jnp.int32) - (action == DOWN).astype(jnp.int32)
        position = jnp.where(action == FORWARD, slide(state.house.free, state.position, facing(state)), state.position)
        distance = distance_at(state.house.distance[state.target], position, CELL)
        stopped, step = action == STOP, state.step + 1
        success = stopped & (state.pixels >= SUCCESS_PIXELS)
        next_state = state.replace(  # type: ignore[attr-defined]
            position=position,
            turns=turns,
            pitch=jnp.clip(pitch, LOWEST, HIGHEST),
            step=step,
            distance=distance,
            path=state.path + jnp.linalg.norm(position - state.position),
            success=success,
        )
        return next_state, TimeStep(
            observation=None,
            reward=state.distance - distance - SLACK + jnp.where(success, SUCCESS_REWARD, 0.0),
            terminated=stopped,
            truncated=(step >= self.horizon) & ~stopped,
        )

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the last step earned the reward for success, which exceeds all others."""
        del episode_return
        return timestep.terminated & (timestep.reward > SUCCESS_REWARD / 2)

    def metrics(self, state: HouseState) -> dict[str, jax.Array]:
        """Return metrics at the end of an episode.

        distance: remaining meters. spl: success weighted by path length (Anderson et al. 2018, arXiv 1807.06757).
        soft_spl: SPL with the covered share of the path instead of success (Datta et al. 2020, arXiv 2009.03231).
        """
        share = state.start_distance / jnp.maximum(jnp.maximum(state.start_distance, state.path), 1e-6)
        covered = jnp.maximum(0.0, 1.0 - state.distance / jnp.maximum(state.start_distance, 1e-6))
        return {
            "distance": state.distance,
            "soft_spl": covered * share,
            "spl": jnp.where(state.success, share, 0.0),
        }

    def observe(self, state: HouseState, task: jax.Array) -> tuple[HouseState, dict[str, jax.Array]]:
        """Return image, target and gps, and count the pixels that decide about the success of a stop."""
        del task
        view = render_objects(self.scene(state.house), self.camera(state), self.lens)
        state = state.replace(pixels=self._target_pixels(state, view.objects))  # type: ignore[attr-defined]
        cos, sin = jnp.cos(state.heading), jnp.sin(state.heading)
        x, z = state.position - state.start
        observation = {
            "gps": jnp.stack([x * cos - z * sin, x * sin + z * cos]),
            "image": view.image,
            "target": jax.nn.one_hot(state.house.categories[state.target], CATEGORIES, dtype=jnp.float32),
        }
        return state, observation

    def _target_pixels(self, state: HouseState, objects: jax.Array) -> jax.Array:
        """Return the pixels, inside the border, of the most visible target object within 2 m, int32 []."""
        inside = objects[BORDER : self.lens.height - BORDER, BORDER : self.lens.width - BORDER]
        best = jnp.zeros((), jnp.int32)
        for instance in range(self.config.instances):
            index = state.target * self.config.instances + instance
            near = jnp.sum((state.house.place[index] - state.position) ** 2) <= SUCCESS_DISTANCE**2
            count = jnp.sum(inside == FIRST_SOLID + self.config.furniture + index, dtype=jnp.int32)
            best = jnp.maximum(best, jnp.where(near, count, 0))
        return best

    def camera(self, state: HouseState | HouseRecord) -> Camera:
        """Return the agent's camera."""
        angle = state.heading + state.turns * TURN
        return Camera(state.position, jnp.stack([jnp.cos(angle), jnp.sin(angle)]), EYE, jnp.tan(state.pitch * TURN))

    def scene(self, house: House) -> Scene:
        """Return the scene. Its solids are the furniture, then the objects, from index `config.furniture` on."""
        kind = jnp.repeat(house.categories, self.config.instances)
        size, pieces = jnp.asarray(CATEGORY_SIZE)[kind], self.config.furniture
        solids = Solids(
            centre=jnp.concatenate([house.furniture[:, :2], house.place]),
            yaw=jnp.concatenate([jnp.zeros(pieces), house.yaw]),
            half=jnp.concatenate([house.furniture[:, 2:4], size[:, :2]]),
            bottom=jnp.zeros(pieces + self.config.objects),
            top=jnp.concatenate([house.furniture[:, 4], jnp.where(house.present, size[:, 2], 0.0)]),
            colour=jnp.concatenate([house.furniture_colour, jnp.asarray(CATEGORY_COLOUR)[kind]]),
            shape=jnp.concatenate([jnp.full(pieces, BOX, jnp.int32), jnp.asarray(CATEGORY_SHAPE)[kind]]),
            shapes=(BOX, CYLINDER, SPHERE),
        )
        ceiling = np.asarray(WHITE, np.float32)
        return Scene(Walls(house.walls, house.wall_colour), solids, house.floor, ceiling, textured=self.textured)

    def optimal_action(self, state: HouseState, task: jax.Array) -> jax.Array:
        """Return the action of the expert.

        It descends the distances along the best of the twelve headings. Near an object, it turns to it, looks at it,
        and stops when this is a success.
        """
        del task
        house = state.house
        ways = jnp.arange(12) - 5
        angles = state.heading + (state.turns + ways) * TURN
        ahead = jax.vmap(lambda a: slide(house.free, state.position, jnp.stack([jnp.cos(a), -jnp.sin(a)])))(angles)
        left = jax.vmap(lambda place: distance_at(house.distance[state.target], place, CELL))(ahead)
        way = ways[jnp.argmin(left + 1e-4 * jnp.abs(ways))]  # of equal headings, the one with the fewest turns
        go = jnp.where(way == 0, FORWARD, jnp.where(way > 0, LEFT, RIGHT))
        near, look = self._look_at_nearest(state)
        act = jnp.where(near, look, go)
        return jnp.where(state.pixels >= SUCCESS_PIXELS, STOP, act).astype(jnp.int32)

    def _look_at_nearest(self, state: HouseState) -> tuple[jax.Array, jax.Array]:
        """Return whether to look at the target object at the smallest straight distance, and the action to do so."""
        index = state.target * self.config.instances + jnp.arange(self.config.instances)
        aside = state.house.place[index] - state.position
        distances = jnp.where(state.house.present[index], jnp.linalg.norm(aside, axis=-1), jnp.inf)
        nearest = jnp.argmin(distances)
        x, z = aside[nearest]
        height = jnp.asarray(CATEGORY_SIZE)[state.house.categories[state.target], 2]
        cos, sin = facing(state)[0], -facing(state)[1]
        bearing = jnp.arctan2(-x * sin - z * cos, x * cos - z * sin)
        slope = (height / 2 - EYE) / distances[nearest] - jnp.tan(state.pitch * TURN)
        half = math.tan(math.radians(self.lens.field_of_view) / 2) * (1 - 2 * BORDER / self.lens.height)
        vertical = jnp.where(slope < -half, DOWN, jnp.where(slope > half, UP, FORWARD))
        turn = jnp.where(bearing > 0, LEFT, RIGHT)
        near = (distances[nearest] < 1.5) & clear_way(
            state.house.free, state.position, state.house.place[index[nearest]]
        )
        return near, jnp.where(jnp.abs(bearing) > TURN / 2, turn, vertical)

    def tasks(self, split: Split) -> np.ndarray:
        """Return seeds of houses, int32 [N]: 0 … 9,999 for training, 10,000 … 10,999 held out."""
        seeds = np.arange(TRAIN_HOUSES + TEST_HOUSES, dtype=np.int32)
        return seeds[:TRAIN_HOUSES] if split == "train" else seeds[TRAIN_HOUSES:]

    def record(self, state: HouseState) -> HouseRecord:
        """Return the pose and the target."""
        return HouseRecord(state.target, state.position, state.heading, state.turns, state.pitch)

    def render_input(self, record: HouseRecord, task: jax.Array) -> draw.RenderInput:
        """Return the scene, camera and targets to draw."""
        scene = self.scene(build_house(prng.key(task), self.config))
        solid = jnp.arange(scene.solids.top.shape[0]) - self.config.furniture
        return draw.RenderInput(
            scene, self.camera(record), (solid >= 0) & (solid // self.config.instances == record.target)
        )

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Return frames of a trial, uint8 [n, H, W, 3]: the view, and a map with the path and rings around targets."""
        return draw.trial_frames(self.render_input, trial, self.lens)


def facing(state: HouseState) -> jax.Array:
    """Return the unit vector (x, z) of the heading, float32 [2]."""
    angle = state.heading + state.turns * TURN
    return jnp.stack([jnp.cos(angle), -jnp.sin(angle)])


def clear_way(free: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Return whether the segment from `start` to the center `end` of an object, [2] each, is free, bool []."""
    places = start + jnp.linspace(0.0, 1.0, 24)[:, None] * (end - start)
    x, z = jnp.floor(places / CELL).astype(jnp.int32).T
    occupied = jnp.sum((places - end) ** 2, -1) < (OBJECT * CELL) ** 2 / 2  # the square that the object occupies
    return jnp.all(free[x, z] | occupied)


def slide(free: jax.Array, position: jax.Array, towards: jax.Array) -> jax.Array:
    """Return the end of a step of 0.25 m, which moves along x, then along z, each up to the next obstacle.

    Obstacles fill whole cells, so this is exact sliding.

    Args:
        free: Bool [n, n]; free cells.
        position: Float32 [2]; (x, z).
        towards: Float32 [2]; unit vector of the step.
    """
    for axis in (0, 1):
        position = _slide_along(free, position, STEP * towards[axis], axis)
    return position


def _slide_along(free: jax.Array, position: jax.Array, way: jax.Array, axis: int) -> jax.Array:
    """Move along one axis by at most `way` (less than a cell), up to the agent's radius before an obstacle."""
    cells = free.shape[0]
    sign = jnp.where(way >= 0, 1.0, -1.0)
    front = position[axis] + way + sign * (RADIUS + 1e-5)  # the margin exceeds rounding errors
    ahead = jnp.floor(front / CELL).astype(jnp.int32)
    sides = jnp.floor((position[1 - axis] + jnp.array([-RADIUS, RADIUS])) / CELL).astype(jnp.int32)
    open_sides = []
    for side in (sides[0], sides[1]):
        x, z = (ahead, side) if axis == 0 else (side, ahead)
        inside = (x >= 0) & (x < cells) & (z >= 0) & (z < cells)
        open_sides.append(inside & free[jnp.clip(x, 0, cells - 1), jnp.clip(z, 0, cells - 1)])
    # The near face of the obstacle. A millimeter is left, so rounding never moves the agent into it.
    face = jnp.where(sign > 0, ahead * CELL, (ahead + 1) * CELL)
    limit = face - sign * (RADIUS + 1e-3)
    stopped = jnp.where(sign > 0, jnp.maximum(limit, position[axis]), jnp.minimum(limit, position[axis]))
    return position.at[axis].set(jnp.where(open_sides[0] & open_sides[1], position[axis] + way, stopped))


PRESETS = {
    preset.name: preset
    for preset in (
        HouseNav("house-objnav-small"),
        HouseNav("house-objnav-medium", HouseConfig(48, 3, furniture=10, categories=12)),
        HouseNav("house-objnav-large", HouseConfig(64, 4, furniture=16, categories=20)),
    )
}
