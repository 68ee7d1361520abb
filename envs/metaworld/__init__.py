"""Meta-World's benchmarks: the learner's side in `env`, the environment in a worker process in `worker`."""
