"""`relic-jax sweep` from the command line to the report, a kill and its resumption."""

import csv
import html.parser
import json
import shutil
import subprocess

import numpy as np
import pytest
from small_study import GRID, RUNS

from relic_jax.experiments import folders
from relic_jax.experiments.compare import run_folders
from relic_jax.experiments.sweep.command import parse_sweep, start


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return (the folder of a finished study, the text of its command)."""
    import contextlib
    import io

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_report_is_one_page_without_network(study):
    folder, _ = study
    page = Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 1 + 2  # the figure and the training curves of each variant
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "script" not in page.tags and "link" not in page.tags
    assert (
        all(text in page.text for text in ("ppo.lr", "0.001", "0.01", "Origin")) and "4 of 4 runs finished" in page.text
    )


def test_a_browser_shows_the_report(study, tmp_path):
    browsers = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((path for name in browsers if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no headless browser is installed (e.g. Debian's package chromium)")
    folder, _ = study
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom")
    page = (folder / "report.html").resolve().as_uri()
    shown = subprocess.run([browser, *options, page], capture_output=True, text=True, timeout=120, check=True).stdout
    assert shown.count("<img") == 3 and "ppo.lr" in shown


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


EVALUATIONS = """
[[evaluate]]
name = "long"
episodes = 4

[[evaluate]]
name = "experts"
episodes = 3
expert_episodes = [0, 1]
expert_quality = [1.0, 0.5]

[[evaluate]]
name = "change"
episodes = 3
change_task_at = 2
limit = 2

[attention]
limit = 2
episodes = 2
"""
STEMS = (
    *("evaluate-long", "evaluate-change", "evaluate-experts_expert-episodes-0"),
    *(f"evaluate-experts_expert-episodes-1_expert-quality-{quality}" for quality in ("1", "0.5")),
    "attention",
)


@pytest.fixture(scope="module")
def evaluated(study, tmp_path_factory):
    """Return (the folder of a study to which evaluations were added, its study file)."""

    folder = tmp_path_factory.mktemp("evaluated") / "rates"
    shutil.copytree(study[0], folder)
    file = folder.parent / "rates.toml"
    file.write_text((folder / "study.toml").read_text() + EVALUATIONS)
    assert start(*parse_sweep([str(file), "--resume", str(folder), "--devices", "2"])) == 0
    return folder, file


@pytest.mark.slow
def test_evaluations_are_added_to_a_finished_study(study, evaluated):
    folder, _ = evaluated
    for run in run_folders([folder]):
        assert all((run / f"{stem}.json").is_file() for stem in STEMS)
        assert (run / "metrics.jsonl").read_bytes() == (study[0] / run.name / "metrics.jsonl").read_bytes()
        report = json.loads((run / "evaluate-experts_expert-episodes-1_expert-quality-0.5.json").read_text())
        assert (report["episodes"], report["expert_episodes"], report["expert_quality"]) == (3, 1, 0.5)
    rows = list(csv.DictReader((folder / "evaluations.csv").open()))
    assert len(rows) == 2 * (1 + 3 + 1) and {row["seeds"] for row in rows} == {"2"}
    row = rows[0]
    raw = [
        json.loads((folder / f"lr-0.001_seed{seed}" / "evaluate-long.json").read_text())["raw_returns"][0]
        for seed in (0, 3)
    ]
    later = [sum(task[1:]) / 3 for returns in raw for task in returns]
    assert (row["evaluation"], row["method"], row["expert"]) == ("long", "lr-0.001", "")
    assert float(row["later"]) == pytest.approx(sum(later) / len(later), abs=1e-4)
    change = next(row for row in rows if row["evaluation"] == "change")
    assert change["later"] == "" and change["changed"] and change["after"]
    page = Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert [name for name, _ in page.attributes].count("src") == 3 + 2
    assert "episode of the change" in page.text and "Shares of attention mass" in page.text


@pytest.mark.slow
def test_evaluations_that_are_there_are_not_repeated(evaluated, cli):
    folder, file = evaluated
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")}
    code, _, error = cli("sweep", "--resume", folder, "--devices", "2")  # the study's own file has them now
    assert code == 0, error
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")}
    file.write_text(file.read_text().replace("episodes = 4", "episodes = 5"))
    code, _, error = cli("sweep", file, "--resume", folder, "--devices", "2")
    assert code == 0, error
    changed = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == set(folder.glob("*/evaluate-long.json"))


@pytest.mark.slow
def test_a_stopped_evaluation_keeps_those_that_are_complete(study, evaluated, tmp_path):

    class StopLater:
        """An event that is set after some questions."""

        def __init__(self, questions):
            self.left = questions

        def is_set(self):
            self.left -= 1
            return self.left < 0

        def set(self):
            self.left = 0

    folder = tmp_path / "rates"
    shutil.copytree(study[0], folder)
    start(*parse_sweep([str(evaluated[1]), "--resume", str(folder), "--devices", "2"]), StopLater(16))
    done = sum(len(list(folder.glob(f"*/{stem}.json"))) for stem in STEMS)
    assert 0 < done < len(STEMS) * len(RUNS)
    assert start(*parse_sweep(["--resume", str(folder), "--devices", "2"])) == 0
    for stem in STEMS[:5]:
        for run in run_folders([folder]):
            own, other = (json.loads((x / run.name / f"{stem}.json").read_text()) for x in (folder, evaluated[0]))
            assert own["raw_returns"] == other["raw_returns"]


@pytest.mark.slow
def test_the_results_that_are_committed_are_small_and_hold_every_run(evaluated, tmp_path):
    from relic_jax.experiments.studies.results import write_results

    folder, _ = evaluated
    files = {path.name for path in write_results(folder, tmp_path / "out")}
    assert files == {
        *("study.toml", "table.md", "table.csv", "figure.png", "runs.jsonl"),
        *("evaluations.md", "evaluations.csv", "evaluations.png", "attention.md", "attention.png"),
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == list(RUNS)
    curve = json.loads((folder / RUNS[0] / "curve.json").read_text())
    assert lines[0]["return"] == pytest.approx(curve["return"]["mean"], rel=1e-3)
    assert lines[0]["metrics"].keys() == curve.get("metrics", {}).keys()
    assert set(lines[0]["evaluations"]) == {stem.removeprefix("evaluate-") for stem in STEMS[:5]}
    assert lines[0]["evaluation_metrics"].keys() == lines[0]["evaluations"].keys()
    shares = np.asarray([lines[0]["attention"][kind] for kind in ("sink", "current episode", "earlier episodes")])
    assert shares.sum(0) == pytest.approx(1, abs=1e-3) and shares[2, 0] == 0
    assert len(lines[0]["first_by_task"]) == 2 and lines[0]["steps_per_second"] > 0


@pytest.mark.slow
def test_a_study_continues_from_the_numbers_of_its_runs(study, tmp_path, capsys):
    from relic_jax.experiments.studies.results import write_results

    folder, _ = study
    results = tmp_path / "results" / "rates"
    write_results(folder, results)
    runs = results / "runs.jsonl"
    runs.write_text("".join(runs.read_text().splitlines(keepends=True)[1:]))  # the first run is not recorded
    options = ("--runs", str(tmp_path / "runs"), "--recorded", str(tmp_path / "results"))
    assert start(*parse_sweep([*GRID, *options])) == 0
    out = capsys.readouterr().out
    assert "lr-0.01_seed0: recorded as rates/lr-0.01_seed0" in out and "lr-0.001_seed0: recorded" not in out
    again = tmp_path / "runs" / "rates"
    assert [(again / run / "checkpoints").exists() for run in RUNS] == [True, False, False, False]
    tables = [list(csv.DictReader((path / "table.csv").open())) for path in (again, folder)]
    assert [float(row["later"]) for row in tables[0]] == pytest.approx(
        [float(row["later"]) for row in tables[1]], rel=1e-3
    )
    write_results(again, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == list(RUNS)
    assert [line for line in lines[1:]] == [json.loads(line) for line in runs.read_text().splitlines()]


@pytest.mark.slow
def test_a_stopped_study_continues_where_it_was(study, tmp_path):

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
