"""Tiny environments that a correct learner solves in seconds. Each tests one ability."""
