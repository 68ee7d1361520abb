import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.distributions import Categorical, Gaussian, TanhGaussian


def test_closed_forms_by_hand():
    """Logits log 1, log 2, log 5 plus any constant have probabilities ⅛, ¼, ⅝."""
    probabilities = np.array([1, 2, 5]) / 8
    entropy = 3 / 8 + 2 / 4 + 5 / 8 * np.log2(8 / 5)  # bits
    for constant in (0.0, -30.0, 80.0):
        policy = Categorical(jnp.log(jnp.array([1.0, 2.0, 5.0])) + constant)
        for action in range(3):
            # float32 stores a logit of 80 with an error of 80·2⁻²⁴ ≈ 5e-6
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
    """Compare with ∂log p_a/∂z = 1_a − p and ∂H/∂z = −p (log p + H)."""
    z = jnp.array([0.3, -1.0, 0.7])
    p, entropy = jax.nn.softmax(z), Categorical(z).entropy()
    d_log_prob = jax.grad(lambda z: Categorical(z).log_prob(jnp.int32(1)))(z)
    np.testing.assert_allclose(d_log_prob, np.array([0, 1, 0]) - p, atol=1e-6)
    d_entropy = jax.grad(lambda z: Categorical(z).entropy())(z)
    np.testing.assert_allclose(d_entropy, -p * (np.log(p) + entropy), atol=1e-6)


def test_sampling_frequencies():
    """Frequencies of n draws have standard deviation sqrt(p(1−p)/n). Five of these fail by chance once in 10⁶ runs."""
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


# --- continuous actions ---


def test_gaussian_closed_forms_by_hand():
    """N(1, 2²) at 3 and N(0, 1) at 0 have log-densities −½ − log 2 − ½log 2π and −½log 2π."""
    policy = Gaussian(jnp.array([1.0, 0.0]), jnp.log(jnp.array([2.0, 1.0])))
    half_log = 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(policy.log_prob(jnp.array([3.0, 0.0])), -0.5 - np.log(2) - 2 * half_log, rtol=1e-6)
    np.testing.assert_allclose(policy.entropy(), np.log(2) + 2 * (half_log + 0.5), rtol=1e-6)
    np.testing.assert_array_equal(policy.mode(), [1.0, 0.0])


GRID = np.tanh(np.linspace(-10, 10, 200_001))  # grid on the open interval, finer towards the bounds


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.8, 0.3), (-1.0, 1.0), (2.0, 0.7), (0.0, 2.0)])
def test_squashed_density_integrates_to_one_and_to_its_entropy(mean, std):
    """Integrate the definition numerically in float64 and compare the float32 log-density with it."""
    policy = TanhGaussian(jnp.array([mean], jnp.float32), jnp.log(jnp.array([std], jnp.float32)))
    x = np.arctanh(GRID)
    density = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi)) / (1 - GRID**2)
    assert np.trapezoid(density, GRID) == pytest.approx(1.0, abs=1e-3)
    entropy = np.trapezoid(-density * np.log(np.maximum(density, 1e-300)), GRID)
    assert float(policy.entropy()) == pytest.approx(entropy, abs=3e-3)
    inside = np.abs(GRID) < 0.999
    found = np.asarray(policy.log_prob(jnp.asarray(GRID[inside, None], jnp.float32)))
    np.testing.assert_allclose(found, np.log(density[inside]), atol=2e-3 * (1 + 1 / std**2))


def test_squashed_samples_have_the_density():
    """Moments of 200,000 draws equal those of tanh of 2,000,000 normal draws within five standard errors."""
    policy = TanhGaussian(jnp.full((200_000, 1), 0.6), jnp.full((200_000, 1), np.log(0.8)))
    drawn = np.asarray(policy.sample(jax.random.key(0)), np.float64)[:, 0]
    x = np.random.default_rng(0).normal(0.6, 0.8, 2_000_000)
    for power in (1, 2):
        expected = (np.tanh(x) ** power).mean()
        assert abs((drawn**power).mean() - expected) < 5 * (drawn**power).std() * np.sqrt(1 / 200_000 + 1 / 2_000_000)
    assert np.abs(drawn).max() < 1


def test_actions_at_the_bounds_have_finite_density_and_gradient():
    def density(mean):
        return TanhGaussian(mean, jnp.zeros(2)).log_prob(jnp.array([1.0, -1.0]))

    mean = jnp.array([9.0, -9.0])
    assert np.isfinite(density(mean)) and np.isfinite(jax.grad(density)(mean)).all()
    drawn = TanhGaussian(jnp.full((1000, 1), 50.0), jnp.zeros((1000, 1))).sample(jax.random.key(0))
    assert (np.asarray(drawn) < 1).all()


def test_every_component_counts_once():
    key = jax.random.key(3)
    mean, log_std = jax.random.normal(key, (2, 3, 4)), 0.3 * jax.random.normal(jax.random.key(4), (2, 3, 4))
    for head in (Gaussian, TanhGaussian):
        policy = head(mean, log_std)
        action = policy.sample(key)
        assert action.shape == (2, 3, 4) and policy.log_prob(action).shape == policy.entropy().shape == (2, 3)
        parts = [head(mean[..., i : i + 1], log_std[..., i : i + 1]) for i in range(4)]
        total = sum(part.log_prob(action[..., i : i + 1]) for i, part in enumerate(parts))
        np.testing.assert_allclose(policy.log_prob(action), total, rtol=1e-5)
        np.testing.assert_allclose(policy.entropy(), sum(part.entropy() for part in parts), rtol=1e-5)
