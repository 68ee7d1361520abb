"""Fault injection: what happens to runs, files and commands when something goes wrong."""
