"""Find object templates by their exact name. habitat-sim matches parts of paths, so a name could select a wrong file.

Runs in a worker process: Python 3.8 and its standard library.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from relic_jax.bridge.worker import SetupError

SUFFIX = ".object_config.json"
SHOWN = 5  # names in an error


class Templates:
    """The object templates that a simulator has loaded.

    Args:
        handles: Their handles: paths of files, and names of primitives.
        folder: Folder whose templates precede those of the scene dataset; "": there is none.
    """

    def __init__(self, handles: Iterable[str], folder: str = "") -> None:
        self.folder = folder
        self._handles: dict[str, list[str]] = {}
        for handle in sorted(handles):
            self._handles.setdefault(stem(handle), []).append(handle)

    def find(self, name: str) -> str:
        """Return the handle of the template `name`: the stem of a file name, or a whole handle.

        Raises:
            SetupError: There is no such template, or there are several.
        """
        found = self._handles.get(name) or [h for h in self._handles.get(stem(name), []) if h == name]
        if self.folder and len(found) > 1:
            root = os.path.join(os.path.abspath(self.folder), "")
            found = [handle for handle in found if os.path.abspath(handle).startswith(root)] or found
        if len(found) == 1:
            return found[0]
        where = repr(self.folder) if self.folder else "the scene dataset"
        if found:
            raise SetupError(f"object template {name!r} is ambiguous in {where}; allowed: one of {_listed(found)}")
        known = _listed(self._similar(name))
        raise SetupError(
            f"object template {name!r} is not in {where}; allowed: {known or 'none, there are no templates'}"
        )

    def _similar(self, name: str) -> list[str]:
        """Return the known names, those most similar to `name` first."""
        names = sorted(self._handles)
        close = [known for known in names if name and (name in known or known in name)]
        close += difflib.get_close_matches(name, names, SHOWN)
        return list(dict.fromkeys([*close, *names]))


def stem(handle: str) -> str:
    """Return the name of a handle: its file name without folder and extension."""
    base = os.path.basename(handle)
    return base[: -len(SUFFIX)] if base.endswith(SUFFIX) else os.path.splitext(base)[0]


def _listed(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
