"""Comparison with the real Miniworld, step by step and pixel by pixel, if it is installed (extra `miniworld`)."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ.setdefault("PYGLET_HEADLESS", "1")  # before pyglet is imported
gymnasium = pytest.importorskip("gymnasium")
miniworld = pytest.importorskip("miniworld.miniworld", exc_type=ImportError)
opengl = pytest.importorskip("miniworld.opengl")

from relic_jax.envs.firstperson.lens import Lens  # noqa: E402
from relic_jax.envs.firstperson.level import LevelState, LevelTask  # noqa: E402
from relic_jax.envs.firstperson.renderer import render  # noqa: E402
from relic_jax.envs.registry import make  # noqa: E402

LEVELS = {
    "miniworld-oneroom": "OneRoom",
    "miniworld-hallway": "Hallway",
    "miniworld-tmaze": "TMaze",
    "miniworld-fourrooms": "FourRooms",
    "miniworld-maze": "Maze",
    "miniworld-wallgap": "WallGap",
}
STEPS = 10_000


@pytest.fixture
def real(monkeypatch):
    """`real(level, flat=…)`: the package's environment; flat: every surface but the box in plain white, no building."""

    def build(level, flat=False):
        if flat:
            enable = miniworld.glEnable
            monkeypatch.setattr(miniworld, "glEnable", lambda what: what == miniworld.GL_TEXTURE_2D or enable(what))
        return gymnasium.make(f"MiniWorld-{LEVELS[level]}-v0", disable_env_checker=True).unwrapped

    return build


def passages(env):
    """Which of a maze's doors are open, in the order of `maze_plan`."""
    if not hasattr(env, "num_rows"):
        return np.zeros(0, bool)
    rows, columns = env.num_rows, env.num_cols
    cell = lambda j, i: env.rooms[j * columns + i]  # noqa: E731
    east = [bool(cell(j, i).portals[0]) for j in range(rows) for i in range(columns - 1)]
    south = [bool(cell(j, i).portals[3]) for j in range(rows - 1) for i in range(columns)]
    return np.array(east + south)


def world(env):
    """The real environment's world and agent as ours."""
    at = lambda entity: np.array([entity.pos[0], entity.pos[2]], np.float32)  # noqa: E731
    task = LevelTask(at(env.box), np.float32(env.box.dir), passages(env))
    return task, LevelState(at(env.agent), np.float32(env.agent.dir), np.int32(0), np.int32(0))


def noisy_way(env, random):
    """Return a random action, or with probability 1/2 one that turns or moves towards the box, to reach it."""
    if random.random() < 0.5:
        return random.integers(3)
    x, _, z = env.box.pos - env.agent.pos
    bearing = (np.arctan2(-z, x) - env.agent.dir + np.pi) % (2 * np.pi) - np.pi
    return 2 if abs(bearing) < 0.2 else int(bearing < 0)


def put_near_the_box(env, random):
    """Move the agent to a free position within two meters of the box, so that mazes are solved too."""
    for _ in range(1000):
        place = env.box.pos + random.uniform(-2, 2, 3) * np.array([1, 0, 1])
        free = not env.intersect(env.agent, place, env.agent.radius)
        if free and any(room.point_inside(place) for room in env.rooms):
            env.agent.pos = place
            return


def real_episode(env, seed, random):
    """One episode: (task, start, actions, then per step pose, reward, terminated, truncated)."""
    env.reset(seed=seed)
    if seed % 2:
        put_near_the_box(env, random)
    task, start = world(env)
    rows, ended = [], False
    while not ended:
        action = noisy_way(env, random)
        _, reward, terminated, truncated, _ = env.step(action)
        rows.append((action, env.agent.pos[0], env.agent.pos[2], env.agent.dir, reward, terminated, truncated))
        ended = terminated or truncated
    return task, start, np.array(rows, float)


@pytest.mark.parametrize("name", LEVELS)
def test_ten_thousand_steps(name, real, monkeypatch):
    theirs, ours, random = real(name), make(name), np.random.default_rng(0)
    monkeypatch.setattr(theirs, "render_obs", lambda *_: None)
    episodes = []
    while sum(len(rows) for *_, rows in episodes) < STEPS:
        episodes.append(real_episode(theirs, len(episodes), random))
    tasks, starts = (jax.tree.map(lambda *x: np.stack(x), *(e[i] for e in episodes)) for i in (0, 1))
    actions = np.zeros((len(episodes), ours.horizon), np.int32)
    for row, (_, _, steps) in zip(actions, episodes, strict=True):
        row[: len(steps)] = steps[:, 0]

    def play(task, start, actions):
        def step(state, action):
            state, timestep = ours.transition(jax.random.key(0), state, action, task)
            return state, (state, timestep)

        return jax.lax.scan(step, start, actions)[1]

    states, timesteps = jax.device_get(jax.jit(jax.vmap(play))(tasks, starts, actions))
    reached = 0
    for i, (_, _, rows) in enumerate(episodes):
        _, x, z, heading, reward, terminated, truncated = rows.T
        count = len(rows)
        np.testing.assert_allclose(states.position[i, :count], np.stack([x, z], 1), atol=1e-4)
        turned = states.heading[i, :count] + states.turns[i, :count] * np.pi / 12
        np.testing.assert_allclose(turned, heading, atol=1e-4)
        np.testing.assert_allclose(timesteps.reward[i, :count], reward, atol=1e-6)
        np.testing.assert_array_equal(timesteps.terminated[i, :count], terminated == 1)
        # There an episode may be over in both ways at once.
        np.testing.assert_array_equal(timesteps.truncated[i, :count], (truncated == 1) & (terminated == 0))
        reached += terminated.any()
    assert reached >= 3  # or the rewards would not have been put to the test


def frame_buffer(width, height, samples):
    """Return the frame buffer of the package. One sample: as with drivers without multisampling."""
    with pytest.MonkeyPatch.context() as patch:
        if samples == 1:
            patch.setattr(opengl.gl_info, "have_extension", lambda name: False)
        return opengl.FrameBuffer(width, height, samples)


def flat_frames(real, name, width, height, samples):
    """Twelve frames, int [12, H, W, 3], of the real package for each number of samples, and the worlds they show."""
    theirs, random = real(name, flat=True), np.random.default_rng(0)
    buffers, frames, worlds = [frame_buffer(width, height, n) for n in samples], [], []
    for seed in range(12):
        theirs.reset(seed=seed)
        theirs.entities = [entity for entity in theirs.entities if entity in (theirs.box, theirs.agent)]
        if seed % 2:
            put_near_the_box(theirs, random)
            toward = theirs.box.pos - theirs.agent.pos
            theirs.agent.dir = float(np.arctan2(-toward[2], toward[0]))
        theirs._render_static()
        frames.append([theirs.render_obs(buffer).astype(int) for buffer in buffers])
        worlds.append(world(theirs))
    return np.swapaxes(frames, 0, 1), jax.tree.map(lambda *x: np.stack(x), *worlds)


def drawn_frames(name, worlds, lens):
    """Ours, int [12, H, W, 3]."""
    env = make(name)

    def picture(task, state):
        return render(env.scene(task).replace(backdrop=None), env.camera(state), lens)

    return np.asarray(jax.jit(jax.vmap(picture))(*worlds)).astype(int)


def overlap(drawn, frames):
    """Intersection over union of the boxes' silhouettes."""
    mine, yours = ((image[..., 0] - image[..., 2]) > 64 for image in (drawn, frames))
    assert yours.sum() > 300
    return (mine & yours).sum() / (mine | yours).sum()


@pytest.mark.parametrize("name", LEVELS)
def test_flat_frames(name, real):
    (frames,), worlds = flat_frames(real, name, 80, 60, [8])
    drawn = drawn_frames(name, worlds, Lens(80, 60, samples=4))
    assert np.abs(drawn - frames).mean() <= 0.1
    assert overlap(drawn, frames) >= 0.995


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("size", [(25, 25), (64, 64), (80, 60)])
def test_flat_frames_of_one_sample(name, size, real):
    """The package's own picture of one sample, which is as far from its usual one as ours is: at 25×25 more than 1."""
    (frames, usual), worlds = flat_frames(real, name, *size, [1, 8])
    drawn = drawn_frames(name, worlds, Lens(*size))
    apart, shared = np.abs(drawn - frames).mean(), overlap(drawn, frames)
    error, own_error = (np.abs(picture - usual).mean() for picture in (drawn, frames))
    print(f"{name} {size}: {apart:.2f}, overlap {shared:.3f}; from four samples {error:.2f}, its own {own_error:.2f}")
    assert apart <= 0.1 and shared >= 0.97
    assert error == pytest.approx(own_error, abs=0.01)
    assert (own_error > 1.0) == (size == (25, 25))


def test_starts_fill_the_same_places(real):
    theirs, ours = real("miniworld-fourrooms"), make("miniworld-fourrooms")
    places = []
    for seed in range(200):
        theirs.reset(seed=seed)
        places.append(theirs.agent.pos[[0, 2]])
    task = LevelTask(np.array([50.0, 50.0], np.float32), np.float32(0), np.zeros(0, bool))
    starts = jax.vmap(lambda key: ours.start(key, task).position)(jax.random.split(jax.random.key(0), 2000))
    nearest = jnp.linalg.norm(jnp.asarray(places)[:, None] - starts, axis=-1).min(1)
    assert nearest.max() < 1.0
