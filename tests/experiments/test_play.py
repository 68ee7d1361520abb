"""GIFs of one task, and interactive play without a window."""

import tkinter
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from relic_jax.config import ConfigError
from relic_jax.environment.base import TrialRecord
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.room import Room
from relic_jax.envs.registry import make
from relic_jax.evaluation import Curves
from relic_jax.experiments import play
from relic_jax.loading import load_policy


def test_a_gif_of_the_selected_task(cli, begun_run, tmp_path):
    out = tmp_path / "play.gif"
    code, said, err = cli("play", begun_run, "--task", 3, "--episodes", 2, "--out", out)
    assert code == 0, err
    returns = said.partition("return by episode: ")[2].splitlines()[0]
    assert f"wrote {out}" in said and len(returns.split()) == 2
    success = said.partition("success by episode: ")[2].splitlines()[0]
    assert len(success.split()) == 2 and "steps by" not in said
    with Image.open(out) as image:
        assert image.is_animated
    code, _, err = cli("play", begun_run, "--task", 99)
    assert code == 2 and "task is 99; allowed: 0 … " in err and err.count("\n") == 1


def test_steps_and_successes_are_printed_where_they_are_measured(cli, begun_run, tmp_path, monkeypatch):
    found = Curves(np.array([[0.96, -0.6]]), np.array([[True, False]]), None, {"steps": np.array([[5.0, 60.0]])})
    monkeypatch.setattr(play, "record", lambda *_: found)
    _, said, _ = cli("play", begun_run, "--out", tmp_path / "play.gif")
    lines = ["return by episode: 1.0 -0.6", "steps by episode: 5 60", "success by episode: yes no"]
    assert said.splitlines()[:3] == lines


def test_progress_names_what_is_played_and_then_the_file(tmp_path, begun_run, monkeypatch):
    shown = []
    monkeypatch.setattr(play.Activity, "show", lambda self, text: shown.append(text))
    out, env = tmp_path / "play.gif", make("darkroom-ad-9")
    play.record(load_policy(begun_run), env, out, "test", 0, 2)
    assert shown[-1] == f"drawing {out}" and out.is_file()
    assert shown[-2] == "playing 2 episodes of darkroom-ad-9 100%"


def test_bad_values_are_one_line(cli, begun_run, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    refused = [
        (["play", tmp_path / "nowhere"], "nowhere"),
        (["play", begun_run, "--episodes", 0], "episodes is 0; allowed: more than 0"),
        (["play", begun_run, "--human"], "human is True; allowed: where a window can be opened"),
    ]
    for arguments, said in refused:
        code, out, err = cli(*arguments)
        assert code == 2 and out == "" and err.count("\n") == 1 and said in err


def test_interactive_episodes():
    """Episodes follow each other, and the window shows the agent's image."""
    env = Room("tiny", "open", horizon=3, lens=Lens(9, 7), train_layouts=2, test_layouts=2)
    game = play.Game(env, "test", 5)
    before = game.image()
    assert before.shape == (7, 9, 3) and before.dtype == np.uint8
    game.act(0)
    assert (game.image() != before).any() and game.caption().startswith("episode 1   step 1   ")
    game.act(3)
    game.act(3)
    assert game.caption().startswith("episode 2   step 0   ") and game.earned == 0
    with pytest.raises(ConfigError, match=r"task is 8; allowed: 0 … 7"):
        play.Game(env, "test", 8)


def test_interactive_episodes_without_images_are_drawn_by_the_environment():
    game = play.Game(make("darkroom-ad-9"), "test", 0)
    before = game.image()
    game.act(0)
    assert before.ndim == 3 and before.dtype == np.uint8 and (game.image() != before).any()


def test_keys_act_in_the_window():
    """In a hidden window, 0 acts, 9 and letters do nothing, and q quits."""
    pictures, window = [], mock.Mock()
    window.mainloop = lambda: [window.bind.call_args.args[1](SimpleNamespace(char=key)) for key in ("0", "9", "x", "q")]
    with (
        mock.patch.object(tkinter, "Tk", lambda: window),
        mock.patch.object(tkinter, "Label"),
        mock.patch("PIL.ImageTk.PhotoImage", pictures.append),
    ):
        play.play_interactively(make("darkroom-ad-9"), "test", 0)
    assert len(pictures) == 2 and max(pictures[0].size) == play.WINDOW_SIDE
    assert (np.asarray(pictures[0]) != np.asarray(pictures[1])).any()
    window.destroy.assert_called_once()


def test_a_policy_in_another_environment_of_the_same_spaces(cli, begun_run, tmp_path):
    out = tmp_path / "play.gif"
    code, _, err = cli("play", begun_run, "--env", "darkroom-ad-9-random", "--episodes", 2, "--out", out)
    assert code == 0 and out.is_file(), err
    code, _, err = cli("play", begun_run, "--env", "miniworld-open", "--out", out)
    assert code == 2 and err.count("\n") == 1 and "env is 'miniworld-open', whose spaces are" in err
    code, _, err = cli("play", begun_run, "--env", "darkrom", "--out", out)
    assert code == 2 and err.count("\n") == 1 and "did you mean" in err


def test_the_gif_names_the_action_of_each_step():
    """GIFs of two trials that differ in actions only differ beside the curve if the actions have names."""
    env = make("darkroom-ad-9")
    frames = np.zeros((3, 20, 20, 3), np.uint8)

    def panels(action, names):
        trial = TrialRecord(None, np.full(3, action), np.zeros(3, np.float32), np.array([True, False, False]), None)
        return play.beside(frames, trial, 1, names)

    assert play._names(env) == ("right", "left", "up", "down", "stay")
    assert (panels(0, play._names(env)) != panels(3, play._names(env))).any()
    assert (panels(0, None) == panels(3, None)).all()
    assert panels(0, None).shape == (3, 200, 200 + play.CURVE, 3)  # the tiny frames are enlarged
    assert play._names(make("pointmass-goal")) is None and play._names(make("probe-bandit")) is None
    assert "keys 0 right, 1 left, 2 up, 3 down, 4 stay, q: end" in play.Game(env, "test", 0).caption()
