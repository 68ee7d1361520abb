"""Evaluation on held-out tasks during training: `evaluations.jsonl` of a run folder.

An evaluation reads the parameters and nothing else of the state, so training is bit for bit the same with and without
it. Whether one is due depends on the number of environment steps only. A resumed run therefore makes exactly the
evaluations that an uninterrupted one makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from relic_jax import processes
from relic_jax.environment.base import num_tasks, split_hash
from relic_jax.environment.reference_returns import reference_returns
from relic_jax.evaluation.acting import Curves, in_context_curves
from relic_jax.evaluation.statistics import shortest
from relic_jax.evaluation.tasks import evaluated_tasks
from relic_jax.files import append
from relic_jax.metrics import EVALUATIONS, read_evaluations, reopen, to_stderr
from relic_jax.rl.state import Setup
from relic_jax.types import Params

Evaluation = dict[str, Any]
"""One line of the file. `docs/runs.md` lists its keys."""


class Stopping(Protocol):
    """Says whether to stop, as `threading.Event` and `stopping.Stop` do."""

    def is_set(self) -> bool:
        """Return whether to stop."""
        ...


class _StoppedError(Exception):
    """The run was stopped during an evaluation."""


class Evaluations:
    """Evaluates a run as `eval.every` says and appends the results to its file. Only process 0 of several does.

    Args:
        setup: The setup of the run. Runs with the same `policy` and `trials` share the compiled program.
        folder: The run folder.
        env_steps: Environment steps of the checkpoint that is resumed, or 0. Later evaluations are dropped.

    Raises:
        OSError: If the file cannot be read or written.
    """

    def __init__(self, setup: Setup, folder: Path, env_steps: int) -> None:
        self._setup, self._config = setup, setup.config.eval.during_training
        self._file: BinaryIO | None = None
        if setup.config.eval.every is None or not processes.is_first():
            return
        path = folder / EVALUATIONS
        for line in reopen(path, env_steps, numbers=False):
            to_stderr(line)
        earlier = read_evaluations(path)
        self._done = {int(evaluation["env_steps"]) for evaluation in earlier}
        self._references = earlier[-1].get("reference_returns") if earlier else None
        self._file = path.open("ab", buffering=0)

    def due(self, env_steps: int) -> bool:
        """Return whether an evaluation belongs to a number of environment steps at which a chunk ends.

        It does at step 0, at the first chunk that ends at or after each multiple of `eval.every`, and at the end.
        """
        config = self._setup.config
        if config.eval.every is None:
            return False
        steps = config.trial.steps if config.chunk == "trial" else config.trial.segment
        chunk, total = config.trial.environments * steps, config.trials * config.trial.environments * config.trial.steps
        before = max(env_steps - chunk, -1)
        return env_steps == 0 or env_steps // config.eval.every > before // config.eval.every or env_steps >= total

    def __call__(self, params: Params, env_steps: int, stop: Stopping | None = None) -> Evaluation | None:
        """Evaluate if an evaluation is due and not in the file yet. Call it before training and after every chunk.

        Args:
            params: The parameters, on any devices, with copies on all devices of a run.
            env_steps: Environment steps so far.
            stop: Ends the evaluation without a result if it is set. A resumed run then makes the evaluation.

        Returns:
            The evaluation, or None if there was none.

        Raises:
            OSError: If the file cannot be written.
            PoolError: If worker processes fail too often.
        """
        if self._file is None or env_steps in self._done or not self.due(env_steps):
            return None
        try:
            evaluation = self._evaluate(params, env_steps, stop)
        except _StoppedError:
            return None
        append(self._file, (json.dumps(evaluation) + "\n").encode())
        self._done.add(env_steps)
        return evaluation

    def _evaluate(self, params: Params, env_steps: int, stop: Stopping | None) -> Evaluation:
        def check(fraction: float) -> None:
            if stop is not None and stop.is_set():
                raise _StoppedError

        setup = self._setup
        check(0.0)
        if self._references is None:
            references = reference_returns(setup.trials.env, "test", limit=self._config.tasks)
            self._references = references.means()
        env = setup.trials.env
        curves = in_context_curves(
            setup.policy,
            processes.on_own_device(params),
            env,
            self._config,
            seed=setup.config.seed,
            show_last_reward=setup.trials.show_last_reward,
            progress=check,
        )
        about = {"split_hash": split_hash(env.tasks("test")), "reference_returns": self._references}
        numbers = summary(curves, num_tasks(evaluated_tasks(env, "test", self._config)))
        return {"env_steps": env_steps, **about, **numbers}

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def summary(curves: Curves, tasks: int) -> Evaluation:
    """Return an evaluation's numbers: means per episode, of the first and of all later episodes, also by task."""
    returns, successes = (np.asarray(x, np.float64) for x in (curves.returns, curves.successes))
    by_task = returns.reshape(tasks, -1, returns.shape[1]).mean(1)
    several = returns.shape[1] > 1
    later = by_task[:, 1:].mean(1) if several else None
    return {
        "tasks": tasks,
        "episodes": returns.shape[1],
        "first": _number(by_task[:, 0].mean()),
        "later": None if later is None else _number(later.mean()),
        "return": shortest(returns.mean(0)),
        "success": shortest(successes.mean(0)),
        "first_by_task": shortest(by_task[:, 0]),
        "later_by_task": None if later is None else shortest(later),
        "success_by_task": shortest(successes.reshape(tasks, -1).mean(1)),
    }


def _number(value: Any) -> float:
    return float(shortest(np.asarray(value)))  # type: ignore[arg-type]  # a scalar array has no list
