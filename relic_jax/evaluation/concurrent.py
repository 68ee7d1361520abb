"""Several evaluations at the same time, one per CPU core.

One evaluation on one device leaves much of a second core idle (`rows` divides one over devices). XLA runs calls from
different threads at the same time, also on one CPU device. The evaluations therefore share compiled programs, and each
gives the same result as on its own.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax

from relic_jax import prng
from relic_jax.config import EvalConfig
from relic_jax.environment.base import Environment, Split, num_tasks
from relic_jax.evaluation.tasks import evaluated_tasks
from relic_jax.models.policy import PolicyConfig
from relic_jax.rl.memory_budget import UNKNOWN, available_bytes, evaluation_bytes

Item = TypeVar("Item")
Output = TypeVar("Output")


def concurrent_evaluations(policy: PolicyConfig, config: EvalConfig, env: Environment, split: Split, most: int) -> int:
    """Return how many evaluations with these settings can run at the same time, from 1 to `most`.

    On CPU, this is the number whose whole contexts fit into the available memory. It is 1 on accelerators, because one
    evaluation fills them, and in environments with worker processes.

    Args:
        policy: The config of the policy.
        config: The evaluation.
        env: The environment.
        split: The split of the tasks.
        most: The largest number, such as the number of cores.
    """
    if env.on_host or jax.default_backend() != "cpu":
        return 1
    trials = num_tasks(evaluated_tasks(env, split, config)) * config.repeats
    needed = evaluation_bytes(policy, steps=config.episodes * env.horizon, trials=trials)
    return max(1, min(most, (available_bytes(1) or UNKNOWN) // needed))


def in_threads(function: Callable[[Item], Output], items: Sequence[Item], threads: int) -> list[Output]:
    """Return `[function(item) for item in items]`, computed in up to `threads` threads.

    The threads use the caller's settings of random numbers and its context variables. With one thread, the
    caller computes everything.

    Raises:
        Exception: The error of the first item that raises one. Items that have not started are skipped.
    """
    threads = min(threads, len(items))
    if threads <= 1:
        return [function(item) for item in items]
    settings = prng.current()  # JAX's settings belong to a thread

    def call(item: Item) -> Output:
        with prng.using(settings):
            return function(item)

    contexts = [contextvars.copy_context() for _ in items]  # a context can be entered by one thread at a time
    with ThreadPoolExecutor(threads, "relic-jax-evaluation") as pool:
        return list(pool.map(lambda context, item: context.run(call, item), contexts, items))
