"""Runs every command line of README.md and docs/ in a short form: `python -m experiments.docs_commands`."""
