"""Odd values for every option of every command are accepted, or end in a one-line error that names the option."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import ConfigError, EnvConfig, TrainConfig, changed, validate
from relic_jax.experiments.faults.options import COMMANDS, Bench, options_of, trace, values
from relic_jax.rl.memory_budget import check_sizes

pytestmark = pytest.mark.slow

COMMAND_OPTIONS = {name: options_of(command) for name, command in COMMANDS.items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench.make(tmp_path_factory.mktemp("fuzz"))


def fields(config, path=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, EnvConfig):
            yield from ("env", "env.horizon")
            continue
        nested = dataclasses.is_dataclass(value)
        yield from fields(value, f"{path}{field.name}.") if nested else [path + field.name]


def test_every_field_of_a_run_is_an_option_that_is_tried():
    assert set(fields(TrainConfig())) < {option.name for option in COMMAND_OPTIONS["train"]}
    for name, options in COMMAND_OPTIONS.items():
        assert all(len(values(option, name)) > 1 for option in options)


@st.composite
def command_lines(draw):
    """Return (command, the options that are set, values)."""
    name = draw(st.sampled_from(sorted(COMMAND_OPTIONS)))
    name = draw(st.sampled_from(["train", name]))  # half of the cases, because it has most of the fields
    options = draw(st.lists(st.sampled_from(COMMAND_OPTIONS[name]), min_size=1, max_size=2, unique=True))
    return name, options, [draw(st.sampled_from(values(option, name))) for option in options]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(line=command_lines())
def test_odd_values_are_refused_by_name_or_accepted(bench, line):
    name, options, given_values = line
    attempt = bench.attempt(*bench.line(name, dict(zip(options, given_values, strict=True))))
    assert attempt.fault(options) == "", attempt.arguments


def test_what_is_accepted_can_be_traced(bench):
    draw, traced = random.Random(0), set()
    while len(traced) < 5:
        option = draw.choice(COMMAND_OPTIONS["train"])
        attempt = bench.attempt(*bench.line("train", {option: draw.choice(values(option))}))
        if attempt.setup is not None and attempt.setup.config not in traced:
            trace(attempt.setup)
            traced.add(attempt.setup.config)


# Regressions: each of these printed a traceback, named a wrong field, or did not end.
REFUSED = [
    (["--ppo.warmup-steps", "1000000000000001"], "ppo.warmup_steps is 1000000000000001; allowed: at most 1,000,000,"),
    (["--policy.transformer.width", "2147483648"], "policy.transformer.width is 2147483648; allowed: less than 2^31"),
    (["--policy.transformer.width", "1073741824"], "policy.transformer.width is 1073741824; allowed: a size that fits"),
    (
        ["--policy.transformer.mlp-width", "1073741824"],
        "policy.transformer.mlp_width is 1073741824; allowed: ",
    ),
    (
        ["--policy.transformer.max-positions", "2000000000"],
        "policy.transformer.max_positions is 2000000000; allowed",
    ),
    (["--policy.transformer.layers", "1000000000"], "policy.transformer.layers is 1000000000; allowed: at most 256"),
    (["--trial.environments", "1000000000000"], "trial.environments is 1000000000000; allowed: less than 2^31"),
    (["--trial.environments", "2147483640"], "trial.environments is 2147483640; allowed: less than 2^31 / trial.steps"),
    (["--trial.steps", "2147483646"], "trial.steps is 2147483646; allowed: less than 2^31 / trial.environments"),
    (["--trial.action-repeat", "2147483648"], "trial.action_repeat is 2147483648; allowed: less than 2^31"),
    (["--ppo.lr", "1e-300"], "ppo.lr is 1e-300; allowed: 0, or at least 1.18e-38, the smallest float32"),
    (["--ppo.lr", "1e300"], "ppo.lr is 1e+300; allowed: at most 3.4e+38, the largest float32"),
    (["--ppo.lr", "1e-30", "--ppo.lr-final", "1e30"], "ppo.lr_final is 1e+30; allowed: at most"),
    (["--ppo.epochs", "2147483647"], "ppo.epochs is 2147483647; allowed: at most 10,000"),
    (["--policy.transformer.depth-dropout", "0.9999999999"], "depth_dropout is 0.9999999999; allowed: 0 or more and l"),
    (["--policy.head.log-std-min", "-0.5000000001"], "policy.head.log_std is -0.5; allowed: more than"),
    (["--devices", "1000000000"], "devices is 1000000000; allowed: a divisor"),
    (["--devices", "4096", "--trial.environments", "16384"], "devices is 4096; allowed: at most"),
    (["--eval.episodes", "2147483647"], "eval.episodes is 2147483647; allowed: at most 21,474,836"),
    (["--eval.episodes", "20000000"], "eval.episodes is 20000000; allowed: a size that fits into"),
    (["--eval.repeats", "1000000000"], "eval.repeats is 1000000000; allowed: a size that fits into"),
    (["--eval.context-limit", "4294967296"], "eval.context_limit is 4294967296; allowed: less than 2^31"),
    (["--env", "python:.a:B"], "env is 'python:.a:B'; allowed: python:MODULE:NAME"),
    (
        ["--env", "python:json:loads"],
        "env is 'python:json:loads'; allowed: a relic_jax.environment.base.Environment",
    ),
    (["--start-from", "a" * 5000], "start_from is 'aaa"),
    (["--start-from", "a\0b"], "start-from is 'a\\x00b'; allowed: text without NUL"),
    (["--runs", "a" * 5000], "runs is 'aaa"),
    (["--ppo.epochs", "1e3"], "Error parsing --ppo.epochs: invalid literal for int() with base 10: '1e3'"),
    (["--chunk", "a\nb"], "invalid choice 'a b' for argument '--chunk'. Expected one of ('trial', 'segment')."),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[" ".join(options)[:60] for options, _ in REFUSED])
def test_refused_in_one_line(bench, options, said):
    attempt = bench.attempt("train", "darkroom-smoke", "--runs", "runs", *options)
    assert (attempt.code, attempt.out, attempt.err.count("\n")) == (2, "", 1), attempt.err
    assert said in attempt.err


OTHERS = [
    (["evaluate", "RUN", "--limit", "0"], "limit is 0"),
    (["evaluate", "RUN", "--episodes", "3000000000"], "eval.episodes is 3000000000"),
    (["evaluate", "RUN", "--out", "."], "out is '.'; allowed: the name of a file"),
    (["play", "RUN", "--episodes", "3000000000"], "eval.episodes is 3000000000"),
    (["play", "RUN", "--episodes", "20000000"], "eval.episodes is 20000000; allowed: a size that fits"),
    (["export", "RUN", "--to", "new", "--context", "3000000000"], "context is 3000000000; allowed"),
    (["export", "RUN", "--to", "new", "--context", "2000000000"], "context is 2000000000; allowed: a size that fits"),
    (["habitat-dataset", "--out", "new.json", "--seed", "-1"], "seed is -1"),
    (["habitat-dataset", "--out", "new.json", "--layouts", "2000000000"], "layouts is 2000000000"),
    (["import-llamarl", "FILE", "--to", "folder/.."], "to is 'folder/..'; allowed: a new folder"),
]


@pytest.mark.parametrize(("arguments", "said"), OTHERS, ids=[" ".join(arguments)[:60] for arguments, _ in OTHERS])
def test_other_commands_refuse_in_one_line(bench, arguments, said):
    found = {"RUN": str(bench.run), "FILE": str(bench.foreign)}
    attempt = bench.attempt(*(found.get(argument, argument) for argument in arguments))
    assert (attempt.code, attempt.out, attempt.err.count("\n")) == (2, "", 1), attempt.err
    assert said in attempt.err


def test_the_last_of_duplicated_options_counts(bench):
    attempt = bench.attempt("train", "darkroom-smoke", "--runs", "runs", "--seed", "-1", "--seed", "3")
    assert attempt.code is None and attempt.setup.config.seed == 3
    attempt = bench.attempt("train", "--resume", "nowhere", "--resume", "folder")
    assert attempt.code == 2 and "resume is 'folder'" in attempt.err


def test_the_field_that_takes_the_memory_is_named():
    for field, value in (("policy.transformer.width", 2**24), ("policy.transformer.max_positions", 2**30)):
        with pytest.raises(ConfigError, match=f"^{field} is {value}; allowed: a size that fits"):
            check_sizes(changed(TrainConfig(), field, value), available=2**34)


@pytest.mark.parametrize("odd", [2**70, -(2**70), 1e300, 1e-300, float("nan"), "a\0b"])
def test_every_field_of_a_config_is_checked(odd):
    """Integers beyond int32, numbers beyond float32 and text with NUL are refused, for new fields too."""
    tried = 0
    for option in COMMAND_OPTIONS["train"]:
        kinds = getattr(option.hint, "__args__", (option.hint,))
        if option.name not in set(fields(TrainConfig())) or type(odd) not in kinds:
            continue
        with pytest.raises(ConfigError) as error:
            validate(changed(TrainConfig(), option.name, odd), horizon=100)
        assert str(error.value).startswith(option.name), option.name
        tried += 1
    assert tried
