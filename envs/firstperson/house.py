"""Object navigation in procedural houses: the task ExtObjNav (Elawady et al. 2024, arXiv 2410.02751) without assets.

A trial takes place in one house whose objects do not move. Each episode asks for one of the categories in the house and
starts at a random position, so within a trial, an agent can learn where the objects are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import prng
from relic_jax.environment.base import Discrete, Image, Split, TimeStep, TrialMap, TrialRecord, VisualEnvironment
from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING, ScriptedAgent
from relic_jax.envs.asked import sample_observed
from relic_jax.envs.firstperson import draw, house_expert, house_map, house_recall, house_scene, house_symbols
from relic_jax.envs.firstperson.geodesic import distance_at
from relic_jax.envs.firstperson.house_plan import (
    CATEGORIES,
    CELL,
    House,
    HouseConfig,
    build_house,
)
from relic_jax.envs.firstperson.house_state import HouseRecord, HouseState, facing
from relic_jax.envs.firstperson.house_walk import (
    BORDER,
    DOWN,
    EYE,
    FORWARD,
    LEFT,
    RIGHT,
    STOP,
    SUCCESS_DISTANCE,
    SUCCESS_PIXELS,
    TURN,
    UP,
    slide,
)
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.paint import FIRST_SOLID
from relic_jax.envs.firstperson.renderer import render_objects
from relic_jax.envs.firstperson.scene import Camera, Scene

LOWEST, HIGHEST = -2, 2  # pitch, in steps of 30°
SLACK, SUCCESS_REWARD = 0.001, 2.0
DOCK = 100  # stream of random numbers for the start of all episodes of a trial; the house uses those from 0 on

Pose = Literal["episode", "dock", "house"]
View = Literal["image", "symbols"]
RewardTo = Literal["object", "reach"]

TRAIN_HOUSES, TEST_HOUSES = 10_000, 1_000
SEEDS = 2**16
"""A task of at least SEEDS has its own number of target categories (`HouseNav.rung_tasks`)."""


@dataclasses.dataclass(frozen=True)
class HouseNav(VisualEnvironment):
    """Find an object of the target category, face it and stop.

    Actions: 0 stop, 1 move forward 0.25 m (sliding along obstacles), 2 turn left 30°, 3 turn right 30°, 4 look up 30°,
    5 look down 30° (at most twice in each direction). Stopping ends the episode. It is a success within 2 m of an
    object of the category that covers at least 10 pixels of the image without a border of 5 pixels. The reward is the
    decrease of the geodesic distance to the nearest such object, minus 0.001 per step, plus 2 for success.

    With the view "symbols" there are no actions 4 and 5, and a stop is a success within 2 m of an object of the
    category whose center is in view (`house_symbols`).

    Attributes:
        name: Name of the environment.
        config: Parameters of the houses.
        horizon: Steps of the longest episode.
        lens: The agent's camera.
        textured: Draw floor tiles and wall boards instead of flat colors.
        pose: Where episodes start, and the frame of the observed position, see `HouseOptions`.
        view: Observation of objects and walls, see `HouseOptions`.
        reward_to: Distance whose decrease is rewarded, see `HouseOptions`.
        asked: Number of categories that a trial asks for; None: all. With n numbers, the task of seed s asks for the
            number at index s mod n.
    """

    ends_in_time = True
    can_relabel = True
    ending_actions = (STOP,)
    without_labels = "labels what can be recalled only with env.view 'symbols' and env.pose 'house' or 'dock'"

    name: str
    config: HouseConfig = dataclasses.field(default_factory=HouseConfig)
    horizon: int = 500
    lens: Lens = dataclasses.field(default_factory=lambda: Lens(64, 64, 90.0, layers=6))
    textured: bool = False
    pose: Pose = "episode"
    view: View = "image"
    reward_to: RewardTo = "object"
    asked: int | tuple[int, ...] | None = None

    @property
    def observation_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The observation.

        gps: float32 [2]; meters (forward, right) from the start of the episode, relative to its heading, or with
        `pose` "house" (x, z) from the center of the house. heading: float32 [2]; (cos, sin) in the same frame; only if
        `pose` is "house" or `view` "symbols". target: float32 [20]; the target category, one-hot.

        View "image": image, uint8 [H, W, 3]. View "symbols": see `house_symbols.SHAPES`; and square: float32 [2·N];
        the square meter of the agent, one-hot along both axes of gps, only if all episodes of a trial share the frame
        (`pose` "dock" or "house").
        """
        shapes: dict[str, tuple[int, ...]] = {"gps": (2,), "target": (CATEGORIES,)}
        if self.observes_heading:
            shapes["heading"] = (2,)
        if self.view == "symbols":
            shapes |= house_symbols.SHAPES
            if self.recall_classes:
                shapes["square"] = (sum(self.recall_classes),)
        spec = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        if self.view == "image":
            spec["image"] = Image((self.lens.height, self.lens.width, 3), jnp.uint8)
        return spec

    @property
    def observation_range(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Distances up to the house's diagonal, bearings inside the field of view, and the ends of the others."""
        size = self.config.side * math.sqrt(2)
        edge = math.atan(self.lens.edge)
        others = {
            "bearing": (-edge, edge),
            "distance": (0, size),
            "gps": (-self._extent, self._extent),
            "heading": (-1, 1),
            "image": (0, 255),
        }
        ends = {name: (array, *others.get(name, (0, 1))) for name, array in self.observation_spec.items()}
        low = {name: np.full(array.shape, start, array.dtype) for name, (array, start, _) in ends.items()}
        return low, {name: np.full(array.shape, end, array.dtype) for name, (array, _, end) in ends.items()}

    @property
    def _extent(self) -> float:
        """Largest observed coordinate, in meters."""
        return self.config.side * (0.5 if self.pose == "house" else math.sqrt(2))

    @property
    def observes_heading(self) -> bool:
        """Whether the observation includes the heading."""
        return self.pose == "house" or self.view == "symbols"

    @property
    def reference_episodes(self) -> int:
        """Episodes of the reference returns: few, since episodes are long and every stop needs an image."""
        return 256

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions."""
        names = ("stop", "forward", "turn left", "turn right", "look up", "look down")
        return names if self.view == "image" else names[:UP]

    @property
    def action_space(self) -> Discrete:
        """0 stop, 1 forward, 2 left, 3 right, and with images 4 up, 5 down."""
        return Discrete(len(self.action_names))

    def start(self, key: jax.Array, task: jax.Array) -> HouseState:
        """Build the house of the task and start an episode in it."""
        return self._episode(key, build_house(house_key(task), self.config), task)

    def restart(self, key: jax.Array, state: HouseState, task: jax.Array) -> HouseState:
        """Start an episode in the same house."""
        return self._episode(key, state.house, task)

    def _episode(self, key: jax.Array, house: House, task: jax.Array) -> HouseState:
        """Start with a random one of the target categories, at a cell and heading as `pose` says."""
        target_key, place_key, heading_key = jax.random.split(key, 3)
        if self.pose == "dock":
            place_key, heading_key = jax.random.split(jax.random.fold_in(house_key(task), DOCK))
        draws = jax.random.uniform(target_key, (self.config.categories,))
        target = jnp.argmax(jnp.where(self.asked_in(house, task), 1.0 + draws, draws)).astype(jnp.int32)
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

    def asked_in(self, house: House, task: jax.Array) -> jax.Array:
        """Return which categories the trial asks for, bool [C]: the first ones of those that can be reached."""
        asked = (self.asked,) if isinstance(self.asked, int) else self.asked or (self.config.categories,)
        number = jnp.where(task >= SEEDS, task // SEEDS, jnp.asarray(asked)[task % SEEDS % len(asked)])
        return house.reachable & (jnp.cumsum(house.reachable) <= number)

    def transition(
        self, key: jax.Array, state: HouseState, action: jax.Array, task: jax.Array
    ) -> tuple[HouseState, TimeStep]:
        """Take one step. Deterministic. The success of a stop depends on the last observed image."""
        del key, task
        turns = state.turns + (action == LEFT).astype(jnp.int32) - (action == RIGHT).astype(jnp.int32)
        pitch = state.pitch + (action == UP).astype(jnp.int32) - (action == DOWN).astype(jnp.int32)
        position = jnp.where(action == FORWARD, slide(state.house.free, state.position, facing(state)), state.position)
        distance = distance_at(state.house.distance[state.target], position, CELL)
        end = SUCCESS_DISTANCE if self.reward_to == "reach" else 0.0
        nearer = jnp.maximum(state.distance, end) - jnp.maximum(distance, end)
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
            reward=nearer - SLACK + jnp.where(success, SUCCESS_REWARD, 0.0),
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
        steps: length of the episode.
        """
        share = state.start_distance / jnp.maximum(jnp.maximum(state.start_distance, state.path), 1e-6)
        covered = jnp.maximum(0.0, 1.0 - state.distance / jnp.maximum(state.start_distance, 1e-6))
        return {
            "distance": state.distance,
            "soft_spl": covered * share,
            "spl": jnp.where(state.success, share, 0.0),
            "steps": state.step.astype(jnp.float32),
        }

    def observe(self, state: HouseState, task: jax.Array) -> tuple[HouseState, dict[str, jax.Array]]:
        """Return the observation, and keep what decides about the success of a stop in the state."""
        del task
        if self.view == "image":
            view = render_objects(self.scene(state.house), self.camera(state), self.lens)
            pixels, objects = self._target_pixels(state, view.objects), {"image": view.image}
        else:
            pixels, objects = self._observe_symbols(state)
        observation = {
            **self._observe_pose(state),
            **objects,
            "target": self._target(state),
        }
        return state.replace(pixels=pixels), observation  # type: ignore[attr-defined]

    def _target(self, state: HouseState) -> jax.Array:
        """Return the target category, one-hot, float32 [20]."""
        return jax.nn.one_hot(state.house.categories[state.target], CATEGORIES, dtype=jnp.float32)

    def _observe_symbols(self, state: HouseState) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return `HouseState.pixels`, and the observation of objects and free distances."""
        house, camera = state.house, self.camera(state)
        seen = house_symbols.sightings(house, camera, self.lens)
        index = self.of_target(state)
        found = jnp.any(seen.visible[index] & (seen.distance[index] <= SUCCESS_DISTANCE))
        free = house_symbols.two_hot(house_symbols.free_distances(house, camera), house_symbols.FREE).reshape(-1)
        nearest = house_symbols.nearest_of_categories(house, seen)
        sighting = house_symbols.sighting(nearest, self._target(state))
        return jnp.where(found, SUCCESS_PIXELS, 0), {**nearest, "free": free, "sighting": sighting}

    def _observe_pose(self, state: HouseState) -> dict[str, jax.Array]:
        """Return gps, and heading and square if they are observed."""
        if self.pose == "house":
            angle, gps = state.heading + state.turns * TURN, state.position - self.config.side / 2
        else:
            cos, sin = jnp.cos(state.heading), jnp.sin(state.heading)
            x, z = state.position - state.start
            angle, gps = state.turns * TURN, jnp.stack([x * cos - z * sin, x * sin + z * cos])
        heading = {"heading": jnp.stack([jnp.cos(angle), jnp.sin(angle)])} if self.observes_heading else {}
        if self.view == "symbols":
            heading["compass"] = house_symbols.compass(angle)
        if not self.recall_classes:
            return {"gps": gps, **heading}
        return {"gps": gps, **heading, "square": house_recall.square(gps, self._extent)}

    def of_target(self, state: HouseState) -> jax.Array:
        """Return the indices of the objects of the target category, int32 [I]."""
        return state.target * self.config.instances + jnp.arange(self.config.instances)

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
        """Return the scene, see `house_scene.scene`."""
        return house_scene.scene(house, self.config, textured=self.textured)

    def optimal_action(self, state: HouseState, task: jax.Array) -> jax.Array:
        """Return the action of the expert: it takes a shortest path, turns to the object, looks at it and stops."""
        del task
        house, index = state.house, self.of_target(state)
        return house_expert.approach(self, state, house.distance[state.target], house.present[index]).argmax()

    @property
    def reference_agents(self) -> Mapping[str, ScriptedAgent]:
        """The two searchers of `house_searcher.py`."""
        from relic_jax.envs.firstperson.house_searcher import HouseSearcher  # it needs this module

        return {FORGETFUL: HouseSearcher(self, "episode"), REMEMBERING: HouseSearcher(self, "trial")}

    @property
    def recall_classes(self) -> tuple[int, ...]:
        """Squares of 1 m along both axes of gps. None unless symbols show places in a frame that episodes share."""
        if self.view != "symbols" or self.pose == "episode":
            return ()
        return (house_recall.num_squares(self._extent),) * 2

    def recall_labels(self, observations: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Return the square in which the target category was last in reach, and whether it was."""
        return house_recall.last_in_reach(observations)

    def relabel(self, key: jax.Array, observations: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Replace the target of each step with a random category that has been in reach in the trial."""
        target = sample_observed(key, observations["in_reach"] > 0, observations["target"])
        return observations | {"target": target, "sighting": house_symbols.sighting(observations, target)}

    def tasks(self, split: Split) -> np.ndarray:
        """Return seeds of houses, int32 [N]: 0 … 9,999 for training, 10,000 … 10,999 held out."""
        seeds = np.arange(TRAIN_HOUSES + TEST_HOUSES, dtype=np.int32)
        return seeds[:TRAIN_HOUSES] if split == "train" else seeds[TRAIN_HOUSES:]

    @property
    def rungs(self) -> Mapping[str, tuple[int | str, ...]]:
        """The numbers of categories that a trial can ask for, up to `asked`. () if the tasks already have several."""
        if isinstance(self.asked, tuple):
            return {"asked": ()}
        return {"asked": tuple(range(1, (self.asked or self.config.categories) + 1))}

    def rung_tasks(self, option: str, value: int | str) -> np.ndarray:
        """Return the training houses with a number of target categories: SEEDS times the number, plus the seed."""
        number = 0 if value == self.rungs[option][-1] else int(value)
        return (self.tasks("train") + SEEDS * number).astype(np.int32)

    def record(self, state: HouseState) -> HouseRecord:
        """Return the pose and the target."""
        return HouseRecord(state.target, state.position, state.heading, state.turns, state.pitch)

    def render_input(self, record: HouseRecord, task: jax.Array) -> draw.RenderInput:
        """Return the scene, camera and targets to draw."""
        scene = self.scene(build_house(house_key(task), self.config))
        solid = jnp.arange(scene.solids.top.shape[0]) - self.config.furniture
        return draw.RenderInput(
            scene, self.camera(record), (solid >= 0) & (solid // self.config.instances == record.target)
        )

    def render_trial(self, trial: TrialRecord) -> np.ndarray:
        """Return frames of a trial, uint8 [n, H, W, 3]: the view, and a map with the path and rings around targets."""
        return draw.trial_frames(self.render_input, trial, self.lens)

    def trial_map(self, trial: TrialRecord) -> TrialMap | None:
        """Return the map of a trial. None if the observation is an image, without a list of categories in view."""
        return house_map.trial_map(self, trial, house_key(trial.task)) if self.view == "symbols" else None


def house_key(task: jax.Array) -> jax.Array:
    """Return the typed PRNG key [] of a task's house."""
    return prng.key(task % SEEDS)
