"""Transformer-XL: attention equals a dense definition with all pairs of steps, also its gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.models.attention import Context, Sink
from relic_jax.models.kv_formats import Slots
from relic_jax.models.policy import Policy
from relic_jax.models.transformer import BlockInputs
from relic_jax.models.transformer_xl import Queries, attend, shifted, sinusoids
from relic_jax.spaces import vector_spaces
from relic_jax.types import Span, StepInput

SIZE, STEPS, SHAPE = 4, 14, (2, 3, 14, 8)
"""M, and B, H, Q, D."""


def dense(content, position, positions, own, before, sink, episodes):
    """The definition over all pairs of steps. Keys of the segment before come from `before`."""
    step = np.arange(STEPS)
    segment, distance = step // SIZE, step[:, None] - step[None, :]
    same = segment[:, None] == segment[None, :]
    visible = (distance >= 0) & (segment[:, None] - segment[None, :] <= 1)
    visible = visible & (episodes[:, :, None] == episodes[:, None, :])
    scores = jnp.where(
        same, jnp.einsum("bhqd,bhkd->bhqk", content, own[0]), jnp.einsum("bhqd,bhkd->bhqk", content, before[0])
    )
    scores += jnp.einsum("bhqd,hqkd->bhqk", position, positions[:, np.clip(distance, 0, 2 * SIZE - 1)])
    scores = jnp.where(visible[:, None], scores, -jnp.inf)
    scores = jnp.concatenate([scores, jnp.einsum("bhqd,hd->bhq", content, sink.key)[..., None]], -1) / np.sqrt(8)
    weights = jax.nn.softmax(scores, -1)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights[..., :-1] * same, own[1])
    out += jnp.einsum("bhqk,bhkd->bhqd", weights[..., :-1] * ~same, before[1])
    return out + weights[..., -1:] * sink.value[:, None]


def test_attention_and_its_gradients_equal_the_dense_definition():
    keys = iter(jax.random.split(jax.random.key(0), 9))
    content, position, k, v, k_before, v_before = (jax.random.normal(next(keys), SHAPE) for _ in range(6))
    positions = jax.random.normal(next(keys), (3, 2 * SIZE, 8))
    sink = Sink(jax.random.normal(next(keys), (3, 8)), jax.random.normal(next(keys), (3, 8)))
    episodes = jnp.asarray(np.repeat([[0, 1], [0, 2]], [6, 8], axis=1), jnp.int32)
    empty = Slots(jnp.zeros((2, 3, 0, 8)))
    context = Context(empty, empty, jnp.zeros((2, 0), jnp.int32), jnp.int32(0))

    def inputs(sink, span=None):
        return BlockInputs(episodes, context, sink, jnp.ones(()), None, None, None, span)

    def chunked(content, position, positions, own, before, sink):
        return attend(Queries(content, position, positions), own, before, inputs(sink), within_episode=True)

    def defined(*arguments):
        return dense(*arguments, episodes)

    arguments = (content, position, positions, (k, v), (k_before, v_before), sink)
    weight = jax.random.normal(jax.random.key(1), SHAPE)
    results = [
        jax.jit(jax.value_and_grad(lambda a, f=f: jnp.sum(f(*a) * weight)))(arguments) for f in (chunked, defined)
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), *results)
    spans = jax.jit(
        lambda start: attend(
            Queries(content[:, :, 5:8], position[:, :, 5:8], positions),
            *((k, v), (k_before, v_before), inputs(sink, Span(start, 3))),
            within_episode=True,
        )
    )
    np.testing.assert_allclose(spans(jnp.int32(5)), defined(*arguments)[:, :, 5:8], atol=1e-5)


def test_shifted_scores_are_those_of_the_distance():
    found = shifted(jnp.tile(jnp.arange(2 * SIZE)[::-1], (SIZE, 1)))
    for i in range(SIZE):
        for j in range(SIZE + i + 1):
            assert found[i, j] == SIZE + i - j
    np.testing.assert_allclose(sinusoids(3, 4)[2], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], atol=1e-6)


def test_no_gradient_reaches_the_steps_of_earlier_segments():
    transformer = TransformerConfig(layers=2, heads=2, width=16, mlp_width=16, max_positions=32, memory_steps=SIZE)
    config = PolicyConfig(transformer, memory="transformer-xl")
    policy = Policy(config, vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(3)))
    params = jax.jit(policy.init)(jax.random.key(0))
    memory = policy.initial_memory(1, 10_000)
    assert memory.keys[0].data.shape == (1, 2, 2 * SIZE, 8)

    @jax.jit
    def moved(observation):
        def value(observation):
            steps = jnp.zeros((1, STEPS))
            inputs = StepInput(observation, steps.astype(jnp.int32), steps, steps > 0)
            span = Span(jnp.int32(10), 1)
            return policy.unroll(params, policy.initial_memory(1, 0), inputs, query_span=span)[0].value.sum()

        return jax.grad(value)(observation)

    gradient = np.abs(moved(jax.random.normal(jax.random.key(1), (1, STEPS, 2)))).sum((0, 2))
    np.testing.assert_array_equal(gradient > 0, (np.arange(STEPS) >= 8) & (np.arange(STEPS) <= 10))
