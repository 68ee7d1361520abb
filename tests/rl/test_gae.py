import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.rl.gae import advantages


def by_definition(reward, value, last_value, ended, final_value, length, gamma, lam):
    """Compute A_t = Σ_k (γλ)^k δ_{t+k}, in which the sum ends with the episode or the context."""
    result = np.zeros(len(reward))
    for t in range(length):
        weight = 1.0
        for s in range(t, length):
            following = final_value[s] if ended[s] else (last_value if s == length - 1 else value[s + 1])
            result[t] += weight * (reward[s] + gamma * following - value[s])
            weight *= gamma * lam
            if ended[s]:
                break
    return result


def test_hand_worked():
    result = advantages(
        reward=jnp.array([1.0, 0.0, 2.0, 9.0]),
        value=jnp.array([0.5, 1.0, 0.25, 9.0]),
        last_value=jnp.array(4.0),
        ended=jnp.array([False, True, False, False]),
        final_value=jnp.zeros(4),
        length=jnp.array(3),
        gamma=0.5,
        gae_lambda=0.5,
    )
    # δ = [1 + ½·1 − ½, 0 − 1, 2 + ½·4 − ¼] = [1, −1, 3.75]; A_0 = 1 + ¼·(−1)
    np.testing.assert_allclose(result, [0.75, -1.0, 3.75, 0.0], rtol=1e-6)


def test_truncation_bootstraps_and_termination_does_not():
    common = {"reward": jnp.ones(1), "value": jnp.zeros(1), "last_value": jnp.array(7.0), "length": jnp.array(1)}
    ended = jnp.array([True])
    for final, expected in ((0.0, 1.0), (10.0, 10.0)):
        result = advantages(**common, ended=ended, final_value=jnp.array([final]), gamma=0.9, gae_lambda=0.95)
        np.testing.assert_allclose(result, [expected])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
def test_equals_the_definition(seed, length, gamma, lam):
    rng = np.random.default_rng(seed)
    reward, value, final_value = rng.normal(size=(3, 12)).astype(np.float32)
    ended = rng.random(12) < 0.3
    last_value = rng.normal()
    result = advantages(
        jnp.asarray(reward),
        jnp.asarray(value),
        jnp.asarray(last_value, jnp.float32),
        jnp.asarray(ended),
        jnp.asarray(final_value),
        jnp.asarray(length),
        gamma=gamma,
        gae_lambda=lam,
    )
    expected = by_definition(reward, value, last_value, ended, final_value, length, gamma, lam)
    np.testing.assert_allclose(result, expected, atol=1e-4)
