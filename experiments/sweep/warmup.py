"""Compile the evaluation while the training is compiled, because compilation leaves a core idle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from relic_jax.evaluation import in_context_curves
from relic_jax.evaluation.concurrent import concurrent_evaluations
from relic_jax.experiments import run as results
from relic_jax.rl.state import Setup
from relic_jax.stopping import Stop


class _Compiled(Exception):  # not an error
    """The first chunk of the evaluation is computed."""


@contextlib.contextmanager
def compiled_meanwhile(setup: Setup, devices: int, stop: Stop) -> Iterator[None]:
    """Compile the evaluation of a run in another thread, on CPU with several devices and enough memory.

    The run's evaluation reuses the compiled programs. An error in the thread is ignored, because the evaluation
    raises it again. Leaving the context waits for the thread, which therefore skips what it has not begun if the sweep
    is stopped.

    Args:
        setup: The setup of the run.
        devices: Number of devices, or cores.
        stop: Is set if the sweep is stopped.
    """
    config, env = setup.config.eval, setup.trials.env
    if concurrent_evaluations(setup.policy.config, config, env, "test", min(devices, 2)) < 2:
        yield
        return
    with ThreadPoolExecutor(1, "relic-jax-compilation") as pool:
        pool.submit(_compile, setup, stop)
        yield


def _compile(setup: Setup, stop: Stop) -> None:
    """Begin an evaluation with parameters of 0 and end it after its first chunk. Then compute the reference returns."""
    if stop.is_set():
        return

    def end(fraction: float) -> None:
        raise _Compiled

    env, config = setup.trials.env, setup.config
    shapes = jax.eval_shape(setup.policy.init, jax.random.key(0))
    zeros = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), jax.devices()[0])
    with contextlib.suppress(_Compiled):
        in_context_curves(
            setup.policy,
            zeros,
            env,
            config.eval,
            seed=config.seed,
            show_last_reward=setup.trials.show_last_reward,
            progress=end,
        )
    if not stop.is_set():
        results.reference_means(env, "test", config.eval.tasks)
