"""Figures."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relic_jax.evaluation import Report
from relic_jax.evaluation.report import AgentCurves
from relic_jax.plotting import TrainingCurve, curves_figure, plot_curves, training_figure
from relic_jax.runtime import ConfigError

ROOT = Path(__file__).parents[1]
TRAINED = TrainingCurve([100, 200], [0.5, 1.5], [0.25, 0.75], "darkroom-dpt")


def report(episodes=5, level=0.5, optimal=90.0):
    mean = np.linspace(0.0, level, episodes)
    curve = {"mean": mean.tolist(), "low": (mean - 0.05).tolist(), "high": (mean + 0.05).tolist()}
    about = {"env": "darkroom-dpt", "split": "test", "split_hash": "0123456789ab", "tasks": 20, "seeds": 2}
    about |= {"return": curve, "success": curve, "reference_returns": {"random": 0.7, "optimal": optimal}}
    return Report.from_json(about)


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_figure_is_a_png_with_something_drawn_on_it(tmp_path):
    plot_curves([report()], ["ours"], tmp_path / "figure.png")
    image = pixels(tmp_path / "figure.png")
    assert image.shape[0] > 300 and image.shape[1] > 900
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_the_curve_decides_the_figure_and_nothing_else_does(tmp_path):
    drawn = {}
    for name, level in (("a", 0.5), ("again", 0.5), ("b", 0.9)):
        plot_curves([report(level=level)], ["ours"], tmp_path / name)
        drawn[name] = pixels(tmp_path / name)
    assert np.array_equal(drawn["a"], drawn["again"])
    assert not np.array_equal(drawn["a"], drawn["b"])


def test_many_curves_of_different_lengths_fit_in_one_figure(tmp_path):
    many = [report(episodes=n, level=n / 100, optimal=None) for n in range(1, 8)]
    plot_curves(many, [f"run {n}" for n in range(1, 8)], tmp_path / "figure")
    assert pixels(tmp_path / "figure").size


def test_the_rungs_of_a_curriculum_are_dotted_lines_that_the_legend_leaves_out():
    figure = training_figure([TRAINED._replace(rises=[120.0, 150.0]), TRAINED], ["climbs", "plain"])
    for axis in figure.axes:
        dotted = [line for line in axis.get_lines() if line.get_linestyle() == ":"]
        assert [line.get_xdata()[0] for line in dotted] == [120.0, 150.0]
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["climbs", "plain"]
    assert {line.get_color() for line in dotted} == {legend.get_lines()[0].get_color()}


def test_reference_agents_are_dashed_curves_in_both_axes():
    ours = report()
    agents = {name: AgentCurves(report(level=x).returns, ours.success) for name, x in (("slow", 0.3), ("fast", 0.7))}
    figure = curves_figure([ours, dataclasses.replace(ours, reference_agents=agents)], ["old", "new"])
    returns, successes = figure.axes
    assert len(successes.get_lines()) == 4 and all(line.is_dashed() for line in successes.get_lines()[2:])
    drawn = [list(line.get_ydata()) for line in returns.get_lines()]
    assert all(agent.returns.mean in drawn for agent in agents.values())
    legend = [text.get_text() for text in returns.get_legend().get_texts()]
    assert legend == ["old", "new", "optimal 90.0", "random 0.7", "slow", "fast"]
    handles = returns.get_legend().legend_handles
    assert [line.get_color() for line in handles[:2]] == [line.get_color() for line in successes.get_lines()[:2]]


def test_steps_have_their_own_axes_if_all_curves_have_them():
    ours = report()
    measured = dataclasses.replace(ours, metrics={"steps": report(level=9.0).returns})
    agents = {"measured": AgentCurves(ours.returns, ours.success, measured.metrics)}
    agents["not measured"] = AgentCurves(ours.returns, ours.success)
    figure = curves_figure([measured, dataclasses.replace(measured, reference_agents=agents)], ["old", "new"])
    assert [axis.get_ylabel() for axis in figure.axes] == [f"{x} per episode" for x in ("return", "success", "steps")]
    assert [len(axis.get_lines()) for axis in figure.axes] == [2 + 2 + 2, 2 + 2, 2 + 1]
    assert len(curves_figure([measured, ours], ["old", "new"]).axes) == 2


def test_a_crash_while_writing_leaves_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    plot_curves([report()], ["ours"], path)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("crashed")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="crashed"):
        plot_curves([report(level=0.9)], ["ours"], path)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_no_global_state_of_matplotlib_is_touched(tmp_path):
    """A notebook's backend, settings and open figures do not change."""
    code = """
import sys
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
plt.figure()
matplotlib.rcParams["lines.linewidth"] = 7
before = dict(matplotlib.rcParams)
sys.path.insert(0, "tests")
from pathlib import Path
from test_plotting import TRAINED, report
from relic_jax.plotting import plot_curves, plot_training
import relic_jax.experiments.run, experiments.play
for suffix in ("png", "pdf", "svg"):
    plot_curves([report()], ["ours"], Path(sys.argv[1]) / f"figure.{suffix}")
    plot_training([TRAINED], ["ours"], Path(sys.argv[1]) / f"training.{suffix}")
assert matplotlib.get_backend() == "svg" and plt.get_fignums() == [1], (matplotlib.get_backend(), plt.get_fignums())
assert dict(matplotlib.rcParams) == before
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_pyplot_is_not_even_imported():
    code = "import sys, relic_jax.plotting, relic_jax.experiments.run; assert 'matplotlib.pyplot' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_two_of_many_curves_look_alike_and_the_legend_covers_none():
    figure = curves_figure([report(level=n / 30) for n in range(30)], [f"run {n}" for n in range(30)])
    drawn = [(line.get_color(), str(line._dash_pattern), line.get_marker()) for line in figure.axes[1].get_lines()]
    assert len(set(drawn)) == 30
    assert len({line.get_color() for line in figure.axes[1].get_lines()[:7]}) == 7
    figure.draw_without_rendering()
    legend = figure.axes[1].get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:30] == [f"run {n}" for n in range(30)] and texts[30:] == ["optimal 90.0", "random 0.7"]
    box = legend.get_window_extent()
    assert not any(box.overlaps(axis.patch.get_window_extent()) for axis in figure.axes)
    assert not box.overlaps(figure._suptitle.get_window_extent())
    assert box.x1 <= figure.bbox.x1 and box.y0 >= figure.bbox.y0
    assert all(axis.patch.get_window_extent().width > 300 for axis in figure.axes)  # and leaves room for the curves


@pytest.mark.parametrize("episodes", [1, 2, 3, 7, 40, 1000])
def test_ticks_are_whole_episodes(episodes):
    figure = curves_figure([report(episodes=episodes)], ["ours"])
    for axis in figure.axes:
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) for tick in ticks) and low < 1 and high > episodes


@pytest.mark.parametrize(
    ("seeds", "title", "legend"),
    [
        ([1], "1 seed", ["a"]),
        ([3], "3 seeds", ["a"]),
        ([1] * 6, "1 seed per curve", ["a", "b", "c", "d", "e", "f"]),
        ([1, 3], "0123456789ab)", ["a (1 seed)", "b (3 seeds)"]),
    ],
)
def test_seeds_are_named_per_curve(seeds, title, legend):
    figure = curves_figure([dataclasses.replace(report(), seeds=count) for count in seeds], "abcdef"[: len(seeds)])
    assert figure.get_suptitle().endswith(title)
    where = figure.axes[1 if len(seeds) > 5 else 0].get_legend()
    assert [text.get_text() for text in where.get_texts()][: len(seeds)] == legend


def test_names_are_drawn_as_they_are(tmp_path):
    figure = curves_figure([report(), report()], ["_hidden", "cost $5 of $x_"])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts[0].strip() == "_hidden" and len(texts) == 4
    plot_curves([report()], ["$\\frac{"], tmp_path / "figure.png")  # no math mode, so no parse error
    assert pixels(tmp_path / "figure.png").size


STARTS = {".png": b"\x89PNG", ".PDF": b"%PDF", ".svg": b"<?xml", "": b"\x89PNG", ".v1.5": b"\x89PNG"}


@pytest.mark.parametrize("suffix", STARTS)
def test_the_suffix_decides_the_format(tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    plot_curves([report()], ["ours"], path)
    assert path.read_bytes().startswith(STARTS[suffix]) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".jpg", ".gif", ".json", ".html"])
def test_another_suffix_is_refused(tmp_path, suffix):
    with pytest.raises(ConfigError, match=r"out is '.*'; allowed: a file name that ends in \.png, \.pdf, \.svg"):
        plot_curves([report()], ["ours"], tmp_path / f"figure{suffix}")
    assert not list(tmp_path.iterdir())
