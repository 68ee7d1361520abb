"""`relic-jax cost`: predicted speed, memory and communication of a run on devices that are not here.

docs/scaling.md states the formulas, what they were fitted to, and how far they were off.
"""
