"""`relic-jax plot` and the figures of `evaluate`: inputs, output files and errors."""

import json
from pathlib import Path

import pytest

from relic_jax.experiments.plots import PARTS, labels, training_curve

CURVE = {"mean": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5]}
ABOUT = {"env": "darkroom-dpt", "split": "test", "split_hash": "0", "tasks": 20, "seeds": 1, "reference_returns": {}}
SUMMARY = ABOUT | {"return": CURVE, "success": CURVE}


def update(env_steps, episodes, mean, success=0.5):
    record = {"env_steps": env_steps, "episodes": episodes, "loss": 0.1}
    return record | ({"return": mean, "success": success} if episodes else {})


@pytest.fixture
def trained(tmp_path):
    """Return `trained(name, updates)`: a folder with metrics and checkpoints only, as `rl.train` leaves it."""

    def make(name, updates):
        folder = tmp_path / name
        (folder / "checkpoints" / "30").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in updates))
        meta = {"config": {"env": "darkroom-dpt"}}
        (folder / "checkpoints" / "30" / "meta.json").write_text(json.dumps(meta))
        return folder

    return make


def test_a_training_curve_knows_where_a_curriculum_rose(trained):
    updates = [
        update(10 * n, 1, 4.0) | {"curriculum/rung": rung} for n, rung in enumerate([1.0, 1.0, 2.0, 2.0, 3.0], 1)
    ]
    assert training_curve(trained("climbs", updates)).rises == [20, 40]
    assert training_curve(trained("plain", UPDATES)).rises == []


UPDATES = [update(10, 1, 4.0), update(20, 0, None), update(30, 3, 8.0, 1.0)]


def test_a_run_without_a_curve_gets_its_training_episodes_drawn(cli, trained, tmp_path):
    a, b = trained("a", UPDATES), trained("b", UPDATES[:1])
    code, out, err = cli("plot", a, b, "--out", tmp_path / "both.svg")
    assert (code, err) == (0, "")
    assert f"training episodes are drawn; for the curve: relic-jax evaluate {a}" in out
    assert (tmp_path / "both.svg").read_bytes().startswith(b"<?xml")
    curve = training_curve(a)
    assert (curve.env_steps, curve.returns, curve.successes) == ([10, 30], [4.0, 8.0], [0.5, 1.0])
    assert curve.env == "darkroom-dpt"


def test_a_training_curve_weighs_episodes_and_has_a_limited_number_of_points(trained):
    curve = training_curve(trained("long", [update(n, 1 + n % 2 * 8, n % 2) for n in range(1, 10 * PARTS + 1)]))
    assert len(curve.env_steps) == PARTS and curve.env_steps[-1] == 10 * PARTS
    assert set(curve.returns) == {0.9}  # five updates of one episode that returns 0, five of nine that return 1


def test_training_can_be_asked_for_where_there_is_a_curve(cli, trained, tmp_path):
    folder = trained("a", UPDATES)
    (folder / "curve.json").write_text(json.dumps(SUMMARY))
    code, out, _ = cli("plot", folder, "--training", "--out", tmp_path / "t.png")
    assert code == 0 and "training episodes are drawn" not in out and (tmp_path / "t.png").is_file()


def test_what_is_missing_is_named_with_the_command_that_makes_it(cli, trained, tmp_path):
    drawn, fresh, damaged = trained("drawn", UPDATES), trained("fresh", []), trained("damaged", UPDATES)
    (drawn / "curve.json").write_text(json.dumps(SUMMARY))
    (damaged / "metrics.jsonl").write_text("[1]\n")
    out = tmp_path / "figure.png"
    only = tmp_path / "only"
    (only / "checkpoints").mkdir(parents=True)
    refused = [
        ([drawn, fresh], f"'{fresh}' holds no curve; allowed: a curve.json", f"relic-jax evaluate {fresh}"),
        ([fresh], f"'{fresh}' has no training episodes to draw", "an episode has ended"),
        ([damaged], f"'{damaged}' has no training episodes to draw", "a readable metrics.jsonl"),
        ([only], f"'{only}' holds no curve", f"to make one: relic-jax evaluate {only}"),
        ([only, "--training"], "no training episodes", "a run folder with a readable metrics.jsonl"),
        ([tmp_path / "nowhere"], "holds no curve", "a run folder that has one"),
    ]
    for arguments, *said in refused:
        code, printed, err = cli("plot", *arguments, "--out", out)
        assert code == 2 and printed == "" and err.count("\n") == 1, err
        assert all(text in err for text in said), err
    assert not out.exists()


def test_an_evaluation_in_a_run_folder_is_found(cli, trained, tmp_path):
    folder = trained("a", UPDATES)
    (folder / "evaluate-test-2-episodes.json").write_text(json.dumps(SUMMARY))
    assert cli("plot", folder, "--out", tmp_path / "figure.png")[0] == 0
    (folder / "evaluate-test-4-episodes.json").write_text(json.dumps(SUMMARY))
    code, _, err = cli("plot", folder, "--out", tmp_path / "figure.png")
    assert code == 2 and "several evaluations" in err and "evaluate-test-4-episodes.json" in err


def test_a_suffix_that_cannot_be_written_is_refused_before_anything_is_read(cli, tmp_path):
    code, _, err = cli("plot", tmp_path / "nowhere", "--out", tmp_path / "figure.jpg")
    assert code == 2
    assert f"out is '{tmp_path / 'figure.jpg'}'; allowed: a file name that ends in .png, .pdf, .svg" in err


@pytest.mark.parametrize("figure", [".pdf", ".svg"])
def test_evaluate_writes_the_figure_that_out_names(cli, begun_run, tmp_path, figure):
    out = tmp_path / f"result.v2{figure}"
    code, said, err = cli("evaluate", begun_run, "--episodes", "2", "--limit", "3", "--out", out)
    assert (code, err) == (0, "") and str(out) in said
    assert {path.name for path in tmp_path.iterdir()} == {"result.v2.json", "result.v2.csv", out.name}
    assert out.read_bytes()[:5] in (b"%PDF-", b"<?xml")


def test_other_suffixes_are_refused(cli, begun_run, tmp_path):
    for command, suffix, allowed in (
        ("evaluate", "jpg", ".png, .pdf, .svg"),
        ("play", "mp4", "a file that ends in .gif"),
    ):
        code, _, err = cli(command, begun_run, "--out", tmp_path / f"result.{suffix}")
        assert code == 2 and err.count("\n") == 1 and allowed in err
    code, _, err = cli("play", begun_run, "--human", "--out", tmp_path / "play.gif")
    assert code == 2 and "allowed: None with --human" in err
    assert not list(tmp_path.iterdir())


def test_the_folder_that_we_are_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert labels([Path()]) == ["run"]
