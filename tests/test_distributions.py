import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.distributions import Categorical


def test_closed_forms_by_hand():
    """Logits log 1, log 2, log 5 plus any constant are probabilities ⅛, ¼, ⅝."""
    probabilities = np.array([1, 2, 5]) / 8
    entropy = 3 / 8 + 2 / 4 + 5 / 8 * np.log2(8 / 5)  # bits
    for constant in (0.0, -30.0, 80.0):
        policy = Categorical(jnp.log(jnp.array([1.0, 2.0, 5.0])) + constant)
        for action in range(3):
            # float32 keeps a logit of 80 to 80·2⁻²⁴ ≈ 5e-6
            np.testing.assert_allclose(policy.log_prob(jnp.int32(action)), np.log(probabilities[action]), atol=1e-5)
        np.testing.assert_allclose(policy.entropy(), entropy * np.log(2), atol=1e-5)
        assert policy.mode() == 2


def test_uniform_and_certain():
    np.testing.assert_allclose(Categorical(jnp.zeros((2, 7))).entropy(), np.log([7, 7]), rtol=1e-6)
    certain = Categorical(jnp.array([0.0, 200.0, -200.0]))
    assert certain.entropy() == 0.0
    assert certain.log_prob(jnp.int32(1)) == 0.0
    np.testing.assert_allclose(certain.log_prob(jnp.int32(2)), -400.0)


def test_every_leading_axis_is_a_batch():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    policy, action = Categorical(jnp.asarray(logits)), np.array([[0, 4, 2], [1, 1, 3]])
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    assert policy.log_prob(jnp.asarray(action)).shape == policy.entropy().shape == policy.mode().shape == (2, 3)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(
            policy.log_prob(jnp.asarray(action))[index], np.log(p[index][action[index]]), rtol=1e-5
        )
        np.testing.assert_allclose(policy.entropy()[index], -np.sum(p[index] * np.log(p[index])), rtol=1e-5)
        assert policy.mode()[index] == p[index].argmax()


def test_gradients_of_log_prob_and_entropy():
    """∂log p_a/∂z = 1_a − p and ∂H/∂z = −p (log p + H)."""
    z = jnp.array([0.3, -1.0, 0.7])
    p, entropy = jax.nn.softmax(z), Categorical(z).entropy()
    d_log_prob = jax.grad(lambda z: Categorical(z).log_prob(jnp.int32(1)))(z)
    np.testing.assert_allclose(d_log_prob, np.array([0, 1, 0]) - p, atol=1e-6)
    d_entropy = jax.grad(lambda z: Categorical(z).entropy())(z)
    np.testing.assert_allclose(d_entropy, -p * (np.log(p) + entropy), atol=1e-6)


def test_sampling_frequencies():
    """A frequency of n draws has standard deviation sqrt(p(1−p)/n); five of those miss by chance once in 10⁶ times."""
    n, p = 20_000, np.array([0.05, 0.15, 0.8])
    policy = Categorical(jnp.broadcast_to(jnp.log(p), (n, 3)))
    actions = policy.sample(jax.random.key(0))
    assert actions.shape == (n,)
    assert actions.dtype == policy.mode().dtype == jnp.int32
    frequency = np.bincount(actions, minlength=3) / n
    assert (np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / n)).all()
    np.testing.assert_array_equal(actions, policy.sample(jax.random.key(0)))
    assert np.mean(actions != policy.sample(jax.random.key(1))) > 0.2  # two independent draws differ in 33.5 %


def test_an_action_of_probability_zero_is_never_drawn():
    policy = Categorical(jnp.broadcast_to(jnp.array([0.0, -jnp.inf, 0.0]), (1000, 3)))
    assert set(np.unique(policy.sample(jax.random.key(2)))) == {0, 2}
