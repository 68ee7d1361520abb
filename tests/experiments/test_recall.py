"""Supervised recall: the measures against a loop over recorded observations, the gradient, and learning itself."""

import dataclasses
import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import prng
from relic_jax.config import (
    EncoderConfig,
    PolicyConfig,
    PPOConfig,
    PretrainConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
)
from relic_jax.environment.trials import Trials
from relic_jax.envs import registry
from relic_jax.envs.gridobj.env import GridObj
from relic_jax.envs.gridobj.searcher import Searcher
from relic_jax.experiments import arguments, recall_table
from relic_jax.experiments.docs_commands.short import NETWORK, PRETRAIN, TRAIN
from relic_jax.experiments.recall.__main__ import Command, main, pretraining_of
from relic_jax.experiments.recall.learn import train
from relic_jax.experiments.recall.measures import Sightings, shares, sightings
from relic_jax.experiments.training import Stopped, parse_train, start
from relic_jax.models.policy import policy_for
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.pretraining import Pretraining, pretrained
from relic_jax.rl.train import prepare
from relic_jax.stopping import Stop

SMALL = PolicyConfig(
    transformer=TransformerConfig(layers=1, heads=2, width=32, mlp_width=64, max_positions=128, episode_rope=False),
    encoder=EncoderConfig(observation="scaled"),
    recall=(9, 9),
)
SHORT = PretrainConfig(steps=8, trials=8, trial_steps=40, minibatches=2, lr=3e-3, segment=20)

LOSSES_STOPPED = (4.43013, 4.37501, 4.42644, 4.38727)
LOSSES_FULL = (4.43013, 4.37505, 4.42684, 4.38754)


@pytest.fixture(scope="module")
def env():
    return registry.make("gridobj-9")


def pretraining(env, **changes):
    return Pretraining(Trials(env), policy_for(env, SMALL), dataclasses.replace(SHORT, **changes))


@pytest.fixture(scope="module")
def recordings(env):
    tasks = jax.tree.map(lambda x: jnp.asarray(x[:3]), env.tasks("train"))
    return jax.device_get(pretraining(env, trial_steps=200).record(prng.key(0), tasks))


def test_sightings_and_labels_are_those_of_a_loop_over_what_was_in_view(env, recordings):
    observation = recordings.inputs.observation
    view, target = observation["view"].reshape(3, 200, env.kinds, -1).any(-1), observation["target"].argmax(-1)
    objects, found = env.tasks("train").objects[:3], jax.device_get(sightings(env, observation))
    for trial in range(3):
        last = {}
        for step in range(200):
            last.update({kind: step for kind in np.flatnonzero(view[trial, step])})
            asked = target[trial, step]
            assert recordings.known[trial, step] == (asked in last)
            assert found.age[trial, step] == (step - last[asked] if asked in last else -1)
            if asked in last:
                assert (recordings.answers[trial, step] == objects[trial, asked]).all()
                assert found.between[trial, step] == sum(seen > last[asked] for seen in last.values())
    assert (found.age >= 50).any(), "some answers need a long memory"


def test_shares_by_age_and_by_kinds_between():
    age = np.array([[-1, 0, 5, 12, 60, 400]])
    seen = Sightings(age, np.array([[0, 0, 1, 2, 3, 5]]))
    found = shares(np.array([[True, True, False, True, False, True]]), seen)
    assert found["all"] == pytest.approx(3 / 5)
    ages = [found[f"age {name}"] for name in ("0–0", "1–9", "10–49", "50–299", "300+")]
    assert ages == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert (found["between 1"], found["between 2"], found["between 3+"]) == (0.0, 1.0, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("segment", [60, 30])
def test_a_stopped_gradient_leaves_the_answers_unchanged(env, recordings, segment):
    full, stopped = pretraining(env, segment=None), pretraining(env, segment=segment)
    params = full.policy.init(prng.key(1))
    part = jax.tree.map(lambda x: x[:, :60], recordings)
    for one, other in zip(full.outputs(params, part).recall, stopped.outputs(params, part).recall, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    slope = [jax.tree.leaves(jax.grad(lambda p, m=m: m.loss(p, part)[0])(params)) for m in (full, stopped)]
    equal = all(np.allclose(a, b, atol=1e-6) for a, b in zip(*slope, strict=True))
    assert equal == (segment == 60), "gradients differ where they cross a segment"


def test_the_loss_is_the_mean_over_known_steps(env, recordings):
    model = pretraining(env, segment=None)
    params = model.policy.init(prng.key(1))
    loss, metrics = model.loss(params, recordings)
    x, y = (np.asarray(log_prob) for log_prob in model.outputs(params, recordings).recall)
    nats, hits = [], []
    for trial, step in zip(*np.nonzero(recordings.known), strict=True):
        row, column = recordings.answers[trial, step]
        nats.append(-x[trial, step, row] - y[trial, step, column])
        hits.append((x[trial, step].argmax(), y[trial, step].argmax()) == (row, column))
    assert loss == pytest.approx(np.mean(nats), rel=1e-5)
    assert metrics["right"] == pytest.approx(np.mean(hits), abs=1e-6)


@dataclasses.dataclass(frozen=True)
class OnlyActs:
    """A scripted agent without probabilities, as in the first version."""

    agent: Searcher

    def initial_memory(self):
        return self.agent.initial_memory()

    def act(self, key, memory, state, first, task):
        return self.agent.act(key, memory, state, first, task)


class WithoutTeacher(GridObj):
    @property
    def reference_agents(self):
        return {name: OnlyActs(agent) for name, agent in super().reference_agents.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("segment", "losses"), [(20, LOSSES_STOPPED), (None, LOSSES_FULL)])
def test_losses_are_those_of_the_first_version(env, segment, losses):
    """That version computed the labels from the environment's state (commit b972dde, seed 3)."""
    env = WithoutTeacher(**{field.name: getattr(env, field.name) for field in dataclasses.fields(env)})
    rows = train(pretraining(env, segment=segment), 3, 4, 2, lambda row: None)[1]
    np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=1e-4)


@pytest.mark.slow
def test_training_starts_from_the_same_parameters(env):
    """Up to rounding: `relic-jax train` initializes the parameters in a compiled program."""
    params, rows = train(pretraining(env), 0, 4, 4, lambda row: None)
    assert [row["optimizer_steps"] for row in rows] == [4, 8]
    config = TrainConfig(
        policy=SMALL,
        total_steps=80,
        devices=1,
        trial=TrialConfig(environments=2, steps=40, updates=1),
        ppo=PPOConfig(minibatches=1, accumulate=1),
        pretrain=SHORT,
    )
    setup = prepare(config, env)
    state, first = initial_state(setup), setup.policy.init(jax.random.split(prng.key(0))[0])
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    state = pretrained(setup, state.replace(params=first), None, Stop())
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_stop_during_pretraining_names_the_command_that_starts_it_again(tmp_path):
    command, folder, resume = parse_train(["gridobj-9", *NETWORK, *TRAIN, *PRETRAIN, "--runs", str(tmp_path)])
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped, match=f"stopped during pretraining, which .* relic-jax train --resume {folder}"):
        start(command, folder, resume, stop)
    assert not list((folder / "checkpoints").glob("*"))


def test_the_loss_falls(env):
    rows = train(pretraining(env, steps=60, segment=None), 0, 4, 30, lambda row: None)[1]
    assert rows[1]["loss"] < rows[0]["loss"] < 2 * np.log(9) + 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--every", "6"], "every is 6; allowed: a multiple of 4, which is pretrain.minibatches times"),
        (["--held-out", "0"], "held_out is 0; allowed: more than 0"),
        (["--pretrain.steps", "0"], "pretrain.steps is 0; allowed: more than 0"),
        (["--env", "darkroom-dpt"], "env is 'darkroom-dpt'; allowed: gridobj-9, gridobj-13, gridobj-21"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        main(options)


def test_the_default_is_the_network_of_the_preset():
    config, found = pretraining_of(Command())
    assert (config.policy, found.config.steps, found.config.segment) == (found.policy.config, 1000, None)


def test_a_table_of_variants_trains_only_what_is_missing(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "new" / "table"
    trained = []

    def fake(argv):
        path = Path(argv[argv.index("--out") + 1])
        trained.append(argv[:-8])
        last = 0.95 if argv[-3] == "0" else 0.5
        rows = [
            {"optimizer_steps": 80, "all": 0.3, recall_table.LONG: 0.2, "cpu_s": 60.0},
            {"optimizer_steps": 160, "all": last, recall_table.LONG: 0.25, "cpu_s": 120.0},
        ]
        path.write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(recall_table.recall, "main", fake)
    for _ in range(2):
        recall_table.main(["--out", str(folder), "--seeds", "0", "1", "--only", "GRU", "default"])
    recurrent = recall_table.VARIANTS["GRU"].split()
    assert trained == [recurrent, recurrent, [], []]
    assert (folder / "gru-seed1.json").is_file()
    expected = "| GRU | 2 | 95%, 50% | 25%, 25% | 160, never | 2.0 |"
    assert expected in (folder / "table.md").read_text().splitlines()
    with pytest.raises(SystemExit, match="only is 'no such'; allowed: default, "):
        recall_table.main(["--out", str(folder), "--only", "no such"])
    with pytest.raises(SystemExit, match=r"out is .*table\.md, which is a file; allowed: a folder"):
        recall_table.main(["--out", str(folder / "table.md")])


@pytest.mark.parametrize("variant", recall_table.VARIANTS)
def test_variants_have_options_that_can_be_trained(variant):
    pretraining_of(arguments.parse(Command, recall_table.VARIANTS[variant].split(), "recall"))
    assert len({recall_table.file_of(Path(), name, 0) for name in recall_table.VARIANTS}) == len(recall_table.VARIANTS)
