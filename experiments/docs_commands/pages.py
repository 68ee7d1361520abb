"""Command lines in Markdown: indented blocks, fenced blocks and inline code."""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("relic-jax", "python", "python3", "python3.9", "pip", "pytest", "conda", "ray", "cd", "git", "export")
"""First words of commands. A shell block can contain others, which are then errors."""
_INLINE = re.compile(r"`((?:relic-jax|python -m experiments\.\w+|pytest|pip)(?:\s[^`]*)?)`")
_ASSIGNED = re.compile(r"^[A-Z_]+=\S+")


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line of a page."""

    page: str
    """Path of the page."""
    number: int
    """Line number on the page, from 1."""
    text: str
    """The command on one line."""
    folder: str = ""
    """Folder that a preceding `cd` changed to."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a page."""

    number: int
    """Line number on the page, from 1."""
    language: str
    """Language of a fenced block; "" for an indented block."""
    lines: list[str]
    """Lines of code."""


def commands(page: Path, name: str) -> tuple[list[Line], list[str]]:
    """Return the commands of a page and the blocks that are neither commands nor code.

    Args:
        page: The Markdown file.
        name: Name of the page in the results.

    Returns:
        The commands in order, and one message per unrecognized block.
    """
    blocks, prose = split(page.read_text(encoding="utf-8"))
    found, unknown = [], []
    for block in blocks:
        if is_shell(block):
            found += [Line(name, number, text, folder) for number, text, folder in shell_lines(block)]
        elif not is_other(block):
            unknown.append(f"{name}:{block.number}: neither commands nor code: {block.lines[0].strip()}")
    for match in _INLINE.finditer(prose):
        text = re.sub(r"\s+", " ", match[1]).strip()
        found.append(Line(name, prose.count("\n", 0, match.start()) + 1, text))
    return sorted(found, key=lambda line: line.number), unknown


def files(page: Path) -> dict[str, str]:
    """Return the Python files that a page contains, by the name in the comment on their first line."""
    blocks, _ = split(page.read_text(encoding="utf-8"))
    found = {}
    for block in blocks:
        if block.language == "python" and (name := re.match(r"# (\w+\.py)$", block.lines[0])):
            found[name[1]] = "\n".join(block.lines) + "\n"
    return found


def split(text: str) -> tuple[list[Block], str]:
    """Return the code blocks of a page, and its text with the lines of these blocks empty."""
    blocks: list[Block] = []
    prose: list[str] = []
    fence: Block | None = None
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        inside = fence is not None
        if line.startswith("```"):
            fence = None if inside else Block(number, line[3:].strip(), [])
            if fence is not None:
                blocks.append(fence)
        elif fence is not None:
            fence.lines.append(line)
        elif line.startswith("    ") and (not before.strip() or before.startswith("    ")):
            if not before.strip() or not blocks:
                blocks.append(Block(number, "", []))
            blocks[-1].lines.append(line)
        else:
            prose += [""] * (number - 1 - len(prose)) + [line]
        before = line
    return [block for block in blocks if block.lines], "\n".join(prose)


def is_shell(block: Block) -> bool:
    """Return whether a block contains commands."""
    if block.language:
        return block.language in ("sh", "bash", "console", "shell")
    return any(_ASSIGNED.match(line.strip()) or _first(line) in PROGRAMS for line in block.lines)


def is_other(block: Block) -> bool:
    """Return whether a block is code, text or a drawing of a folder tree."""
    code = textwrap.dedent("\n".join(block.lines))
    if block.language:
        return block.language in ("python", "json", "text", "toml")
    for candidate in (code, "{" + code + "}"):
        try:
            ast.parse(candidate)
            return True
        except SyntaxError:
            pass
    return all(re.search(r"/ |\.py|   ", line) for line in block.lines)


def shell_lines(block: Block) -> Iterator[tuple[int, str, str]]:
    """Yield (number, command, folder) for every command of a block.

    Continued lines are joined, comments are removed, and commands are split at `&&`.
    """
    joined, start, folder = "", block.number, ""
    for offset, line in enumerate(block.lines):
        start = start if joined else block.number + offset + bool(block.language)
        joined += " " + line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        text = re.split(r"\s#\s|^#", joined.strip())[0]
        for part in filter(None, map(str.strip, text.split("&&"))):
            if part.startswith("cd "):
                folder = part[3:].strip()
            else:
                yield start, re.sub(r"\s+", " ", part), folder
        joined = ""


def _first(line: str) -> str:
    return next(iter(line.split()), "")
