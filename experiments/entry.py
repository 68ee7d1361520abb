"""The console script. It imports the command line inside `main`, so that Ctrl-C during the imports ends quietly."""

import sys


def main() -> None:
    """Run `relic_jax.experiments.cli.main`. Ctrl-C while it is imported exits with code 130."""
    try:
        from relic_jax.experiments import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()
