"""Command lines into dataclasses, by tyro; what is wrong with one is told in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import tyro

from relic_jax.config import ConfigError
from relic_jax.validation import shown

Command = TypeVar("Command")

_WIDE = "100000"
"""Columns, so that tyro breaks no line of an error."""
_HELP = ("Argument helptext", "For full helptext")


def parse(command: type[Command], arguments: Sequence[str], prog: str, default: Command | None = None) -> Command:
    """The command with what the arguments set. Raises ConfigError where they do not fit, SystemExit after --help."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    helps = {"-h", "--help"} & set(arguments)
    columns = {} if helps else {"COLUMNS": _WIDE}
    try:
        with contextlib.redirect_stderr(said), mock.patch.dict(os.environ, columns):
            parsed = tyro.cli(command, args=list(arguments), prog=prog.strip(), **given)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ConfigError(f"{in_one_line(said.getvalue())} (options: {prog.strip()} --help)") from None
    check_paths(parsed)
    return parsed


def in_one_line(text: str) -> str:
    """What tyro's box says, without its frame, its title and the help of the option."""
    parts: list[list[str]] = [[]]
    for line in list(filter(None, (line.strip(" │|╭╮╰╯") for line in text.splitlines())))[1:]:
        if line.strip("-─"):
            parts[-1].append(line)
        else:
            parts.append([])
    said = [" ".join(part) for part in parts if part and not part[0].startswith(_HELP)]
    return "; ".join(said)


def check_text(arguments: Sequence[str]) -> None:
    """Raises ConfigError where an argument cannot be passed on to the operating system."""
    for index, argument in enumerate(arguments):
        if "\0" in argument:
            before = arguments[index - 1] if index and arguments[index - 1].startswith("--") else "an argument"
            name = argument.partition("=")[0] if argument.startswith("--") else before
            raise ConfigError(f"{name.lstrip('-')} is {shown(argument)}; allowed: text without NUL")


def check_paths(command: Any) -> None:
    """Raises ConfigError where a path is too long for the operating system."""
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        for path in value if isinstance(value, tuple) else (value,):
            if not isinstance(path, Path):
                continue
            try:
                os.lstat(path)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                pass
            except OSError as error:
                reason = f"a path that can exist ({error.strerror})"
                raise ConfigError(f"{field.name} is {shown(str(path))}; allowed: {reason}") from None
