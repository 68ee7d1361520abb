"""Share a compiled program between all setups whose programs are equal."""

import dataclasses

import jax
import numpy as np

from relic_jax import prng


def program_key(setup):
    """Return everything that the program of a chunk can depend on: not two options of the training loop."""
    config = dataclasses.replace(setup.config, checkpoint_minutes=1.0, start_from=None)
    tasks = [(str(x.dtype), x.shape, x.tobytes()) for x in map(np.asarray, jax.tree.leaves(setup.tasks))]
    return repr(config), repr(setup.trials.env), setup.device_keys, repr(prng.current()), repr(tasks)


def cached(compile_chunk):
    """Return `compile_chunk` with a cache of its results by `program_key`."""
    programs = {}

    def compiled(setup):
        key = program_key(setup)
        if key not in programs:
            programs[key] = compile_chunk(setup)
        return programs[key]

    return compiled
