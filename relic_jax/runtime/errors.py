"""Errors for invalid input."""

from __future__ import annotations

from typing import Any


class ConfigError(ValueError):
    """Invalid input.

    The message is one line that names the field, the value and what is allowed.
    """

    def __str__(self) -> str:
        """Return the message, with characters escaped that would break the line or control a terminal."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Return `text` on one line: line breaks become spaces, other unprintable characters are escaped."""

    def printable(c: str) -> str:
        return c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode()

    return "".join(map(printable, text.strip()))


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise ConfigError unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} is {short(value)}; allowed: {allowed}")


def short(value: Any) -> str:
    """Return the representation of a value, at most 60 characters long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def first_line(error: BaseException, limit: int = 120) -> str:
    """Return the first line of an error's message, or the name of its class if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]
