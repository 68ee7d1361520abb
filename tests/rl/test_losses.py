import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import PPOConfig
from relic_jax.distributions import Categorical
from relic_jax.rl.losses import action_loss, policy_loss, recall_loss, value_loss
from relic_jax.rl.optimizer import clipped_mask, entropy_coef, learning_rate, make_optimizer, recall_coef


def test_policy_loss_clips_only_where_it_would_gain():
    old = jnp.zeros(4)
    log_prob = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5]))
    advantage = jnp.array([1.0, -1.0, 1.0, -1.0])
    np.testing.assert_allclose(policy_loss(log_prob, old, advantage, 0.2), [-1.2, 1.5, -0.5, 0.8], rtol=1e-6)
    gradient = jax.grad(lambda x: policy_loss(x, old, advantage, 0.2).sum())(log_prob)
    np.testing.assert_allclose(gradient, [0.0, 1.5, -0.5, 0.0], rtol=1e-6)


def test_value_loss_selects_and_has_no_gradient_beyond_the_clip():
    value, old, returns = jnp.array([1.1, 2.0, 0.0]), jnp.ones(3), jnp.full(3, 3.0)
    np.testing.assert_allclose(
        value_loss(value, old, returns, 0.2), [0.5 * 1.9**2, 0.5 * 1.8**2, 0.5 * 2.2**2], rtol=1e-6
    )
    gradient = jax.grad(lambda v: value_loss(v, old, returns, 0.2).sum())(value)
    np.testing.assert_allclose(gradient, [-1.9, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(
        value_loss(value, old, returns, None), 0.5 * (np.array([1.1, 2.0, 0.0]) - 3) ** 2, rtol=1e-6
    )


def test_the_action_loss_is_the_divergence_from_the_teacher():
    chances = jnp.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    logits = jnp.log(jnp.array([[0.25, 0.25, 0.5], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(action_loss(Categorical(logits), chances), [np.log(2), 0, 0], atol=1e-6)
    gradient = jax.grad(lambda x: action_loss(Categorical(x), chances).sum())(logits)
    np.testing.assert_allclose(gradient, [[-0.25, -0.25, 0.5], [0, 0, 0], [0, 0, 0]], atol=1e-6)  # π − p


def test_learning_rate_follows_environment_steps():
    ppo = PPOConfig(lr=2e-4, lr_final=1e-5, warmup_steps=100)
    rate = [float(learning_rate(ppo, 1100, jnp.asarray(step))) for step in (0, 50, 100, 600, 1100, 5000)]
    np.testing.assert_allclose(rate, [2e-7, (2e-7 + 2e-4) / 2, 2e-4, (2e-4 + 1e-5) / 2, 1e-5, 1e-5], rtol=1e-4)


def test_entropy_coefficient_is_linear():
    ppo = PPOConfig(entropy_coef=0.01, entropy_coef_final=0.0)
    np.testing.assert_allclose(entropy_coef(ppo, 100, jnp.asarray(25)), 0.0075, rtol=1e-6)
    np.testing.assert_allclose(entropy_coef(PPOConfig(), 100, jnp.asarray(25)), 0.01, rtol=1e-6)


def test_recall_loss_sums_the_nats_of_the_answers():
    log_probs = (jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]])), jnp.log(jnp.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])))
    nats = recall_loss(log_probs, jnp.array([[1, 2], [0, 0]]))
    np.testing.assert_allclose(nats, [-np.log(0.25), -np.log(0.9)], rtol=1e-6)
    np.testing.assert_array_equal(recall_loss((), jnp.zeros((2, 0), jnp.int32)), [0.0, 0.0])


def test_recall_coefficient_is_linear():
    ppo = PPOConfig(recall_coef=1.0, recall_coef_final=0.0)
    np.testing.assert_allclose(recall_coef(ppo, 100, jnp.asarray(25)), 0.75, rtol=1e-6)
    assert recall_coef(PPOConfig(), 100, jnp.asarray(25)) == 0


def test_norm_clip_covers_everything_but_the_critic_head():
    params = {"actor": {"kernel": jnp.zeros(2)}, "transformer": {"w": jnp.zeros(2)}, "critic": {"kernel": jnp.zeros(2)}}
    assert clipped_mask(params)["critic"] == {"kernel": False}
    assert clipped_mask(params)["actor"] == {"kernel": True}
    eps = 1e3
    optimizer = make_optimizer(PPOConfig(max_grad_norm=0.2, adam_eps=eps))
    gradients = {
        name: jax.tree.map(lambda x, value=value: x + value, params[name])
        for name, value in (("actor", 3.0), ("transformer", 4.0), ("critic", 100.0))
    }
    direction, _ = optimizer.update(gradients, optimizer.init(params), params)
    norm = np.sqrt(2 * 9 + 2 * 16)
    for name, gradient in (("actor", 3.0 * 0.2 / norm), ("transformer", 4.0 * 0.2 / norm), ("critic", 100.0)):
        expected = np.full(2, gradient / (gradient + eps))  # the first step of Adam: m = g and v = g²
        np.testing.assert_allclose(jax.tree.leaves(direction[name])[0], expected, rtol=1e-5)
