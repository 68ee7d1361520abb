import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.models import cache as kv
from relic_jax.models.policy import Policy
from relic_jax.models.transformer import Transformer, empty_memory
from relic_jax.spaces import vector_spaces

SINKS = ["kv", "kv0", "k0v", "k0v0", "token", "none"]
TINY = TransformerConfig(layers=2, heads=8, width=64, mlp_width=256, max_positions=2048)
SMALL = TransformerConfig(layers=4, heads=8, width=256, mlp_width=1024, max_positions=32_768, sink="kv0")
LARGE = TransformerConfig(layers=8, heads=24, width=768, mlp_width=3072, max_positions=32_768, sink="kv0")
TOY = TransformerConfig(layers=3, heads=2, width=8, mlp_width=12, max_positions=16)


def initialise(cfg, key):
    x, first = jnp.zeros((1, 1, cfg.width)), jnp.ones((1, 1), bool)
    return Transformer(cfg).init(key, x, first, empty_memory(cfg, 1, 0))["params"]


def shapes_of(cfg):
    return jax.eval_shape(lambda key: initialise(cfg, key), jax.random.key(0))


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def random_params(cfg, seed):
    """Return random values for all parameters, including sinks."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32), shapes_of(cfg))


def blocks_of(params):
    return [params[name] for name in sorted(params) if name.startswith("blocks_")]


def policy_shapes(cfg, observation, actions):
    policy = Policy(PolicyConfig(cfg), vector_spaces((-1.0,) * observation, (1.0,) * observation, Discrete(actions)))
    return jax.eval_shape(policy.init, jax.random.key(0))


def test_tiny_has_the_papers_272k_parameters():
    """Count the parameters of the Darkroom policy.

    The transformer has 262,720 (131,072 of them positions), the two projections 8,512, the embedding of the previous
    action 384, actor and critic 390.
    """
    params = policy_shapes(TINY, observation=2, actions=5)
    assert count(params["transformer"]) == 262_720
    assert count(params["transformer"]["step_embedding"]) == 131_072
    assert count(params) == 272_006


def object_navigation_around(width, actions=4):
    """Return the parameters outside the transformer: encoders, action embedding, projections, heads."""
    features = (768 + 1) * width + (20 + 1) * width + (2 + 1) * 32 + (actions + 1) * width
    projections = (3 * width + 32 + 1) * width + (width + 1) * width
    return features + projections + (width + 1) * (actions + 1)


def test_small_has_the_papers_13m_parameters_of_which_4m_in_the_blocks():
    """The object-navigation policy has 13.1M parameters, the transformer with its 32,768 positions 12.6M."""
    params = shapes_of(SMALL)
    assert count(blocks_of(params)) == 4_197_376
    assert count(params) == 12_586_240
    assert round((count(params) + object_navigation_around(256)) / 1e6, 1) == 13.1


def test_large_has_the_papers_104m_parameters():
    assert round((count(shapes_of(LARGE)) + object_navigation_around(768)) / 1e6) == 104


@pytest.mark.parametrize(("cfg", "kib"), [(TINY, 1), (SMALL, 8), (LARGE, 48)])
def test_cache_takes_the_papers_bytes_per_step(cfg, kib):
    """A step stores float32 keys and values of all layers, and 4 bytes for the episode's index."""
    assert cfg.cache_bytes_per_step == kib * 1024
    cache = jax.eval_shape(lambda: empty_memory(cfg, 3, 10))
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((cache.keys, cache.values))) == 3 * 10 * kib * 1024
    half = dataclasses.replace(cfg, dtype="bfloat16")
    assert half.cache_bytes_per_step == kib * 512
    assert jax.eval_shape(lambda: empty_memory(half, 1, 1)).keys[0].data.dtype == jnp.bfloat16


def test_initial_values():
    """An estimated standard deviation of n draws has a relative error of (2n)^(−1/2). The tolerance is 5 of these."""
    policy = Policy(PolicyConfig(TINY), vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(5)))
    params = jax.jit(policy.init)(jax.random.key(0))
    transformer, blocks = params["transformer"], blocks_of(params["transformer"])
    linear = [x["kernel"] for block in blocks for name, x in block.items() if name.endswith("_proj")]
    linear += [params["proj_in"]["kernel"], params["proj_out"]["kernel"], transformer["step_embedding"]]
    assert len(linear) == 2 * 7 + 3
    for array, std in [(x, 0.02) for x in linear] + [(params["encoder"]["action"]["embedding"], 1.0)]:
        assert abs(np.std(array) / std - 1) < 5 * (2 * array.size) ** -0.5
        assert abs(np.mean(array)) < 5 * std * array.size**-0.5
    norms = [block[name]["scale"] for block in blocks for name in ("attention_norm", "mlp_norm")]
    for scale in [*norms, transformer["norm"]["scale"]]:
        np.testing.assert_array_equal(scale, 1.0)
    for block in blocks:
        np.testing.assert_array_equal(block["sink_key"], np.zeros((8, 8)))
        np.testing.assert_array_equal(block["sink_value"], np.zeros((8, 8)))
    actor, critic = params["actor"]["kernel"], params["critic"]["kernel"]
    np.testing.assert_allclose(actor.T @ actor, 1e-4 * np.eye(5), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(critic), 1.0, rtol=1e-5)
    for name in ("proj_in", "proj_out", "actor", "critic"):
        np.testing.assert_array_equal(params[name]["bias"], 0.0)


def test_initial_values_by_the_number_of_inputs():
    """With `normal`, all linear layers have 1/√inputs (a normal distribution truncated at two deviations)."""
    policy = Policy(
        PolicyConfig(dataclasses.replace(TINY, init="fan_in")), vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(5))
    )
    params = jax.jit(policy.init)(jax.random.key(0))
    linear = [x["kernel"] for block in blocks_of(params["transformer"]) for name, x in block.items() if "_proj" in name]
    linear += [params["proj_in"]["kernel"], params["proj_out"]["kernel"]]
    assert {x.shape[0] for x in linear} >= {TINY.width, TINY.mlp_width}
    for array in linear:
        assert abs(np.std(array) * array.shape[0] ** 0.5 - 1) < 5 * (2 * array.size) ** -0.5
    kept = params["transformer"]["step_embedding"]
    assert abs(np.std(kept) / 0.02 - 1) < 5 * (2 * kept.size) ** -0.5


@pytest.mark.parametrize("sink", SINKS)
def test_only_the_learned_halves_of_a_sink_are_parameters(sink):
    params = shapes_of(dataclasses.replace(TOY, sink=sink))
    learned = {"kv": {"sink_key", "sink_value"}, "kv0": {"sink_key"}, "k0v": {"sink_value"}}.get(sink, set())
    for block in blocks_of(params):
        assert {name for name in block if name.startswith("sink")} == learned
    assert ("sink_token" in params) == (sink == "token")


def test_position_and_episode_of_every_step():
    """Positions restart at every flag. The first step starts the first episode, whether or not it is flagged."""
    first = jnp.array([[1, 0, 0, 1, 0, 1], [0, 0, 1, 1, 0, 0]], bool)
    expected_position = [[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 1, 2]]
    expected_episode = [[1, 1, 1, 2, 2, 3], [1, 1, 2, 3, 3, 3]]
    whole = kv.index_steps(empty_memory(TOY, 2, 6), first)
    np.testing.assert_array_equal(whole[0], expected_position)
    np.testing.assert_array_equal(whole[1], expected_episode)
    cache = empty_memory(TOY, 2, 6)
    for chunk in (slice(0, 2), slice(2, 3), slice(3, 6)):
        position, episode = kv.index_steps(cache, first[:, chunk])
        np.testing.assert_array_equal(position, np.array(expected_position)[:, chunk])
        np.testing.assert_array_equal(episode, np.array(expected_episode)[:, chunk])
        cache = kv.advance(cache, position, episode)
    np.testing.assert_array_equal(cache.episodes, expected_episode)
    assert cache.filled == 6


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * scale


@pytest.mark.parametrize("sink", ["kv", "token"])
def test_depth_dropout_drops_whole_blocks_with_one_coin_per_block_and_pass(sink):
    """A pass equals the transformer without the dropped blocks. With all dropped, it is the norm of the embedding."""
    cfg = dataclasses.replace(TOY, sink=sink, depth_dropout=0.5)
    params = random_params(cfg, 1)
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(2, 7, cfg.width)), jnp.float32)
    first = jnp.asarray(rng.random((2, 7)) < 0.3)

    @jax.jit
    def run(params, key=None):
        return Transformer(cfg).apply({"params": params}, x, first, empty_memory(cfg, 2, 0), dropout_key=key)[0]

    def without(blocks):
        """Return the parameters with the outputs of these blocks' residual branches set to zero."""
        dropped = {
            f"blocks_{i}": {
                **params[f"blocks_{i}"],
                **{n: {"kernel": 0 * params[f"blocks_{i}"][n]["kernel"]} for n in ("o_proj", "down_proj")},
            }
            for i in blocks
        }
        return run({**params, **dropped})

    subsets = [[i for i in range(3) if bits >> i & 1] for bits in range(8)]
    candidates = np.stack([without(blocks) for blocks in subsets])
    np.testing.assert_array_equal(run(params), candidates[0])  # no key, no dropout

    position, _ = kv.index_steps(empty_memory(cfg, 2, 0), first)
    embedding = x + params["step_embedding"][position + 1]
    np.testing.assert_allclose(candidates[7], rms_norm(embedding, params["norm"]["scale"]), atol=1e-5)

    passes = np.stack([run(params, key) for key in jax.random.split(jax.random.key(0), 64)])
    distance = np.abs(passes[:, None] - candidates[None]).max((2, 3, 4))
    assert distance.min(1).max() < 1e-5
    drawn = np.bincount(distance.argmin(1), minlength=8)
    # each of the 8 is drawn with probability 1/8: missing one in 64 passes has probability 8·(7/8)^64 ≈ 0.2 %
    assert (drawn > 0).all()


def test_depth_dropout_probability():
    """With p = 0.1 all three blocks are kept in 0.9³ = 72.9 % of passes, ± 4 standard deviations of 300 draws."""
    cfg = dataclasses.replace(TOY, depth_dropout=0.1)
    params = random_params(cfg, 3)
    x, first = jnp.ones((1, 2, cfg.width)), jnp.zeros((1, 2), bool)

    @jax.jit
    @jax.vmap
    def run(key):
        return Transformer(cfg).apply({"params": params}, x, first, empty_memory(cfg, 1, 0), dropout_key=key)[0]

    whole = Transformer(cfg).apply({"params": params}, x, first, empty_memory(cfg, 1, 0))[0]
    kept = np.abs(run(jax.random.split(jax.random.key(0), 300)) - whole).max((1, 2, 3)) < 1e-5
    assert abs(kept.mean() - 0.729) < 4 * (0.729 * 0.271 / 300) ** 0.5
