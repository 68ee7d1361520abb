"""Start a worker: `python -m relic_jax_worker`. The worker can import this library and no other package of the learner.

The library can be in a site-packages folder beside compiled packages of another Python, so that folder must not be on
the worker's path. The folder of this file, which holds no other file, is on it instead. In a checkout, the folders
`envs` and `experiments` are beside `relic_jax`; an installed library contains them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys

LIBRARY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGES = {"relic_jax": LIBRARY}
for _name in ("envs", "experiments"):
    _inside, _beside = os.path.join(LIBRARY, _name), os.path.join(os.path.dirname(LIBRARY), _name)
    PACKAGES["relic_jax." + _name] = _inside if os.path.isdir(_inside) else _beside


class LibraryFinder:
    """A finder for `PACKAGES`. Modules inside them are found as usual."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Return the spec of one of `PACKAGES`, or None."""
        folder = PACKAGES.get(name)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )


if __name__ == "__main__":
    sys.meta_path.insert(0, LibraryFinder)
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        sys.exit(
            f"{sys.executable} (Python {platform.python_version()}) cannot import numpy ({error}); "
            f"install it with: {sys.executable} -m pip install numpy"
        )
    from relic_jax.bridge.worker import main

    sys.exit(main(sys.argv[1:]))
