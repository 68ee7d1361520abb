"""Success, SPL and steps of scripted agents by episode of a trial, to measure what a task's memory is worth.

python -m experiments.searchers house-objnav-small --env.view symbols --env.pose dock --out searchers.json
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from relic_jax.config import ConfigError, EnvConfig
from relic_jax.environment.base import Environment, Split, num_tasks, split_hash
from relic_jax.environment.reference_agents import (
    FORGETFUL,
    REMEMBERING,
    AgentEpisodes,
    Expert,
    RandomAgent,
    ScriptedAgent,
    play_agents,
)
from relic_jax.evaluation.searchers import first_recalling
from relic_jax.experiments import arguments, run
from relic_jax.experiments.folders import check_writable, origin
from relic_jax.files import write_atomically

RESAMPLES = 2000
"""Bootstrap samples of the interval over tasks."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Play random actions, the expert and the environment's reference agents for whole trials."""

    name: tyro.conf.Positional[str]
    """Name of an environment with reference agents. --env.OPTION sets its options."""
    tasks: int = 256
    """Number of trials, each with one of the first tasks of the split."""
    episodes: int = 10
    """Episodes per trial."""
    split: Split = "test"
    """Tasks to play."""
    seed: int = 0
    """Seed of the random numbers."""
    out: Path | None = None
    """The JSON file to write: means by episode of each agent, and the difference between the searchers."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        for field, least in (("tasks", 1), ("episodes", first_recalling(self.name))):
            if getattr(self, field) < least:
                raise ConfigError(f"{field} is {getattr(self, field)}; allowed: {least} or more")
        if self.out is not None:
            check_writable(self.out, "out")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    options, others = arguments.split_env_options(argv)
    command = arguments.parse(Command, others, "python -m experiments.searchers")
    try:
        command.validate()
        arguments.find_env(command.name)
        config = arguments.parse_env(EnvConfig(command.name), options, "python -m experiments.searchers")
        result = measure(run.make_env(config), command)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    result = {**origin(), "command": " ".join(["python -m experiments.searchers", *argv]), **result}
    for name, agent in result["agents"].items():
        print(f"{name}: " + ", ".join(f"{kind} {values[0]:.3f} → {values[-1]:.3f}" for kind, values in agent.items()))
    print(describe(result))
    if command.out:
        write_atomically(command.out, run.as_json(result))


def measure(env: Environment, command: Command) -> dict[str, Any]:
    """Play all agents and return their means by episode, and the difference between the searchers.

    Raises:
        ConfigError: The environment has no searchers.
    """
    if not env.reference_agents.keys() >= {FORGETFUL, REMEMBERING}:
        raise ConfigError(f"name is {command.name!r}; allowed: an environment with searchers (gridobj, house-objnav)")
    every = env.tasks(command.split)
    tasks = jax.tree.map(lambda x: x[: command.tasks], every)
    start = time.process_time()
    agents: dict[str, ScriptedAgent] = {"random": RandomAgent(env), "shortest path": Expert(env)}
    agents |= env.reference_agents
    played, first = play_agents(env, agents, tasks, command.episodes, command.seed), first_recalling(env.name)
    return {
        "split": command.split,
        "split_hash": split_hash(every),
        "tasks": num_tasks(tasks),
        "episodes": command.episodes,
        "agents": {name: _means(episodes) for name, episodes in played.items()},
        "first_recalling": first,
        "difference": _difference(played, first),
        "cpu_s": time.process_time() - start,
    }


def _means(episodes: AgentEpisodes) -> dict[str, list[float]]:
    """Return the mean of each measurement over tasks, by episode."""
    values = {"return": episodes.returns, "success": episodes.successes, **episodes.metrics}
    return {name: [round(float(x), 4) for x in value.mean(0)] for name, value in values.items()}


def _difference(played: dict[str, AgentEpisodes], first: int) -> dict[str, dict[str, float]]:
    """Return the remembering minus the forgetful searcher from an episode on, with a 95% interval over tasks."""
    found, random = {}, np.random.default_rng(0)
    before, after = played[FORGETFUL], played[REMEMBERING]
    pairs = {"return": (before.returns, after.returns), "success": (before.successes, after.successes)}
    pairs |= {name: (before.metrics[name], after.metrics[name]) for name in before.metrics}
    for name, (forgetful, remembering) in pairs.items():
        by_task = (remembering.astype(float) - forgetful)[:, first - 1 :].mean(1)
        samples = by_task[random.integers(len(by_task), size=(RESAMPLES, len(by_task)))].mean(1)
        low, high = np.quantile(samples, (0.025, 0.975))
        found[name] = {"mean": float(by_task.mean()), "low": float(low), "high": float(high)}
    return found


def describe(result: dict[str, Any]) -> str:
    """Return one line about the difference between the searchers."""
    parts = [f"{name} {x['mean']:+.3f} [{x['low']:.3f}, {x['high']:.3f}]" for name, x in result["difference"].items()]
    episodes = f"{result['first_recalling']}–{result['episodes']}"
    return f"remembering minus forgetful, episodes {episodes}: " + ", ".join(parts)


if __name__ == "__main__":
    main()
