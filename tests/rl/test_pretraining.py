"""Pretraining: what it records and learns, its errors, and runs that are interrupted during it or after it."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import checkpoint
from relic_jax.config import (
    ConfigError,
    EncoderConfig,
    EnvConfig,
    PolicyConfig,
    PPOConfig,
    PretrainConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
    from_json,
    to_json,
)
from relic_jax.environment.base import Environment, TimeStep, first_timestep, num_tasks
from relic_jax.environment.spaces import Discrete
from relic_jax.environment.trials import Trials
from relic_jax.envs import registry
from relic_jax.experiments.faults.processes import arrays
from relic_jax.metrics import JsonLines
from relic_jax.models.policy import policy_for
from relic_jax.rl import runner
from relic_jax.rl.diagnostics import NonFiniteError
from relic_jax.rl.memory_budget import check_recordings
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.population import Population
from relic_jax.rl.pretraining import Pretraining, check_pretraining, pretrained, pretraining_key
from relic_jax.rl.recordings import record
from relic_jax.rl.train import prepare, restore, train
from relic_jax.rl.train_runs import Run, train_runs
from relic_jax.stopping import Stop
from relic_jax.tracking import Trackers

CONFIG = TrainConfig(
    env=EnvConfig("gridobj-9"),
    total_steps=240,
    chunk="segment",
    devices=1,
    policy=PolicyConfig(
        transformer=TransformerConfig(layers=1, heads=2, width=16, mlp_width=16, max_positions=128),
        encoder=EncoderConfig(observation="scaled"),
        recall=(9, 9),
    ),
    trial=TrialConfig(environments=4, steps=30, updates=2),
    ppo=PPOConfig(minibatches=1, accumulate=1, epochs=1, recall_coef=1.0, teacher_coef=0.5, last_update="partial"),
    pretrain=PretrainConfig(steps=6, trials=4, trial_steps=20, segment=10, minibatches=2),
)


def changed(config=CONFIG, **pretrain):
    return dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, **pretrain))


@pytest.fixture(scope="module")
def env():
    return registry.make("gridobj-9")


@pytest.fixture(scope="module")
def setup(env):
    return prepare(CONFIG, env)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(setup):
    """Compile the chunk of `train` once for all tests."""
    chunk = runner.compile_chunk(setup)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "compile_chunk", lambda _: chunk)
        yield


@pytest.fixture(scope="module")
def uninterrupted(setup, tmp_path_factory):
    """Return the folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("run")
    assert train(setup, folder, functools.partial(JsonLines, folder), resume=False).finished
    return folder


def contents(setup, folder):
    files = [(folder / name).read_bytes() for name in ("pretraining.jsonl", "metrics.jsonl")]
    return arrays(restore(setup, folder / "checkpoints")[0]), *files


class Interrupts:
    """Sets an event at a record of the pretraining or of training."""

    def __init__(self, event, pretraining=None):
        self._event, self._pretraining = event, pretraining

    def pretrained(self, record, steps):
        assert steps == CONFIG.pretrain.steps
        if record["optimizer_steps"] == self._pretraining:
            self._event.set()

    def log(self, record, clock):
        if self._pretraining is None:
            self._event.set()

    def close(self):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("pretraining", [2, 6, None], ids=["during", "at the end", "after"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(setup, uninterrupted, tmp_path, pretraining):
    event = threading.Event()

    def tracker(steps):
        return Trackers([JsonLines(tmp_path, steps), Interrupts(event, pretraining)])

    result = train(setup, tmp_path, tracker, resume=False, stop=event)
    assert not result.finished
    assert result.saved == (pretraining != 2)
    assert bool(checkpoint.complete_steps(tmp_path / "checkpoints")) == result.saved
    lines = (tmp_path / "pretraining.jsonl").read_text().splitlines()
    assert len(lines) == (1 if pretraining == 2 else 3)
    assert train(setup, tmp_path, functools.partial(JsonLines, tmp_path), resume=True).finished
    assert contents(setup, tmp_path) == contents(setup, uninterrupted)


@pytest.mark.slow
def test_only_the_parameters_change_and_any_number_of_devices_gives_the_same(env, setup):
    state = initial_state(setup)
    after = pretrained(setup, state, None, Stop())
    two = prepare(dataclasses.replace(CONFIG, devices=2), env)
    others = pretrained(two, initial_state(two), None, Stop())
    for x, y in zip(jax.tree.leaves(after.params), jax.tree.leaves(others.params), strict=True):
        np.testing.assert_array_equal(x, y)
        assert len(y.sharding.device_set) == 2
    assert arrays(state.replace(params={})) == arrays(after.replace(params={}))
    changes = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), state.params, after.params)
    assert changes["recall"]["kernel"] > 0
    assert changes["proj_in"]["kernel"] > 0
    assert not any(jax.tree.leaves([changes["actor"], changes["critic"]]))


@pytest.mark.slow
def test_a_frozen_image_encoder_and_the_other_parameters_are_put_together(env, setup):
    policy = setup.policy
    frozen = dataclasses.replace(policy.config, encoder=dataclasses.replace(policy.config.encoder, freeze=True))
    found = [
        next(Pretraining(setup.trials, one, CONFIG.pretrain).learn(params, pretraining_key(0), setup.tasks))[0]
        for one in (policy, dataclasses.replace(policy, config=frozen))
        for params in (policy.init(jax.random.key(0)),)
    ]
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):  # gridobj has no images: nothing is frozen
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_statistics_of_observations_are_those_of_the_recordings(env):
    encoder = dataclasses.replace(CONFIG.policy.encoder, observation="normalized")
    config = changed(dataclasses.replace(CONFIG, policy=dataclasses.replace(CONFIG.policy, encoder=encoder)), steps=2)
    setup = prepare(config, env)
    after = pretrained(setup, initial_state(setup), None, Stop())
    count = jax.tree.leaves(after.params["encoder"]["statistics"])
    assert any(np.allclose(x, config.pretrain.trials * config.pretrain.trial_steps) for x in count)


@pytest.mark.slow
def test_runs_of_one_program_are_pretrained_as_runs_alone(setup, uninterrupted, tmp_path):
    setups = [
        dataclasses.replace(setup, config=dataclasses.replace(setup.config, seed=seed, total_steps=120))
        for seed in (0, 1)
    ]
    runs = [Run(one, tmp_path / str(index)) for index, one in enumerate(setups)]
    for run in runs:
        run.folder.mkdir()
    population, event, closed = Population(setups, 1), threading.Event(), []

    def tracker(run):
        stops = Interrupts(event, 2 if run is runs[1] and not closed else -1)
        return Trackers([JsonLines(run.folder, run.progress.env_steps), stops])

    assert not train_runs(population, runs[:1] + runs[1:], tracker, Stop(event))
    assert [checkpoint.complete_steps(run.checkpoints) for run in runs] == [[0], []], "the first one was complete"
    closed.append(True)
    event.clear()
    for run in runs:
        assert train_runs(population, [run], tracker, Stop())
        alone = pretrained(run.setup, population.initial_state(run.setup), None, Stop())
        saved = restore(run.setup, run.checkpoints)[0]
        assert int(saved.env_steps) == 120
        first = checkpoint.load_params(run.checkpoints / "0", alone.params)
        for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_array_equal(x, y)
    lines = [(folder / "pretraining.jsonl").read_bytes() for folder in (runs[0].folder, uninterrupted)]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(setup, tmp_path):
    bad = dataclasses.replace(setup, config=changed(lr=1e38, max_grad_norm=1e38, steps=400))
    message = r"not finite at optimizer step \d+ of the pretraining: loss; lower pretrain.lr"
    with pytest.raises(NonFiniteError, match=message):
        train(bad, tmp_path, functools.partial(JsonLines, tmp_path), resume=False)
    assert not checkpoint.complete_steps(tmp_path / "checkpoints")


def test_relabeled_copies_add_their_recall_loss(setup):
    params, key = setup.policy.init(jax.random.key(0)), jax.random.key(1)
    found, plain = {}, {}
    for flag, rows in ((True, found), (False, plain)):
        config = changed(relabel=flag, minibatches=1).pretrain
        pretraining = Pretraining(setup.trials, setup.policy, config)
        start = params, pretraining.optimizer.init(params)
        rows |= jax.device_get(pretraining.iteration(start, key, jax.tree.map(jnp.asarray, setup.tasks))[1])
    assert found.keys() - plain.keys() == {"relabeled_loss", "relabeled_right"}
    assert found["relabeled_loss"] != plain["loss"]
    assert found["loss"] == pytest.approx(plain["loss"] + found["relabeled_loss"], rel=1e-5)
    assert found["right"] == plain["right"], "of the trials themselves"


@pytest.mark.slow
def test_epochs_are_more_optimizer_steps_on_the_same_trials(setup):
    """With one minibatch, two epochs are two steps of the same gradient; the copies of each epoch differ."""
    params, key, tasks = setup.policy.init(jax.random.key(0)), jax.random.key(1), setup.tasks

    def trained(**changes):
        pretraining = Pretraining(setup.trials, setup.policy, changed(minibatches=1, **changes).pretrain)
        start = params, pretraining.optimizer.init(params)
        return pretraining, *jax.device_get(pretraining.iteration(start, key, tasks))

    (model, (once, state), first), (_, (twice, _), mean) = trained(), trained(epochs=2)
    chosen = jax.random.randint(jax.random.split(key, 3)[0], (4,), 0, num_tasks(tasks))
    recordings = model.record(jax.random.split(key, 3)[1], jax.tree.map(lambda x: x[chosen], tasks))
    (second, _), gradient = jax.value_and_grad(model.loss, has_aux=True)(once, recordings)
    assert mean["loss"] == pytest.approx((first["loss"] + float(second)) / 2, rel=1e-5)
    change, _ = model.optimizer.update(gradient, state, once)
    jax.tree.map(lambda x, y, z: np.testing.assert_allclose(x + y, z, atol=1e-6), once, change, twice)
    _, relabel, both = *trained(relabel=True)[1:], trained(relabel=True, epochs=2)[2]
    assert both["relabeled_loss"] != relabel["relabeled_loss"]


def test_the_learning_rate_falls_to_its_final_value():
    """Adam with a constant gradient moves every parameter by the learning rate."""
    config = changed(lr=0.5, lr_final=0.1, steps=500, max_grad_norm=1e9).pretrain
    optimizer = Pretraining(None, None, config).optimizer
    gradient = jnp.ones(())

    def step(state, _):
        change, state = optimizer.update(gradient, state)
        return state, -change

    _, rates = jax.lax.scan(step, optimizer.init(gradient), length=502)
    np.testing.assert_allclose(rates[jnp.array([0, 50, 100, 300, 500, 501])], [0, 0.25, 0.5, 0.3, 0.1, 0.1], rtol=1e-3)
    assert PretrainConfig().lr_final is None


@dataclasses.dataclass(frozen=True)
class Lever(Environment):
    """A lever out of four, of which the mask allows two, 0 and the one after the last; to recall: the last."""

    name = "lever"
    horizon = 5
    masks_actions = True
    observation_spec = jax.ShapeDtypeStruct((4,), jnp.float32)
    action_space = Discrete(4)
    recall_classes = (4,)

    def tasks(self, split):
        return np.arange(8)

    def reset(self, key, task):
        state = jnp.zeros((), jnp.int32)
        return state, first_timestep(jax.nn.one_hot(state, 4), self.mask(state))

    def step(self, key, state, action, task):
        false = jnp.zeros((), bool)
        observation = jax.nn.one_hot(action, 4)
        return action, TimeStep(observation, jnp.zeros(()), false, false, self.mask(action))

    def mask(self, state):
        return (jnp.arange(4) == 0) | (jnp.arange(4) == (state + 1) % 4)

    def recall_labels(self, observations):
        answers = observations.argmax(-1)[:, None].astype(jnp.int32)
        return jnp.where(answers == 0, 99, answers), answers[:, 0] > 0  # no class: must not matter

    @property
    def reference_agents(self):
        return {"remembering searcher": Puller()}


@dataclasses.dataclass(frozen=True)
class Puller:
    """Counts its steps, pulls the next lever, and at every fifth step one that the mask forbids."""

    def initial_memory(self):
        return jnp.zeros((), jnp.int32)

    def act(self, key, memory, state, first, task):
        return memory + 1, (state + jnp.where(memory % 5 == 4, 2, 1)) % 4


@pytest.mark.parametrize("random_actions", [0.0, 0.5, 1.0])
def test_recorded_actions_are_legal_and_the_agents_except_for_the_random_share(random_actions):
    trials = Trials(Lever())
    found = jax.device_get(record(trials, Puller(), jax.random.key(0), jnp.arange(64), 41, random_actions))
    legal, action, first = found.inputs.legal[:, :-1], found.inputs.previous_action[:, 1:], found.inputs.first[:, 1:]
    assert np.take_along_axis(legal, np.maximum(action, 0)[..., None], -1)[~first].all()
    state = found.inputs.observation.argmax(-1)[:, :-1]
    forbidden = (np.arange(40) % 5 == 4)[None]
    agents = (action == (state + 1) % 4)[~first & ~forbidden]
    assert agents.mean() == pytest.approx(1 - random_actions / 2, abs=0.05), "of two legal actions"
    assert (found.answers[~found.known] == 0).all()


@dataclasses.dataclass(frozen=True)
class Teaching(Puller):
    """Also gives probabilities: of the next lever, and of the first one at even states, else of an illegal one."""

    def action_probabilities(self, memory, state, first, task):
        other = jnp.where(state % 2 == 0, 0, (state + 2) % 4)
        return memory + 1, (jax.nn.one_hot((state + 1) % 4, 4) + jax.nn.one_hot(other, 4)) / 2


class Taught(Lever):
    """Its agent gives probabilities, and the first lever ends an episode."""

    ending_actions = (0,)

    @property
    def reference_agents(self):
        return {"remembering searcher": Teaching(), "puller": Puller()}


def test_random_actions_end_no_episode_if_another_one_is_legal():
    found = record(Trials(Taught()), Puller(), jax.random.key(0), jnp.arange(8), 41, 1.0).inputs
    action, first, state = found.previous_action[:, 1:], found.first[:, 1:], found.observation.argmax(-1)[:, :-1]
    assert (action == (state + 1) % 4)[~first].all()
    assert registry.make("house-objnav-small").ending_actions == (0,)


def test_probabilities_are_recorded_beside_the_same_trials():
    env, key = Taught(), jax.random.key(0)
    plain, taught = (
        record(Trials(env), Teaching(), key, jnp.arange(8), 41, 0.2, with_probabilities=flag) for flag in (False, True)
    )
    assert plain.probabilities is None
    assert arrays(plain) == arrays(taught.replace(probabilities=None))
    state = np.asarray(taught.inputs.observation.argmax(-1))
    for number, expected in enumerate(([0.5, 0.5, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0.5], [1, 0, 0, 0])):
        found = taught.probabilities[state == number]
        assert len(found)
        np.testing.assert_allclose(found, np.tile(expected, (len(found), 1)))


def test_actions_are_drawn_from_the_recorded_probabilities():
    found = record(Trials(Taught()), Teaching(), jax.random.key(1), jnp.arange(64), 41, 0.0, with_probabilities=True)
    action, first = found.inputs.previous_action[:, 1:], found.inputs.first[:, 1:]
    state = np.asarray(found.inputs.observation.argmax(-1))[:, :-1][~first]
    for number, expected in enumerate(([0.5, 0.5, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0.5], [1, 0, 0, 0])):
        taken = np.asarray(action[~first])[state == number]
        np.testing.assert_allclose(np.bincount(taken, minlength=4) / len(taken), expected, atol=0.1)


def cloning(recall):
    """Return a pretraining on the actions of `Taught`."""
    policy = dataclasses.replace(CONFIG.policy, recall=recall, encoder=EncoderConfig())
    ppo = dataclasses.replace(CONFIG.ppo, recall_coef=0.0)
    config = changed(action_coef=2.0, lr=0.02, steps=120, random_actions=0.5)
    check_pretraining(dataclasses.replace(config, policy=policy, ppo=ppo), Taught())
    return Pretraining(Trials(Taught()), policy_for(Taught(), policy), config.pretrain)


def test_the_actor_learns_the_agents_distribution():
    pretraining = cloning((4,))
    params = pretraining.policy.init(jax.random.key(0))
    rows = [row for _, row in pretraining.learn(params, pretraining_key(0), Taught().tasks("train"))]
    assert rows[-1].keys() == {"optimizer_steps", "loss", "recall_loss", "right", "action_loss", "action_right"}
    assert rows[0]["loss"] == pytest.approx(rows[0]["recall_loss"] + 2 * rows[0]["action_loss"], rel=1e-5)
    assert rows[0]["action_loss"] > 0.1 and rows[-1]["action_loss"] < 0.02 and rows[-1]["action_right"] == 1


def test_actions_can_be_learned_without_a_recall_head():
    pretraining = cloning(())
    recordings = jax.eval_shape(pretraining.record, jax.random.key(0), jnp.arange(4))
    params = jax.eval_shape(pretraining.policy.init, jax.random.key(0))
    assert "recall" not in params
    assert jax.eval_shape(pretraining.loss, params, recordings)[1].keys() == {"action_loss", "action_right"}


def test_the_value_loss_is_that_of_discounted_returns():
    env, ppo = Taught(), PPOConfig(gamma=0.5, reward_scale=2.0)
    model = Pretraining(Trials(env), None, dataclasses.replace(CONFIG.pretrain, value_coef=1.0), ppo)
    reward = jnp.array([[1.0, 0.0, 4.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    ended = jnp.array([[False, True, False, True, False], [False] * 5])
    recordings = record(Trials(env), Puller(), jax.random.key(0), jnp.arange(2), 5, 0.0)
    loss = jax.jit(model.value_loss)(jnp.zeros((2, 5)), recordings.replace(reward=reward, ended=ended))
    assert loss == pytest.approx(np.mean(np.square([2, 0, 9, 2])) / 2)  # of two finished episodes


def test_labels_without_a_class_do_not_reach_the_loss():
    env = Lever()
    policy = dataclasses.replace(CONFIG.policy, recall=(4,), encoder=EncoderConfig())
    ppo = dataclasses.replace(CONFIG.ppo, recall_coef=0.0, teacher_coef=0.0)
    setup = prepare(dataclasses.replace(CONFIG, policy=policy, ppo=ppo), env)
    state = pretrained(setup, initial_state(setup), None, Stop())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            dataclasses.replace(CONFIG, env=EnvConfig("darkroom-dpt"), ppo=PPOConfig(minibatches=1, accumulate=1)),
            "pretrain.steps is 6; allowed: 0 in 'darkroom-dpt', which labels nothing that can be recalled",
        ),
        (
            changed(agent="expert"),
            "pretrain.agent is 'expert'; allowed: 'forgetful searcher', 'remembering searcher' in 'gridobj-9'",
        ),
        (
            dataclasses.replace(
                CONFIG,
                policy=dataclasses.replace(CONFIG.policy, recall=()),
                ppo=dataclasses.replace(CONFIG.ppo, recall_coef=0.0),
            ),
            r"policy.recall is \(\); allowed: \(9, 9\) with pretrain.steps in 'gridobj-9'",
        ),
        (
            dataclasses.replace(
                changed(relabel=True, action_coef=1.0),
                policy=dataclasses.replace(CONFIG.policy, recall=()),
                ppo=dataclasses.replace(CONFIG.ppo, recall_coef=0.0),
            ),
            "pretrain.relabel is True; allowed: False without policy.recall",
        ),
        (changed(steps=-2), "pretrain.steps is -2; allowed: 0 or more"),
        (changed(steps=8, epochs=3), r"a multiple of pretrain.minibatches \(2\) times pretrain.epochs \(3\)"),
        (changed(epochs=0), "pretrain.epochs is 0; allowed: more than 0"),
        (changed(steps=7), r"pretrain.steps is 7; allowed: a multiple of pretrain.minibatches \(2\)"),
        (changed(minibatches=3), r"pretrain.minibatches is 3; allowed: a divisor of pretrain.trials \(4\)"),
        (changed(segment=7), r"pretrain.segment is 7; allowed: a divisor of pretrain.trial_steps \(20\), or None"),
        (changed(segment=0), "pretrain.segment is 0; allowed: a divisor"),
        (changed(action_coef=-1.0), "pretrain.action_coef is -1.0; allowed: 0 or more"),
        (
            dataclasses.replace(
                changed(value_coef=0.5), ppo=dataclasses.replace(CONFIG.ppo, credit="trial", shuffle=False)
            ),
            "pretrain.value_coef is 0.5; allowed: 0 with ppo.credit 'trial'",
        ),
        (changed(value_coef=-1.0), "pretrain.value_coef is -1.0; allowed: 0 or more"),
        (changed(random_actions=1.5), "pretrain.random_actions is 1.5; allowed: 0 … 1"),
        (changed(lr_final=0.1), r"pretrain.lr_final is 0.1; allowed: 0 … pretrain.lr \(0.001\), or None"),
        (changed(lr=0.0), "pretrain.lr is 0.0; allowed: more than 0"),
        (changed(trials=2**27 * 2), r"pretrain.trials is 268435456; allowed: less than 2\^31 / pretrain.trial_steps"),
    ],
)
def test_what_cannot_work_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        prepare(config, registry.make(config.env))


def test_an_environment_without_an_agent_or_inside_workers_is_refused(env):
    class Alone(type(env)):
        ends_in_time = True
        reference_agents = property(lambda self: {})

    class Workers(type(env)):
        ends_in_time = True
        on_host = True

        def check_start(self, environments):
            pass

    fields = {field.name: getattr(env, field.name) for field in dataclasses.fields(env)}
    for kind, reason in ((Alone, "has no scripted agent to record"), (Workers, "is stepped by worker processes")):
        with pytest.raises(ConfigError, match=f"pretrain.steps is 6; allowed: 0 in 'gridobj-9', which {reason}"):
            prepare(CONFIG, kind(**fields))


def test_actions_of_an_agent_without_probabilities_cannot_be_learned():
    policy = dataclasses.replace(CONFIG.policy, recall=(4,))
    config = dataclasses.replace(changed(action_coef=1.0, agent="puller"), policy=policy)
    message = "pretrain.action_coef is 1.0; allowed: 0 in 'lever' with pretrain.agent 'puller', which gives no prob"
    with pytest.raises(ConfigError, match=message):
        check_pretraining(config, Taught())


def test_an_environment_that_cannot_relabel_is_refused():
    config = dataclasses.replace(changed(relabel=True), policy=dataclasses.replace(CONFIG.policy, recall=(4,)))
    with pytest.raises(ConfigError, match=r"pretrain.relabel is True; allowed: False in 'gridobj-9', which"):
        check_pretraining(config, Taught())


@pytest.mark.parametrize("relabel", [False, True])
def test_recordings_that_do_not_fit_into_memory_are_refused(env, relabel):
    needed, config = (1 + relabel) * 4 * 20 * 4 * (18 + 6 + 54), changed(relabel=relabel).pretrain
    check_recordings(config, env.observation_spec, needed)
    with pytest.raises(ConfigError, match=r"pretrain.trials is 4; allowed: a size that fits into 0 MiB"):
        check_recordings(config, env.observation_spec, needed - 1)


def test_a_config_without_the_section_has_no_pretraining():
    assert TrainConfig().pretrain.steps == 0
    assert from_json(to_json(CONFIG)) == CONFIG
