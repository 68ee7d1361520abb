"""Odd values for every option of every command. Nothing is trained or simulated.

A command must accept the values, or end with exit code 2 and a one-line error that names one of the options.
Options and values are derived from the fields of the commands and their types, so new fields are covered automatically.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import tyro

from relic_jax.bridge.pool import PoolError
from relic_jax.bridge.worker import SetupError
from relic_jax.config import EnvConfig, PolicyConfig
from relic_jax.envs import registry
from relic_jax.envs.registry import make
from relic_jax.experiments import catalogue, cli, habitat_dataset, import_llamarl
from relic_jax.experiments.evaluation import EvaluateCommand
from relic_jax.experiments.export_command import ExportCommand
from relic_jax.experiments.play_command import PlayCommand
from relic_jax.experiments.plots import PlotCommand
from relic_jax.experiments.training import TrainCommand
from relic_jax.interop import files
from relic_jax.interop.policy import Foreign, export_policy, original_config
from relic_jax.loading import pretrained_path
from relic_jax.models.policy import policy_for
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.state import init_state
from relic_jax.runtime import one_line

INTEGERS = (
    *("-1", "0", "1", "2", "3", "7", "1000", "1000000", "2147483647", "2147483648", "4294967295", "4294967296"),
    *("-2147483649", "9223372036854775808", "1" + "0" * 30, "9" * 5000, "1e3", "0x10", "1.5", "nan", "None", "", " "),
)
REALS = (
    *("-1", "0", "-0.0", "0.5", "1", "1e-3", "0.9999999999", "1e30", "1e-30", "1e300", "-1e300", "1e-300", "5e-324"),
    *("1e-38", "1e-40", "3.4e38", "3.5e38", "1e400", "nan", "inf", "-inf", "None", "fast", "1,5", ""),
)
TEXTS = (
    *("", " ", ".", "..", "None", "-", "a\0b", "a\nb\x1b[31m", "ünï☃", "a\udcffb", "a" * 300, "a" * 5000, "no/where"),
    *("folder", "file", "file/below", "/dev/null", "/dev/null/below", "/proc/nowhere", "{x}", "%s", "'\"`$(x)"),
)
ENVIRONMENTS = (
    *("gym:", "gym::", "gym:None", "gym:a/b:C-v0", "python:", "python::", "python:a", "python:a:b", "python:.a:b"),
    *(
        "python:a..b:C",
        "python:os:path",
        "python:os:getcwd",
        "python:json:loads",
        "xland:",
        "xland:x",
        "xland",
        "navix:",
    ),
    *("navix:x", "craftax:", "craftax:x", "gymnax:", "gymnax:x", "playground:", "playground:x", "brax:ant", "brax:"),
    *("ant-dir:", "ant-dir:x", "ant-dir:mjx:x", "metaworld:", "metaworld:ml9", "metaworld:ml1:", "habitat-lab:", ":"),
    *("habitat-lab:nowhere.yaml", "extobjnav:x", "DARKROOM-DPT", "darkroom-dpt ", "darkroom-hard-17", "python:a\0:b"),
)


RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of a command."""

    name: str
    """Dotted name."""
    hint: Any
    """Type."""
    flag: str | None
    """Flag on the command line; None for a positional argument."""

    def arguments(self, value: str) -> list[str]:
        """Return the arguments that set it to `value`."""
        if self.flag is None:
            return [value]
        return [f"{self.flag}={value}"] if value.startswith("-") else [self.flag, value]

    @property
    def aliases(self) -> tuple[str, ...]:
        """Names that an error can use for the option."""
        return self.name, self.name.replace("_", "-"), self.name.rpartition(".")[2]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """The result of a command."""

    arguments: tuple[str, ...]
    """The command line."""
    code: int | None
    """Exit code; None if the command accepted its arguments."""
    out: str
    """Output on stdout."""
    err: str
    """Output on stderr."""
    setup: Any = None
    """Setup of the run that the command would train."""

    def fault(self, options: Sequence[Option]) -> str:
        """Return the fault of this result, or "". `options` are the options that were set."""
        if self.code in (None, 0):
            return ""
        if self.code != 2:
            return f"exit code {self.code}: {self.err}"
        if self.err.count("\n") != 1 or not self.err.startswith("relic-jax: "):
            return f"not a one-line error: {self.err!r}"
        if any(not c.isprintable() for c in self.err[:-1]):
            return f"control characters: {self.err!r}"
        named = any(name in self.err for option in options for name in option.aliases)
        shown = any(o.flag is None or o.hint is bool for o in options) and any(
            one_line(a) in self.err for a in self.arguments[1:]
        )
        return "" if named or shown else f"the error names no option: {self.err}"


class Accepted(BaseException):
    """Raised when a command would start its work."""


COMMANDS: dict[str, Any] = {
    "train": TrainCommand,
    "evaluate": EvaluateCommand,
    "plot": PlotCommand,
    "presets": catalogue.PresetsCommand,
    "envs": catalogue.EnvsCommand,
    "play": PlayCommand,
    "export": ExportCommand,
    "import-llamarl": import_llamarl.Command,
    "habitat-dataset": habitat_dataset.Command,
}


def options_of(command: Any, prefix: str = "") -> list[Option]:
    """Return every option of a command's dataclass; those of nested dataclasses have dotted names."""
    found = []
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        plain, markers = (typing.get_args(hint)[0], typing.get_args(hint)[1:]) if _is_annotated(hint) else (hint, ())
        path = prefix + name
        if plain is EnvConfig:
            found.append(Option("env", str, "--env"))
            found += [Option(f"env.{name}", hint, f"--env.{name.replace('_', '-')}") for name, hint in _env_options()]
        elif dataclasses.is_dataclass(plain):
            found += options_of(plain, "" if markers else f"{path}.")
        else:
            positional = any(marker in markers for marker in typing.get_args(tyro.conf.Positional[int])[1:])
            found.append(Option(path, plain, None if positional else "--" + path.replace("_", "-")))
    return found


def _env_options() -> list[tuple[str, Any]]:
    """Return (name, type) of the options of all families of environments."""
    families = {registry.options_of(name) for name in registry.TABLE if registry.TABLE[name].options}
    hints = [item for family in families for item in typing.get_type_hints(family).items()]
    return [("horizon", int | None), *sorted(dict(hints).items())]


def values(option: Option, command: str = "") -> list[str]:
    """Return odd and ordinary values for an option, as text."""
    if option.name == "env" or (command, option.name) == ("envs", "name"):
        return [*ENVIRONMENTS, *TEXTS]
    return _values(option.hint)


def _values(hint: Any) -> list[str]:
    if typing.get_origin(hint) is Literal:
        return [*map(str, typing.get_args(hint)), "nonsense", "", "None"]
    if typing.get_origin(hint) is tuple:
        return _values(typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return list(dict.fromkeys(value for part in typing.get_args(hint) for value in _values(part)))
    known = {int: INTEGERS, float: REALS, bool: ("True", "False", "maybe"), str: TEXTS, Path: TEXTS}
    return list(known.get(hint, ("None",)))


def arguments_for(option: Option, value: str) -> list[str]:
    """Return the arguments that set an option. Boolean options have no value: they are set or unset."""
    if option.hint is bool and value in ("True", "False") and option.flag is not None:
        head, _, last = option.flag.removeprefix("--").rpartition(".")
        last = last if value == "True" else f"no-{last}"
        return ["--" + (f"{head}.{last}" if head else last)]
    return option.arguments(value)


WORK = (
    *("relic_jax.experiments.training.train", "relic_jax.evaluation.in_jit.play", "relic_jax.evaluation.on_host.play"),
    *("relic_jax.experiments.plots.curves_figure", "relic_jax.experiments.plots.training_figure"),
    "relic_jax.experiments.run.reference_means",
    "relic_jax.export.write_artefact",
    *(
        "relic_jax.experiments.habitat_dataset.call",
        "relic_jax.interop.files.write",
        "relic_jax.checkpoint.save_params",
    ),
)
"""Functions with which commands start their work after they have accepted their options."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """A folder to run commands in."""

    folder: Path
    """Working folder, which contains a folder `folder` and a file `file`."""
    run: Path
    """A trained policy."""
    foreign: Path
    """A checkpoint of the original code."""
    curve: Path
    """A learning curve in JSON."""

    @classmethod
    def make(cls, folder: Path) -> Bench:
        """Return a bench in a new folder, with a pretrained policy and the curve of a published run."""
        place = folder / "a" / "b"
        (place / "folder").mkdir(parents=True)
        (place / "file").write_text("mine")
        foreign = folder / "foreign.safetensors"
        write_original(foreign)
        return cls(place, pretrained_path("darkroom-dpt"), foreign, RESULTS / "darkroom-dpt" / "pooled.json")

    def _clear(self) -> None:
        """Remove the files that a command wrote."""
        for path in self.folder.iterdir():
            if path.name not in ("folder", "file"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def line(self, name: str, values: Mapping[Option, str]) -> list[str]:
        """Return a complete command line of a command, with some options set."""
        positional, needed = self._needed()[name]
        replaced = any(option.flag is None or option.name == "resume" for option in values)
        given = [argument for option, value in values.items() for argument in arguments_for(option, value)]
        return [name, *([] if replaced else positional), *needed, *given]

    def _needed(self) -> dict[str, tuple[list[str], list[str]]]:
        """Return the required (positional arguments, options) of each command."""
        return {
            "train": (["darkroom-smoke"], ["--runs", "runs"]),
            "evaluate": ([str(self.run)], ["--out", "results"]),
            "plot": ([str(self.curve)], []),
            "play": ([str(self.run)], ["--out", "play.gif"]),
            "export": ([str(self.run)], ["--to", "export"]),
            "presets": ([], []),
            "envs": (["darkroom-dpt"], []),
            "import-llamarl": ([str(self.foreign)], ["--to", "import"]),
            "habitat-dataset": ([], ["--out", "dataset.json", "--train", "house-1", "--test", "house-2"]),
        }

    def attempt(self, *arguments: str) -> Attempt:
        """Run a command in the folder up to the start of its work."""
        out, err, setups = io.StringIO(), io.StringIO(), []

        def accept(*given: Any, **_: Any) -> None:
            setups.append(given[0] if given else None)
            raise Accepted

        code: int | None = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(self.folder))
            stack.enter_context(mock.patch.object(sys, "argv", ["relic-jax", *arguments]))
            stack.enter_context(_work_replaced(accept))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            try:
                cli.main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except Accepted:
                pass
            finally:
                self._clear()
        return Attempt(arguments, code, out.getvalue(), err.getvalue(), setups[0] if setups else None)


@contextlib.contextmanager
def _work_replaced(accept: Any) -> Iterator[None]:
    """Call `accept` when a command would start its work, and refuse to start workers."""

    def refuse(error: type[Exception]) -> Any:
        def start(*_: Any, **__: Any) -> None:
            raise error("workers are not started here")

        return start

    with contextlib.ExitStack() as stack:
        for name in WORK:
            stack.enter_context(mock.patch(name, accept))
        stack.enter_context(mock.patch("relic_jax.bridge.pool.Pool.__init__", refuse(PoolError)))
        stack.enter_context(mock.patch("relic_jax.bridge.process.call", refuse(SetupError)))
        stack.enter_context(mock.patch("relic_jax.envs.metaworld.env.call", refuse(SetupError)))
        stack.enter_context(mock.patch.object(sys, "unraisablehook", sys.unraisablehook))
        yield


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def write_original(file: Path) -> None:
    """Write a checkpoint in the original code's format, of a policy whose parameters are zeros."""
    policy = policy_for(make("darkroom-dpt"), PolicyConfig())
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(policy.init, jax.random.key(0)))
    config = {"config": {"transformer_config": original_config(policy.config.transformer)}}
    files.write(file, export_policy(params, policy, Foreign.nothing()), config)


def trace(setup: Any) -> None:
    """Trace the first chunk of a run without compiling it. Raises the errors of tracing."""
    state = jax.eval_shape(lambda: init_state(setup))
    jax.eval_shape(compile_chunk(setup), state)
