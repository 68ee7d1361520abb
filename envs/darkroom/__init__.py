"""Blind gridworlds: Darkroom and its variants, Key-to-Door, and their pictures."""
