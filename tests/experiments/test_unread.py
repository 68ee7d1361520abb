"""Options of a new run that nothing would read are refused; those that a preset sets can stay."""

import dataclasses

import pytest

from relic_jax.config import ConfigError, TrainConfig
from relic_jax.experiments import presets
from relic_jax.experiments.training import parse_train
from relic_jax.experiments.unread import check_read

SEARCHER = "'remembering searcher'"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "darkroom-dpt --ppo.teacher nobody",
            f"ppo.teacher is 'nobody'; allowed: {SEARCHER}, or another one with ppo.tea",
        ),
        (
            "darkroom-dpt --ppo.teacher-where recall",
            "ppo.teacher_where is 'recall'; allowed: 'all', or another one with",
        ),
        (
            "gridobj-9-two --pretrain.agent nobody",
            f"pretrain.agent is 'nobody'; allowed: {SEARCHER}, or another one with",
        ),
        (
            "gridobj-9-two --pretrain.relabel",
            "pretrain.relabel is True; allowed: False, or another one with pretrain.steps",
        ),
        (
            "gridobj-9-two --pretrain.action-coef 1",
            "pretrain.action_coef is 1.0; allowed: 0.0, or another one with pret",
        ),
        ("gridobj-9 --pretrain.steps 0 --pretrain.agent nobody", "pretrain.agent is 'nobody'; allowed: 'rememb"),
        (
            "gridobj-9 --curriculum.mode schedule",
            "curriculum.mode is 'schedule'; allowed: 'gain', or another one with c",
        ),
        ("gridobj-9 --curriculum.starts 0.1 0.5", "curriculum.starts is (0.1, 0.5); allowed: (), or another one with"),
        ("gridobj-9 --curriculum.threshold 5", "curriculum.threshold is 5.0; allowed: 0.1, or another one with curric"),
        (
            "gridobj-9-curriculum --curriculum.window 1000000",
            "curriculum.window is 1000000; allowed: at most 40,000, the",
        ),
    ],
)
def test_an_option_without_effect_is_refused(line, message):
    with pytest.raises(ConfigError) as error:
        parse_train(line.split())
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "line",
    [
        "gridobj-9 --start-from runs/other --pretrain.steps 0",
        "house-symbols-small --pretrain.steps 0 --ppo.teacher-coef-final 0.1 --ppo.teacher-where recall",
        "gridobj-9 --pretrain.steps 0 --pretrain.action-coef 0",
        "gridobj-9-two --pretrain.steps 100 --pretrain.relabel",
        "gridobj-9-curriculum --curriculum.mode schedule --curriculum.window 1000000",
        "gridobj-9-curriculum --curriculum.option None",
        "gridobj-9-curriculum --total-steps 1000",
    ],
)
def test_what_has_an_effect_or_stays_is_accepted(line):
    parse_train(line.split())


def test_every_preset_is_accepted():
    for preset in presets.PRESETS.values():
        check_read(preset.config, preset.config)
        check_read(dataclasses.replace(preset.config, seed=1), TrainConfig())
