"""Gridworlds with hidden goals: Darkroom and its variants, and Key-to-Door."""
