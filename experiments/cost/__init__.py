"""`relic-jax cost`: predicted speed, memory and communication of a run on other devices.

docs/scaling.md states the formulas, the measurements to which they were fitted, and their errors.
"""
