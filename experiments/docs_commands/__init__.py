"""Run a short form of every command in README.md, docs/ and experiments/: `python -m experiments.docs_commands`."""
