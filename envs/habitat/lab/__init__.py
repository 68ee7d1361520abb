"""Tasks of habitat-lab: the learner's side in `env`, the environment of a worker process in `worker`."""
