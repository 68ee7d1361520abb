"""Training, evaluation and plotting in a Jupyter kernel, and its stop button."""

import asyncio
import base64
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebook")
nbclient = pytest.importorskip("nbclient", reason="needs the extra notebook")
pytest.importorskip("ipykernel", reason="needs the extra notebook")

CELLS = {
    "before": """
import asyncio, logging, signal, sys, warnings
import matplotlib
import relic_jax

def settings():
    return {
        "backend": matplotlib.rcParams._get("backend"),
        "pyplot": "matplotlib.pyplot" in sys.modules,
        "rc": {name: value for name, value in matplotlib.rcParams.items() if not name.startswith("backend")},
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": [sys.excepthook, sys.displayhook, sys.unraisablehook],
        "streams": [sys.stdout, sys.stderr],
        "handlers": list(logging.getLogger().handlers),
        "warnings": list(warnings.filters),
    }

assert asyncio.get_running_loop().is_running()
before = settings()
""",
    "train": """
options = {"trial.environments": 4, "trial.steps": 200, "trial.updates": 2, "ppo.minibatches": 2, "eval.tasks": 2}
options |= {"policy.transformer.layers": 1, "eval.episodes": 2, "checkpoint_minutes": 1e-9}
run = relic_jax.train("darkroom-smoke", total_steps=1600, chunk="segment", name="short", **options)
""",
    "evaluate": """
report = run.evaluate("train", episodes=2, limit=2)
len(report.returns.mean), report.tasks
""",
    "plot": """
figure = run.plot()
figure
""",
    "after": """
after = settings()
assert after == before, {name: (before[name], after[name]) for name in before if before[name] != after[name]}
import matplotlib.pyplot as plt
assert plt.get_fignums() == []
plt.get_backend().endswith("inline"), run.agent().step([0.0, 0.0]) in range(5)
""",
    "stopped": """
relic_jax.train("darkroom-smoke", total_steps=160_000_000, chunk="segment", name="long", **options)
""",
    "resumed": """
run = relic_jax.load_run("runs/long")
run.agent().step([0.0, 0.0]) in range(5)
""",
}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Run the cells in one kernel and return (the cells by name, the kernel's folder)."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = {name: nbformat.v4.new_code_cell(code.strip()) for name, code in CELLS.items()}
    book = nbformat.v4.new_notebook(cells=list(cells.values()))
    client = nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, allow_errors=True
    )

    async def press_stop():
        """Press the stop button after the first update."""
        while not (folder / "runs" / "long" / "metrics.jsonl").is_file():
            await asyncio.sleep(0.1)
        await client.km.interrupt_kernel()

    async def execute():
        async with client.async_setup_kernel():
            for index, (name, cell) in enumerate(cells.items()):
                button = asyncio.create_task(press_stop()) if name == "stopped" else None
                await client.async_execute_cell(cell, index)
                if button is not None:
                    button.cancel()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("jupyter") / name.lower()))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        asyncio.run(execute())
    return cells, folder


def printed(cell, stream="stdout"):
    """Return what a cell printed. Raises AssertionError if it failed."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    assert not errors, "\n".join(errors[0].traceback)
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == stream)


def result(cell):
    """Return the data of a cell's last expression by MIME type."""
    printed(cell)
    (data,) = [output.data for output in cell.outputs if output.output_type == "execute_result"]
    return data


def test_training_prints_its_progress_in_lines(notebook):
    cells, folder = notebook
    printed(cells["before"])
    out = printed(cells["train"])
    assert "1,600/1,600" in out and "\x1b" not in out and "\r" not in out
    assert printed(cells["train"], "stderr") == ""
    assert {"config.json", "curve.json", "curve.png"} <= {file.name for file in (folder / "runs" / "short").iterdir()}


def test_evaluations_and_figures_are_results_of_cells(notebook):
    cells, _ = notebook
    assert result(cells["evaluate"])["text/plain"] == "(2, 2)"
    image = base64.b64decode(result(cells["plot"])["image/png"])
    assert image.startswith(b"\x89PNG") and len(image) > 10_000


def test_the_kernel_is_left_as_it_was(notebook):
    cells, _ = notebook
    assert result(cells["after"])["text/plain"] == "(True, True)"


def test_the_stop_button_saves(notebook):
    cells, folder = notebook
    (error,) = [output for output in cells["stopped"].outputs if output.output_type == "error"]
    assert error.ename == "Stopped" and "saved; resume with: " in error.evalue
    assert any(Path(folder, "runs", "long", "checkpoints").iterdir())
    assert result(cells["resumed"])["text/plain"] == "True"
