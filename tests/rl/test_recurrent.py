"""RL²: training with a recurrent memory. Tests truncated backpropagation, recomputed states and learning."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import (
    ConfigError,
    EncoderConfig,
    EvalConfig,
    LinearRNNConfig,
    PolicyConfig,
    PPOConfig,
    RecurrentConfig,
    TrainConfig,
    TrialConfig,
    validate,
)
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_context_curves
from relic_jax.experiments.presets import DARKROOM, PRESETS, linear_rnn, rl2
from relic_jax.rl import runner
from relic_jax.rl import update as up
from relic_jax.rl.memory_budget import context_line
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.rollout import collect
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.segment import segment_step
from relic_jax.rl.state import init_state, make_setup
from relic_jax.rl.train import Progress, prepare, restore, save
from relic_jax.rl.trial import continue_trial

POLICY = PolicyConfig(memory="gru", recurrent=RecurrentConfig(width=24), encoder=EncoderConfig(observation="scaled"))
LINEAR = [
    dataclasses.replace(POLICY, memory=name, linear_rnn=LinearRNNConfig(1, 24, 32)) for name in ("gated-delta", "lru")
]
RL2 = {"context_gradient": "stopped", "last_update": "partial", "shuffle": False, "refresh_every": None}


def config(trial=None, policy=POLICY, **ppo):
    settings = {"minibatches": 2, "accumulate": 1, "epochs": 1, "lr": 1e-2, "warmup_steps": 0, **RL2, **ppo}
    return TrainConfig(
        env="probe-bandit",
        total_steps=432,
        chunk="segment",
        devices=1,
        policy=policy,
        trial=trial or TrialConfig(environments=4, steps=36, updates=3),
        ppo=PPOConfig(**settings),
    )


def in_the_middle(setup):
    """Return (state, batch) before an update after two segments of a trial, with a policy far from uniform."""

    @jax.jit
    def gather():
        state = init_state(setup)
        leaves, tree = jax.tree.flatten(state.params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        state = state.replace(params=jax.tree.unflatten(tree, noisy))
        for index in range(2):
            before = state.memory
            found = collect(setup, state.params, state.trial, before, jax.random.key(5 + index))
            trajectory = up.context.write_window(state.trajectory, found.steps, index * 12)
            state = state.replace(
                trial=found.trial, memory=found.memory, trajectory=trajectory, segment=jnp.asarray(index)
            )
        return state, up.make_batch(setup, state, before, found.last_value)

    return gather()


def plain_loss(setup, params, batch, memory, start):
    """Compute the loss on steps 12 … 24 by acting again step by step from `memory`, the state before step `start`."""
    ppo, steps = setup.config.ppo, batch.trajectory

    def act(memory, inputs):
        output, memory = setup.policy.act(params, memory, inputs)
        return memory, (output.distribution.logits, output.value)

    by_step = jax.tree.map(lambda x: x[:, start:24].swapaxes(0, 1), steps.inputs)
    logits, value = (x.swapaxes(0, 1)[:, -12:] for x in jax.lax.scan(act, memory, by_step)[1])
    part = slice(12, 24)
    log_p, advantage = jax.nn.log_softmax(logits), batch.advantage[:, part]
    log_prob = jnp.take_along_axis(log_p, steps.action[:, part, None], -1)[..., 0]
    ratio = jnp.exp(log_prob - steps.log_prob[:, part])
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    squared = 0.5 * (value - batch.target[:, part]) ** 2
    return (-surrogate + ppo.value_coef * squared - ppo.entropy_coef * entropy).mean()


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_the_gradient_is_that_of_the_segment_from_the_stored_state_or_of_the_whole_trial():
    """Compare both gradients with central differences of the loss of steps that are acted again."""
    setups = [
        make_setup(config(context_gradient=c, value_clip=None), make("probe-bandit")) for c in ("stopped", "full")
    ]
    state, batch = in_the_middle(setups[0])
    assert int(batch.memory.filled) == 12 and np.any(batch.memory.state)
    window, params, key = up.Window(jnp.asarray(12), 12, full=False), state.params, jax.random.key(0)
    gradients = [
        jax.jit(lambda p, setup=setup: up.gradient(setup, state.env_steps, p, batch, window, key))(params)[0]
        for setup in setups
    ]
    starts = [(batch.memory, 12), (setups[1].policy.initial_memory(4, 36), 0)]
    for gradient, (memory, start) in zip(gradients, starts, strict=True):
        loss = jax.jit(lambda p, memory=memory, start=start: plain_loss(setups[0], p, batch, memory, start))
        for direction in gradients:
            size = 1e-2 / jnp.sqrt(dot(direction, direction))
            ahead, behind = (
                loss(jax.tree.map(lambda p, d, step=step: p + step * d, params, direction)) for step in (size, -size)
            )
            np.testing.assert_allclose((ahead - behind) / 2, size * dot(gradient, direction), rtol=0.01)
    assert dot(*gradients) < 0.9 * dot(gradients[1], gradients[1])


@pytest.mark.parametrize("every", [None, 1, 2])
def test_after_an_update_the_state_is_kept_or_recomputed_from_the_trials_beginning(every):
    setup = make_setup(config(refresh_every=every), make("probe-bandit"))
    state, _ = in_the_middle(setup)
    state = state.replace(params=jax.tree.map(lambda x: 1.2 * x, state.params))  # an update
    after = jax.jit(lambda s: continue_trial(setup, s, jax.random.key(0)))(state)
    inputs = jax.tree.map(lambda x: x[:, :24], state.trajectory.inputs)
    output, expected = jax.jit(setup.policy.unroll)(state.params, setup.policy.initial_memory(4, 36), inputs)
    assert np.abs(expected.state - state.memory.state).max() > 0.01
    if every is None:
        expected, value = state.memory, state.trajectory.value[:, :24]
    else:
        value = output.value
    chex.assert_trees_all_close(after.memory, expected, atol=1e-5)
    np.testing.assert_allclose(after.trajectory.value[:, :24], value, atol=1e-5)
    assert int(after.segment) == 2


def test_a_trials_end_empties_the_state_and_everything_is_traced_once(monkeypatch):
    step = segment_step
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def counted(setup, state):
        return step(setup, state)

    monkeypatch.setattr(runner, "segment_step", counted)
    setup = prepare(config(), make("probe-bandit"))
    chunk, state = compile_chunk(setup), initial_state(setup)
    for index in range(6):
        assert int(state.memory.filled) == 12 * (index % 3) and np.any(state.memory.state) == (index % 3 > 0)
        state, _ = chunk(state)
    assert chunk._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", [POLICY, *LINEAR], ids=lambda policy: policy.memory)
def test_a_resumed_run_is_bit_for_bit_the_same(tmp_path, policy):
    setup = prepare(config(policy=policy), make("probe-bandit"))
    chunk, state = compile_chunk(setup), initial_state(setup)
    for _ in range(2):
        state, _ = chunk(state)
    save(setup, tmp_path, state, Progress(env_steps=int(state.env_steps)))
    loaded, _ = restore(setup, tmp_path)
    assert int(loaded.memory.filled) == 24
    for _ in range(3):
        (state, _), (loaded, _) = chunk(state), chunk(loaded)
    data = [jax.tree.map(np.asarray, s.replace(key=jax.random.key_data(s.key))) for s in (state, loaded)]
    chex.assert_trees_all_equal(*data)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "devices"), [(POLICY, 1), (POLICY, 2), *((policy, 1) for policy in LINEAR)])
def test_memory_within_an_episode_is_learned(policy, devices):
    """The cue at the first step is the right action at the last step. Random actions earn 0.5."""
    trial = TrialConfig(environments=16, steps=60, updates=3)
    learning = {"minibatches": 1, "epochs": 4, "lr": 5e-3, "value_clip": None, "max_grad_norm": 0.5}
    cfg = dataclasses.replace(
        config(trial, policy, **learning, normalize_advantages=True), chunk="trial", env="probe-memory"
    )
    setup = prepare(dataclasses.replace(cfg, devices=devices, total_steps=40 * 960), make("probe-memory"))
    chunk, state = compile_chunk(setup), initial_state(setup)
    for _ in range(40):
        state, metrics = chunk(state)
    assert float(metrics["return_sum"].sum() / metrics["episodes"].sum()) > 0.95


@pytest.mark.slow
def test_learning_in_context_is_learned_and_shows_in_the_curve():
    """Four pulls of five arms per episode earn 0.8 at random and 2 without memory across episodes."""
    trial = TrialConfig(environments=16, steps=60, updates=3)
    learning = {"minibatches": 1, "epochs": 4, "lr": 2e-3, "max_grad_norm": 0.5, "value_clip": None}
    policy = dataclasses.replace(POLICY, recurrent=RecurrentConfig(width=32))
    cfg = config(trial, policy, entropy_coef=0.05, **learning)
    cfg = dataclasses.replace(cfg, chunk="trial", total_steps=80 * 16 * 60)
    setup = prepare(cfg, make("probe-bandit"))
    chunk, state = compile_chunk(setup), initial_state(setup)
    for _ in range(80):
        state, _ = chunk(state)
    curves = in_context_curves(setup.policy, state.params, make("probe-bandit"), EvalConfig(episodes=6, repeats=20))
    mean = curves.returns.mean(0)
    assert mean[0] < 2.5 and mean[3:].mean() > 3.0


# --- configuration ---


def refused(**fields):
    with pytest.raises(ConfigError) as error:
        validate(dataclasses.replace(config(), **fields), horizon=4)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_a_recurrent_memory_cannot_do_is_refused_in_one_line():
    base = config()
    ppo = dataclasses.replace(base.ppo, shuffle=True, refresh_every=1)
    assert refused(ppo=ppo).startswith("ppo.shuffle is True; allowed: False if policy.memory is 'gru'")
    ppo = dataclasses.replace(base.ppo, refresh_every=1, refresh_segments=2)
    assert refused(ppo=ppo).startswith("ppo.refresh_segments is 2; allowed: None if policy.memory is 'gru'")
    evaluation = EvalConfig(context_limit=5)
    assert refused(eval=evaluation).startswith("eval.context_limit is 5; allowed: None if policy.memory is 'gru'")
    for field in ("layers", "width", "input_width", "output_width"):
        policy = dataclasses.replace(POLICY, recurrent=RecurrentConfig(**{field: 0}))
        assert refused(policy=policy).startswith(f"policy.recurrent.{field} is 0; allowed: more than 0")


def test_a_limited_context_is_refused_in_evaluation_too():
    setup = make_setup(config(), make("probe-bandit"))
    with pytest.raises(ConfigError, match=r"eval\.context_limit is 5; allowed: None"):
        in_context_curves(setup.policy, {}, make("probe-bandit"), EvalConfig(context_limit=5))


def test_only_the_memory_that_is_used_has_to_fit():
    transformer = dataclasses.replace(POLICY.transformer, max_positions=1, heads=7)
    validate(dataclasses.replace(config(), policy=dataclasses.replace(POLICY, transformer=transformer)), horizon=4)


def test_the_size_of_the_state_is_reported_in_bytes():
    line = context_line(make_setup(config(), make("probe-bandit")))
    assert line == "gru, 400 bytes for 4 trials of any length"  # 4 states of 24 floats and a counter


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.config.policy.memory == "transformer"])
def test_every_preset_has_an_rl2_baseline_on_the_same_budget(name):
    own = PRESETS[name].config
    baseline = rl2(own)
    validate(baseline, horizon=100)
    same = ("env", "seed", "total_steps", "trial", "chunk", "devices", "host")
    assert all(getattr(baseline, field) == getattr(own, field) for field in same)
    assert dataclasses.replace(baseline.eval, context_limit=own.eval.context_limit) == own.eval


def test_darkroom_rl2_is_the_baseline_of_darkroom_dpt_with_as_many_weights():
    assert PRESETS["darkroom-rl2"].config == rl2(DARKROOM)
    sizes = []
    for cfg in (DARKROOM, rl2(DARKROOM)):
        policy = make_setup(cfg, make(cfg.env)).policy
        params = jax.eval_shape(policy.init, jax.random.key(0))
        core = params.get("recurrent") or {k: v for k, v in params["transformer"].items() if k != "step_embedding"}
        sizes.append(sum(x.size for x in jax.tree.leaves(core)))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.25)
    assert rl2(DARKROOM, width=64).policy.recurrent == RecurrentConfig(1, 64)
    assert rl2(DARKROOM, 64, narrow=32).policy.recurrent == RecurrentConfig(1, 64, 32, 32)


@pytest.mark.parametrize("name", ["gated-delta", "lru"])
def test_linear_recurrent_presets_have_blocks_as_large_as_the_transformers(name):
    assert PRESETS[f"darkroom-{name}"].config == linear_rnn(DARKROOM, name)
    network, size = linear_rnn(DARKROOM, name).policy.linear_rnn, DARKROOM.policy.transformer
    assert (network.layers, network.width, network.mlp_width) == (size.layers, size.width, size.mlp_width)
    validate(linear_rnn(DARKROOM, name), horizon=100)
