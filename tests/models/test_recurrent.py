"""The recurrent memory compared with numpy, with Flax's cells, and with itself step by step."""

import dataclasses
import functools
import itertools
from unittest import mock

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import LinearRNNConfig, PolicyConfig, RecurrentConfig
from relic_jax.environment.base import Discrete
from relic_jax.models.memory import joined, rows
from relic_jax.models.policy import Policy
from relic_jax.models.recurrent import CELLS, Carry, Cell, empty_carry
from relic_jax.spaces import vector_spaces
from relic_jax.types import StepInput

KINDS = ["gru", "lstm"]
PARTS = {"gru": 1, "lstm": 2}
BATCH, STEPS, WIDTH = 3, 12, 8


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cell_case(kind, inputs=5):
    """Return (cell, random parameters, x [B, Q, d], state)."""
    cell = Cell(kind, WIDTH, keep_bias=1.0)
    x, state = normal(0, BATCH, STEPS, inputs), normal(1, BATCH, PARTS[kind], WIDTH)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), x, state))["params"]
    keys = itertools.count(2)
    params = jax.tree.map(lambda leaf: normal(next(keys), *leaf.shape) * WIDTH**-0.5, shapes)
    return cell, params, x, state


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(kind, params, x, state):
    """Compute a cell gate by gate and step by step, in float64."""
    double = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    width, h = WIDTH, state[:, 0].astype(np.float64)
    c, outputs = state[:, -1].astype(np.float64), []

    def gate(number, x_t, h):
        block = slice(number * width, (number + 1) * width)
        wanted = double["input"]["kernel"][:, block], double["input"]["bias"][block], double["recurrent"][:, block]
        return x_t @ wanted[0] + wanted[1], h @ wanted[2]

    for x_t in x.swapaxes(0, 1).astype(np.float64):
        if kind == "gru":
            reset, update = sigmoid(sum(gate(0, x_t, h))), sigmoid(sum(gate(1, x_t, h)))
            from_x, from_h = gate(2, x_t, h)
            candidate = np.tanh(from_x + reset * (from_h + double["candidate_bias"]))
            h = update * h + (1 - update) * candidate
        else:
            i, f, g, o = (sum(gate(number, x_t, h)) for number in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, axis=1), np.stack([h, c][: PARTS[kind]], axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_equals_a_rewriting_by_hand(kind):
    cell, params, x, state = cell_case(kind)
    found = jax.jit(lambda p: cell.apply({"params": p}, x, state))(params)
    expected = by_hand(kind, params, x, state)
    assert np.abs(expected[0]).max() > 0.5
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_equals_flax_with_the_same_parameters(kind):
    cell, params, x, state = cell_case(kind)
    gates = {"gru": "rzn", "lstm": "ifgo"}[kind]
    theirs = {}
    for number, gate in enumerate(gates):
        block = slice(number * WIDTH, (number + 1) * WIDTH)
        bias = {"bias": params["input"]["bias"][block]}
        at_input = kind == "gru"  # Flax's LSTM keeps its biases with the recurrent weights
        theirs[f"i{gate}"] = {"kernel": params["input"]["kernel"][:, block]} | (bias if at_input else {})
        theirs[f"h{gate}"] = {"kernel": params["recurrent"][:, block]} | ({} if at_input else bias)
    if kind == "gru":
        theirs["hn"]["bias"] = params["candidate_bias"]
    flax_cell = nn.GRUCell(WIDTH) if kind == "gru" else nn.LSTMCell(WIDTH)
    carry = state[:, 0] if kind == "gru" else (state[:, 1], state[:, 0])
    step = jax.jit(lambda carry, x_t: flax_cell.apply({"params": theirs}, carry, x_t))
    expected = []
    for x_t in x.swapaxes(0, 1):
        carry, output = step(carry, x_t)
        expected.append(output)
    found, after = jax.jit(lambda p: cell.apply({"params": p}, x, state))(params)
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-5)
    np.testing.assert_allclose(after, np.stack([carry] if kind == "gru" else carry[::-1], axis=1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_cell_equals_that_of_its_loop(kind):
    """Compare the gradient, which is written out, with automatic differentiation of a scan."""
    cell, params, x, state = cell_case(kind)

    def plain(kind, state, inputs, kernel, bias):
        def step(state, inputs):
            state = CELLS[kind](state, inputs, state[:, 0] @ kernel + bias)
            return state, state

        return jax.lax.scan(step, state, inputs)

    def loss(params, x, state):
        outputs, last = cell.apply({"params": params}, x, state)
        return jnp.sum(jnp.sin(outputs)) + jnp.sum(last**2)

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, x, state)
    with mock.patch("relic_jax.models.recurrent.scan_cell", plain):
        expected = jax.jit(jax.grad(lambda *arguments: loss(*arguments), argnums=(0, 1, 2)))(params, x, state)
    assert jax.tree.all(jax.tree.map(lambda g: bool(np.any(g)), found))
    chex.assert_trees_all_close(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_only_the_gate_that_keeps_is_biased_and_recurrent_weights_are_orthogonal(kind):
    cell, _, x, state = cell_case(kind)
    params = jax.device_get(jax.jit(lambda: cell.init(jax.random.key(0), x, state)["params"])())
    bias = np.zeros(len(params["input"]["bias"]))
    bias[WIDTH : 2 * WIDTH] = 1.0
    np.testing.assert_array_equal(params["input"]["bias"], bias)
    for block in np.split(params["recurrent"], {"gru": 3, "lstm": 4}[kind], axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(WIDTH), atol=1e-5)


# --- the policy ---


def policy_with(kind, layers=2):
    config = PolicyConfig(memory=kind, recurrent=RecurrentConfig(layers=layers, width=WIDTH))
    return Policy(config, vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(3)))


def random_params(policy, seed=1):
    keys = itertools.count(100 * seed)
    return jax.tree.map(
        lambda x: normal(next(keys), *x.shape) * (x.shape[0] ** -0.5 if len(x.shape) == 2 else 1.0),
        jax.eval_shape(policy.init, jax.random.key(0)),
    )


def random_steps(seed=2, steps=STEPS):
    rng = np.random.default_rng(seed)
    first = rng.random((BATCH, steps)) < 0.25
    first[:, 0] = True
    return StepInput(
        observation=jnp.asarray(rng.uniform(-1, 1, (BATCH, steps, 2)), jnp.float32),
        previous_action=jnp.asarray(np.where(first, -1, rng.integers(0, 3, (BATCH, steps))), jnp.int32),
        previous_reward=jnp.asarray(rng.normal(size=(BATCH, steps)), jnp.float32),
        first=jnp.asarray(first),
    )


def outputs(output):
    return jnp.concatenate([output.distribution.logits, output.value[..., None]], axis=-1)


def unrolled(policy, params, inputs, *cuts):
    """Return (outputs, memory) of blocks that end at `cuts` and at the end."""
    memory, parts = policy.initial_memory(BATCH, STEPS), []
    for start, stop in itertools.pairwise((0, *cuts, inputs.first.shape[1])):
        block = jax.tree.map(lambda x, start=start, stop=stop: x[:, start:stop], inputs)
        output, memory = policy.unroll(params, memory, block)
        parts.append(outputs(output))
    return jnp.concatenate(parts, axis=1), memory


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_acting_equals_unrolling_in_blocks_of_any_size(kind, layers):
    policy = policy_with(kind, layers)
    params, inputs = random_params(policy), random_steps()
    expected, memory = jax.jit(functools.partial(unrolled, policy))(params, inputs)
    assert np.abs(expected).max() > 0.5
    assert memory.state.shape == (BATCH, layers, PARTS[kind], WIDTH) and memory.filled == STEPS
    chex.clear_trace_counter()
    act, carry, found = jax.jit(chex.assert_max_traces(policy.act, n=1)), policy.initial_memory(BATCH, STEPS), []
    for step in range(STEPS):
        output, carry = act(params, carry, jax.tree.map(lambda x, step=step: x[:, step], inputs))
        found.append(outputs(output))
    np.testing.assert_allclose(jnp.stack(found, axis=1), expected, atol=1e-5)
    chex.assert_trees_all_close(carry, memory, atol=1e-5)
    chunks = jax.jit(lambda p, x: unrolled(policy, p, x, 1, 7))(params, inputs)
    chex.assert_trees_all_close(chunks, (expected, memory), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_goes_on_through_episode_ends_of_which_the_network_is_told(kind):
    policy = policy_with(kind)
    flags = jnp.zeros((BATCH, STEPS), bool).at[:, jnp.array([0, 5, 9])].set(True)
    params, inputs = random_params(policy), random_steps().replace(first=flags)
    run = jax.jit(lambda inputs: unrolled(policy, params, inputs)[0])
    before = run(inputs)
    for changed in (
        inputs.replace(observation=inputs.observation.at[:, 3].add(1.0)),
        inputs.replace(first=flags.at[:, 3].set(True)),  # only the flag
    ):
        difference = np.abs(run(changed) - before).max((0, 2))
        assert (difference[:3] == 0).all() and (difference[3:] > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_goes_through_the_block_and_stops_at_the_memory(kind):
    policy = policy_with(kind)
    params, inputs = random_params(policy), random_steps()

    def last(observation, memory):
        return outputs(policy.unroll(params, memory, inputs.replace(observation=observation))[0])[:, -1].sum()

    memory = jax.jit(functools.partial(unrolled, policy))(params, random_steps(3))[1]
    through, into = jax.jit(jax.grad(last, argnums=(0, 1), allow_int=True))(inputs.observation, memory)
    assert (np.abs(through).max((0, 2)) > 0).all()
    assert not np.any(into.state)


def test_narrow_layers_before_and_after_the_cell_change_only_its_input_and_the_heads():
    narrow = RecurrentConfig(1, WIDTH, input_width=3, output_width=4)
    policy = Policy(PolicyConfig(memory="gru", recurrent=narrow), policy_with("gru").spaces)
    params, inputs = random_params(policy), random_steps()
    assert params["proj_in"]["kernel"].shape[1] == 3 and params["proj_out"]["kernel"].shape == (WIDTH, 4)
    cell = params["recurrent"]["layers_0"]
    assert cell["input"]["kernel"].shape == (3 + 1, 3 * WIDTH) and cell["recurrent"].shape == (WIDTH, 3 * WIDTH)
    output, memory = jax.jit(functools.partial(unrolled, policy))(params, inputs)
    assert output.shape == (BATCH, STEPS, 4) and memory.state.shape == (BATCH, 1, 1, WIDTH)


def test_peek_leaves_the_memory_and_no_window_can_be_asked_for():
    policy = policy_with("gru")
    params, inputs = random_params(policy), random_steps()
    _, memory = jax.jit(functools.partial(unrolled, policy))(params, inputs)
    step = jax.tree.map(lambda x: x[:, 0], random_steps(5))
    (expected, after), peeked = jax.jit(lambda m: (policy.act(params, m, step), policy.value(params, m, step)))(memory)
    np.testing.assert_allclose(peeked, expected.value, atol=1e-6)
    assert memory.filled == STEPS and after.filled == STEPS + 1
    with pytest.raises(ValueError, match="window"):
        policy.act(params, memory, step, window=jnp.int32(4))


def test_the_memory_is_small_and_starts_empty():
    config = RecurrentConfig(layers=2, width=WIDTH)
    for kind in KINDS:
        carry = empty_carry(config, kind, BATCH)
        assert carry.state.shape == (BATCH, 2, PARTS[kind], WIDTH)
        assert not np.any(carry.state) and carry.filled == 0


# --- operations of training on any memory ---


def policies():
    small = PolicyConfig().transformer
    transformer = dataclasses.replace(small, layers=1, heads=2, width=WIDTH, mlp_width=8, max_positions=32)
    spaces, network = vector_spaces((-1.0, -1.0), (1.0, 1.0), Discrete(3)), LinearRNNConfig(1, WIDTH, 8)
    linear = [Policy(PolicyConfig(memory=name, linear_rnn=network), spaces) for name in ("gated-delta", "lru")]
    return [policy_with("gru"), Policy(PolicyConfig(transformer), spaces), *linear]


@pytest.mark.parametrize("policy", policies(), ids=["gru", "transformer", "gated-delta", "lru"])
def test_every_memory_keeps_the_contract(policy):
    """Steps added by a copy of the right size, appended to the original, continue it, and the reverse."""
    params, inputs = random_params(policy), random_steps()
    early, late = (jax.tree.map(lambda x, part=part: x[:, part], inputs) for part in (slice(0, 8), slice(8, STEPS)))

    @jax.jit
    def run(params):
        _, before = policy.unroll(params, policy.initial_memory(BATCH, STEPS), early)
        working = policy.for_acting(before.prefix(STEPS).grown(STEPS + 4))
        after = policy.unroll(params, before, late)[1]
        added = policy.for_storage(policy.unroll(params, working, late)[1].last_steps(STEPS - 8))
        again, rewound = before.append(added), after.rewound(inputs.first, 0)
        parts = [rows(after, jnp.array([2])), rows(after, jnp.array([0, 1]))]
        once_more = policy.unroll(params, after.as_of(before), late)[1]
        afresh = unrolled(policy, params, inputs)[1]
        return after, again, once_more, joined(parts), policy.unroll(params, rewound, inputs)[1], afresh

    after, again, once_more, parts, renewed, afresh = run(params)
    assert after.filled == again.filled == parts.filled == STEPS <= after.capacity
    chex.assert_trees_all_close(again, after, atol=1e-6)
    chex.assert_trees_all_close(once_more, after, atol=1e-6)
    chex.assert_trees_all_close(renewed, afresh, atol=1e-6)
    order = jnp.array([2, 0, 1])
    chex.assert_trees_all_equal(parts, jax.tree.map(lambda x: x[order], after))
    with mock.patch.object(jax, "default_backend", return_value="gpu"):  # in one call
        chex.assert_trees_all_equal(rows(after, order), parts)


def test_a_carry_from_an_earlier_step_is_that_carry():
    earlier, later = (Carry(jnp.full((1, 1, 1, 2), float(n)), jnp.asarray([n])) for n in (1, 2))
    assert later.as_of(earlier) is earlier and earlier.append(later) is later
