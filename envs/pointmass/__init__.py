"""Pointmass: a point on a plane that must find a hidden goal."""
