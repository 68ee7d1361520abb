"""Studies and their grids: what is read, what is refused, and what a grid holds. Nothing is trained here."""

import dataclasses
import io
import tomllib
from pathlib import Path

import pytest

from relic_jax.config import ConfigError, TrainConfig
from relic_jax.experiments import presets
from relic_jax.experiments.sweep.board import Board, BoardTracker, Row
from relic_jax.experiments.sweep.evaluations import Table
from relic_jax.experiments.sweep.evaluator import attention_of, evaluations_of
from relic_jax.experiments.sweep.grid import members, methods, programs
from relic_jax.experiments.sweep.study import (
    Method,
    Study,
    first_difference,
    read_study,
    resolved,
    study_of,
)
from relic_jax.rl.population import common_config, differing_scalars

TEXT = """
name = "memories"
preset = "darkroom-smoke"
seeds = [3, 5]

[set]
total_steps = 4000
eval.tasks = 2

[vary]
ppo.lr = [1e-3, 3e-4]
trial.updates = [2, 1]

[[method]]
name = "relic"

[[method]]
name = "gru, small"
preset = "darkroom-rl2"
policy.recurrent.width = 16
trial = { environments = 8, steps = 250 }
ppo.value_clip = "None"

[[evaluate]]
name = "long"
methods = ["relic"]
episodes = 9
context_limit = [50, 100]

[attention]
limit = 5
methods = ["relic"]
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    file = tmp_path_factory.mktemp("study") / "file.toml"
    file.write_text(TEXT)
    return read_study(file)


def test_a_study_file_is_methods_times_values_times_seeds(study):
    runs = members(study)
    assert len(runs) == 2 * 2 * 2 * 2
    assert [run.name for run in runs[:3]] == [
        "relic_lr-0.001_updates-2_seed3",
        "relic_lr-0.001_updates-2_seed5",
        "relic_lr-0.001_updates-1_seed3",
    ]
    last = runs[-1]
    assert last.name == "gru-small_lr-0.0003_updates-1_seed5"
    assert last.settings == {"method": "gru, small", "ppo.lr": 3e-4, "trial.updates": 1}
    config = last.config
    assert (config.policy.memory, config.policy.recurrent.width, config.seed) == ("gru", 16, 5)
    assert (config.total_steps, config.eval.tasks, config.devices) == (4000, 2, 1)
    assert config.ppo.value_clip is None
    assert runs[0].config.policy.memory == "transformer"
    compared = methods(runs, Path("study"))
    assert set(compared[0].settings) >= {"ppo.lr", "trial.updates", "policy.memory"}
    assert [method.name for method in compared] == list(dict.fromkeys(run.variant for run in runs))
    assert compared[-1].runs[-1] == Path("study") / last.name


def test_scalars_and_seeds_share_a_program(study):
    groups = programs(members(study))
    assert [len(group) for group in groups] == [4, 4, 4, 4]  # two methods and two values of trial.updates
    assert differing_scalars([run.config for run in groups[0]]) == ("lr",)
    first = groups[0][0].config
    assert common_config(first) == common_config(groups[0][-1].config)
    clipped = dataclasses.replace(first, ppo=dataclasses.replace(first.ppo, value_clip=0.2))
    assert common_config(clipped) != common_config(first)  # None is another program
    longer = dataclasses.replace(first, total_steps=8000)
    assert common_config(longer) != common_config(first)


def test_the_resolved_study_is_read_back_as_the_same_study(study):
    text = resolved(study)
    again = study_of(tomllib.loads(text), Path("s.toml"))
    assert again == study and first_difference(study, again) is None
    assert "preset" not in text
    plain = Study("plain", (0, 1), (Method("", presets.get("xland-trivial").config),), {"ppo.value_clip": (None, 0.1)})
    assert study_of(tomllib.loads(resolved(plain)), Path("s.toml")) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sed = 3\npreset = "darkroom-smoke"', "sed is unknown; allowed: name, .*; did you mean seeds?"),
        ('preset = "darkroom-smok"', "did you mean darkroom-smoke"),
        ("[set]\nppo.lrr = 1e-3", r"set.ppo.lrr is 0.001; allowed: .*; did you mean ppo.lr\?"),
        ('[set]\npolicy.transformer.sink = "nonne"', "'k0v0', 'token', 'none'; did you mean 'none'\\?"),
        ('[set]\npolicy.memory = "transformerxl"', "allowed: .*; did you mean 'transformer-xl'\\?"),
        ("[set]\nlr = 1e-3", r"set.lr is 0.001; .*; did you mean ppo.lr\?"),
        ("[set]\nlayers = 3", r"set.layers is 3; .*; did you mean policy.transformer.layers\?"),
        ("total_steps = 5", r"total_steps is 5; allowed: below \[set\], \[vary\] or \[\[method\]\]"),
        ("ppo.lr = 1e-3", r"ppo.lr is 0.001; allowed: below \[set\]"),
        ("devices = 2", "devices is 2; allowed: --devices of relic-jax sweep instead"),
        ('[set]\nenv.name = "gridobj"', "env is 'gridobj'; allowed: a name that relic-jax envs lists; did you mean"),
        ('[set]\nsink = "kv"', r"set.sink is 'kv'; .*; did you mean policy.transformer.sink\?"),
        ('[vary]\npolicy.transformer.sink = ["kv", "kw"]', "policy.transformer.sink is 'kw'; allowed: .*'kv0'"),
        ('[vary]\nppo.lr = ["fast"]', "ppo.lr is 'fast'; allowed: float"),
        ("[vary]\nppo.lr = []", r"vary.ppo.lr is \[\]; allowed: a list of values"),
        ("[vary]\nppo.lr = [1e-3, 0.001]", "vary.ppo.lr is .*; allowed: different values"),
        ("[vary]\nseed = [0, 1]", "vary.seed is .*; allowed: seeds instead"),
        ("[set]\ndevices = 2", "set.devices is 2; allowed: --devices"),
        ("seeds = 0", "seeds is 0; allowed: a number from 1"),
        ("seeds = [1, 1]", r"seeds is \[1, 1\]; allowed: .* different seeds"),
        ("[[method]]\nppo.lr = 1e-3", "method is .*; allowed: a table with a name"),
        ('[[method]]\nname = "a"\n[[method]]\nname = "a"', "method.name is 'a'; allowed: another name for each"),
        ('name = "../up"', "name is '../up'; allowed: the name of a folder"),
        ("[[evaluate]]\nepisodes = 3", "evaluate is .*; allowed: a table with a name"),
        ('[[evaluate]]\nname = "a"\n[[evaluate]]\nname = "a"', "evaluate.name is 'a'; allowed: another name for each"),
        ('[[evaluate]]\nname = "a"\nepisode = 3', "evaluate.episode is unknown; .*; did you mean episodes?"),
        ('[[evaluate]]\nname = "a"\nepisodes = [3, 3]', r"evaluate.episodes is \[3, 3\]; allowed: a whole number"),
        ('[[evaluate]]\nname = "a"\nlimit = 1.5', "evaluate.limit is 1.5; allowed: a whole number"),
        (
            '[[evaluate]]\nname = "a"\ntasks = "tset"',
            "evaluate.tasks is 'tset'; allowed: 'test', 'train'; did you mean 'test'",
        ),
        (
            '[[method]]\nname = "relic"\n[[evaluate]]\nname = "a"\nmethods = ["relik"]',
            "evaluate.methods is 'relik'; allowed: 'relic'; did you mean relic?",
        ),
        ('[attention]\nmethods = ["gru"]', r"attention.methods is 'gru'; allowed: none, the study has no \[\[method"),
        ("[attention]\nepisodes = [3, 4]", r"attention.episodes is \[3, 4\]; allowed: one value"),
        ("seeds = ", "allowed: a TOML file"),
    ],
)
def test_a_study_that_does_not_fit_is_refused_with_the_nearest_name(tmp_path, text, message):
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_study(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value).strip()


def test_every_combination_of_an_evaluation_is_one_but_quality_needs_experts(study):
    runs = members(study)
    found = evaluations_of(study, runs[0])
    assert [x.stem for x in found] == ["evaluate-long_context-limit-50", "evaluate-long_context-limit-100"]
    assert [(x.config.episodes, x.config.context_limit, x.config.tasks) for x in found] == [(9, 50, 2), (9, 100, 2)]
    assert evaluations_of(study, runs[-1]) == [] and attention_of(study, runs[-1]) is None
    assert attention_of(study, runs[0]).tasks == 5
    table = Table("experts", options={"expert_episodes": (0, 1), "expert_quality": (1.0, 0.5), "episodes": (3,)})
    one = dataclasses.replace(study, evaluate=(table,))
    assert [(x.config.expert_episodes, x.config.expert_quality) for x in evaluations_of(one, runs[0])] == [
        *((0, 1.0), (1, 1.0), (1, 0.5)),
    ]


def test_evaluations_can_change_in_a_folder_but_settings_of_runs_cannot(study):
    other = dataclasses.replace(study, evaluate=(), attention=None)
    assert first_difference(study, other) is None


def test_a_combination_that_cannot_work_is_named():
    study = Study("s", (0,), (Method("", TrainConfig()),), {"trial.updates": (16, 7)})
    with pytest.raises(ConfigError, match=r"trial.steps is 4096; allowed: a multiple .* \(in updates-7\)"):
        members(study)


def test_two_runs_never_share_a_folder():
    methods = (Method("a b", TrainConfig()), Method("a/b", TrainConfig()))
    with pytest.raises(ConfigError, match="two runs the folder 'a-b_seed0'; allowed: different names"):
        members(Study("s", (0,), methods, {}))


def test_the_first_setting_that_differs_is_named(study):
    other = dataclasses.replace(study, seeds=(0,))
    assert first_difference(study, other) == "seeds is [0]; allowed: [3, 5]"
    other = dataclasses.replace(study, vary={"ppo.lr": (1e-3,)})
    assert first_difference(study, other) == "vary.ppo.lr is (0.001,); allowed: (0.001, 0.0003)"


def test_a_board_that_is_no_terminal_prints_one_summary_line():
    stream = io.StringIO()
    with Board([Row("a", 100), Row("b", 100)], stream, interval=60.0) as board:
        board.already("a", "finished", 100)
        BoardTracker(board, "b").log({"env_steps": 50, "return": 1.25}, {})
        assert board.summary().startswith("1/2 runs finished · training b 50% · return 1.2 · ")
    assert stream.getvalue().count("\n") == 1


def test_a_board_shows_how_far_the_pretraining_of_a_run_is():
    board = Board([Row("a", 100)], io.StringIO())
    BoardTracker(board, "a").pretrained({"optimizer_steps": 50, "loss": 1.0, "right": 0.5}, 200)
    assert board.table()[0].split() == ["a", "pretraining", "25%"]
    assert board.summary().startswith("0/1 runs finished · pretraining a 25% · ")
    BoardTracker(board, "a").pretrained({"optimizer_steps": 200, "loss": 1.0, "right": 0.5}, 200)
    assert board.table()[0].split() == ["a", "compiling", "0%"]


def test_a_terminal_shows_a_table_of_at_most_twenty_runs_around_the_running_ones():
    board = Board([Row(f"run{index:02}", 100) for index in range(60)], io.StringIO())
    board.set("run40", "training", 50, "3.0")
    lines = board.table()
    assert len(lines) == 21
    assert any(line.split() == ["run40", "training", "50%", "3.0"] for line in lines)
