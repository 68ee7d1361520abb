"""Attention to earlier sightings: labels worked out by hand, a loop over steps, and uniform attention."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError, EvalConfig
from relic_jax.environment.base import TrialMap, TrialRecord
from relic_jax.envs.gridobj.env import RADIUS, GridObj, GridObjState, GridObjTask
from relic_jax.envs.registry import make
from relic_jax.evaluation.attention import attention_of
from relic_jax.evaluation.sightings import (
    Sightings,
    Trial,
    first_asked,
    play_trials,
    recalling_steps,
    sightings,
    steps_read,
    uniform_mass,
)
from relic_jax.experiments.sightings import describe, to_json
from relic_jax.experiments.sightings_figure import SEEN, UNSEEN, Panel, draw, mass_by_place
from relic_jax.models.policy import PolicyConfig, policy_for
from relic_jax.models.transformer import TransformerConfig

ENV = GridObj("small", 4, 3, 5)
OBJECTS = np.array([[0, 0], [2, 1], [3, 3]])
# Kind 1 is sought first, past kind 0; then kind 0, which was in view; then kind 2, which was not, and comes into view.
POSITIONS = np.array([(0, 1), (1, 1), (3, 0), (2, 0), (1, 0), (0, 3), (1, 3), (2, 3)])
ASKED, EPISODE = np.array([1, 1, 0, 0, 0, 2, 2, 2]), np.array([0, 0, 1, 1, 1, 2, 2, 2])
IN_VIEW = [(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 0), (1, 1, 0), (0, 0, 0), (0, 0, 0), (0, 0, 1)]
RECALLING = [0, 0, 1, 1, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def by_hand():
    """Return the map of a trial on a 4×4 grid with three objects."""
    count = len(POSITIONS)
    state = GridObjState(POSITIONS, ASKED, np.broadcast_to(OBJECTS, (count, 3, 2)), np.zeros(count, np.int32))
    task = GridObjTask(OBJECTS, np.arange(3))
    first = np.append(True, np.diff(EPISODE) > 0)
    return ENV.trial_map(TrialRecord(None, np.zeros(count), np.zeros(count), first, task, state))


def test_labels_by_hand(by_hand):
    np.testing.assert_array_equal(by_hand.in_view, np.array(IN_VIEW, bool))
    np.testing.assert_array_equal(recalling_steps(by_hand, EPISODE), np.array(RECALLING, bool))
    assert by_hand.position.tolist() == POSITIONS.tolist() and by_hand.asked.tolist() == ASKED.tolist()
    assert (by_hand.low, by_hand.high) == (pytest.approx([-0.5, -0.5]), pytest.approx([3.5, 3.5]))
    # a kind that is in view in the first step of its episode needs no memory
    asked = np.where(EPISODE == 2, 1, ASKED)
    layout = TrialMap(**{**vars(by_hand), "asked": asked})
    np.testing.assert_array_equal(recalling_steps(layout, EPISODE), [0, 0, 1, 1, 0, 1, 1, 1])


def test_kinds_that_no_earlier_episode_asked_for(by_hand):
    assert first_asked(by_hand, EPISODE).all()
    layout = TrialMap(**{**vars(by_hand), "asked": np.where(EPISODE == 2, 1, ASKED)})
    np.testing.assert_array_equal(first_asked(layout, EPISODE), EPISODE < 2)


def test_uniform_attention_by_hand(by_hand):
    trial = Trial(0, by_hand, EPISODE, np.array(RECALLING, bool), None)
    # Of 3 steps up to the first recalling one, 2 have kind 0 in view and 1 only another kind; of 4, 2 and 2.
    assert uniform_mass(trial) == pytest.approx([(2 / 3 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2, 0, 0])


@pytest.fixture(scope="module", params=["kv", "none"])
def acted(request, drawn):
    """Return (policy, parameters, trials) of a tiny policy. Random actions reach few objects."""
    config = TransformerConfig(
        layers=2, heads=2, width=8, mlp_width=8, max_positions=128, attention="reference", sink=request.param
    )
    env = GridObj("small", 5, 3, 12)
    policy = policy_for(env, PolicyConfig(config))
    params = drawn(policy)
    return env, policy, params, play_trials(policy, params, env, EvalConfig(episodes=4, tasks=3))


def test_trials_hold_what_the_policy_saw(acted):
    env, _, _, trials = acted
    for trial in trials:
        steps = len(trial.episode)
        seen = jax.tree.map(lambda x, n=steps: x[0, :n], trial.inputs.observation)
        view = seen["view"].reshape(steps, env.kinds, (2 * RADIUS + 1) ** 2)
        np.testing.assert_array_equal(trial.map.in_view, view.any(-1))
        np.testing.assert_array_equal(trial.map.asked, seen["target"].argmax(-1))
        np.testing.assert_array_equal(trial.map.position, seen["position"].reshape(steps, 2, -1).argmax(-1))
        np.testing.assert_array_equal(np.cumsum(trial.inputs.first[0, :steps]) - 1, trial.episode)
        assert trial.episode[-1] == 3 and (steps == 48 or trial.inputs.first[0, steps])  # ends with the fourth episode


def softmax(layer, head, step):
    """Return the weights of the steps up to `step`, and of the sink, from queries and keys, float64."""
    query, key = (np.asarray(x, np.float64)[0, head] for x in (layer.query, layer.key))
    keys = key[: step + 1] if layer.sink is None else np.vstack([key[: step + 1], layer.sink.key[head]])
    weights = np.exp(keys @ query[step] / math.sqrt(query.shape[-1]))
    return (weights / weights.sum())[: step + 1]


def test_a_loop_over_steps_agrees(acted):
    """The model's own softmax, written out with NumPy, summed over the steps of each class."""
    _, policy, params, trials = acted
    found = sightings(policy, params, trials)
    assert len(found.tasks) and found.played == 3 and np.allclose(found.mass.sum(-1), 1, atol=1e-5)
    if policy.config.transformer.sink == "none":
        assert np.allclose(found.mass[..., 3], 0, atol=1e-5)
    for row, task in enumerate(found.tasks):
        trial = trials[task]
        steps = np.flatnonzero(trial.recalling)
        read = steps_read(policy, params, trial, [0, 1, 2, 3])
        assert found.steps[row] == len(steps) and not read[0].any()
        for index, layer in enumerate(attention_of(policy, params, trial.inputs)):
            for head in range(2):
                expected, weights = np.zeros(3), np.zeros((4, len(trial.episode)))
                for step in steps:
                    weight = softmax(layer, head, step)
                    asked = trial.map.in_view[: step + 1, trial.map.asked[step]]
                    other = trial.map.in_view[: step + 1].any(-1) & ~asked
                    assert (trial.episode[: step + 1][asked] < trial.episode[step]).all()  # all sightings are earlier
                    expected += [weight[asked].sum(), weight[other].sum(), weight[~(asked | other)].sum()]
                    own = trial.recalling & (trial.episode == trial.episode[step])
                    weights[trial.episode[step], : step + 1] += weight / own.sum()
                assert found.mass[row, index, head, :3] == pytest.approx(expected / len(steps), abs=1e-5)
                assert np.allclose(read[:, index, head], weights, atol=1e-5)


def test_equal_scores_give_the_uniform_mass(acted):
    """With all parameters at 0, every score is 0: without a sink, attention is uniform and every ratio is 1."""
    _, policy, params, trials = acted
    found = sightings(policy, jax.tree.map(jnp.zeros_like, params), trials)
    steps = (1 - found.mass[..., 3:])[..., 0]
    assert (found.mass[..., 3] > 0).all() == (policy.config.transformer.sink == "kv")
    if policy.config.transformer.sink == "none":
        assert np.allclose(found.mass, found.uniform[:, None, None], atol=1e-6)
        assert np.allclose(found.ratio()[0], 1, atol=1e-4)
    assert np.allclose(found.mass[..., :3].sum(-1), steps, atol=1e-6)


def test_ratios_and_their_intervals():
    mass = np.array([[[[0.4, 0.4, 0.2, 0.0]]], [[[0.8, 0.1, 0.1, 0.0]]]])
    uniform = np.array([[0.1, 0.6, 0.3, 0.0], [0.3, 0.4, 0.3, 0.0]])
    found = Sightings(mass, uniform, np.array([3, 5]), np.array([0, 2]), 3)
    ratio, low, high = (x[0, 0] for x in found.ratio())
    assert ratio == pytest.approx([0.6 / 0.2, 0.25 / 0.5, 0.15 / 0.3])
    # A quarter of the resamples has the first trial twice and a quarter the second one: ratios 4 and 8 / 3.
    assert (low[0], high[0]) == (pytest.approx(8 / 3), pytest.approx(4)) and found.strongest == (0, 0)
    assert describe(found) == [
        "8 recalling steps of 2 trials: uniform attention would put 20.0% on earlier sightings of the target kind",
        "layer 1, head 1: 60.0% on them, 3.0 [2.7, 4.0] times as much; other kinds in view 25.0%, nothing in view "
        "15.0%, sink 0.0%",
    ]
    content = to_json(found)
    assert content["uniform"] == {"asked": 0.2, "other": 0.5, "nothing": 0.3} and content["trials"] == 3
    assert content["heads"][0]["asked"] == {"mass": 0.6, "times_uniform": 3.0, "interval": [2.6667, 4.0]}
    assert content["by_trial"]["task"] == [0, 2] and content["by_trial"]["asked"] == [[[0.4, 0.8]]]


def test_a_panel_by_hand(by_hand):
    trial = Trial(0, by_hand, EPISODE, np.array(RECALLING, bool), None)
    weight = np.array([0.5, 0.2, 0.2, 0.1, 0, 0, 0, 0])
    panel = Panel(trial, 1, weight, 0.3)
    assert panel.mass == pytest.approx(0.7) and panel.recalling == 2 and panel.asked == 0
    first = {"episode": 1, "step": 0, "position": [0.0, 1.0], "asked_kind_in_view": True, "weight": 0.5}
    content = panel.to_json()
    assert content["read"] == [first, first | {"step": 1, "position": [1.0, 1.0], "weight": 0.2}]
    assert (content["episode"], content["steps"], content["mass"], content["uniform"]) == (2, 3, 0.7, 0.3)
    assert Panel(trial, 2, 0 * weight, 0.0).to_json() == {"episode": 3, "asked": 2, "steps": 3, "recalling_steps": 0}
    axes = draw([panel, Panel(trial, 2, 0 * weight, 0.0)], "a_b").axes
    assert axes[0].get_title() == "episode 2: kind A, 3 steps\n70% on earlier sightings (uniform 30%)"
    assert axes[1].get_title() == "episode 3: kind C, 3 steps\nnot seen in an earlier episode"
    unseen, seen = axes[0].collections
    assert seen.get_offsets().tolist() == [[0, 1], [1, 1]] and len(unseen.get_offsets()) == 0 and SEEN != UNSEEN
    assert seen.get_sizes()[0] / seen.get_sizes()[1] == pytest.approx(2.5)


def test_weights_add_up_at_a_place():
    places, mass = mass_by_place(np.array([[1.0, 2.0], [0.0, 0.0], [1.001, 2.0]]), np.array([0.2, 0.3, 0.1]))
    assert places.tolist() == [[0, 0], [1, 2]] and mass == pytest.approx([0.3, 0.3])


def test_trials_without_recalling_steps_are_refused(by_hand):
    trial = Trial(0, by_hand, EPISODE, np.zeros(8, bool), None)
    with pytest.raises(ConfigError, match="episodes is 3; allowed: more"):
        sightings(None, {}, [trial])


def test_environments_without_a_map_are_refused():
    with pytest.raises(ConfigError, match="env is 'darkroom-dpt'; allowed: an environment with a map"):
        play_trials(None, {}, make("darkroom-dpt"), EvalConfig())


def test_the_command(cli, tmp_path):
    """The pretrained policy reads earlier sightings much more than uniform attention would."""
    options = ("--pretrained", "gridobj-9", "--limit", 2, "--episodes", 3)
    code, out, err = cli("sightings", *options, "--task", 1, "--panels", 1, 3, "--out", tmp_path / "seen.svg")
    assert code == 0, err
    content = json.loads((tmp_path / "seen.json").read_text())
    assert max(head["asked"]["mass"] for head in content["heads"]) > 3 * content["uniform"]["asked"]
    assert [panel["episode"] for panel in content["drawn"]["panels"]] == [1, 3] and content["drawn"]["task"] == 1
    assert content["in_passing"]["recalling_steps"] <= content["recalling_steps"]
    assert "recalling steps of " in out and (tmp_path / "seen.svg").is_file()
    for option, value, allowed in (("--task", 2, "task is 2; allowed: 0 … 1"), ("--panels", 4, "panels is 4; allowed")):
        code, _, err = cli("sightings", *options, option, value)
        assert code == 2 and allowed in err
