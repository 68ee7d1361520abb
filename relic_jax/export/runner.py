"""Write the files that run an export without relic-jax: `run.py` and a copy of `relic_jax.runtime`."""

from __future__ import annotations

import shutil
from pathlib import Path

from relic_jax import runtime

PACKAGE = "relic_jax_runtime"
"""Name of the copy of `relic_jax.runtime` in an export."""
RUN = f'''\
"""Run the policy in this folder.

`run.load` returns an agent. `python run.py` checks that it runs. Needs numpy, and jax or onnxruntime.
"""

from pathlib import Path

if __package__:  # imported as FOLDER.run
    from .{PACKAGE} import Agent, ConfigError, check, load
else:
    from {PACKAGE} import Agent, ConfigError, check, load

__all__ = ["Agent", "ConfigError", "load", "main"]


def main() -> None:
    """Load the policy and take a hundred steps on blank observations."""
    check.main(Path(__file__).resolve().parent)


if __name__ == "__main__":
    main()
'''


def write_runner(folder: Path) -> None:
    """Write `run.py` and the package that it imports into an export."""
    source = Path(str(runtime.__file__)).parent
    shutil.copytree(source, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "run.py").write_text(RUN, encoding="utf-8", newline="\n")
