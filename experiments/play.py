"""`relic-jax play`: a film of a trained policy in one task, or a window in which a person acts in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Discrete, Environment, Split, Trajectory
from envs.host import HostEnvironment
from envs.wrappers import Trials
from experiments import run
from relic_jax.config import ConfigError, EvalConfig
from relic_jax.evaluate import in_context_curves, one_task
from relic_jax.models.encoders import image_mask

WINDOW_SIDE = 480  # pixels, of the longer side of the picture


def film(path: Path, out: Path, split: Split, task: int, episodes: int | None) -> np.ndarray:
    """Runs a trained policy in one task and writes the trial as a GIF. Returns its returns, float32 [episodes].

    path: a run or checkpoint folder. task: index in the split. episodes: None for as many as the run is evaluated on.
    Raises ConfigError where there is no such task or the environment cannot be drawn.
    """
    trained = run.load_policy(path)
    if type(trained.env).render_trial is Environment.render_trial:
        raise _cannot_be_drawn(path, trained.env)
    config = EvalConfig(episodes=trained.config.eval.episodes if episodes is None else episodes)
    show = trained.config.trial.show_last_reward
    curves = in_context_curves(
        trained.policy,
        trained.params,
        trained.env,
        config,
        split=split,
        task=task,
        seed=trained.config.seed,
        show_last_reward=show,
    )
    if run.write_trial(out, trained.env, curves) is None:
        raise _cannot_be_drawn(path, trained.env)
    return curves.returns[0]


def _cannot_be_drawn(path: Path, env: Environment) -> ConfigError:
    return ConfigError(f"path is '{path}', of env {env.name}; allowed: an environment that can be drawn")


class Game:
    """One task in which a person acts, episode after episode."""

    def __init__(self, env: Environment, split: Split, task: int) -> None:
        """Raises ConfigError where there is no such task."""
        self.env, self._task = env, one_task(env, split, task)
        trials, self._key = Trials(env), jax.random.key(0)
        self._step = jax.jit(trials.step)
        self._state = jax.jit(trials.reset)(self._key, self._task)
        self.episode, self.steps, self.reward, self.earned = 1, 0, 0.0, 0.0

    def act(self, action: int) -> None:
        """Takes one step; where it ends the episode, the next one begins."""
        key = jax.random.fold_in(self._key, self.episode * self.env.horizon + self.steps)
        self._state, result = self._step(key, self._state, jnp.full((1,), action, jnp.int32))
        self.steps, self.reward = self.steps + 1, float(result.reward[0])
        self.earned += self.reward
        if bool(self._state.first[0]):
            self.episode, self.steps, self.earned = self.episode + 1, 0, 0.0

    def picture(self) -> np.ndarray:
        """What the agent sees where it sees images, else the environment's own drawing: uint8 [H, W, 3]."""
        observation = jax.tree.map(lambda x: np.asarray(x[0]), self._state.observation)
        mask = image_mask(self.env.observation_spec)
        images = [x for x, is_image in zip(jax.tree.leaves(observation), mask, strict=True) if is_image]
        if not images:
            return self._drawing(observation)
        image = images[0]
        if image.dtype != np.uint8:
            image = (255 * (image - image.min()) / max(np.ptp(image), 1e-6)).astype(np.uint8)
        return np.broadcast_to(image[..., :3], (*image.shape[:2], 3))

    def _drawing(self, observation: Any) -> np.ndarray:
        state, task = (jax.tree.map(lambda x: np.asarray(x)[0], x) for x in (self._state.env, self._task))
        seen, record = jax.tree.map(lambda x: np.asarray(x)[None], (observation, self.env.record(state)))
        nothing = np.zeros(1, np.int32)
        frames = self.env.render_trial(
            Trajectory(seen, nothing, nothing.astype(np.float32), np.ones(1, bool), task, record)
        )
        if frames is None:
            raise ConfigError(f"human is True; allowed: an environment that can be drawn ({self.env.name} cannot)")
        return frames[-1]

    def caption(self) -> str:
        """Where the game stands and which keys there are."""
        return (
            f"episode {self.episode}   step {self.steps}   reward {self.reward:.2f}   return {self.earned:.2f}   "
            f"keys 0–{self.env.action_space.n - 1}: actions, q: end"
        )


def play_by_hand(env: Environment, split: Split, task: int) -> None:
    """Opens a window with a game and returns when it is closed.

    Raises ConfigError where there is no display, where Python was built without Tk, where there is no such task, and
    where the environment lives in worker processes.
    """
    if isinstance(env, HostEnvironment):
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
        image = Image.fromarray(game.picture())
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
