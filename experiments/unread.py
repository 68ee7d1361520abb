"""Options of a new run that nothing would read."""

from __future__ import annotations

from relic_jax.config import TrainConfig, differences, value_of
from relic_jax.validation import require

READ_WITH = {
    "pretrain": "pretrain.steps",
    "curriculum": "curriculum.option",
    "ppo.teacher": "ppo.teacher_coef",
    "ppo.teacher_where": "ppo.teacher_coef",
}
"""The field without which nothing reads another field, or the fields of a section."""


def check_read(config: TrainConfig, preset: TrainConfig) -> None:
    """Raise ConfigError if a field was changed and has no effect.

    Fields with the value of the preset or the default of `TrainConfig` can stay: a preset with pretraining has other
    fields for it, also with `pretrain.steps` 0.

    Args:
        config: The config of the run.
        preset: The config before its fields were changed.
    """
    curriculum = config.curriculum
    on = {"pretrain.steps": config.pretrain.steps > 0, "curriculum.option": curriculum.option is not None}
    on["ppo.teacher_coef"] = config.ppo.has_teacher
    changed = [name for name in differences(preset, config) if name in differences(TrainConfig(), config)]
    for field in changed:
        needed = READ_WITH.get(field) or READ_WITH.get(field.partition(".")[0])
        if needed is not None:
            allowed = f"{value_of(preset, field)!r}, or another one with {needed}"
            require(on[needed], field, value_of(config, field), allowed)
    if "curriculum.window" in changed and curriculum.mode == "gain":
        trials = config.trials * config.trial.environments
        allowed = f"at most {trials:,}, the trials of the run"
        require(curriculum.window <= trials, "curriculum.window", curriculum.window, allowed)
