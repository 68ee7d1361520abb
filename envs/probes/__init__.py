"""Tiny environments that a correct learner solves in seconds, each testing one thing."""
