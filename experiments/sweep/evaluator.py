"""The evaluations of a study, run by run. Results that are in a run folder already are kept."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from relic_jax.config import ConfigError, EvalConfig, validate
from relic_jax.environment.base import Environment
from relic_jax.evaluation.concurrent import concurrent_evaluations
from relic_jax.experiments import attention
from relic_jax.experiments import run as results
from relic_jax.experiments.sweep import evaluations
from relic_jax.experiments.sweep.evaluations import Evaluation
from relic_jax.experiments.sweep.folder import StudyFolder
from relic_jax.experiments.sweep.grid import Member, count
from relic_jax.experiments.sweep.study import Study
from relic_jax.loading import LoadedPolicy
from relic_jax.rl.state import Setup

Progress = Callable[[float], None]
_LOADING = threading.Lock()
"""Checkpoints are read one after the other."""


def evaluations_of(study: Study, member: Member) -> list[Evaluation]:
    """Return the evaluations of a run."""
    return evaluations.evaluations_of(study.evaluate, _method(member), member.config)


def attention_of(study: Study, member: Member) -> EvalConfig | None:
    """Return the settings with which attention of a run is computed. None: it is not."""
    if study.attention is None or not study.attention.covers(_method(member)):
        return None
    return evaluations.attention_config(study.attention, member.config.eval, attention.TASKS)


def describe(study: Study, runs: Sequence[Member]) -> list[str]:
    """Return a line about the evaluations of a study, or none."""
    number = sum(len(evaluations_of(study, run)) + (attention_of(study, run) is not None) for run in runs)
    names = [table.name for table in study.evaluate] + (["attention"] if study.attention is not None else [])
    return [f"  {count(number, 'evaluation')} after training: {', '.join(names)}"] if names else []


def _method(member: Member) -> str:
    return str(member.settings.get("method", ""))


def check(study: Study, runs: Sequence[Member], setups: Mapping[str, Setup]) -> None:
    """Raise ConfigError if an evaluation of the study cannot work for one of its runs."""
    checked = set()
    for member in runs:
        if member.variant in checked:
            continue
        checked.add(member.variant)
        env = setups[member.name].trials.env
        try:
            evaluations.check(evaluations_of(study, member), member.config, env)
            if config := attention_of(study, member):
                _check_attention(member, config, env)
        except ConfigError as error:
            raise ConfigError(f"{error} (in {member.variant})") from None


def _check_attention(member: Member, config: EvalConfig, env: Environment) -> None:
    memory = member.config.policy.memory
    if memory != "transformer":
        raise ConfigError(f"policy.memory is {memory!r}; allowed: 'transformer' in the methods of [attention]")
    validate(dataclasses.replace(member.config, eval=config), horizon=env.horizon, images=False)


def load(folder: Path, setup: Setup) -> LoadedPolicy:
    """Return the policy of a trained run, with the setup's `policy`, for which the evaluation is already compiled."""
    with _LOADING:
        (loaded,) = results.load([folder], None, trust=True)
    return dataclasses.replace(loaded, policy=setup.policy)


class Evaluator:
    """Evaluates trained runs as the study declares.

    Args:
        study: The study.
        folder: Its folder.
    """

    def __init__(self, study: Study, folder: StudyFolder) -> None:
        self._study, self._folder = study, folder

    def is_done(self, member: Member) -> bool:
        """Return whether all results of a run are there."""
        return not self._pending(member) and not self._attention_is_due(member)

    def concurrent(self, member: Member, setup: Setup, most: int) -> int:
        """Return how many runs like this one can be evaluated at the same time, from 1 to `most`."""
        policy, env = setup.policy.config, setup.trials.env
        found = [(x.config, x.table.split) for x in evaluations_of(self._study, member)]
        found.append((member.config.eval, "test"))
        config, table = attention_of(self._study, member), self._study.attention
        if config is not None and table is not None:
            found.append((config, table.split))
        return min(concurrent_evaluations(policy, each, env, split, most) for each, split in found)

    def _pending(self, member: Member) -> list[Evaluation]:
        run = self._folder.run(member)
        return [found for found in evaluations_of(self._study, member) if not found.is_done(run)]

    def _attention_is_due(self, member: Member) -> bool:
        config, table = attention_of(self._study, member), self._study.attention
        if config is None or table is None:
            return False
        return not evaluations.attention_is_done(self._folder.run(member), table, config)

    def __call__(self, member: Member, setup: Setup, progress: Progress) -> None:
        """Evaluate a trained run and write the results to its folder.

        Args:
            member: The run.
            setup: Its setup, with whose policy and environment compiled programs are found again.
            progress: Called with the fraction of an evaluation that is done. It can raise to stop.
        """
        if self.is_done(member):
            return
        folder, env = self._folder.run(member), setup.trials.env
        policy = load(folder, setup)
        for evaluation in self._pending(member):
            split = evaluation.table.split
            report, _, _ = results.evaluate_policies([policy], evaluation.config, split, progress, env)
            limit = {"limit": evaluation.config.tasks}  # the report has only the number of tasks
            report = dataclasses.replace(report, provenance=report.provenance | limit)
            results.write_results(folder / evaluation.stem, report, member.variant)
        if self._attention_is_due(member):
            self._attention(member, policy, env, folder, progress)

    def _attention(
        self, member: Member, policy: LoadedPolicy, env: Environment, folder: Path, progress: Progress
    ) -> None:
        config, table = attention_of(self._study, member), self._study.attention
        assert config is not None and table is not None
        shares = attention.shares_of(policy, env, config, table.split, progress)
        attention.write(shares, [folder / "attention.json", folder / "attention.png"], policy, env, table.split)
