"""The interpreter with habitat_sim for the tests marked `habitat`."""

import functools
import os
import subprocess
import sys

from relic_jax.bridge.process import worker_environment

MISSING = "no habitat_sim here (RELIC_HABITAT_PYTHON can name an interpreter that has it)"


@functools.cache
def find():
    """Return the path of the interpreter, or None."""
    python = os.environ.get("RELIC_HABITAT_PYTHON", sys.executable)
    command = [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('habitat_sim') is None)"]
    try:
        done = subprocess.run(command, env=worker_environment(0, (), {}), capture_output=True, check=False)
    except OSError:
        return None
    return None if done.returncode else python
