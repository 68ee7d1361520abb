"""The environments of an optimizer step and of a device."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import PPOConfig, TrainConfig, TrialConfig, devices_fit
from relic_jax.rl.minibatches import epoch_order, minibatch_shape, step_environments
from relic_jax.shards import Shard

CASES = [  # environments, minibatches, accumulate
    *((8, 1, 1), (8, 8, 8), (8, 4, 4), (8, 2, 1), (8, 8, 4), (16, 8, 4), (16, 4, 2), (24, 6, 2), (24, 12, 4)),
]


def config(environments, minibatches, accumulate):
    ppo = PPOConfig(minibatches=minibatches, accumulate=accumulate)
    return TrainConfig(trial=TrialConfig(environments=environments), ppo=ppo)


def orders(config, devices, key, device_keys=False):
    """Return the rows, as numbers of all environments, and the minibatches of each device."""
    environments = config.trial.environments // devices
    axis = "data" if devices > 1 else None
    setup = SimpleNamespace(config=config, local_environments=environments, axis=axis, device_keys=device_keys)
    found = jax.vmap(lambda _: epoch_order(setup, key), axis_name="data", axis_size=devices)(jnp.zeros(devices))
    first = np.arange(devices).reshape(-1, 1, 1, 1) * environments
    return np.asarray(found.rows) + first, None if found.minibatch is None else np.asarray(found.minibatch)


@pytest.mark.parametrize("case", CASES)
def test_steps_and_minibatches_do_not_depend_on_the_number_of_devices(case):
    own, key = config(*case), jax.random.key(0)
    alone, _ = orders(own, 1, key)
    environments, minibatches, accumulate = case
    assert alone.shape == (1, minibatches // accumulate, accumulate, environments // minibatches)
    assert sorted(alone.ravel()) == list(range(environments))
    counts = [count for count in range(2, environments + 1) if environments % count == 0 and devices_fit(own, count)]
    assert counts
    for devices in counts:
        rows, minibatch = orders(own, devices, key)
        assert rows.shape == (devices, *minibatch_shape(own, environments // devices))
        for step in range(alone.shape[1]):
            for index in range(accumulate):
                members = rows[:, step][minibatch[:, step] == index]
                assert sorted(members) == sorted(alone[0, step, index])


def test_a_step_has_one_environment_of_each_block_and_all_choices_are_equally_likely():
    keys = jax.random.split(jax.random.key(1), 3000)
    found = np.asarray(jax.vmap(lambda key: step_environments(key, 6, 3))(keys))  # [keys, 3, 2]
    assert (np.sort(found.reshape(-1, 6)) == np.arange(6)).all()
    assert (np.sort(found // 3) == np.array([0, 1])).all()
    for environment in range(6):
        share = (found == environment).mean(0)  # of each place, 1/6 each
        np.testing.assert_allclose(share, 1 / 6, atol=0.03)
    together = [(found[:, 0] == pair).any(1).mean() for pair in range(6)]
    np.testing.assert_allclose(together, 1 / 3, atol=0.04)
    differs = (found[:, 0, 0] % 3 != found[:, 0, 1] % 3).mean()  # blocks are permuted independently
    np.testing.assert_allclose(differs, 2 / 3, atol=0.04)


def test_one_step_per_epoch_and_earlier_runs_keep_their_permutation():
    key = jax.random.key(2)
    for own in (config(8, 4, 4), config(8, 8, 8)):
        rows, _ = orders(own, 1, key)
        np.testing.assert_array_equal(rows.ravel(), jax.random.permutation(key, 8))
    rows, minibatch = orders(config(8, 4, 2), 1, key, device_keys=True)
    np.testing.assert_array_equal(rows.ravel(), jax.random.permutation(key, 8))
    assert minibatch is None


def test_a_shard_draws_the_numbers_of_one_device():
    key, shard = jax.random.key(3), Shard(4, "data")
    means = jnp.arange(8.0).reshape(4, 2)

    def drawn(means):
        keys = jax.random.key_data(shard.split(key, 3, 2)).transpose(1, 0, 2)
        return shard.draw(lambda m: m + jax.random.normal(key, m.shape), means), keys

    found, keys = jax.vmap(drawn, axis_name="data")(means)
    np.testing.assert_array_equal(found.ravel(), means.ravel() + jax.random.normal(key, (8,)))
    expected = jax.random.key_data(jax.random.split(key, (3, 8))).transpose(1, 0, 2)
    np.testing.assert_array_equal(keys.reshape(8, 3, 2), expected)
    alone = dataclasses.replace(shard, devices=1, axis=None)
    np.testing.assert_array_equal(alone.draw(lambda m: m * 2, means), means * 2)
