"""`relic-jax sweep` from the command line to the report, a kill and its resumption, and folders that are refused."""

import csv
import html.parser
import json
import shutil
import subprocess

import pytest

from relic_jax.experiments import folders
from relic_jax.experiments.compare import run_folders

OPTIONS = (
    *("--total-steps", "128", "--devices", "2", "--trial.environments", "2", "--trial.steps", "32"),
    *("--trial.updates", "2", "--ppo.minibatches", "1", "--ppo.accumulate", "1", "--ppo.epochs", "1"),
    *("--policy.transformer.layers", "1", "--policy.transformer.width", "8", "--policy.transformer.mlp-width", "8"),
    *("--eval.episodes", "2", "--eval.tasks", "2", "--eval.repeats", "1", "--env", "darkroom-ad-9"),
)
GRID = ("darkroom-smoke", "--seeds", "0,3", "--vary", "ppo.lr=1e-3,1e-2", "--name", "rates", *OPTIONS)
RUNS = ("lr-0.001_seed0", "lr-0.001_seed3", "lr-0.01_seed0", "lr-0.01_seed3")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return (the folder of a finished study, the text of its command)."""
    import contextlib
    import io

    from relic_jax.experiments.sweep.command import parse_sweep, start

    folder = tmp_path_factory.mktemp("sweep")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command, grid, path = parse_sweep([*GRID, "--runs", str(folder)])
        assert start(command, grid, path) == 0
    return path, out.getvalue()


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    VOID = ("meta", "img")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_study_holds_run_folders_and_their_comparison(study):
    folder, out = study
    assert "sweep rates: 4 runs (2 variants × 2 seeds), 512 environment steps, env darkroom-ad-9" in out
    assert "1 program to compile; 2 runs at a time on 2 devices" in out
    assert "4/4 runs finished" in out
    assert tuple(path.name for path in run_folders([folder])) == RUNS
    for name in RUNS:
        files = {path.name for path in (folder / name).iterdir()}
        assert files >= {"config.json", "curve.json", "curve.csv", "curve.png", "metrics.jsonl", "trial.gif"}
        config = folders.read_config(folder / name)
        assert (config.devices, config.ppo.lr) == (1, float(name.split("_")[0].removeprefix("lr-")))
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [(row["method"], row["seeds"]) for row in rows] == [("lr-0.001", "2"), ("lr-0.01", "2")]


def test_the_report_is_one_page_without_network(study):
    folder, _ = study
    page = Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 1 + 2  # the figure and the training curves of each variant
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "script" not in page.tags and "link" not in page.tags
    assert "ppo.lr" in page.text and "0.001, 0.01" in page.text and "4 of 4 runs finished" in page.text


def test_a_browser_shows_the_report(study, tmp_path):
    browsers = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((path for name in browsers if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no headless browser is installed (e.g. Debian's package chromium)")
    folder, _ = study
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom")
    page = (folder / "report.html").resolve().as_uri()
    shown = subprocess.run([browser, *options, page], capture_output=True, text=True, timeout=120, check=True).stdout
    assert shown.count("<img") == 3 and "Settings that differ" in shown


def test_a_finished_study_is_not_repeated_and_other_settings_are_refused(study, cli):
    folder, _ = study
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.jsonl")}
    code, out, _ = cli("sweep", "--resume", folder, "--devices", "2")
    assert code == 0 and "4/4 runs finished" in out
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.glob("*/*.jsonl")}
    again = ("--runs", folder.parent)
    code, _, error = cli("sweep", *GRID, *again)
    assert code == 2 and "is already there; allowed: another --name, or resume it with" in error
    code, _, error = cli("sweep", *GRID, *again, "--ppo.gamma", "0.5")
    assert code == 2 and "ppo.gamma is 0.5; allowed: 0.99, which" in error
    code, _, error = cli("sweep", "--resume", folder, "--seeds", "9")
    assert code == 2 and "seeds is set; allowed: nothing with --resume" in error
    code, _, error = cli("sweep", "--resume", folder / RUNS[0])
    assert code == 2 and "has no study.toml" in error


@pytest.mark.slow
def test_a_stopped_study_continues_where_it_was(study, tmp_path):
    from relic_jax.experiments.sweep.command import parse_sweep, start

    whole, _ = study

    class StopAt:
        """An event that is set after some questions, as if a signal had come."""

        def __init__(self, questions):
            self.left = questions

        def is_set(self):
            self.left -= 1
            return self.left < 0

        def set(self):
            self.left = 0

    command, grid, path = parse_sweep([*GRID, "--runs", str(tmp_path)])
    start(command, grid, path, StopAt(4))
    assert not (path / RUNS[3] / "curve.png").exists()
    command, grid, path = parse_sweep(["--resume", str(path), "--devices", "2"])
    assert start(command, grid, path) == 0
    for name in RUNS:
        assert (path / name / "metrics.jsonl").read_bytes() == (whole / name / "metrics.jsonl").read_bytes()
        reports = [json.loads((folder / name / "curve.json").read_text()) for folder in (path, whole)]
        assert reports[0]["raw_returns"] == reports[1]["raw_returns"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*GRID, "--max-runs", "3"), "max-runs is 3; allowed: at least 4, the runs of this grid"),
        ((*GRID, "--vary", "ppo.lr"), "vary is 'ppo.lr'; allowed: FIELD=VALUE,VALUE"),
        ((*GRID, "--vary", "policy.transfomer.sink=kv"), "did you mean policy.transformer.sink?"),
        ((*GRID, "--seeds", "two"), "seeds is 'two'; allowed: a number"),
        (("darkroom-smok",), "did you mean darkroom-smoke"),
        ((), "study is missing; allowed: a file STUDY.toml, a preset, or --resume FOLDER"),
        ((*GRID, "--vary", "env=darkroom-ad-9,darkroom-dpt", "--eval.every", "64"), "allowed: 'darkroom-ad-9' as in"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(cli, tmp_path, arguments, message):
    code, _, error = cli("sweep", *arguments, "--runs", tmp_path)
    assert code == 2 and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_grid_and_writes_nothing(cli, tmp_path):
    code, out, _ = cli("sweep", *GRID, "--runs", tmp_path, "--dry-run")
    assert code == 0 and "ppo.lr: 0.001, 0.01" in out and "estimated time: unknown" in out
    assert list(tmp_path.iterdir()) == []
