"""The README's example of an environment is executed as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from envs.lines import reference_lines
from envs.wrappers import Trials

README = (Path(__file__).parents[1] / "README.md").read_text()
IMPORTS = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np
from envs.base import Discrete, Environment, TimeStep, first_timestep
"""


def corridor():
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class Corridor" in block)
    names: dict = {"__name__": "readme"}
    exec(IMPORTS + code, names)
    return names["Corridor"]()


def test_the_example_environment_works():
    env = corridor()
    trials = Trials(env)
    state = trials.reset(jax.random.key(0), jnp.asarray(env.tasks("train")))
    ends = []
    step = jax.jit(trials.step)
    for _ in range(25):
        state, result = step(jax.random.key(1), state, jnp.ones(2, jnp.int32))
        ends.append((np.asarray(result.terminated), np.asarray(result.truncated)))
    terminated, truncated = (np.array(x) for x in zip(*ends, strict=True))
    # always to the right: the task on the right ends every 5 steps, the one on the left at the time limit
    assert terminated[:, 1].nonzero()[0].tolist() == [4, 9, 14, 19, 24] and not truncated[:, 1].any()
    assert truncated[:, 0].nonzero()[0].tolist() == [19] and not terminated[:, 0].any()
    assert 0 < reference_lines(env, "test", episodes=64).random.mean_return < 1


def test_every_command_in_the_readme_exists():
    from experiments.cli import USAGE
    from experiments.presets import PRESETS

    for command in set(re.findall(r"relic-jax ([a-z]+)", README)):
        assert f"relic-jax {command}" in USAGE
    for preset in set(re.findall(r"relic-jax train ([a-z][a-z0-9-]+)", README)):
        assert preset in PRESETS
