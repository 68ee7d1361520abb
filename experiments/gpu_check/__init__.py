"""Checks and measurements that need a GPU, in ten minutes: `python -m experiments.gpu_check --out results.json`.

Every part runs in a separate process with a time limit, the most important part first. Every result is written at once,
so an interrupted check keeps its results.
"""
