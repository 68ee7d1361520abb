"""Rendering of trials: frames show what happened."""

import numpy as np
import pytest
from PIL import Image

from relic_jax.environment.base import TrialRecord
from relic_jax.envs.darkroom.env import PRESETS, DarkroomTask
from relic_jax.envs.darkroom.key_to_door import PRESETS as KEY_PRESETS
from relic_jax.envs.darkroom.key_to_door import KeyToDoorTask
from relic_jax.envs.darkroom.render import BLUE, GOLD, GREEN, ORANGE, STRIP_HEIGHT, VISITED, WHITE, Mark, trial_frames
from relic_jax.envs.registry import make
from relic_jax.envs.render import enlarge, write_gif

CELL = 32  # pixels, of a 10×10 grid

# Two episodes of three steps: right, right, up to the goal at (2, 1); then up, right, right past it along y = 1.
POSITIONS = np.array([[0, 0], [1, 0], [2, 0], [0, 0], [0, 1], [1, 1]], np.float32)
REWARDS = np.array([0, 0, 1, 0, 1, 1], np.float32)
FIRST = np.array([1, 0, 0, 1, 0, 0], bool)
GOAL = np.array([2, 1], np.int32)


def frames(**options):
    return trial_frames(POSITIONS, [Mark(GOAL, GREEN)], np.cumsum(FIRST) - 1, REWARDS, (10, 10), **options)


def cell_pixels(frame, x, y):
    top = (9 - y) * CELL
    return frame[top : top + CELL, x * CELL : (x + 1) * CELL]


def has(pixels, colour):
    return bool((pixels == colour).all(-1).any())


def bar_heights(frame):
    """Heights in pixels of the two bars, read in the middle of each."""
    strip = frame[-STRIP_HEIGHT:]
    return [int(((strip[:, x] == BLUE) | (strip[:, x] == ORANGE)).all(-1).sum()) for x in (80, 240)]


def test_size_and_type():
    assert frames().shape == (6, 320 + STRIP_HEIGHT, 320, 3)
    assert frames().dtype == np.uint8


def test_the_agent_is_in_its_cell_and_nowhere_else():
    for frame, (x, y) in zip(frames(), POSITIONS.astype(int), strict=True):
        orange = np.argwhere((frame[:320] == ORANGE).all(-1))
        assert (orange // CELL == (9 - y, x)).all() and len(orange) > 200


def test_the_goal_is_green_even_under_the_agent():
    assert all(has(cell_pixels(frame, *GOAL), GREEN) for frame in frames())
    on_goal = trial_frames(GOAL[None], [Mark(GOAL, GREEN)], np.zeros(1, int), np.ones(1), (10, 10))
    assert has(cell_pixels(on_goal[0], *GOAL), GREEN) and has(cell_pixels(on_goal[0], *GOAL), ORANGE)


def test_visited_cells_stay_shaded_and_the_path_starts_anew_with_the_episode():
    before, after = frames()[2], frames()[3]
    assert has(cell_pixels(before, 1, 0), BLUE)
    assert not has(cell_pixels(after, 1, 0), BLUE)
    assert has(cell_pixels(after, 1, 0), VISITED) and not has(cell_pixels(after, 1, 0), WHITE)
    assert has(cell_pixels(after, 5, 5), WHITE) and not has(cell_pixels(before, 0, 1), VISITED)


def test_bars_show_the_returns_so_far():
    full = STRIP_HEIGHT - 8
    drawn = [bar_heights(frame) for frame in frames()]
    assert drawn == [[1, 0], [1, 0], [full // 2, 0], [full // 2, 1], [full // 2, full // 2], [full // 2, full]]


def test_subsampling_keeps_both_ends():
    every, some = frames(), frames(max_frames=3)
    assert len(some) == 3
    np.testing.assert_array_equal(some[[0, -1]], every[[0, -1]])


def test_environments_draw_their_trials():
    trial = TrialRecord(POSITIONS, np.zeros(6, np.int32), REWARDS, FIRST, DarkroomTask(GOAL))
    np.testing.assert_array_equal(PRESETS["darkroom-dpt"].render_trial(trial), frames())
    task = KeyToDoorTask(start=np.array([0, 0]), key=np.array([1, 1]), door=np.array([8, 8]))
    pictures = KEY_PRESETS["key-to-door-9"].render_trial(TrialRecord(POSITIONS, FIRST, REWARDS, FIRST, task))
    assert has(pictures[0], GOLD) and has(pictures[0], GREEN)
    assert make("probe-value").render_trial(trial) is None


@pytest.mark.parametrize("name", [*PRESETS, "key-to-door-9"])
def test_pictures_are_large_enough_to_see(name):
    env = make(name)
    task = {leaf: cell for leaf, cell in vars(env.tasks("test")).items() if cell is not None}
    task = type(env.tasks("test"))(**{leaf: cell[0] for leaf, cell in task.items()})
    pictures = env.render_trial(TrialRecord(np.zeros((1, 2)), np.zeros(1), np.zeros(1), np.ones(1, bool), task))
    assert min(pictures.shape[1:3]) >= 240


def test_gif_round_trip(tmp_path):
    path = tmp_path / "trial.gif"
    write_gif(path, frames(), fps=10)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (6, (320, 392), 100, 0)
        for i, frame in enumerate(frames()):
            gif.seek(i)
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frame)
    assert list(tmp_path.iterdir()) == [path]


def test_failed_gif_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "trial.gif"
    path.write_bytes(b"old")

    def half_save(image, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half_save)
    with pytest.raises(OSError, match="disk full"):
        write_gif(path, frames())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((3, 3), (201, 201)),
        ((64, 64), (256, 256)),
        ((60, 80), (240, 320)),
        ((5, 400), (10, 800)),
        ((1, 2000), (1, 2000)),
    ],
)
def test_small_pictures_are_enlarged_without_blur(tmp_path, size, expected):
    frame = np.random.default_rng(0).integers(2, size=(*size, 3), dtype=np.uint8) * 255
    large = enlarge(frame)
    assert large.shape == (*expected, 3)
    times = expected[0] // size[0]
    assert (large[::times, ::times] == frame).all() and (large[times - 1 :: times, times - 1 :: times] == frame).all()
    write_gif(tmp_path / "trial.gif", np.stack([frame, 255 - frame]))
    with Image.open(tmp_path / "trial.gif") as image:
        assert image.size == expected[::-1]


def test_large_pictures_stay_as_they_are():
    frame = np.zeros((392, 320, 3), np.uint8)
    assert enlarge(frame) is frame
