"""Memo: the network equals a plain transformer over steps and summary tokens with a mask, also its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.models.attention.reference import rotate
from relic_jax.models.cache import index_steps
from relic_jax.models.memo import Memo
from relic_jax.models.policy import Policy
from relic_jax.models.transformer import Transformer
from relic_jax.spaces import vector_spaces
from relic_jax.types import Span, StepInput

BATCH, STEPS, SIZE, TOKENS = 2, 14, 4, 3
CONFIG = TransformerConfig(
    *(2, 2, 16, 16, 32), sink="kv", summary_every=SIZE, summary_tokens=TOKENS, init="fan_in", gate="gru"
)


class Masked(Transformer):
    """The definition: steps and tokens in one sequence, in the order of time, with a mask."""

    def sequence(self, x, position, episode, tokens):
        """Return hidden states of all steps and tokens, and the mask of the steps."""
        x = x + self.embed_steps(position)
        parts, episodes, segments, is_token = [], [], [], []
        for start in range(0, STEPS, SIZE):
            stop = min(start + SIZE, STEPS)
            parts += [x[:, start:stop], jnp.broadcast_to(tokens, (BATCH, *tokens.shape))]
            episodes += [episode[:, start:stop], jnp.repeat(episode[:, stop - 1 : stop], TOKENS, 1)]
            segments += [start] * (stop - start + TOKENS)
            is_token += [False] * (stop - start) + [True] * TOKENS
        x, episodes = jnp.concatenate(parts, 1), jnp.concatenate(episodes, 1)
        segments, is_token = np.array(segments), np.array(is_token)
        visible = np.tri(len(segments), dtype=bool) & (is_token[None] | (segments[:, None] == segments[None]))
        for block in self.blocks:
            y, sink = block.attention_norm(x), block.learned_sink()
            query, key, value = (block.split_heads(p(y)) for p in (block.q_proj, block.k_proj, block.v_proj))
            query, key = rotate(query, episodes), rotate(key, episodes)
            scores = jnp.where(visible, jnp.einsum("bhqd,bhkd->bhqk", query, key), -jnp.inf)
            sink_score = jnp.einsum("bhqd,hd->bhq", query, sink.key)[..., None]
            weights = jax.nn.softmax(jnp.concatenate([sink_score, scores], -1) / np.sqrt(8), -1)
            out = jnp.einsum("bhqk,bhkd->bhqd", weights[..., 1:], value) + weights[..., :1] * sink.value[:, None]
            x = block.residual(x, out, 1.0)
        return self.norm(x)[:, ~is_token]


@pytest.fixture(scope="module")
def trial():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (BATCH, STEPS, 16))
    first = jax.random.bernoulli(keys[1], 0.3, (BATCH, STEPS))
    policy = Policy(PolicyConfig(CONFIG, memory="memo"), vector_spaces((-1.0,), (1.0,), Discrete(3)))
    memory = policy.initial_memory(BATCH, 0)
    params = jax.jit(Memo(CONFIG).init)(keys[2], x, first, memory)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(keys[2], len(leaves))
    params = tree.unflatten([p + 0.3 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])
    return params, x, first, memory


@pytest.mark.slow
def test_a_trial_and_its_gradients_equal_the_masked_definition(trial):
    params, x, first, memory = trial
    weight = jax.random.normal(jax.random.key(5), x.shape)

    def own(params, x):
        return jnp.sum(weight * Memo(CONFIG).apply({"params": params}, x, first, memory)[0])

    def defined(params, x):
        others = {name: p for name, p in params.items() if name != "summary_tokens"}
        arguments = x, *index_steps(memory, first), params["summary_tokens"]
        return jnp.sum(weight * Masked(CONFIG).apply({"params": others}, *arguments, method="sequence"))

    results = [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(params, x) for f in (own, defined)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-3), *results)
    gradient = results[0][1][0]["summary_tokens"]
    assert np.all(np.abs(gradient).sum(1) > 0)


def test_early_steps_matter_only_through_summaries(trial):
    """Without the values of the tokens, later segments do not depend on earlier ones."""
    params, x, first, memory = trial

    @jax.jit
    def gradient(x):
        def last(x):
            hidden, _ = Memo(CONFIG).apply({"params": params}, x, first, memory, query_span=Span(jnp.int32(13), 1))
            return hidden.sum()

        return jax.grad(last)(x)

    assert np.all(np.abs(gradient(x)).sum((0, 2))[:14] > 0)


@pytest.mark.slow
def test_the_memory_holds_a_segment_and_all_summaries():
    policy = Policy(PolicyConfig(CONFIG, memory="memo"), vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(3)))
    memory = policy.initial_memory(BATCH, 30)
    assert memory.keys[0].data.shape == (BATCH, 2, SIZE, 8)
    assert memory.summary_keys[0].data.shape == (BATCH, 2, 8, TOKENS, 8) and memory.capacity == 32
    grown = memory.grown(100)
    assert grown.capacity == 100 and jax.tree.structure(grown) == jax.tree.structure(memory)
    params = jax.jit(policy.init)(jax.random.key(0))
    zeros = jnp.zeros((BATCH, 37))
    rng = np.random.default_rng(0)
    inputs = StepInput(jnp.asarray(rng.normal(size=(BATCH, 37, 2)), jnp.float32), zeros.astype(int), zeros, zeros > 0)

    @jax.jit
    def act(memory, inputs):
        def step(memory, x):
            output, memory = policy.act(params, memory, x)
            return memory, output.value

        memory, value = jax.lax.scan(step, memory, jax.tree.map(lambda x: x.swapaxes(0, 1), inputs))
        return memory, value.swapaxes(0, 1)

    part = lambda a, b: jax.tree.map(lambda x: x[:, a:b], inputs)  # noqa: E731
    full, early = act(memory, part(0, 30))
    _, late = act(full.grown(40), part(30, 37))
    whole = jax.jit(policy.unroll)(params, policy.initial_memory(BATCH, 0), inputs)[0].value
    np.testing.assert_allclose(jnp.concatenate([early, late], 1), whole, atol=2e-5)
