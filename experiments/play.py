"""`relic-jax play`: a GIF of a trained policy in one task, or a window in which a person acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.base import Discrete, Environment, Split, TrialRecord
from relic_jax.environment.trials import Trials
from relic_jax.envs import registry
from relic_jax.envs.darkroom.render import BLUE, GRID_LINE, ORANGE, WHITE, running_returns
from relic_jax.envs.render import enlarge, write_gif
from relic_jax.evaluation import Curves, in_context_curves, one_task
from relic_jax.experiments import run
from relic_jax.loading import LoadedPolicy
from relic_jax.progress import Activity
from relic_jax.spaces import image_mask

WINDOW_SIDE = 480  # pixels, of the longer side of the image
CURVE = 320  # pixels, width of the curve beside the GIF
TEXT = (70, 74, 82)


def record(trained: LoadedPolicy, env: Environment, out: Path, split: Split, task: int, episodes: int | None) -> Curves:
    """Run a trained policy in one task and write a GIF of the trial beside the returns of its episodes so far.

    Args:
        trained: The policy.
        env: The environment.
        out: The GIF.
        split: Split of the task.
        task: Index of the task in the split.
        episodes: Number of episodes. None: that of the run's evaluation.

    Returns:
        The curves of the trial, arrays [1, episodes].

    Raises:
        ConfigError: There is no such task, or the environment cannot be drawn.
    """
    if type(env).render_trial is Environment.render_trial:
        raise _cannot_be_drawn(env)
    config = EvalConfig(episodes=trained.config.eval.episodes if episodes is None else episodes)
    show = trained.config.trial.show_last_reward
    text = f"playing {config.episodes} episodes of {env.name}"
    with Activity(text) as activity:
        curves = in_context_curves(
            trained.policy,
            trained.params,
            env,
            config,
            split=split,
            task=task,
            seed=trained.config.seed,
            show_last_reward=show,
            progress=lambda fraction: activity.show(f"{text} {fraction:4.0%}"),
        )
        activity.show(f"drawing {out}")
        frames = env.render_trial(curves.trial)
        if frames is None:
            raise _cannot_be_drawn(env)
        write_gif(out, beside(frames, curves.trial, config.episodes, _names(env)), run.GIF_FRAMES_PER_SECOND)
    return curves


def _cannot_be_drawn(env: Environment) -> ConfigError:
    return ConfigError(f"path is a policy of env {env.name}; allowed: an environment that can be drawn")


def _names(env: Environment) -> tuple[str, ...] | None:
    """Return the names of discrete actions, if there is one for each."""
    names, space = env.action_names, env.action_space
    return names if isinstance(space, Discrete) and names is not None and len(names) == space.n else None


def beside(frames: np.ndarray, trial: TrialRecord, episodes: int, names: tuple[str, ...] | None = None) -> np.ndarray:
    """Return the frames of a trial, each with the in-context curve up to its step on the right.

    Args:
        frames: uint8 [n, H, W, 3], n evenly spaced steps of the trial. Small frames are enlarged.
        trial: The trial.
        episodes: Number of episodes on the horizontal axis.
        names: Names of discrete actions, which the panel shows. None: no names.

    Returns:
        uint8 [n, H, W + CURVE, 3].
    """
    frames = np.stack([enlarge(frame) for frame in frames])
    index = np.cumsum(trial.first) - 1
    running = running_returns(trial.reward, index)
    steps = np.linspace(0, len(index) - 1, len(frames)).round().astype(int)
    panel = _Curve(frames.shape[1], episodes, running, None if names is None else [names[a] for a in trial.action])
    return np.stack(
        [np.concatenate([frame, panel.draw(index, step)], 1) for frame, step in zip(frames, steps, strict=True)]
    )


class _Curve:
    """Plot of the return of each episode. The current episode is orange."""

    _LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 30, 38  # pixels around the plot

    def __init__(self, height: int, episodes: int, running: np.ndarray, actions: list[str] | None = None) -> None:
        """Prepare the axes.

        Args:
            height: Height in pixels.
            episodes: Number of episodes on the horizontal axis.
            running: Return of the episode up to and including each step, float [T].
            actions: Names of the actions, [T]. None: not shown.
        """
        self._actions = actions
        self._size, self._episodes, self._running = (CURVE, height), episodes, running
        self._low, self._high = min(float(running.min()), 0.0), max(float(running.max()), 1e-9)
        self._font = ImageFont.load_default(11)

    def draw(self, index: np.ndarray, step: int) -> np.ndarray:
        """Draw the plot at `step`: uint8 [height, CURVE, 3]. index: int [T], the episode of every step."""
        image = Image.new("RGB", self._size, WHITE)
        pen, current = ImageDraw.Draw(image), int(index[step])
        self._axes(pen)
        ends = np.searchsorted(index, np.arange(current + 1), side="right") - 1
        points = [self._place(e, self._running[min(end, step)]) for e, end in enumerate(ends)]
        if len(points) > 2:
            pen.line(points[:-1], fill=BLUE, width=2)
        for episode, (x, y) in enumerate(points):
            radius, colour = (4, ORANGE) if episode == current else (2, BLUE)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        text = f"episode {current + 1}: return {self._running[step]:.1f}"
        text += f" · {self._actions[step]}" if self._actions else ""
        pen.text((self._LEFT, 8), text, fill=ORANGE, font=self._font)
        return np.asarray(image)

    def _place(self, episode: float, value: float) -> tuple[float, float]:
        width, height = self._size
        across = (width - self._LEFT - self._RIGHT) * episode / max(self._episodes - 1, 1)
        share = (value - self._low) / (self._high - self._low)
        return self._LEFT + across, height - self._BOTTOM - share * (height - self._TOP - self._BOTTOM)

    def _axes(self, pen: ImageDraw.ImageDraw) -> None:
        left, bottom = self._place(0, self._low)
        right, top = self._place(max(self._episodes - 1, 1), self._high)
        for value in (self._low, (self._low + self._high) / 2, self._high):
            y = self._place(0, value)[1]
            pen.line([(left, y), (right, y)], fill=GRID_LINE)
            pen.text((left - 6, y), f"{value:.3g}", fill=TEXT, anchor="rm", font=self._font)
        for episode in sorted({0, (self._episodes - 1) // 2, self._episodes - 1}):
            x = self._place(episode, self._low)[0]
            pen.text((x, bottom + 5), str(episode + 1), fill=TEXT, anchor="ma", font=self._font)
        pen.text(((left + right) / 2, bottom + 19), "episode in context", fill=TEXT, anchor="ma", font=self._font)
        pen.line([(left, top), (left, bottom), (right, bottom)], fill=TEXT)


class Game:
    """A task in which a person acts, episode after episode."""

    def __init__(self, env: Environment, split: Split, task: int) -> None:
        """Raise ConfigError if there is no such task."""
        self.env, self._task = env, one_task(env, split, task)
        trials, self._key = Trials(env), jax.random.key(0)
        self._step = jax.jit(trials.step)
        self._state = jax.jit(trials.reset)(self._key, self._task)
        self.episode, self.steps, self.reward, self.earned = 1, 0, 0.0, 0.0

    def act(self, action: int) -> None:
        """Take one step. After the end of an episode, the next one starts."""
        key = jax.random.fold_in(self._key, self.episode * self.env.horizon + self.steps)
        self._state, result = self._step(key, self._state, jnp.full((1,), action, jnp.int32))
        self.steps, self.reward = self.steps + 1, float(result.reward[0])
        self.earned += self.reward
        if bool(self._state.first[0]):
            self.episode, self.steps, self.earned = self.episode + 1, 0, 0.0

    def image(self) -> np.ndarray:
        """Return the first image of the observation, or a rendering if there is none: uint8 [H, W, 3]."""
        observation = jax.tree.map(lambda x: np.asarray(x[0]), self._state.observation)
        mask = image_mask(self.env.observation_spec)
        images = [x for x, is_image in zip(jax.tree.leaves(observation), mask, strict=True) if is_image]
        if not images:
            return self._drawing(observation)
        image = images[0][..., : 3 if images[0].shape[-1] >= 3 else 1]
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
            image = (255 * (image - image.min()) / max(np.ptp(image), 1e-6)).astype(np.uint8)
        return np.broadcast_to(image, (*image.shape[:2], 3))

    def _drawing(self, observation: Any) -> np.ndarray:
        state, task = (jax.tree.map(lambda x: np.asarray(x)[0], x) for x in (self._state.env, self._task))
        seen, record = jax.tree.map(lambda x: np.asarray(x)[None], (observation, self.env.record(state)))
        nothing = np.zeros(1, np.int32)
        frames = self.env.render_trial(
            TrialRecord(seen, nothing, nothing.astype(np.float32), np.ones(1, bool), task, record)
        )
        if frames is None:
            raise ConfigError(f"human is True; allowed: an environment that can be drawn ({self.env.name} cannot)")
        return frames[-1]

    def caption(self) -> str:
        """Return a line with episode, step, reward, return and keys."""
        return (
            f"episode {self.episode}   step {self.steps}   reward {self.reward:.2f}   return {self.earned:.2f}   "
            f"keys {_keys(self.env)}, q: end"
        )


def _keys(env: Environment) -> str:
    """Return the keys of the actions, with their names if they have any."""
    return registry.numbered(env.action_names, env.action_space.n) or f"0–{env.action_space.n - 1}: actions"


def play_interactively(env: Environment, split: Split, task: int) -> None:
    """Open a window with a game and return when it is closed.

    Raises ConfigError if there is no display, no Tk, or no such task, or if the environment lives in worker processes.
    """
    if env.on_host:
        raise ConfigError(f"human is True; allowed: False, {env.name} lives in worker processes")
    if not isinstance(env.action_space, Discrete):
        raise ConfigError(f"human is True; allowed: False, {env.name} has {env.action_space}")
    try:
        import tkinter

        from PIL import Image, ImageTk

        window = tkinter.Tk()
    except Exception as error:  # ImportError or TclError, which cannot be named without the import
        reason = str(error).splitlines()[0]
        raise ConfigError(f"human is True; allowed: where a window can be opened ({reason})") from None
    game = Game(env, split, task)
    window.title(env.name)
    view, text = tkinter.Label(window), tkinter.Label(window)
    view.pack()
    text.pack()

    def show() -> None:
        image = Image.fromarray(game.image())
        scale = WINDOW_SIDE / max(image.size)
        size = round(image.width * scale), round(image.height * scale)
        photo = ImageTk.PhotoImage(image.resize(size, Image.Resampling.NEAREST))
        view.configure(image=photo)
        view.image = photo  # type: ignore[attr-defined]  # Tk itself does not keep it
        text.configure(text=game.caption())

    def press(event: Any) -> None:
        if event.char == "q":
            window.destroy()
        elif event.char.isdigit() and int(event.char) < env.action_space.n:
            game.act(int(event.char))
            show()

    window.bind("<Key>", press)
    show()
    window.mainloop()
