"""Figures."""

import os

import numpy as np
import pytest
from PIL import Image

from relic_jax.plotting import plot_curves


def summary(episodes=5, level=0.5, optimal=90.0):
    mean = np.linspace(0.0, level, episodes)
    curve = {"mean": mean.tolist(), "low": (mean - 0.05).tolist(), "high": (mean + 0.05).tolist()}
    about = {"env": "darkroom-dpt", "split": "test", "split_hash": "0123456789ab", "tasks": 20, "seeds": 2}
    return about | {"return": curve, "success": curve, "lines": {"random": 0.7, "optimal": optimal}}


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_figure_is_a_png_with_something_drawn_on_it(tmp_path):
    plot_curves([summary()], ["ours"], tmp_path / "figure.png")
    image = pixels(tmp_path / "figure.png")
    assert image.shape[0] > 300 and image.shape[1] > 900
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_the_curve_decides_the_figure_and_nothing_else_does(tmp_path):
    drawn = {}
    for name, level in (("a", 0.5), ("again", 0.5), ("b", 0.9)):
        plot_curves([summary(level=level)], ["ours"], tmp_path / name)
        drawn[name] = pixels(tmp_path / name)
    assert np.array_equal(drawn["a"], drawn["again"])
    assert not np.array_equal(drawn["a"], drawn["b"])


def test_many_curves_of_different_lengths_fit_in_one_figure(tmp_path):
    many = [summary(episodes=n, level=n / 100, optimal=None) for n in range(1, 8)]
    plot_curves(many, [f"run {n}" for n in range(1, 8)], tmp_path / "figure")
    assert pixels(tmp_path / "figure").size


def test_a_crash_while_writing_leaves_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    plot_curves([summary()], ["ours"], path)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("crashed")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="crashed"):
        plot_curves([summary(level=0.9)], ["ours"], path)
    assert path.read_bytes() == before


def test_figures_are_closed(tmp_path):
    import matplotlib.pyplot as plt

    plot_curves([summary()], ["ours"], tmp_path / "figure.png")
    assert plt.get_fignums() == []
