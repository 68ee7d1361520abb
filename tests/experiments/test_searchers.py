"""The command that measures what a task's memory is worth."""

import json

import numpy as np
import pytest

from relic_jax.experiments import searchers


def test_a_measurement(tmp_path, capsys):
    out = tmp_path / "searchers.json"
    searchers.main(["gridobj-9", "--env.asked", "2", "--tasks", "32", "--episodes", "8", "--out", str(out)])
    result = json.loads(out.read_text())
    agents = result["agents"]
    assert list(agents) == ["random", "shortest path", "forgetful searcher", "remembering searcher"]
    assert all(len(values) == 8 for agent in agents.values() for values in agent.values())
    steps = {name: np.array(agent["steps"]) for name, agent in agents.items()}
    assert (steps["shortest path"] < steps["forgetful searcher"]).all()
    assert steps["random"].mean() > 2 * steps["forgetful searcher"].mean()
    forgetful, remembering = steps["forgetful searcher"], steps["remembering searcher"]
    difference = result["difference"]["steps"]
    assert difference["mean"] == pytest.approx((remembering - forgetful)[5:].mean(), abs=1e-3)
    assert difference["low"] < difference["mean"] < difference["high"] < 0
    assert result["command"].startswith("python -m experiments.searchers gridobj-9 --env.asked 2")
    assert "remembering minus forgetful, episodes 6–8: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["darkroom-dpt"], "name is 'darkroom-dpt'; allowed: an environment with searchers (gridobj, house-objnav)"),
        (["gridobj-9", "--episodes", "5"], "episodes is 5; allowed: 6 or more"),
        (["house-objnav-small", "--episodes", "4"], "episodes is 4; allowed: 5 or more"),
        (["gridobj-9", "--tasks", "0"], "tasks is 0; allowed: 1 or more"),
        (["gridobj-9", "--env.pose", "dock"], "env.pose"),
    ],
)
def test_errors_take_one_line(arguments, message):
    with pytest.raises(SystemExit) as error:
        searchers.main(arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
