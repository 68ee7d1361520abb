"""`python -m experiments.docs_commands [PAGE ...]`: run a short form of every command in the docs and print a table.

Commands run in this process, to share compiled programs, and in a temporary folder. Random and optimal returns are
means of four episodes. The exit code is 1 if a command fails or is of an unknown kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import tyro

from relic_jax.environment.base import Environment, Split
from relic_jax.environment.reference_returns import ReferenceReturns, reference_returns
from relic_jax.experiments.benchmark.measure import Machine, measure_machine
from relic_jax.experiments.docs_commands import pages, short
from relic_jax.experiments.docs_commands.short import Step, UnknownCommandError
from relic_jax.experiments.fast_compilation import compile_fast

ROOT = Path(__file__).resolve().parents[2]
RESULTS = tuple(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "experiments" / "results").glob("*/README.md")))
PAGES = (
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "experiments/README.md",
    *RESULTS,
)


@dataclasses.dataclass(frozen=True)
class Command:
    """Run a short form of every command in the docs."""

    pages: Annotated[tuple[str, ...], tyro.conf.Positional] = PAGES
    """Pages to read."""
    verbose: bool = False
    """Print the output of the commands."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table, for one command."""

    line: pages.Line
    """The command."""
    result: str
    """ran, checked, repeated, skipped or FAILED."""
    seconds: float
    """Duration."""
    message: str = ""
    """Reason for the result, or the end of the output."""

    def __str__(self) -> str:
        """Return the row as text, with the message in parentheses."""
        text = f"{self.line.page}:{self.line.number}  {self.result}  {self.seconds:.1f} s  {self.line.text}"
        return text + (f"  ({self.message})" if self.message else "")


def main() -> None:
    """Run the commands of the selected pages."""
    compile_fast()
    command, rows, unknown = tyro.cli(Command, prog="python -m experiments.docs_commands"), [], []
    contents = {page: pages.commands(ROOT / page, page) for page in command.pages}
    tests = collected_tests([line.text for lines, _ in contents.values() for line in lines])
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(Path(name), tests, command.verbose)
        for page, (lines, others) in contents.items():
            unknown += others
            runner.begin(ROOT / page)
            for line in lines:
                rows.append(runner.row(line))
                print(rows[-1], flush=True)
    counts = {result: sum(row.result == result for row in rows) for result in dict.fromkeys(row.result for row in rows)}
    print("\n" + ", ".join(f"{count} {result}" for result, count in counts.items()))
    for reason in sorted({row.message for row in rows if row.result == "skipped"}):
        print(f"skipped, needs {reason}: {sum(row.message == reason for row in rows)}")
    print("\n".join(unknown))
    sys.exit(1 if unknown or counts.get("FAILED") else 0)


class Runner:
    """Runs the short forms of commands.

    Args:
        folder: Folder to run them in.
        tests: Ids of the tests that commands can select.
        verbose: Whether to print the output of the commands.
    """

    def __init__(self, folder: Path, tests: list[str], verbose: bool) -> None:
        self._folder, self._tests, self._verbose = folder, tests, verbose
        self._done: set[tuple[str, tuple[str, ...]]] = set()
        self._started: list[subprocess.Popen[str]] = []
        shutil.copytree(ROOT / "experiments" / "results", folder / "experiments" / "results")
        (folder / "relic_jax").symlink_to(ROOT / "relic_jax")
        self._write_original(folder / short.PLACEHOLDERS["CHECKPOINT"])
        for name, code in pages.files(ROOT / "docs" / "custom-environments.md").items():
            (folder / name).write_text(code, encoding="utf-8")

    def begin(self, page: Path) -> None:
        """Write the files that a page contains."""
        for name, code in pages.files(page).items():
            (self._folder / name).write_text(code, encoding="utf-8")

    def row(self, line: pages.Line) -> Row:
        """Run or check a command and return its row."""
        start = time.monotonic()
        try:
            results = [self._do(step, line) for step in short.steps(line.text)]
        except UnknownCommandError:
            results = [("FAILED", "unknown kind of command; add it to experiments/docs_commands/short.py")]
        except Exception:
            results = [("FAILED", traceback.format_exc())]
        result, message = next((pair for pair in results if pair[0] == "FAILED"), results[0])
        return Row(line, result, time.monotonic() - start, message)

    def _do(self, step: Step, line: pages.Line) -> tuple[str, str]:
        if step.kind == "skip":
            return "skipped", step.reason
        if step.kind == "install":
            return self._install(step.words)
        if step.kind == "tests":
            selected = [test for test in self._tests if selects(step.words[1:], test)]
            if not selected and (package := missing_package(step.words)):
                return "skipped", f"the package {package}"
            return ("checked", f"{len(selected)} tests") if selected else ("FAILED", "no test is selected")
        if step.kind == "mention":
            return self._mention(step.words)
        if step.kind in ("start", "join"):
            return self._in_processes(step, line.folder)
        if (line.folder, step.words) in self._done:
            return "repeated", ""
        for words in short.needed_runs(step.words, self._folder / line.folder):
            self._remove_outputs(words, self._folder / line.folder)
            code, out = self._run(words, line.folder)
            if code:
                return "FAILED", f"{' '.join(words)}: {out[-2000:]}"
        self._remove_outputs(step.words, self._folder / line.folder)
        code, out = self._run(short.with_newest_checkpoint(step.words, self._folder / line.folder), line.folder)
        self._done.add((line.folder, step.words))
        return ("ran", "") if code == 0 else ("FAILED", f"exit code {code}: {out[-2000:]}")

    def _run(self, words: tuple[str, ...], folder: str) -> tuple[int, str]:
        """Return the exit code and the output of a command."""
        module = "relic_jax.experiments.cli" if words[0] == "relic-jax" else words[2]
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:  # a package
            module += ".__main__"
        arguments = words[1:] if words[0] == "relic-jax" else words[3:]
        out = io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(self._folder / folder))
            stack.enter_context(mock.patch.object(sys, "argv", [words[0], *arguments]))
            stack.enter_context(mock.patch("relic_jax.experiments.run.reference_returns", _few_episodes))
            stack.enter_context(mock.patch.object(sys, "unraisablehook", sys.unraisablehook))
            stack.enter_context(mock.patch.object(sys, "path", [str(self._folder), *sys.path]))
            if not self._verbose:
                stack.enter_context(contextlib.redirect_stdout(out))
                stack.enter_context(contextlib.redirect_stderr(out))
            imported = importlib.import_module(module)
            for name, replacement in SHORTER.get(module, {}).items():
                stack.enter_context(mock.patch.object(imported, name, replacement))
            try:
                imported.main()
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else int(bool(end.code)), out.getvalue()
        return 0, out.getvalue()

    def _in_processes(self, step: Step, folder: str) -> tuple[str, str]:
        """Start a command in a separate process. If the step joins, wait for it and for those that were started."""
        command = [sys.executable, "-P", "-m", "relic_jax.experiments.cli", *step.words[1:]]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self._started.append(subprocess.Popen(command, cwd=self._folder / folder, **pipes))
        if step.kind == "start":
            return "ran", "beside the next one"
        outputs = [process.communicate(timeout=600)[0] for process in self._started]
        failed = any(process.returncode for process in self._started)
        self._started = []
        return ("FAILED", "\n".join(outputs)[-2000:]) if failed else ("ran", "")

    def _remove_outputs(self, words: tuple[str, ...], folder: Path) -> None:
        """Remove the outputs of an earlier run of a command, which would not overwrite them."""
        made = [short.value(words, "--to")]
        if words[1:2] == ("train",) and "--resume" not in words:
            seed = short.value(words, "--seed") or "0"
            made.append("runs/" + (short.value(words, "--name") or f"{words[2]}-seed{seed}"))
        for path in (folder / name for name in made if name):
            if path.is_dir():
                shutil.rmtree(path)

    def _mention(self, words: tuple[str, ...]) -> tuple[str, str]:
        """Check that a command and its options exist, without running it."""
        code, out = self._run((*words[:2], "--help"), "")
        absent = [word for word in words[2:] if word not in out]
        return ("FAILED", f"{absent[0]} is not an option") if absent or code else ("checked", "exists")

    def _install(self, words: tuple[str, ...]) -> tuple[str, str]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for word in words:
            for extras in re.findall(r"(?:relic-jax|^\.)\[([\w,]+)\]", word):
                for extra in extras.split(","):
                    if extra not in project["optional-dependencies"]:
                        return "FAILED", f"{extra} is not an extra"
            if word.endswith(".txt") and not (ROOT / word).is_file():
                return "FAILED", f"{word} is not a file"
        return "checked", "the extras exist"

    def _write_original(self, file: Path) -> None:
        """Write a checkpoint of the original code with an untrained policy."""
        from relic_jax.experiments.faults.options import write_original

        write_original(file)


@functools.cache
def _machine() -> Machine:
    """Measure the machine once for all benchmarks."""
    return measure_machine()


SHORTER: dict[str, dict[str, Any]] = {
    "relic_jax.experiments.benchmark.__main__": {"measure_machine": _machine},
    "relic_jax.experiments.pretrain_encoder": {"TEST_BATCHES": 1},
}
"""Attributes of modules that are replaced, because no option of the command shortens their work."""


def _few_episodes(env: Environment, split: Split, limit: int | None = None) -> ReferenceReturns:
    """Return `reference_returns` over four episodes."""
    return reference_returns(env, split, episodes=4, limit=limit)


def collected_tests(commands: list[str]) -> list[str]:
    """Return the ids of the tests, including slow ones, in the files that commands name.

    If a command names no file, return the ids of all tests. `-q` is in pytest's addopts.
    """
    named = [[word for word in text.split() if word.startswith("tests")] for text in commands if "pytest" in text]
    if not named:
        return []
    paths = {path for words in named for path in words if (ROOT / path).exists()} if all(named) else {"tests"}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-n", "0", "-m", "slow or not slow", *sorted(paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if "::" in line]


def selects(arguments: tuple[str, ...], test: str) -> bool:
    """Return whether pytest with these arguments selects a test by its path and by -k."""
    words = iter(arguments)
    paths, expression = [], ""
    for word in words:
        if word == "-k":
            expression = next(words)
        elif word in ("-m", "-n", "--kills"):
            next(words)
        elif not word.startswith("-"):
            paths.append(word)
    if any(not (ROOT / path.partition("::")[0]).exists() for path in paths):
        return False
    if paths and not any(test.startswith(path) for path in paths):
        return False
    return not expression or matches(expression, test)


def missing_package(words: tuple[str, ...]) -> str:
    """Return a package that is not installed and without which a test file is skipped, or ""."""
    files = [ROOT / word for word in words if word.endswith(".py") and (ROOT / word).is_file()]
    pattern = re.compile(r'^\w+ = pytest\.importorskip\("(\w+)', re.M)
    packages = [package for file in files for package in pattern.findall(file.read_text(encoding="utf-8"))]
    return next((package for package in packages if importlib.util.find_spec(package) is None), "")


def matches(expression: str, test: str) -> bool:
    """Return whether a test's id matches a -k expression of words, and, or, not."""

    def value(word: str) -> str:
        return word if word in ("and", "or", "not", "(", ")") else str(word.lower() in test.lower())

    words = re.findall(r"\(|\)|[^\s()]+", expression)
    return bool(eval(" ".join(map(value, words)), {"__builtins__": {}}))


if __name__ == "__main__":
    main()
