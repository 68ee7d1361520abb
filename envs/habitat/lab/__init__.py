"""Tasks of habitat-lab: the learner's side in `env`, the environment in a worker process in `worker`."""
