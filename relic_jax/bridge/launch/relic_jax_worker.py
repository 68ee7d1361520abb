"""What `python -m relic_jax_worker` runs: finds our packages, and nothing else of the learner's, and starts the worker.

The learner's packages may lie in a site-packages folder next to compiled libraries of another Python, so that folder
must not get onto the worker's path. This folder, which holds only this file, does.
"""

from __future__ import annotations

import importlib.util
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PACKAGES = ("relic_jax", "envs")


class OwnPackages:
    """A finder for `PACKAGES`, next to each other in `ROOT`; what is inside them is found as usual."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """The spec of one of ours, else None."""
        if name not in PACKAGES:
            return None
        folder = os.path.join(ROOT, name)
        return importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )


if __name__ == "__main__":
    sys.meta_path.insert(0, OwnPackages)
    from relic_jax.bridge.worker import main

    sys.exit(main(sys.argv[1:]))
