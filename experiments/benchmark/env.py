"""Speed of the first-person environments compared with Miniworld: whole steps with dynamics, resets and rendering.

    python -m experiments.benchmark env

Environments run in batches in a scan, split over all devices (on CPU: one per core). Miniworld runs in a separate
process, once for each number of threads of its software renderer, and its best rate is reported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from relic_jax.config import EnvConfig, Options
from relic_jax.environment.base import Environment
from relic_jax.environment.trials import Trials
from relic_jax.envs import registry
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.renderer import render
from relic_jax.experiments.benchmark.measure import Machine

# Arithmetic operations in the innermost loops of the renderer: per column and wall, per column and solid (for its
# shape, then for finding the nearest), per pixel and layer.
WALL, BOX_SOLID, ANY_SOLID, PICK, LAYER = 10, 40, 75, 13, 6


@dataclasses.dataclass(frozen=True)
class Case:
    """An environment to measure."""

    env: str
    """Name of the environment."""
    lens: dict[str, Any]
    """Fields of the environment's `Lens` that are changed."""
    batch: int
    """Environments per device."""
    peer: str | None = None
    """Level of Miniworld to compare with."""
    mark: float | None = None
    """Target: the least ratio to the peer, or the least rate if there is no peer."""


CASES = (
    Case("miniworld-oneroom", {"width": 25, "height": 25}, 512, "OneRoom", 100.0),
    Case("miniworld-oneroom", {"width": 25, "height": 25, "samples": 4}, 512, "OneRoom"),
    Case("miniworld-oneroom", {"width": 80, "height": 60}, 256, "OneRoom", 20.0),
    Case("miniworld-oneroom", {"width": 80, "height": 60, "samples": 4}, 256, "OneRoom"),
    Case("miniworld-fourrooms", {"width": 80, "height": 60}, 256, "FourRooms"),
    Case("miniworld-maze", {"width": 80, "height": 60}, 256, "Maze"),
    Case("miniworld-dpt4", {}, 256),
    Case("miniworld-open", {}, 512),
    Case("house-objnav-small", {}, 256, mark=20_000.0),
    Case("house-objnav-medium", {}, 256, mark=20_000.0),
    Case("house-objnav-large", {}, 256, mark=20_000.0),
)

HOUSES = ("small", "medium", "large")


def cases(machine: Machine, seconds: float = 1.0, rounds: int = 4) -> Iterator[dict[str, Any]]:
    """Measure every case on all devices.

    Args:
        machine: Not used.
        seconds: Duration of a round.
        rounds: Number of rounds, of which the best is reported.

    Yields:
        JSON-serializable dicts: name; rate, unit; operations (arithmetic operations per frame); floor_fraction (rate ·
        operations / the measured multiply-add rate of the devices); peer_rate and of_peer for Miniworld, None if it has
        no such environment or is not installed; mark (the target) and reached (whether it was reached), None if there
        is no target.
    """
    del machine
    peak = vector_rate()
    yield {"name": "env/multiply-add", "rate": peak, "unit": "operations/s", "devices": len(jax.devices())}
    peers: dict[tuple[str, int, int], float | None] = {}
    for case in CASES:
        yield measure(case, peak, peers, seconds, rounds)
    for size in HOUSES:
        yield building(f"house-objnav-{size}", rounds)
        yield compare_with_unlimited(f"house-objnav-{size}")
        yield symbols(f"house-objnav-{size}", seconds, rounds)


def measure(
    case: Case, peak: float, peers: dict[tuple[str, int, int], float | None], seconds: float, rounds: int
) -> dict[str, Any]:
    """Measure one case and its peer. `peers` caches the peers' rates by (level, width, height)."""
    env = registry.make(case.env)
    env = dataclasses.replace(env, lens=dataclasses.replace(env.lens, **case.lens))  # type: ignore[attr-defined, type-var]
    lens: Lens = env.lens  # type: ignore[attr-defined]
    peer = None
    if case.peer is not None:
        key = (case.peer, lens.width, lens.height)
        if key not in peers:
            peers[key] = real_rate(*key, seconds)
        peer = peers[key]
    rate = env_rate(env, case.batch, seconds, rounds)
    ratio = None if peer is None else rate / peer
    judged = ratio if case.peer is not None else rate
    operations = operations_per_frame(env)
    return {
        "name": f"env/{case.env} {lens.width}x{lens.height}, {lens.samples} sample{'s' * (lens.samples > 1)}",
        "rate": rate,
        "unit": "steps/s",
        "batch": case.batch * len(jax.devices()),
        "operations": operations,
        "floor_fraction": rate * operations / peak,
        "floor": "arithmetic",
        "peer_rate": peer,
        "of_peer": ratio,
        "mark": case.mark,
        "reached": None if case.mark is None or judged is None else judged >= case.mark,
    }


def symbols(name: str, seconds: float, rounds: int, batch: int = 256, mark: float = 3.0) -> dict[str, Any]:
    """Measure a house with symbols in place of images. The peer is the house with images, the target a ratio."""
    with_images, with_symbols = registry.make(name), registry.make(EnvConfig(name, options=Options(view="symbols")))
    images = env_rate(with_images, batch, seconds, rounds)
    rate = env_rate(with_symbols, batch, seconds, rounds)
    return {
        "name": f"env/{name}, symbols",
        "rate": rate,
        "unit": "steps/s",
        "batch": batch * len(jax.devices()),
        "peer_rate": images,
        "of_peer": rate / images,
        "mark": mark,
        "reached": rate / images >= mark,
    }


def building(name: str, rounds: int, batch: int = 512) -> dict[str, Any]:
    """Measure the rate of building houses in a batch on one device."""
    env: Any = registry.make(name)
    build = jax.jit(jax.vmap(lambda task: env.start(jax.random.key(0), task)))
    tasks = jnp.asarray(env.tasks("train")[:batch])
    jax.block_until_ready(build(tasks))
    seconds = min(_seconds(lambda: build(tasks)) for _ in range(rounds))
    return {"name": f"env/{name}, building", "rate": batch / seconds, "unit": "houses/s", "batch": batch}


def compare_with_unlimited(name: str, frames: int = 512) -> dict[str, Any]:
    """Measure the effect of the limits on visible solids (`Lens.solids`, `Lens.layers`) on images.

    Returns the shares of pixels and of frames that differ from an image without limits, at the start of an episode in
    each of `frames` houses.
    """
    env: Any = registry.make(name)
    wide = dataclasses.replace(env.lens, solids=64, layers=env.config.furniture + env.config.objects)

    @jax.jit
    def differs(task: jax.Array) -> jax.Array:
        state = env.start(jax.random.fold_in(jax.random.key(0), task), task)
        scene, camera = env.scene(state.house), env.camera(state)
        return (render(scene, camera, env.lens) != render(scene, camera, wide)).any(-1)

    pixels = np.stack([np.asarray(differs(task)) for task in env.tasks("test")[:frames]])
    return {
        "name": f"env/{name}, compared with images without limits",
        "rate": float(pixels.mean()) * 1e5,
        "unit": "of 100,000 pixels differ",
        "frames": frames,
        "frames_that_differ": float(pixels.any((1, 2)).mean()),
    }


def env_rate(env: Environment, batch: int, seconds: float, rounds: int) -> float:
    """Return the steps per second of random actions, with `batch` environments per device."""
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    trials, count = Trials(env), len(jax.devices())
    tasks = jax.tree.map(lambda x: jnp.asarray(np.resize(x, (count * batch, *x.shape[1:]))), env.tasks("train"))

    def reset(keys: jax.Array, tasks: Any) -> Any:
        return trials.reset(keys[0], tasks)

    def steps(keys: jax.Array, state: Any, length: int) -> Any:
        def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            action_key, step_key = jax.random.split(key)
            action = jax.vmap(env.action_space.sample)(jax.random.split(action_key, batch), state.legal)
            state, result = trials.step(step_key, state, action)
            # Use a value of every observation; otherwise XLA would not compute it.
            used = sum(jnp.max(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(state.observation))
            return state, used + result.reward.sum()

        state, used = jax.lax.scan(step, state, jax.random.split(keys[0], length))
        return state, used.sum()[None]

    split: dict[str, Any] = {"mesh": mesh, "out_specs": P("device"), "check_vma": False}
    keys = jax.random.split(jax.random.key(0), count)
    state = jax.jit(jax.shard_map(reset, in_specs=P("device"), **split))(keys, tasks)

    def run(length: int) -> Callable[[Any], Any]:
        mapped = jax.shard_map(lambda k, s: steps(k, s, length), in_specs=P("device"), **split)
        return jax.jit(lambda state: mapped(keys, state))

    trial_run = run(8)
    jax.block_until_ready(trial_run(state))
    length = max(8, int(8 * seconds / _seconds(lambda: trial_run(state))))
    whole_run = run(length)
    jax.block_until_ready(whole_run(state))
    return count * batch * length / min(_seconds(lambda: whole_run(state)) for _ in range(rounds))


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def vector_rate() -> float:
    """Return the float32 multiplications and additions per second of all devices on vectors that fit the L1 cache."""
    count, length, depth = len(jax.devices()), 1024, 20_000
    mesh = Mesh(np.asarray(jax.devices()), ("device",))

    def chain(x: jax.Array) -> jax.Array:
        def body(_: int, x: jax.Array) -> jax.Array:
            for _ in range(16):
                x = x * 0.999 + 0.001
            return x

        return jax.lax.fori_loop(0, depth, body, x)

    run = jax.jit(jax.shard_map(chain, mesh=mesh, in_specs=P("device"), out_specs=P("device"), check_vma=False))
    x = jnp.ones(count * length, jnp.float32)
    jax.block_until_ready(run(x))
    return 2 * 16 * depth * count * length / min(_seconds(lambda: run(x)) for _ in range(5))


def operations_per_frame(env: Environment) -> int:
    """Return the number of arithmetic operations that rendering one image takes, from the sizes of the scene."""
    lens: Lens = env.lens  # type: ignore[attr-defined]
    task = jax.tree.map(lambda x: jnp.asarray(x[0]), env.tasks("train"))
    scene = jax.eval_shape(lambda t: _scene(env, t), task)
    walls, solids = scene.walls.ends.shape[0], min(scene.solids.top.shape[0], lens.solids)
    layers = min(solids, lens.layers)
    per_solid = BOX_SOLID if scene.solids.shapes == (0,) else ANY_SOLID
    column = walls * WALL + solids * (per_solid + PICK * (layers if solids > 1 else 0))
    return lens.samples * lens.width * (column + lens.height * LAYER * (1 + layers))


def _scene(env: Any, task: Any) -> Any:
    if env.name.startswith("house"):
        return env.scene(env.start(jax.random.key(0), task).house)
    return env.scene(task)


def real_rate(level: str, width: int, height: int, seconds: float) -> float | None:
    """Return the steps per second of a level of Miniworld in one process, or None if it is not installed.

    Measures several numbers of threads of its renderer and returns the best rate.
    """
    if importlib.util.find_spec("miniworld") is None:
        return None
    rates = []
    for threads in ("0", "1", "2"):
        environment = {**os.environ, "LP_NUM_THREADS": threads}
        environment.setdefault("PYGLET_HEADLESS", "1")
        arguments = [sys.executable, "-c", _REAL, level, str(width), str(height), str(seconds)]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True, timeout=300)
        rates.append(float(done.stdout.split()[-1]))
    return max(rates)


_REAL = """
import sys, time, warnings
warnings.filterwarnings("ignore")
import gymnasium, miniworld
level, width, height, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
env = gymnasium.make(f"MiniWorld-{level}-v0", obs_width=width, obs_height=height, disable_env_checker=True).unwrapped
env.reset(seed=0)
actions = env.np_random.integers(3, size=1_000_000)
best = 0.0
for _ in range(3):
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        _, _, terminated, truncated, _ = env.step(actions[count])
        count += 1
        if terminated or truncated:
            env.reset()
    best = max(best, count / (time.perf_counter() - start))
print(best)
"""
