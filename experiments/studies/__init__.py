"""Studies that are committed, and the command that runs them: `python -m relic_jax.experiments.studies`."""

from pathlib import Path

FOLDER = Path(__file__).parent
NIGHT = (
    "partial-updates",
    "sinks",
    "memories-gridobj",
    "context-gradient",
    "imitation",
    "attention",
    "memories-darkroom",
)
"""Studies that finish in one night on two cores, in the order in which they run."""
LONG = ("memories-gridobj-three", "length", "stale-keys-full")
"""Studies that take longer, or that few users need."""
