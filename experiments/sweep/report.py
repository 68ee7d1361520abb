"""`report.html` of a study: one self-contained page with figure, table, settings that differ and learning curves."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from relic_jax.config import ConfigError
from relic_jax.experiments import folders
from relic_jax.experiments.compare import Comparison, compare, write
from relic_jax.experiments.plots import training_curve
from relic_jax.experiments.sweep.evaluation_report import write_evaluations
from relic_jax.experiments.sweep.folder import StudyFolder
from relic_jax.experiments.sweep.grid import Member, methods
from relic_jax.experiments.sweep.study import Study, resolved
from relic_jax.files import write_atomically
from relic_jax.plotting import training_figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .8em; text-align: left }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd } img { max-width: 100% }
pre { background: #f5f5f5; padding: 1em; overflow: auto } .failed { color: #b00020 }
"""


def write_report(folder: StudyFolder, study: Study, runs: Sequence[Member]) -> list[Path]:
    """Write the table, the figure, those of the evaluations that the study declares, and report.html.

    Returns:
        The paths of the files. Empty if no run is evaluated.
    """
    if not any(folder.is_finished(run) for run in runs):
        return []
    comparison = compare(methods(runs, folder.path), measure=study.measure)
    files, more = write(comparison, folder.path), write_evaluations(folder, study, runs)
    page = folder.path / "report.html"
    write_atomically(page, _page(folder, study, runs, comparison, files[2], more))
    return [*files, *more, page]


def _page(
    folder: StudyFolder,
    study: Study,
    runs: Sequence[Member],
    comparison: Comparison,
    figure: Path,
    more: Sequence[Path],
) -> str:
    finished = sum(folder.is_finished(run) for run in runs)
    failed = {run.name: text for run in runs if (text := folder.failure(run)) is not None}
    parts = [
        f"<h1>{html.escape(study.name)}</h1>",
        f"<p>{finished} of {len(runs)} runs finished, env {html.escape(runs[0].config.env.name)}, "
        f"seeds {', '.join(map(str, study.seeds))}.</p>",
        "<h2>Result</h2>",
        _image(figure.read_bytes(), "Returns and learning curves of each method"),
        _markdown(comparison.markdown()),
    ]
    for file in more:
        if file.suffix == ".png":
            parts += [f"<h2>{file.stem.capitalize()}</h2>", _image(file.read_bytes(), f"Figure of the {file.stem}")]
            parts.append(_markdown(file.with_suffix(".md").read_text(encoding="utf-8")))
    if failed:
        items = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(text)}</li>" for name, text in failed.items())
        parts.append(f'<h2>Failed runs</h2><ul class="failed">{items}</ul>')
    if curves := _learning_curves(folder, runs):
        parts += ["<h2>Training episodes of each run</h2>", *curves]
    parts.append(f"<h2>Study</h2><pre>{html.escape(resolved(study))}</pre>")
    origin = folders.read_origin(folder.path)
    names = ("command", "commit", "jax", "device")
    rows = [(name, str(origin[name])) for name in names if name in origin]
    parts += ["<h2>Origin</h2>", _table(("", "when the study was started"), rows)]
    title = html.escape(f"{study.name}: relic-jax sweep")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _learning_curves(folder: StudyFolder, runs: Sequence[Member]) -> list[str]:
    """Return an image with the training curves of the seeds of each variant."""
    found = []
    for variant in dict.fromkeys(run.variant for run in runs):
        curves, labels = [], []
        for run in runs:
            try:
                curves += [training_curve(folder.run(run))] if run.variant == variant else []
            except ConfigError:  # no episode has ended yet
                continue
            labels += [f"seed {run.config.seed}"] if run.variant == variant else []
        if curves:
            figure = training_figure(curves, labels)
            found.append(f"<h3>{html.escape(variant)}</h3>{_image(_png(figure), f'Training episodes of {variant}')}")
    return found


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, dpi=90, format="png")
    return content.getvalue()


def _image(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _markdown(text: str) -> str:
    """Return the HTML of a comparison's Markdown: tables, and paragraphs with code spans."""
    parts = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            cells = [_cells(line) for line in lines]
            parts.append(_table(cells[0], cells[2:]))
        else:
            parts.append(f"<p>{_inline(block)}</p>")
    return "".join(parts)


def _cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table, in which bars are escaped."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _inline(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
