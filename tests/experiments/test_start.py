"""Runs that start from the parameters of a run, a checkpoint or an export."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from relic_jax import checkpoint
from relic_jax.config import ConfigError
from relic_jax.envs.registry import make
from relic_jax.export import export_policy
from relic_jax.loading import load_policy
from relic_jax.metrics import JsonLines
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.train import prepare, train


def setup_of(config, **prepared):
    return prepare(config, make(config.env), **prepared)


def trained(config, folder, **options):
    folder.mkdir(exist_ok=True)
    return train(setup_of(config), folder, lambda env_steps: JsonLines(folder, env_steps), resume=False, **options)


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "source"
    trained(tiny(), folder)
    return folder


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_starts_from_the_newest_parameters_of_another_and_learns_on(tiny, source, tmp_path, devices):
    """The new run has another seed and longer trials. It copies the parameters only."""
    config = tiny(seed=1, devices=devices, start_from=str(source))
    config = dataclasses.replace(config, trial=dataclasses.replace(config.trial, steps=128))
    begun = initial_state(setup_of(config))
    equal(begun.params, load_policy(source).params)
    assert int(begun.env_steps) == 0 and not any(np.any(x) for x in jax.tree.leaves(begun.opt_state))
    after, before = (
        [np.asarray(x) for x in jax.tree.leaves(params)]
        for params in (trained(config, tmp_path / "run").state.params, load_policy(source).params)
    )
    assert any(np.any(a != b) for a, b in zip(after, before, strict=True))


@pytest.mark.slow
def test_it_may_be_one_checkpoint_or_an_export(tiny, source, tmp_path):
    oldest = min(checkpoint.complete_steps(source / "checkpoints"))
    folder = source / "checkpoints" / str(oldest)
    equal(initial_state(setup_of(tiny(start_from=str(folder)))).params, load_policy(folder).params)
    export_policy(load_policy(source), tmp_path / "policy")
    begun = initial_state(setup_of(tiny(start_from=str(tmp_path / "policy"))))
    equal(begun.params, load_policy(source).params)


@pytest.mark.slow
def test_a_resumed_run_does_not_ask_for_what_it_started_from(tiny, source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    config = tiny(start_from=str(tmp_path / "source"))
    trained(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "source")
    setup_of(config, resume=True)
    with pytest.raises(ConfigError, match=r"start_from: .*source"):
        setup_of(config)


@pytest.mark.slow
def test_a_network_of_other_shapes_is_refused_before_anything_is_compiled(tiny, source):
    policy = tiny().policy
    for change, found in (({"width": 16}, r"\(.*\)"), ({"layers": 2}, "nothing")):
        other = dataclasses.replace(policy, transformer=dataclasses.replace(policy.transformer, **change))
        with pytest.raises(ConfigError, match=rf"start_from is '.*', its .* is {found}; allowed in this run: \(.*\)"):
            setup_of(tiny(start_from=str(source), policy=other))
