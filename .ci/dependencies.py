"""`python .ci/dependencies.py EXTRA,...`: print the project's dependencies and those of these extras, one a line."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
groups = [project["dependencies"], *(project["optional-dependencies"][name] for name in sys.argv[1].split(","))]
print("\n".join(sorted({line for group in groups for line in group})))
