"""Runs a short form of every command in README.md and docs/: `python -m experiments.docs_commands`."""
