"""Where attention goes, against a loop over steps, hand-made cases and the policy's own attention."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.trials import Trials
from relic_jax.envs.registry import make
from relic_jax.evaluation.attention import ATTENTION, AttentionShares, attention_shares, episode_mass, record
from relic_jax.experiments.attention import describe, draw, to_json
from relic_jax.models.attention import AttentionInputs, Context, Sink
from relic_jax.models.kv_formats import Slots
from relic_jax.models.policy import PolicyConfig, policy_for
from relic_jax.models.transformer import TransformerConfig

EPISODES = 3


def inputs_of(query, key, sink=None, **options):
    """Attention of one trial and one head, [T, D]."""
    query, key = (jnp.asarray(x, jnp.float32)[None, None] for x in (query, key))
    empty = Slots(jnp.zeros((1, 1, 0, key.shape[-1])))
    context = Context(empty, empty, jnp.zeros((1, 0), jnp.int32), jnp.zeros((), jnp.int32))
    sink = None if sink is None else Sink(jnp.asarray(sink, jnp.float32)[None], jnp.ones((1, len(sink))))
    episodes = options.pop("episodes", jnp.zeros((1, key.shape[2]), jnp.int32))
    options = {"within_episode": False} | options
    return AttentionInputs(query, key, key, episodes, context, sink, **options)


def test_a_hand_made_case():
    """Scores are 0 without a sink's and with one it counts like a step: every visible slot has an equal share."""
    zeros, episode = np.zeros((4, 2)), jnp.array([0, 0, 1, 2])
    plain = episode_mass(inputs_of(zeros, zeros), episode, 2)[0, 0]
    assert np.allclose(plain, [[1, 0, 0], [1, 0, 0], [2 / 3, 1 / 3, 0], [2 / 4, 1 / 4, 0]])  # the third is left out
    sunk = episode_mass(inputs_of(zeros, zeros, np.zeros(2)), episode, 3)[0, 0]
    expected = [[1 / 2, 0, 0, 1 / 2], [2 / 3, 0, 0, 1 / 3], [2 / 4, 1 / 4, 0, 1 / 4], [2 / 5, 1 / 5, 1 / 5, 1 / 5]]
    assert np.allclose(sunk, expected)
    # scores log 2 of the second step and log 3 of the sink, one number per head: 1, 2 and 3 parts
    one = episode_mass(inputs_of([[1.0], [1.0]], [[0.0], [math.log(2)]], [math.log(3)]), jnp.array([0, 1]), 2)[0, 0]
    assert np.allclose(one, [[1 / 4, 0, 3 / 4], [1 / 6, 2 / 6, 3 / 6]])
    within = inputs_of(zeros, zeros, np.zeros(2), within_episode=True, episodes=episode[None])
    alone = episode_mass(within, episode, 3)[0, 0]
    assert np.allclose(alone, [[1 / 2, 0, 0, 1 / 2], [2 / 3, 0, 0, 1 / 3], [0, 1 / 2, 0, 1 / 2], [0, 0, 1 / 2, 1 / 2]])


@pytest.fixture(scope="module", params=["kv", "token", "none"])
def acted(request, drawn):
    """Return (environment, policy, parameters, shares)."""
    config = TransformerConfig(
        layers=2, heads=2, width=8, mlp_width=8, max_positions=128, attention="reference", sink=request.param
    )
    env = make("darkroom-hard-17")  # episodes end early: those of different trials are of different lengths
    policy = policy_for(env, PolicyConfig(config))
    params = drawn(policy)
    return env, policy, params, attention_shares(policy, params, env, EvalConfig(episodes=EPISODES, tasks=3))


def test_shares_sum_to_1_and_none_is_on_later_episodes(acted):
    _, policy, _, shares = acted
    assert shares.sink.shape == (2, 2, EPISODES) and shares.episodes.shape == (2, 2, EPISODES, EPISODES)
    assert np.allclose(shares.sink + shares.episodes.sum(-1), 1, atol=1e-6)
    assert np.allclose(shares.sink + shares.current + shares.earlier, 1, atol=1e-6)
    assert not shares.episodes[..., np.triu_indices(EPISODES, 1)[0], np.triu_indices(EPISODES, 1)[1]].any()
    assert (shares.sink > 0).all() == (policy.config.transformer.sink != "none") and shares.tasks == 3


def test_a_loop_over_steps_agrees(acted):
    """The softmax of each step's scores, written out with NumPy from the stored queries and keys."""
    env, policy, params, shares = acted
    config = EvalConfig(episodes=EPISODES, tasks=3)
    tasks = jax.tree.map(lambda x: jnp.asarray(x[: config.tasks]), env.tasks("test"))
    inputs = record(policy, params, Trials(env), tasks, EPISODES, jax.random.key(0)).inputs
    total = np.zeros((2, 2, EPISODES, EPISODES + 1))
    for task in range(3):
        one = jax.tree.map(lambda x, task=task: x[task : task + 1], inputs)
        _, stored = policy.network.apply({"params": params}, one, policy.initial_memory(1, 0), mutable=[ATTENTION])
        episode = np.cumsum(np.asarray(one.first[0])) - 1
        for layer in range(2):
            block = stored[ATTENTION]["transformer"][f"blocks_{layer}"]["inputs"][0]
            for head in range(2):
                total[layer, head] += looped(block, head, episode) / 3
    assert np.allclose(shares.sink, total[..., -1], atol=1e-5)
    assert np.allclose(shares.episodes, total[..., :-1], atol=1e-5)


def looped(block, head, episode):
    query, key = (np.asarray(x, np.float64)[0, head] for x in (block.query, block.key))
    found, count = np.zeros((EPISODES, EPISODES + 1)), np.zeros(EPISODES)
    for step in np.flatnonzero(episode < EPISODES):
        scores = key[: step + 1] @ query[step]
        if block.sink is not None:
            scores = np.append(scores, np.asarray(block.sink.key, np.float64)[head] @ query[step])
        weights = np.exp(scores / math.sqrt(query.shape[-1]))
        weights /= weights.sum()
        for other in range(step + 1):
            found[episode[step], episode[other]] += weights[other]
        if block.sink is not None:
            found[episode[step], -1] += weights[-1]
        count[episode[step]] += 1
    return found / count[:, None]


def test_storing_attention_changes_no_output(acted):
    env, policy, params, _ = acted
    tasks = jax.tree.map(lambda x: jnp.asarray(x[:1]), env.tasks("test"))
    inputs = record(policy, params, Trials(env), tasks, 1, jax.random.key(0)).inputs
    memory = policy.initial_memory(1, 0)
    (output, _), _ = policy.network.apply({"params": params}, inputs, memory, mutable=[ATTENTION])
    assert np.array_equal(output.value, policy.unroll(params, memory, inputs)[0].value)
    assert ATTENTION not in jax.eval_shape(policy.init, jax.random.key(0))


def test_other_memories_are_refused():
    env = make("darkroom-dpt")
    policy = policy_for(env, PolicyConfig(memory="gru"))
    with pytest.raises(ConfigError, match=r"policy.memory is 'gru'; allowed: 'transformer'"):
        attention_shares(policy, {}, env, EvalConfig())


def test_text_json_and_figure():
    sink = np.array([[[0.5, 0.25]]])
    shares = AttentionShares(sink, np.array([[[[0.5, 0.0], [0.5, 0.25]]]]), 4)
    assert describe(shares) == [
        "early (episode 2): sink 25.0%, current episode 25.0%, earlier episodes 50.0%",
        "late (episode 2): sink 25.0%, current episode 25.0%, earlier episodes 50.0%",
    ]
    assert to_json(shares) == {"tasks": 4, "sink": sink.tolist(), "episodes": shares.episodes.tolist()}
    assert draw(shares, "title").axes[0].get_title() == "layer 1"


def test_the_command(cli, begun_run, tmp_path):
    code, out, err = cli("attention", begun_run, "--episodes", 2, "--limit", 2, "--out", tmp_path / "seen.svg")
    assert code == 0, err
    content = json.loads((tmp_path / "seen.json").read_text())
    assert np.shape(content["episodes"]) == (1, 2, 2, 2) and content["env"] == "darkroom-ad-9"
    assert out.startswith("early (episode 2): sink ") and (tmp_path / "seen.svg").is_file()
    code, _, err = cli("attention", begun_run, "--limit", 0)
    assert code == 2 and "limit is 0; allowed: more than 0" in err
