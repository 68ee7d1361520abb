"""Masks of legal actions and several discrete actions per step, from distributions to exports."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax import runtime
from relic_jax.config import ConfigError, EvalConfig, PolicyConfig, TrainConfig, TransformerConfig, TrialConfig
from relic_jax.distributions import MASKED, Categorical, MultiCategorical
from relic_jax.environment.base import Box, Discrete, MultiDiscrete, TimeStep
from relic_jax.environment.reference_returns import reference_returns
from relic_jax.environment.repeat import repeated
from relic_jax.environment.trials import Trials
from relic_jax.envs import custom
from relic_jax.envs.probes.env import PRESETS, MaskProbe, MultiDiscreteProbe
from relic_jax.evaluation import in_context_curves
from relic_jax.loading import LoadedPolicy
from relic_jax.models.policy import Policy, policy_for
from relic_jax.rl.diagnostics import count_nonfinite, first_nonfinite
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.rollout import collect
from relic_jax.rl.runner import compile_chunk
from relic_jax.rl.state import step_input
from relic_jax.rl.train import NonFiniteError, Progress, prepare, records, restore, save
from relic_jax.rl.train import check_finite as check_record
from relic_jax.spaces import spaces_from_json, spaces_of, spaces_to_json

# A few shapes, because each compiles its own programs.
SIZES = st.sampled_from([(1,), (5,), (1, 1), (2, 5), (4, 1, 3), (3, 3, 3), (1, 4, 2, 3), (5, 5, 1, 2)])


def split(x, nvec):
    return np.split(np.asarray(x), np.cumsum(nvec)[:-1], axis=-1)


def by_hand(logits, legal):
    """Compute probabilities in float64 by the definition."""
    p = np.exp(np.where(legal, np.asarray(logits, np.float64), -np.inf) - logits[legal].max())
    return p / p.sum()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 2**31), st.sampled_from([1.0, 30.0, 3000.0]))
def test_masked_components_by_hand(nvec, seed, scale):
    """Compare log-probabilities, entropy, its gradient, mode and draws with the definition in float64."""
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=sum(nvec))).astype(np.float32)
    legal = random.random(sum(nvec)) < 0.5
    for part in split(legal, nvec):  # views
        part[random.integers(len(part))] = True
    policy = MultiCategorical(jnp.asarray(logits), nvec).masked(jnp.asarray(legal))
    parts = [by_hand(z, m) for z, m in zip(split(logits, nvec), split(legal, nvec), strict=True)]
    entropy = sum(-sum(p * np.log(p) for p in part if p > 0) for part in parts)
    np.testing.assert_allclose(policy.entropy(), entropy, rtol=1e-4, atol=1e-5)
    action = np.array([random.choice(np.flatnonzero(m)) for m in split(legal, nvec)], np.int32)
    gaps = [z[a] - np.log(np.exp(np.float64(z[m]) - z[m].max()).sum()) - z[m].max() for z, m, a in
            zip(split(logits, nvec), split(legal, nvec), action, strict=True)]  # fmt: skip
    np.testing.assert_allclose(policy.log_prob(jnp.asarray(action)), sum(gaps), rtol=1e-4, atol=1e-4)
    best = [np.flatnonzero(m)[z[m].argmax()] for z, m in zip(split(logits, nvec), split(legal, nvec), strict=True)]
    np.testing.assert_array_equal(policy.mode(), best)
    drawn = np.asarray(jax.vmap(policy.sample)(jax.random.split(jax.random.key(seed), 50)))
    assert MultiDiscrete(nvec).allows(np.tile(legal, (50, 1)), drawn).all()
    slope = jax.grad(lambda z: MultiCategorical(z, nvec).masked(jnp.asarray(legal)).entropy())(jnp.asarray(logits))
    expected = np.concatenate([np.where(p > 0, -p * (np.log(np.maximum(p, 1e-300)) + h), 0.0)
                               for p in parts for h in [-sum(x * np.log(x) for x in p if x > 0)]])  # fmt: skip
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4)
    assert (np.asarray(slope)[~legal] == 0).all()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 1e20, 3e38]))
def test_one_component_is_a_categorical(n, seed, scale):
    """Both are finite for any logits, including −inf, and for any mask, even without a legal action."""
    random = np.random.default_rng(seed)
    logits = (scale * random.uniform(-1, 1, n)).astype(np.float32)
    logits[random.random(n) < 0.3] = -np.inf
    legal, action = jnp.asarray(random.random(n) < 0.6), jnp.int32(random.integers(n))
    for mask in (None, legal):
        numbers = []
        for make, one in ((Categorical, action), (lambda z: MultiCategorical(z, (n,)), action[None])):

            def value(z, make=make, mask=mask, one=one):
                policy = make(z) if mask is None else make(z).masked(mask)
                return policy.log_prob(one), policy.entropy()

            for index in (0, 1):
                number, slope = jax.value_and_grad(lambda z, i=index: value(z)[i])(jnp.asarray(logits))
                assert np.isfinite(number) and np.isfinite(slope).all(), (logits, mask)
                numbers.append(number)
        assert 0 <= numbers[1] <= np.log(n) + 1e-5
        if numbers[0] > MASKED:  # the replacement for −inf differs there
            np.testing.assert_allclose(numbers[:2], numbers[2:], rtol=1e-5, atol=1e-5)


def test_a_single_legal_action_is_certain_and_an_illegal_one_impossible():
    for logits in ([5.0, -3.0, 1e30], [-np.inf] * 3, [-3e38, 3e38, 0.0], [0.0, -np.inf, 7.0]):
        for only in range(3):
            legal = jnp.arange(3) == only
            policy = Categorical(jnp.array(logits, jnp.float32)).masked(legal)
            np.testing.assert_array_equal(jnp.exp(policy.log_p), legal)
            assert policy.entropy() == 0 and policy.log_prob(jnp.int32(only)) == 0 and policy.mode() == only
            assert (jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 200)) == only).all()
            slope = jax.grad(lambda z, m=legal: Categorical(z).masked(m).entropy())(jnp.array(logits, jnp.float32))
            np.testing.assert_array_equal(slope, np.zeros(3))


def test_minus_infinity_without_a_mask_gives_the_entropy_of_the_others():
    """A naive sum would contain 0 · −inf."""
    policy = Categorical(jnp.array([0.0, -jnp.inf, 0.0]))
    np.testing.assert_allclose(policy.entropy(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda z: Categorical(z).entropy())(policy.logits), np.zeros(3), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 2**31))
def test_random_actions_of_a_space_are_legal_and_reach_every_legal_choice(nvec, seed):
    space, random = MultiDiscrete(nvec), np.random.default_rng(seed)
    assert hash(space) == hash(MultiDiscrete(nvec)) and space.mask_size == sum(nvec)
    legal = random.random(sum(nvec)) < 0.5
    for part in split(legal, nvec):
        part[random.integers(len(part))] = True
    assert space.playable(legal) and not space.playable(np.zeros(sum(nvec), bool))
    masks = np.tile(legal, (400, 1))
    for drawn in (
        space.draw(random, 400, masks),
        np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(seed), 400), masks)),
    ):
        assert drawn.shape == (400, len(nvec)) and space.allows(masks, drawn).all()
        assert [len(np.unique(c)) for c in drawn.T] == [int(m.sum()) for m in split(legal, nvec)]
    assert not space.allows(~masks, drawn).any()
    one = Discrete(nvec[0])
    first = np.ascontiguousarray(masks[:, : nvec[0]])
    assert one.allows(first, one.draw(random, 400, first)).all()
    assert one.allows(first[0], one.sample(jax.random.key(seed), first[0]))


@pytest.mark.parametrize("nvec", [(), (0,), (2, -1), (2.0,), [2]])
def test_bad_multidiscrete_spaces_are_refused(nvec):
    with pytest.raises(ValueError, match="allowed"):
        MultiDiscrete(nvec)


@dataclasses.dataclass(frozen=True)
class Both(MaskProbe):
    """MaskProbe's masks on the first component; the second has two choices, one of which is legal in turn."""

    name: str = "both"
    action_space = MultiDiscrete((5, 2))

    def legal(self, state):
        return jnp.concatenate([super().legal(state), jnp.arange(2) == state.step % 2])

    def reward(self, state, action, task):
        return jnp.where(self.action_space.allows(self.legal(state), action), action[0] / 4, -4.0)

    def optimal_action(self, state, task):
        return jnp.stack([super().optimal_action(state, task), state.step % 2])


ENVS = {"mask": MaskProbe(), "both": Both(), "multi": MultiDiscreteProbe()}


def config_of(env, **changes):
    transformer = TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=64, attention="reference")
    config = TrainConfig(
        env=env.name,
        total_steps=256,
        devices=1,
        chunk="segment",
        policy=PolicyConfig(transformer),
        trial=TrialConfig(environments=4, steps=24, updates=3),
        eval=EvalConfig(episodes=2),
    )
    return dataclasses.replace(config, **changes)


def loaded_of(env, drawn, **changes):
    spaces, config = spaces_of(env), config_of(env, **changes)
    spaces = spaces_from_json(json.loads(json.dumps(spaces_to_json(spaces))))
    policy = Policy(config.policy, spaces)
    return LoadedPolicy(policy, drawn(policy), config, spaces, {}, None, None)


@pytest.mark.parametrize("memory", ["transformer", "gru"])
@pytest.mark.parametrize("name", ["both", "mask", "multi"])
def test_acting_equals_unrolling_and_takes_legal_actions_only(name, memory, drawn):
    env = ENVS[name]
    policy = policy_for(env, dataclasses.replace(config_of(env).policy, memory=memory))
    params, trials = drawn(policy), Trials(env)
    assert policy.spaces.masked == (name != "multi")

    @jax.jit
    def play(key):
        def step(carry, key):
            trial, memory = carry
            seen = step_input(trial)
            output, memory = policy.act(params, memory, seen)
            action = output.distribution.sample(key)
            after, _ = trials.step(key, trial, action)
            return (after, memory), (seen, action, output.distribution.log_prob(action), output.distribution.entropy())

        trial = trials.reset(key, jnp.zeros(8, jnp.int32))
        carry = trial, policy.initial_memory(8, 24)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), jax.lax.scan(step, carry, jax.random.split(key, 24))[1])

    seen, action, log_prob, entropy = play(jax.random.key(0))
    output, _ = jax.jit(policy.unroll)(params, policy.initial_memory(8, 24), seen)
    np.testing.assert_allclose(output.distribution.log_prob(action), log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output.distribution.entropy(), entropy, rtol=1e-4, atol=1e-4)
    assert (np.asarray(log_prob) > MASKED / 2).all()
    if policy.spaces.masked:
        assert env.action_space.allows(seen.legal, action).all()
        assert 0.2 < seen.legal.mean() < 0.9
        several = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), seen.legal)
        assert len(np.unique(several, axis=0)) > 3


@pytest.fixture(scope="module")
def trained_both():
    """(setup, collected steps of one segment, state before and after a whole trial with everything switched on)."""
    env = Both()
    ppo = dataclasses.replace(config_of(env).ppo, entropy_coef=0.01, context_gradient="full", last_update="full")
    ppo = dataclasses.replace(ppo, epochs=1, minibatches=1, accumulate=1, warmup_steps=0, lr=1e-2)
    setup = prepare(config_of(env, ppo=ppo), env)
    state = initial_state(setup)
    chunk = compile_chunk(setup)
    states, metrics = [jax.tree.map(jnp.copy, state)], []
    for _ in range(3):
        state, found = chunk(state)
        states.append(jax.tree.map(jnp.copy, state))
        metrics.append(jax.device_get(found))
    return setup, states, metrics


@pytest.mark.slow
def test_updates_keep_the_masks_that_were_acted_with(trained_both):
    """Updates use the stored masks.

    The masks of the newest segment allow its actions after shuffling and refreshing, the KL divergence of the first
    update is 0 before its step, entropies are those of masked distributions, and every number is finite.
    """
    setup, states, metrics = trained_both
    space = setup.policy.action_space
    for filled, state in enumerate(states[1:3], 1):
        steps = jax.device_get(state.trajectory)
        size = filled * setup.config.trial.segment
        assert space.allows(steps.inputs.legal[:, :size], steps.action[:, :size]).all()
        assert (steps.log_prob > MASKED / 2).all()
    bound = np.log(4)  # at most four of five actions are legal, and one of the other two
    for found in metrics:
        assert all(np.isfinite(x) for name, x in found.items()), found
        assert 0.5 < found["entropy"] <= bound + 1e-6
        assert found["kl"] < 0.5 and found["nonfinite/legal"] == 0
    assert any(
        (a != b).any() for a, b in zip(*(jax.tree.leaves(s.params) for s in (states[0], states[3])), strict=True)
    )


@pytest.mark.slow
def test_a_loss_does_not_depend_on_the_logits_of_what_is_not_legal(trained_both):
    """Its gradient equals that of a loss with the legal actions only."""
    setup, states, _ = trained_both
    state = states[0]

    @jax.jit
    def loss(params):
        collected = collect(setup, state.params, state.trial, state.memory, jax.random.key(1))
        steps = collected.steps
        output, _ = setup.policy.unroll(params, setup.policy.initial_memory(4, 8), steps.inputs)
        ratio = output.distribution.log_prob(steps.action) - steps.log_prob
        return (ratio + output.distribution.entropy()).sum(), (ratio, output.distribution, steps.inputs.legal)

    slope, (ratio, distribution, legal) = jax.jit(jax.grad(loss, has_aux=True))(state.params)
    np.testing.assert_allclose(ratio, np.zeros_like(ratio), atol=1e-5)
    assert (np.asarray(distribution.logits)[~np.asarray(legal)] == np.float32(MASKED)).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


def test_a_masked_state_is_saved_and_restored_whole(trained_both, tmp_path):
    setup, states, _ = trained_both
    assert states[2].trial.legal is not None and states[2].trajectory.inputs.legal.any()
    save(setup, tmp_path, states[2], Progress(64, 1.0))
    found, progress = restore(setup, tmp_path)
    assert progress.env_steps == 64
    for a, b in zip(
        *(jax.tree.leaves(s.replace(key=jax.random.key_data(s.key))) for s in (found, states[2])), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_step_without_a_legal_action_stops_the_training(trained_both, tmp_path):
    setup, states, metrics = trained_both

    def poisoned(state):
        legal = state.trial.legal.at[2].set(jnp.arange(7) < 5)  # the second component has no legal action
        collected = collect(setup, state.params, state.trial.replace(legal=legal), state.memory, jax.random.key(1))
        found = {name: x for name, x in metrics[0].items() if name in ("loss", "grad_norm")}
        counts = count_nonfinite(setup.policy.action_space, collected, found, state.params)
        return {**found, **counts, **first_nonfinite(setup, collected, jnp.int32(0))}

    found = {**metrics[0], **jax.device_get(jax.jit(poisoned)(states[0]))}
    assert found["nonfinite/legal"] == 1
    record = next(iter(records(setup.config, 0, found)))
    with pytest.raises(NonFiniteError, match=r"no legal action .*environment 2, step 0 of its trial"):
        check_record(setup, record, tmp_path)


@pytest.mark.slow
def test_evaluation_and_reference_lines_respect_masks():
    """Every illegal action costs 4. An episode can earn 3.5 to 3.75."""
    for env in (MaskProbe(), Both()):
        lines = reference_returns(env, "test", episodes=64)
        assert lines.random.mean_return > 1 and 3.5 <= lines.optimal.mean_return <= 3.75
        policy = policy_for(env, config_of(env).policy)
        curves = in_context_curves(
            policy, policy.init(jax.random.key(0)), env, EvalConfig(episodes=3, repeats=16, expert_episodes=1)
        )
        assert (curves.returns[:, 0] >= 3.5).all() and (curves.returns > 0).all()
    with pytest.raises(ConfigError, match="masks no actions"):
        in_context_curves(policy, None, PRESETS["probe-policy"], EvalConfig(episodes=1))


def test_a_repeated_action_stops_where_it_is_no_longer_legal():
    env = repeated(MaskProbe(), 3)
    assert env.masks_actions
    state, _ = env.reset(jax.random.key(0), 0)
    forbidden_at = {a: [t for t in range(4) if not MaskProbe().legal(state.replace(step=t))[a]] for a in range(1, 5)}
    for action, steps in forbidden_at.items():
        if 0 not in steps:
            after, found = env.step(jax.random.key(0), state, jnp.int32(action), 0)
            taken = min([3, *steps])
            assert int(after.step) == taken and found.reward == taken * action / 4


@dataclasses.dataclass(frozen=True)
class Wrong(MaskProbe):
    """An environment with the fault that `change` names."""

    change: str = ""

    @property
    def masks_actions(self):
        return self.change != "undeclared"

    @property
    def action_space(self):
        return Box((0.0,), (1.0,)) if self.change == "box" else Discrete(5)

    def legal(self, state):
        if self.change == "none":
            return None
        if self.change == "nothing legal":
            return super().legal(state) & (state.step != 2)
        if self.change == "dtype":
            return super().legal(state).astype(jnp.int8)
        return jnp.ones(4, bool) if self.change == "size" else super().legal(state)

    def reward(self, state, action, task):
        return 0.0

    def optimal_action(self, state, task):
        return jnp.int32(4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("none", r"legal from reset is None; allowed: bool\[5\] \(masks_actions is True\)"),
        ("undeclared", r"legal from reset is bool\[5\]; allowed: None \(masks_actions is False\)"),
        ("size", r"legal from reset is bool\[4\]; allowed: bool\[5\]"),
        ("dtype", r"legal from reset is int8\[5\]; allowed: bool\[5\]"),
        ("box", "masks_actions is True; allowed: False with"),
        ("nothing legal", "a step of no legal action"),
        ("expert", "optimal_action is not legal"),
    ],
)
def test_what_does_not_keep_to_the_interface_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        custom.check(Wrong(change=change), "env is 'wrong'")


def test_what_does_is_not():
    for env in ENVS.values():
        custom.check(env, "env is 'right'")
    assert TimeStep(None, None, None, None).legal is None


# --- agents and exports ---


def test_agents_take_legal_actions_and_refuse_bad_masks(drawn):
    for env in (MaskProbe(), Both()):
        loaded, random = loaded_of(env, drawn), np.random.default_rng(0)
        size, space = env.action_space.mask_size, env.action_space
        masks = random.random((20, 3, size)) < 0.3
        masks[..., [1, -1]] = True
        for greedy in (False, True):
            agent = loaded.agent(batch=3, greedy=greedy, seed=1)
            for mask in masks:
                action = agent.step(np.ones((3, 1), np.float32), legal=mask)
                assert action.dtype == np.int32 and action.shape == (3, *space.shape)
                assert space.allows(mask, action).all()
                assert (agent.outputs["logits"][~mask] == np.float32(MASKED)).all()
        one, mask = loaded.agent(), masks[0, 0]
        single = one.step(np.ones(1, np.float32), legal=mask)
        assert isinstance(single, int) if space.shape == () else single.shape == space.shape
        component = np.ones(size, bool)
        component[-2:] = False
        wrong = [None, mask[:-1], mask.astype(np.int8), masks[0], np.zeros(size, bool), mask.astype(float), "legal"]
        for bad in wrong + ([component] if space.shape else []):
            with pytest.raises(ConfigError, match=r"legal is .*allowed: "):
                one.step(np.ones(1, np.float32), legal=bad)
        assert one.steps == 1
    with pytest.raises(ConfigError, match="legal is given; allowed: None"):
        loaded_of(MultiDiscreteProbe(), drawn).agent().step(np.ones(1, np.float32), legal=np.ones(5, bool))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both", "mask", "multi"])
@pytest.mark.parametrize("form", ["stablehlo", "onnx", "safetensors"])
def test_exports_take_masks_and_are_verified_with_them(form, name, drawn, tmp_path):
    from relic_jax.export import export_policy

    if form == "onnx":
        pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    env = ENVS[name]
    loaded = dataclasses.replace(loaded_of(env, drawn), path=tmp_path)
    check = export_policy(loaded, tmp_path / "out", format=form, context=64)
    assert check["largest_difference"] < 1e-4 and check["episode_ends"] > 10
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("legal=mask" in card) == (name != "multi" and form != "orbax")
    if form == "safetensors":
        return
    agent, live = runtime.load(tmp_path / "out", batch=4, seed=3), loaded.agent(batch=4, capacity=64)
    random, space = np.random.default_rng(0), env.action_space
    for _ in range(20):
        mask = None
        if name != "multi":
            mask = random.random((4, space.mask_size)) < 0.4
            mask[:, [0, -1]] = True
        seen = random.uniform(-1, 1, (4, 1)).astype(np.float32)
        action = agent.step(seen, legal=mask)
        live.step(seen, legal=mask)
        live._previous = agent._previous
        np.testing.assert_allclose(agent.outputs["logits"], live.outputs["logits"], rtol=1e-4, atol=1e-4)
        assert action.shape == (4, *space.shape)
        assert mask is None or space.allows(mask, action).all()
    if name != "multi":
        with pytest.raises(ConfigError, match="legal is None"):
            agent.step(seen)


def test_spaces_without_masks_are_written_as_before():
    about = spaces_to_json(spaces_of(PRESETS["probe-policy"]))
    assert about["action"] == {"type": "discrete", "n": 2}
    both = spaces_to_json(spaces_of(Both()))
    assert both["action"] == {"type": "multi_discrete", "nvec": [5, 2], "masked": True}
    found = spaces_from_json(both)
    assert found.masked and found.action_space == MultiDiscrete((5, 2))
    for bad in ({"type": "multi_discrete", "nvec": []}, {"type": "multi_discrete"}, {"type": "tuple"}):
        with pytest.raises(ConfigError):
            spaces_from_json({**both, "action": bad})
