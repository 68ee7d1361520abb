"""`relic-jax compare`: methods in one table and one figure, with seeds pooled and intervals over seeds and tasks."""

from relic_jax.experiments.compare.comparison import Comparison, Row, compare, write
from relic_jax.experiments.compare.methods import Method, methods_of, run_folders

__all__ = ["Comparison", "Method", "Row", "compare", "methods_of", "run_folders", "write"]
