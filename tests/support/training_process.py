"""One of several processes that train tiny runs: `training_process.py PORT COUNT INDEX JOB…`.

A job is `FOLDER,ENV,STEPS,MINUTES`: a new run or one that continues, and the minutes between checkpoints. Process 0
writes the parameters after a job to FOLDER/params.npz.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from relic_jax import checkpoint, processes
from relic_jax.config import WorkerConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.envs.registry import make
from relic_jax.experiments.distributed import ProcessOptions, connected
from relic_jax.experiments.faults.corridor import Corridor
from relic_jax.experiments.faults.small import small_config
from relic_jax.metrics import JsonLines
from relic_jax.rl.train import prepare, train
from relic_jax.tracking import Trackers

TASKS = {"train": [{"goal": goal} for goal in (-3, -2, 2, 3)], "test": [{"goal": 1}]}


def config_and_env(name, steps, devices=2, minutes=60.0):
    """Return a config and its environment: inside jit, or "corridor", with a worker each, which fails."""
    config = small_config(env=name, devices=devices, total_steps=steps, checkpoint_minutes=minutes)
    if name != "corridor":
        return config, make(config.env)
    options = {"horizon": 20, "fault": "raise", "at": 16}
    host = WorkerConfig(workers=config.trial.environments // devices, max_restarts=1000)
    entry = "relic_jax.experiments.faults.corridor:Corridor"
    return config, HostEnvironment("corridor", entry, options, Corridor(horizon=20).spec, TASKS, host=host)


def main():
    """Run the jobs."""
    port, count, index, *jobs = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 1)
    with connected(ProcessOptions(f"127.0.0.1:{port}", int(count), int(index))):
        for job in jobs:
            name, env_name, steps, minutes = job.split(",")
            folder, setup = Path(name), prepare(*config_and_env(env_name, int(steps), minutes=float(minutes)))

            def tracker(env_steps, folder=folder):
                return JsonLines(folder, env_steps) if processes.is_first() else Trackers([])

            resume = bool(checkpoint.complete_steps(folder / "checkpoints"))
            result = train(setup, folder, tracker, resume=resume)
            if processes.is_first():
                leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(processes.on_own_device(result.state.params))]
                np.savez(folder / "params.npz", *leaves)
            processes.exchange({})


if __name__ == "__main__":
    main()
