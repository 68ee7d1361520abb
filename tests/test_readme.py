"""The commands of the README exist."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_every_command_in_the_readme_exists():
    from relic_jax.experiments.cli import USAGE
    from relic_jax.experiments.presets import PRESETS

    for command in set(re.findall(r"relic-jax ([a-z]+)", README)):
        assert f"relic-jax {command}" in USAGE
    for preset in set(re.findall(r"relic-jax train ([a-z][a-z0-9-]+)", README)):
        assert preset in PRESETS
