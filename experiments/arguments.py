"""Command lines into dataclasses, by tyro. Errors take one line.

The options of an environment depend on its family: a struct rule of tyro gives `EnvConfig` the fields that the family
of its default declares, as `--env.OPTION` beside `--env NAME`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar
from unittest import mock

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from relic_jax.config import ConfigError, EnvConfig, Options
from relic_jax.envs import registry
from relic_jax.validation import did_you_mean, nearest, shown

Command = TypeVar("Command")

_WIDE = "100000"
"""Terminal width with which tyro does not wrap the lines of an error."""
_HELP = ("Argument helptext", "For full helptext")
_SUGGESTED = ("Perhaps you meant", "Arguments similar to")
_OPTION = re.compile(r"--[\w.-]+")
_CHOICE = re.compile(r"invalid choice '(?P<value>.*)' for argument '.*'\. Expected one of \((?P<allowed>.*)\)\.")


ALIASES = {
    "--backend": "--env.backend",
    "--habitat-python": "--host.python",
    **{
        f"--host.{option}": f"--env.{option}"
        for option in ("backend", "dataset", "wrappers", "text", "scene-dataset", "objects", "image-size", "horizon")
    },
}
"""Other names of options, in all commands."""
NAME_HELP = (
    "Environment: a name that `relic-jax envs` lists, gym:ID, python:MODULE:NAME for a custom environment, or another "
    "prefix of that list. Its options are listed here if it is the one of the preset or set before --help."
)
HORIZON_HELP = "Time limit: steps of the longest episode. None: the environment's default."

_FLAT = tyro.conf.arg(name="")
_RULES = ConstructorRegistry()


@_RULES.struct_rule
def _env_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Return the fields of `EnvConfig` on the command line: its name and the options of its default's family."""
    if info.type is not EnvConfig:
        return None
    default = info.default if isinstance(info.default, EnvConfig) else EnvConfig()
    try:
        options, read = registry.options_of(default.name), registry.option_names(default.name)
    except registry.UnknownEnvironmentError:
        options, read = registry.NoOptions, ()
    name: Any = Annotated[str, _FLAT]
    fields = [StructFieldSpec("name", name, default.name, helptext=NAME_HELP)]
    if "horizon" in read:
        optional: Any = int | None
        fields.append(StructFieldSpec("horizon", optional, default.horizon, helptext=HORIZON_HELP))
    if dataclasses.fields(options):
        flat: Any = Annotated[options, _FLAT]
        fields.append(StructFieldSpec("options", flat, default.typed(options)))

    def instantiate(name: str, horizon: int | None = default.horizon, options: Any = None) -> EnvConfig:
        values = {} if options is None else dataclasses.asdict(options)
        initial = {} if options is None else dataclasses.asdict(type(options)())
        explicit = {x: value for x, value in values.items() if value != initial[x] or x in default.options}
        return EnvConfig(name, horizon, Options(explicit))

    return StructConstructorSpec(instantiate, tuple(fields))


def with_current_names(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with old names of options replaced, in `--option VALUE` and `--option=VALUE`."""
    found = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = ALIASES.get(name.replace("_", "-"), name)
        found.append(name + equals + value)
    return found


def split_env_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (the options `--env.OPTION` with their values, all other arguments)."""
    options: list[str] = []
    others: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        is_option = argument.startswith("--env.")
        (options if is_option else others).append(argument)
        if is_option and "=" not in argument and rest and not rest[0].startswith("--"):
            options.append(rest.pop(0))
    return options, others


def last_value(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of an option: the last one if it is set more than once, None if it is not set."""
    found = None
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            found = arguments[index + 1]
        if argument.startswith(name + "="):
            found = argument.removeprefix(name + "=")
    return found


def check_env_options(name: str, arguments: Sequence[str]) -> None:
    """Raise ConfigError at the first `--env.OPTION` that the environment called `name` does not have."""
    options, _ = split_env_options(arguments)
    find_env(name)
    known = registry.option_names(name)
    for index, argument in enumerate(options):
        if not argument.startswith("--env."):
            continue
        option, equals, value = argument.removeprefix("--env.").partition("=")
        value = value if equals else "".join(options[index + 1 : index + 2])
        if option.replace("-", "_") not in known:
            hint = did_you_mean(option.replace("-", "_"), known, lambda near: f"--env.{near.replace('_', '-')}")
            allowed = ", ".join(f"--env.{field.replace('_', '-')}" for field in known) or "no --env options"
            field = f"env.{option.replace('-', '_')}"
            raise ConfigError(f"{field} is {shown(value)}; allowed with env {name!r}: {allowed}{hint}")


def find_env(name: str) -> registry.Entry:
    """Return the registry's entry of an environment. Raises ConfigError that names the nearest environments."""
    try:
        return registry.find(name)
    except registry.UnknownEnvironmentError as error:
        raise ConfigError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class _EnvCommand:
    env: EnvConfig


def parse_env(env: EnvConfig, options: Sequence[str], prog: str) -> EnvConfig:
    """Return `env` with the options `--env.OPTION` of a command line set. Raises ConfigError if they do not fit."""
    if not options:
        return env
    check_env_options(env.name, options)
    return parse(_EnvCommand, options, prog, _EnvCommand(env)).env


def parse(command: type[Command], arguments: Sequence[str], prog: str, default: Command | None = None) -> Command:
    """Return the command with the options that the arguments set. Raises ConfigError, and SystemExit after --help."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    helps = {"-h", "--help"} & set(arguments)
    columns = {} if helps else {"COLUMNS": _WIDE}
    try:
        with _RULES, contextlib.redirect_stderr(said), mock.patch.dict(os.environ, columns):
            parsed = tyro.cli(command, args=list(arguments), prog=prog.strip(), **given)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ConfigError(f"{in_one_line(said.getvalue())} (options: {prog.strip()} --help)") from None
    check_paths(parsed)
    return parsed


def in_one_line(text: str) -> str:
    """Return the text of tyro's error box on one line, without frame, title and help, with the nearest name."""
    parts: list[list[str]] = [[]]
    for line in list(filter(None, (line.strip(" │|╭╮╰╯") for line in text.splitlines())))[1:]:
        if line.strip("-─"):
            parts[-1].append(line)
        else:
            parts.append([])
    parts = [part for part in parts if part and not part[0].startswith(_HELP)]
    said = [" ".join(part) for part in parts if not part[0].startswith(_SUGGESTED)]
    said += [_suggestion(part, parts[0][0]) for part in parts if part[0].startswith(_SUGGESTED)]
    if said and (choice := _CHOICE.fullmatch(said[0])):
        hint = did_you_mean(choice["value"], re.findall(r"'(.*?)'", choice["allowed"]), repr)
        said[0] = said[0].rstrip(".") + hint if hint else said[0]
    return "; ".join(said)


def _suggestion(part: Sequence[str], error: str) -> str:
    """Return the nearest of the options that tyro suggests with their help, for the one in the title or the error."""
    unknown = _OPTION.search(part[0]) or _OPTION.search(error)
    options = [line.partition(" ")[0].rstrip(",") for line in part if line.startswith("--")]
    near = nearest(unknown[0], options) if unknown else None
    return f"did you mean {near or ' or '.join(options)}?"


def check_text(arguments: Sequence[str]) -> None:
    """Raise ConfigError if an argument cannot be passed on to the operating system."""
    for index, argument in enumerate(arguments):
        if "\0" in argument:
            before = arguments[index - 1] if index and arguments[index - 1].startswith("--") else "an argument"
            name = argument.partition("=")[0] if argument.startswith("--") else before
            raise ConfigError(f"{name.lstrip('-')} is {shown(argument)}; allowed: text without NUL")


def check_paths(command: Any) -> None:
    """Raise ConfigError if a path is too long for the operating system."""
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                check_path(field.name, path)


def check_path(name: str, path: Path) -> None:
    """Raise ConfigError if the path in the option `name` is too long for the operating system."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except OSError as error:
        reason = f"a path that can exist ({error.strerror})"
        raise ConfigError(f"{name} is {shown(str(path))}; allowed: {reason}") from None
