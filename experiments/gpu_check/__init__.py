"""Everything that only a GPU can tell, in ten minutes: `python -m experiments.gpu_check --out results.json`.

Every part runs in a separate process with its own time limit, the most valuable first. Results are written as they
come, so an interrupted check keeps them.
"""
