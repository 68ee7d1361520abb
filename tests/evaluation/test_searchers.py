"""Reference agents in reports: files, and their description in text with hand-worked numbers."""

import dataclasses
import json

import numpy as np
import pytest

from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING, AgentEpisodes
from relic_jax.envs.registry import make
from relic_jax.evaluation import Curve, Curves, Report, summarise
from relic_jax.evaluation.searchers import describe_agents, first_recalling, memory_share

EPISODES = 8


def episodes(first, later, kind=AgentEpisodes, **more):
    """Three trials with `first` steps in the first episode and about `later` in the others."""
    steps = np.full((3, EPISODES), later, np.float32) + np.array([[-1], [0], [1]], np.float32)
    steps[:, 0] = first
    return kind(-steps / 100, np.ones((3, EPISODES), bool), metrics={"steps": steps}, **more)


@pytest.fixture(scope="module")
def report():
    policy = episodes(20, 9, Curves, trial=None)
    agents = {FORGETFUL: episodes(15, 15), REMEMBERING: episodes(15, 6)}
    config, references = EvalConfig(episodes=EPISODES, tasks=3), {"random": 0.0, "optimal": 1.0}
    return summarise(make("gridobj-9"), "test", config, [policy], references, {}, agents)


def test_agents_survive_json(report):
    text = json.dumps(report.to_json())
    assert Report.from_json(json.loads(text)) == report
    agent = report.reference_agents[REMEMBERING]
    assert agent.metrics["steps"].mean == [15.0] + [6.0] * 7 and agent.success.mean == [1.0] * 8
    assert agent.metrics["steps"].low[1] == pytest.approx(5.0, abs=0.4)  # the interval is over tasks
    old = {name: x for name, x in json.loads(text).items() if name != "reference_agents"}
    assert Report.from_json(old) == dataclasses.replace(report, reference_agents={})
    assert "reference_agents" not in Report.from_json(old).to_json()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "evaluation.reference_agents is 3; allowed: an object"),
        ({"x": None}, "evaluation.reference_agents.x is None; allowed: an object"),
        (
            {"x": {name: {part: [1.0] * 3 for part in ("mean", "low", "high")} for name in ("return", "success")}},
            r"evaluation.reference_agents.x is .*; allowed: curves of 8 episodes",
        ),
        ({"x": {"return": {"mean": ["a"]}}}, "evaluation.reference_agents.x.return.mean is "),
    ],
)
def test_the_value_that_does_not_fit_is_named(report, value, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Report.from_json(report.to_json() | {"reference_agents": value})


def test_description(report):
    assert describe_agents(report) == [
        "forgetful searcher: steps 15.00 in episode 1, 15.00 in episodes 2–8",
        "remembering searcher: steps 15.00 in episode 1, 6.00 in episodes 2–8",
        "policy: steps 9.00 in episodes 6–8, normalized score 67% (forgetful searcher 0%, remembering searcher 100%)",
    ]
    worse = dataclasses.replace(report, metrics={"steps": Curve(*[[40.0] * EPISODES] * 3)})
    assert describe_agents(worse)[2] == "policy: steps 40.00 in episodes 6–8, worse than the forgetful searcher"
    assert describe_agents(dataclasses.replace(report, reference_agents={})) == []


def test_paths_come_before_steps(report):
    curves = {x: Curve(*[[0.5] + [x] * 7] * 3) for x in (0.6, 0.7, 0.8)}
    agents = {
        name: dataclasses.replace(agent, metrics={"spl": curves[x], **agent.metrics})
        for (name, agent), x in zip(report.reference_agents.items(), (0.6, 0.8), strict=True)
    }
    policy = dataclasses.replace(report, metrics={"spl": curves[0.7], **report.metrics}, reference_agents=agents)
    lines = describe_agents(policy)
    steps = "steps 15.00 in episode 1, 15.00 in episodes 2–8"
    assert lines[0] == f"forgetful searcher: SPL 0.50 in episode 1, 0.60 in episodes 2–8; {steps}"
    assert lines[2].startswith("policy: SPL 0.70 in episodes 6–8, normalized score 50%")


def test_the_share_of_the_way(report):
    assert memory_share(report) == pytest.approx((15 - 9) / (15 - 6))
    assert memory_share(
        dataclasses.replace(
            report,
            metrics={},
            reference_agents={
                name: dataclasses.replace(agent, metrics={}) for name, agent in report.reference_agents.items()
            },
        )
    ) == pytest.approx((15 - 9) / (15 - 6))  # of returns
    forgetful = report.reference_agents[FORGETFUL]
    assert memory_share(dataclasses.replace(report, reference_agents={FORGETFUL: forgetful})) is None
    equal = {FORGETFUL: forgetful, REMEMBERING: forgetful}
    assert memory_share(dataclasses.replace(report, reference_agents=equal)) is None
    assert memory_share(dataclasses.replace(report, expert_episodes=EPISODES)) is None


def between(report, **metrics):
    """The report with constant metrics: (policy, forgetful searcher, remembering searcher) of each."""

    def with_metrics(x, index):
        found = {name: Curve(*[[values[index]] * EPISODES] * 3) for name, values in metrics.items()}
        return dataclasses.replace(x, metrics=found)

    agents = {FORGETFUL: 1, REMEMBERING: 2}
    agents = {name: with_metrics(report.reference_agents[name], index) for name, index in agents.items()}
    return dataclasses.replace(with_metrics(report, 0), reference_agents=agents)


def test_steps_decide_where_the_searchers_hardly_differ_in_paths(report):
    found = between(report, spl=(0.84, 0.98, 0.99), steps=(20.0, 24.0, 16.0))
    assert memory_share(found) == pytest.approx(0.5)
    assert describe_agents(found)[2].startswith("policy: steps 20.00 in episodes 6–8, normalized score 50%")
    assert memory_share(between(report, spl=(0.99, 0.95, 0.98), steps=(20.0, 24.0, 16.0))) == pytest.approx(4 / 3)


def test_no_share_of_a_difference_that_is_nearly_zero(report):
    found = between(report, spl=(0.84, 0.98, 0.99), steps=(20.0, 16.5, 16.0))
    assert memory_share(found) is None
    assert describe_agents(found)[2] == (
        "policy: steps 20.00 in episodes 6–8; no normalized score, because the searchers differ by less than "
        "0.02 in SPL and 1 in steps"
    )


def test_recall_is_measured_from_the_fifth_episode_on_in_houses_and_from_the_sixth_on_elsewhere(report):
    first = {name: first_recalling(name) for name in ("house-objnav-small", "gridobj-9", "python:mine:ENV")}
    assert list(first.values()) == [5, 6, 6]
    in_houses = dataclasses.replace(report, env="house-objnav-large")
    assert "in episodes 5–8, normalized score 67%" in describe_agents(in_houses)[2]
