"""The environment interface: spaces, trials, wrappers, and environments in worker processes."""
