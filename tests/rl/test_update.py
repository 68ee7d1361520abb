"""The jitted partial update compared with a slow reference implementation, and its invariants."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from relic_jax.config import PolicyConfig, PPOConfig, TrainConfig, TransformerConfig, TrialConfig
from relic_jax.envs.darkroom.env import Darkroom
from relic_jax.envs.registry import make
from relic_jax.rl import update as up
from relic_jax.rl.masked import normalize_advantages
from relic_jax.rl.minibatches import Order, step_environments
from relic_jax.rl.optimizer import learning_rate, make_optimizer
from relic_jax.rl.parallel import initial_state, parallel, state_shardings
from relic_jax.rl.rollout import collect
from relic_jax.rl.segment import segment_step, trial_step
from relic_jax.rl.state import init_state, make_setup, step_input
from relic_jax.rl.trial import continue_trial
from relic_jax.types import StepInput

TRANSFORMER = TransformerConfig(layers=2, heads=2, width=16, mlp_width=16, max_positions=32)


def config(**ppo) -> TrainConfig:
    settings = {"minibatches": 4, "accumulate": 2, "epochs": 2, "lr": 1e-2, "warmup_steps": 0, **ppo}
    return TrainConfig(
        env="probe-bandit",
        total_steps=1000,
        devices=1,
        policy=PolicyConfig(transformer=TRANSFORMER),
        trial=TrialConfig(environments=4, steps=36, updates=3),
        ppo=PPOConfig(**settings),
    )


@functools.cache
def setup_of(**ppo):
    """Return the setup of `config`. Tests share setups, and with them what `begin` and `gathered` compile."""
    return make_setup(config(**ppo), make("probe-bandit"))


def randomised(params, seed=1):
    """Return random parameters. At initialization sinks are 0 and the policy is uniform."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


@functools.cache
def begin(setup):
    """Return a state at the start of a trial with random parameters."""

    @jax.jit
    def make_state():
        state = init_state(setup)
        return state.replace(params=randomised(state.params))

    return make_state()


@functools.cache
def gathered(setup, segments):
    """Return (state, batch) before an update halfway through a trial, after `segments` segments and one more."""

    @jax.jit
    def gather(state):
        for index in range(segments + 1):
            before = state.memory
            found = collect(setup, state.params, state.trial, before, jax.random.key(5 + index))
            start = index * setup.config.trial.segment
            trajectory = up.context.write_window(state.trajectory, found.steps, start)
            segment = jnp.asarray(index)
            state = state.replace(trial=found.trial, memory=found.memory, trajectory=trajectory, segment=segment)
        return state, up.make_batch(setup, state, before, found.last_value)

    return gather(begin(setup))


def plain_loss(setup, params, batch, window, rows):
    """Compute the loss by its definition: reference attention to the whole context, loss on the window."""
    ppo = setup.config.ppo
    policy = dataclasses.replace(
        setup.policy, config=PolicyConfig(transformer=dataclasses.replace(TRANSFORMER, attention="reference"))
    )
    end = int(window.start) + window.size
    inputs = jax.tree.map(lambda x: x[rows, :end], batch.trajectory.inputs)
    output, _ = policy.unroll(params, policy.initial_memory(len(rows), 0), inputs)
    taken = slice(int(window.start), end)
    steps = jax.tree.map(lambda x: x[rows, taken], batch.trajectory)
    advantage, target = batch.advantage[rows, taken], batch.target[rows, taken]
    log_p = jax.nn.log_softmax(output.distribution.logits[:, taken])
    log_prob = jnp.take_along_axis(log_p, steps.action[..., None], -1)[..., 0]
    ratio = jnp.exp(log_prob - steps.log_prob)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - ppo.clip, 1 + ppo.clip) * advantage)
    value = output.value[:, taken]
    inside = jnp.abs(value - steps.value) < ppo.value_clip
    bound = steps.value + jnp.clip(value - steps.value, -ppo.value_clip, ppo.value_clip)
    value = jnp.where(inside, value, jax.lax.stop_gradient(bound))
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    losses = -surrogate + ppo.value_coef * 0.5 * (value - target) ** 2 - ppo.entropy_coef * entropy
    return losses.mean()


def windows(setup, state):
    segment = setup.config.trial.segment
    return {
        "partial": up.Window(state.segment * segment, segment, full=False),
        "full": up.Window(0, setup.config.trial.steps, full=True),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partial", pytest.param("full", marks=pytest.mark.slow)])
def test_epochs_equal_a_plain_rewriting(kind):
    """Compare two epochs of four minibatches of one environment, with the gradients of two summed per Adam step."""
    setup = setup_of()
    state, batch = gathered(setup, 1 if kind == "partial" else 2)
    window, key, ppo = windows(setup, state)[kind], jax.random.key(3), setup.config.ppo
    found, _, _ = jax.jit(lambda s, b: up.run_epochs(setup, s, b, window, key))(state, batch)

    params, optimizer = state.params, make_optimizer(ppo)
    opt_state, rate = state.opt_state, learning_rate(ppo, 1000, state.env_steps)
    gradient = jax.jit(jax.grad(lambda p, row: plain_loss(setup, p, batch, window, row)))
    for epoch_key in jax.random.split(key, 2):
        for pair in step_environments(jax.random.split(epoch_key)[0], 4, 2):
            total = jax.tree.map(jnp.add, gradient(params, pair[:1]), gradient(params, pair[1:]))
            direction, opt_state = optimizer.update(total, opt_state, params)
            params = optax.apply_updates(params, jax.tree.map(lambda d: -rate * d, direction))
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, params, state.params))
    assert moved > 0.1
    chex.assert_trees_all_close(found, params, atol=2e-5)


@pytest.mark.slow
def test_stopped_context_gives_the_same_outputs_and_only_the_segments_gradient():
    full = setup_of()
    stopped = setup_of(context_gradient="stopped")
    state, batch = gathered(full, 1)
    window, nothing = windows(full, state)["partial"], jax.random.key(0)

    def gradient(setup, batch, window):
        return jax.jit(jax.grad(lambda p: up.minibatch_loss(setup, 0, p, batch, window, nothing)[0]))(state.params)

    outputs = [
        jax.jit(lambda p, s=s: up.window_output(s, p, batch, window, nothing))(state.params) for s in (full, stopped)
    ]
    chex.assert_trees_all_close(*outputs, atol=1e-5)
    gradients = [gradient(setup, batch, window) for setup in (full, stopped)]
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, *gradients))
    assert difference > 1e-2 * optax.tree.norm(gradients[0])  # the estimators differ with a context …
    first = window._replace(start=0)
    alone = batch._replace(memory=full.policy.initial_memory(4, 0))
    both = [
        jax.jit(jax.grad(lambda p, s=s: up.minibatch_loss(s, 0, p, alone, first, nothing)[0]))(state.params)
        for s in (full, stopped)
    ]
    chex.assert_trees_all_close(*both, atol=1e-6)  # … and are equal without one


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_accumulated_gradients_are_summed_or_averaged(reduction):
    setup = setup_of(accumulate=4, gradient_reduction=reduction)
    state, batch = gathered(setup_of(), 1)  # acting and advantages are those of any reduction
    window = windows(setup, state)["partial"]
    keys, order = jax.random.split(jax.random.key(0), 4), Order(jnp.arange(4)[:, None])
    sums = jax.jit(lambda p: up.accumulated_gradients(setup, state, p, batch, window, order, keys)[0])
    found = sums(state.params)
    whole = jax.jit(jax.grad(lambda p: up.minibatch_loss(setup, state.env_steps, p, batch, window, keys[0])[0]))(
        state.params
    )
    factor = 4 if reduction == "sum" else 1
    chex.assert_trees_all_close(found, jax.tree.map(lambda g: factor * g, whole), atol=1e-5, rtol=1e-4)


def test_after_an_update_the_context_is_shuffled_and_recomputed_with_the_new_weights():
    setup = setup_of()
    state, _ = gathered(setup, 1)
    state = state.replace(params=randomised(state.params, seed=9))
    after = jax.jit(lambda s: continue_trial(setup, s, jax.random.key(1)))(state)
    filled = 2 * setup.config.trial.segment
    inputs = jax.tree.map(lambda x: x[:, :filled], after.trajectory.inputs)
    fresh = setup.policy.initial_memory(4, setup.config.trial.steps)
    output, memory = jax.jit(setup.policy.unroll)(state.params, fresh, inputs)
    chex.assert_trees_all_close(after.memory, memory, atol=1e-5)
    np.testing.assert_allclose(after.trajectory.value[:, :filled], output.value, atol=1e-5)
    before, now = (np.asarray(t.log_prob[:, :filled]) for t in (state.trajectory, after.trajectory))
    assert (before != now).any()
    np.testing.assert_array_equal(np.sort(before), np.sort(now))  # those of the acting policy, in another order


@pytest.fixture(scope="module")
def counted_chunk():
    """Return (setup, the compiled segment of training, which may be traced once)."""
    chex.clear_trace_counter()
    setup = setup_of(context_gradient="stopped")
    counted = chex.assert_max_traces(lambda s, state: segment_step(s, state), n=1)
    return setup, parallel(setup, counted)


@pytest.mark.slow
def test_a_trial_in_one_call_equals_its_segments_and_ends_with_an_empty_context(counted_chunk):
    setup, chunk = counted_chunk
    state = begin(setup)
    whole, metrics = jax.jit(lambda s: trial_step(setup, s))(state)
    state = jax.device_put(jax.device_get(state), state_shardings(setup.config, state))  # a copy, which is donated
    for index in range(setup.config.trial.updates):
        state, part = chunk(state)
        chex.assert_trees_all_close(part, jax.tree.map(lambda x, i=index: x[i], metrics), atol=1e-4, rtol=1e-4)
    chex.assert_trees_all_close(state.params, whole.params, atol=1e-4)
    assert int(state.segment) == 0 and int(state.memory.filled) == 0 and int(state.env_steps) == 4 * 36
    assert state.trial.first.all()


@pytest.mark.slow
def test_one_trace_serves_every_segment_of_a_growing_trial(counted_chunk):
    setup, chunk = counted_chunk
    state = initial_state(setup)
    for _ in range(2 * setup.config.trial.updates):
        state, _ = chunk(state)
    assert chunk._cache_size() == 1


@pytest.mark.slow
def test_time_limits_bootstrap_from_the_observation_that_was_cut_off():
    setup = make_setup(config(time_limit="bootstrap"), Darkroom("short", 4, 4, horizon=6))
    state = begin(setup)
    params, policy = state.params, setup.policy
    found = jax.jit(lambda s: collect(setup, s.params, s.trial, s.memory, jax.random.key(2)))(state)
    np.testing.assert_array_equal(found.steps.truncated.sum(1), np.full(4, 2))
    cut = np.flatnonzero(np.asarray(found.steps.truncated[0]))[0]
    inputs = jax.tree.map(lambda x: x[:, : cut + 1], found.steps.inputs)
    _, memory = jax.jit(policy.unroll)(params, policy.initial_memory(4, 36), inputs)
    last = found.results.final_observation[cut]
    following = StepInput(last, found.steps.action[:, cut], found.steps.reward[:, cut], jnp.zeros(4, bool))
    expected = jax.jit(policy.act)(params, memory, following)[0].value
    np.testing.assert_allclose(found.steps.final_value[:, cut], expected, atol=1e-5)
    assert not found.steps.final_value[~found.steps.truncated].any()


def test_acting_records_what_the_policy_saw_and_did():
    """Unrolling the recorded inputs reproduces the recorded log-probabilities and values."""
    setup = setup_of()
    state = begin(setup)
    params, policy = state.params, setup.policy
    found = jax.jit(lambda s: collect(setup, s.params, s.trial, s.memory, jax.random.key(2)))(state)
    output, memory = jax.jit(policy.unroll)(params, state.memory, found.steps.inputs)
    np.testing.assert_allclose(output.distribution.log_prob(found.steps.action), found.steps.log_prob, atol=1e-5)
    np.testing.assert_allclose(output.value, found.steps.value, atol=1e-5)
    following = jax.jit(policy.value)(params, memory, step_input(found.trial))
    np.testing.assert_allclose(following, found.last_value, atol=1e-5)


@pytest.mark.slow
def test_credit_through_the_trial_ignores_episode_ends():
    setup = setup_of(credit="trial", shuffle=False)
    state, batch = gathered(setup, 1)
    per_episode = up.make_batch(setup_of(), state, batch.memory, jnp.zeros(4))
    ended = np.asarray(state.trajectory.terminated[0])
    at = int(np.flatnonzero(ended)[0])
    value, reward = (np.asarray(x[0]) for x in (state.trajectory.value, state.trajectory.reward))
    np.testing.assert_allclose(per_episode.advantage[0, at], reward[at] - value[at], atol=1e-6)
    beyond = 0.99 * value[at + 1] + 0.99 * 0.95 * float(batch.advantage[0, at + 1])
    np.testing.assert_allclose(batch.advantage[0, at], reward[at] - value[at] + beyond, atol=1e-5)


def test_advantages_are_normalised_over_the_trial_so_far():
    setup = setup_of()
    advantage = jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, (4, 36)), jnp.float32)
    result = normalize_advantages(setup, advantage, 24)
    seen = np.asarray(advantage[:, :24])
    np.testing.assert_allclose(result, (np.asarray(advantage) - seen.mean()) / seen.std(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_refresh_every_second_update_keeps_the_context_in_between():
    setup = setup_of(refresh_every=2)
    state, _ = gathered(setup_of(), 0)
    state = state.replace(params=randomised(state.params, seed=9))
    run = jax.jit(lambda s: continue_trial(setup, s, jax.random.key(1)))
    kept = run(state)
    chex.assert_trees_all_equal((kept.memory, kept.trajectory), (state.memory, state.trajectory))
    state, _ = gathered(setup_of(), 1)
    renewed = run(state.replace(params=randomised(state.params, seed=9)))
    assert (renewed.trajectory.value != state.trajectory.value).any()
    never = setup_of(refresh_every=None, shuffle=False)
    kept = jax.jit(lambda s: continue_trial(never, s, jax.random.key(1)))(state)
    chex.assert_trees_all_equal((kept.memory, kept.trajectory), (state.memory, state.trajectory))
    assert int(kept.segment) == int(state.segment) + 1


@pytest.mark.slow
def test_the_full_gradient_computes_only_what_is_filled():
    """Steps after the window have no effect, even if they are NaN."""
    setup = setup_of()
    state, batch = gathered(setup, 1)
    window, key = windows(setup, state)["partial"], jax.random.key(0)
    gradient = jax.jit(lambda p, b: up.gradient(setup, state.env_steps, p, b, window, key)[0])
    poisoned = batch._replace(
        trajectory=batch.trajectory.replace(value=batch.trajectory.value.at[:, 24:].set(jnp.nan)),
        advantage=batch.advantage.at[:, 24:].set(jnp.nan),
    )
    expected = jax.jit(jax.grad(lambda p: up.minibatch_loss(setup, state.env_steps, p, batch, window, key)[0]))
    chex.assert_trees_all_close(gradient(state.params, poisoned), expected(state.params), atol=1e-6)
    observations = poisoned.trajectory.inputs.observation.at[:, 24:].set(jnp.nan)
    inputs = poisoned.trajectory.inputs.replace(observation=observations)
    poisoned = poisoned._replace(trajectory=poisoned.trajectory.replace(inputs=inputs))
    chex.assert_trees_all_close(gradient(state.params, poisoned), expected(state.params), atol=1e-6)


@pytest.mark.slow
def test_activations_kept_or_recomputed_give_the_same_gradient():
    transformer = dataclasses.replace(TRANSFORMER, remat=True)
    recomputed = dataclasses.replace(config(), policy=PolicyConfig(transformer=transformer))
    setups = [setup_of(), make_setup(recomputed, make("probe-bandit"))]
    state, batch = gathered(setups[0], 1)
    window, key = windows(setups[0], state)["partial"], jax.random.key(0)
    kept, again = (
        jax.jit(lambda p, s=s: up.gradient(s, state.env_steps, p, batch, window, key)[0])(state.params) for s in setups
    )
    chex.assert_trees_all_close(kept, again, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("minibatches", "accumulate"), [(4, 4), (2, 2)])
def test_two_devices_make_the_update_of_one(reduction, minibatches, accumulate):
    """Minibatches of one environment are distributed, those of two are split. There is one step per epoch."""
    settings = {"minibatches": minibatches, "accumulate": accumulate, "epochs": 1, "gradient_reduction": reduction}
    one = setup_of(**settings)
    state, _ = gathered(setup_of(), 1)

    def updated(setup, state):
        memory = state.memory.replace(length=state.memory.length - setup.config.trial.segment)
        window = up.Window(state.segment * setup.config.trial.segment, setup.config.trial.segment, full=False)
        own = up.Batch(state.trajectory, memory, state.trajectory.value, state.trajectory.reward)
        params, _, _ = up.run_epochs(setup, state, own, window, jax.random.key(3))
        return state.replace(params=params), {"unused": jnp.zeros(())}

    found = []
    for devices in (1, 2):
        setup = dataclasses.replace(one, config=dataclasses.replace(one.config, devices=devices))
        placed = jax.device_put(jax.device_get(state), state_shardings(setup.config, state))
        found.append(parallel(setup, updated)(placed)[0].params)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, found[0], state.params))
    assert moved > 0.01
    chex.assert_trees_all_close(*map(jax.device_get, found), atol=1e-5)
