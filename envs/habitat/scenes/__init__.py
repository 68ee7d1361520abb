"""Furnished houses as a scene dataset of habitat-sim, from the same plans as `house-objnav`."""
