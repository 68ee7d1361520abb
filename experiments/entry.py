"""The console script. It imports the command line inside `main`, so that Ctrl-C during the imports ends quietly."""

import gc
import sys


def main() -> None:
    """Run `relic_jax.experiments.cli.main`. Ctrl-C while it is imported exits with code 130."""
    collect_rarely()
    try:
        from relic_jax.experiments import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


def collect_rarely() -> None:
    """Collect garbage less often, because imports and JAX's tracing create many objects that stay in use."""
    gc.set_threshold(50_000, 20, 20)
