"""Configs: JSON round trip, validation and error messages."""

import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys
import typing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import (
    ConfigError,
    EncoderConfig,
    EnvConfig,
    EvalConfig,
    Options,
    PolicyConfig,
    PPOConfig,
    TrainConfig,
    TransformerConfig,
    TrialConfig,
    WorkerConfig,
    check_fields,
    differences,
    from_data,
    from_json,
    to_json,
    validate,
)

HORIZON = 100


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars, max_size=3)


def strategy(hint):
    """Return a strategy for values of a field's type."""
    if dataclasses.is_dataclass(hint):
        fields = {name: strategy(h) for name, h in typing.get_type_hints(hint).items()}
        return st.builds(hint, **fields)
    if hint is Options:
        return st.dictionaries(st.text(), json_values).map(Options)
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return st.lists(strategy(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if options := typing.get_args(hint):
        return st.one_of(*map(strategy, options))
    floats = st.floats(allow_nan=False, allow_infinity=False)
    simple = {int: st.integers(), bool: st.booleans(), str: st.text(), float: floats, type(None): st.none()}
    return simple[hint]


def changed(field, value, config=None):
    """Return `config` (default: the default config) with the dotted `field` set."""
    config = config or TrainConfig()
    head, _, rest = field.partition(".")
    return replace(config, **{head: changed(rest, value, getattr(config, head)) if rest else value})


def leaves(config, path=""):
    """Yield (dotted name, value) of every field that is not a config."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, EnvConfig):
            yield from [("env", value.name), ("env.horizon", value.horizon)]
            yield from ((f"env.{name}", value.options[name]) for name in sorted(value.options))
        elif dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}{field.name}.")
        else:
            yield path + field.name, value


@settings(deadline=None)  # no deadline, because machines can be busy
@given(strategy(TrainConfig))
def test_json_round_trip_of_any_config(config):
    again = from_json(to_json(config))
    assert again == config
    assert [type(value) for _, value in leaves(again)] == [type(value) for _, value in leaves(config)]


def test_whole_numbers_are_accepted_for_real_fields_and_become_real():
    lr = from_json('{"ppo": {"lr": 1}}').ppo.lr
    assert lr == 1.0 and type(lr) is float


def test_missing_fields_take_their_defaults():
    assert from_json("{}") == TrainConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "config is not JSON"),
        ("{", "config is not JSON"),
        ("[" * 100_000, "config is not JSON"),
        ("9" * 5000, "config is not JSON"),
        ("[]", "config is []; allowed: an object"),
        ('{"nonsense": 1}', "nonsense is unknown; allowed: checkpoint_minutes, chunk"),
        ('{"ppo": {"learning_rate": 1}}', "ppo.learning_rate is unknown; allowed: accumulate"),
        ('{"ppo": 3}', "ppo is 3; allowed: an object"),
        ('{"seed": "1"}', "seed is '1'; allowed: int"),
        ('{"seed": 1.0}', "seed is 1.0; allowed: int"),
        ('{"seed": true}', "seed is True; allowed: int"),
        ('{"seed": null}', "seed is None; allowed: int"),
        ('{"ppo": {"lr": "fast"}}', "ppo.lr is 'fast'; allowed: float"),
        ('{"ppo": {"lr": true}}', "ppo.lr is True; allowed: float"),
        ('{"ppo": {"lr": 1' + "0" * 400 + "}}", "ppo.lr is 1000"),
        ('{"ppo": {"value_clip": []}}', "ppo.value_clip is []; allowed: float or NoneType"),
        ('{"ppo": {"shuffle": 1}}', "ppo.shuffle is 1; allowed: bool"),
        ('{"chunk": "epoch"}', "chunk is 'epoch'; allowed: 'trial', 'segment'"),
        ('{"chunk": ["trial"]}', "chunk is ['trial']; allowed"),
        ('{"policy": {"encoder": {"observation": "RAW"}}}', "policy.encoder.observation is 'RAW'; allowed: 'raw'"),
    ],
)
def test_bad_json_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError) as error:
        from_json(text)
    assert said in str(error.value) and "\n" not in str(error.value)


@settings(deadline=None)
@given(strategy(TrainConfig), strategy(TrainConfig))
def test_differences_are_exactly_the_fields_that_differ(a, b):
    left, right, missing = dict(leaves(a)), dict(leaves(b)), object()
    expected = {name for name in {**left, **right} if left.get(name, missing) != right.get(name, missing)}
    assert set(differences(a, b)) == expected and len(differences(a, b)) == len(expected)
    assert differences(a, a) == []


def test_differences_name_nested_fields():
    assert differences(TrainConfig(), changed("policy.transformer.sink", "none")) == ["policy.transformer.sink"]


def test_defaults_and_a_minimal_config_are_valid():
    validate(TrainConfig(), horizon=HORIZON)
    one = TrainConfig(
        total_steps=1,
        policy=PolicyConfig(TransformerConfig(layers=1, heads=1, width=2, mlp_width=1, max_positions=3)),
        trial=TrialConfig(environments=1, steps=1, updates=1),
        ppo=PPOConfig(epochs=1, minibatches=1, accumulate=1),
        eval=EvalConfig(episodes=1),
    )
    validate(one, horizon=1)


def test_trials_are_rounded_up():
    trial = TrialConfig(environments=4, steps=10, updates=5)
    assert trial.segment == 2
    assert [TrainConfig(total_steps=n, trial=trial).trials for n in (1, 40, 41, 80)] == [1, 1, 2, 2]


BAD = [
    ("seed", -1, "0 … 2^32−1"),
    ("seed", 2**32, "0 … 2^32−1"),
    ("total_steps", 0, "more than 0"),
    ("total_steps", -5, "more than 0"),
    ("total_steps", 10**15 + 1, "at most 1,000,000,000,000,000"),
    ("ppo.warmup_steps", 10**15 + 1, "at most 1,000,000,000,000,000"),
    ("trial.steps", 2**28, "less than 2^31 / trial.environments (8)"),
    ("checkpoint_minutes", -1.0, "more than 0"),
    ("devices", 0, "a divisor of trial.environments / ppo.minibatches (1)"),
    ("devices", -1, "a divisor of"),
    ("devices", 3, "a divisor of"),
    ("context_devices", 0, "more than 0"),
    ("policy.transformer.heads", 7, "a divisor of policy.transformer.width (64)"),
    ("policy.transformer.heads", 64, "an even width per head (it is 1"),
    ("policy.transformer.heads", 0, "more than 0"),
    ("policy.transformer.width", -64, "more than 0"),
    ("policy.transformer.layers", 0, "more than 0"),
    ("policy.transformer.depth_dropout", 1.0, "0 or more and less than 1"),
    ("policy.transformer.depth_dropout", -0.1, "0 or more and less than 1"),
    ("policy.transformer.max_positions", HORIZON + 1, f"at least {HORIZON + 2}"),
    ("trial.environments", -8, "more than 0"),
    ("trial.steps", 4097, "a multiple of trial.updates (16)"),
    ("trial.updates", 3, "a multiple of trial.updates (3)"),
    ("ppo.minibatches", 3, "a divisor of trial.environments (8)"),
    ("ppo.accumulate", 3, "a divisor of ppo.minibatches (8)"),
    ("ppo.epochs", 0, "more than 0"),
    ("ppo.lr", 0.0, "more than 0"),
    ("ppo.lr", -1e-3, "more than 0"),
    ("ppo.lr_final", -1e-3, "0 or more"),
    ("ppo.warmup_steps", -1, "0 or more"),
    ("ppo.gamma", 1.01, "0 … 1"),
    ("ppo.gamma", -0.01, "0 … 1"),
    ("ppo.gae_lambda", 2.0, "0 … 1"),
    ("ppo.clip", -0.2, "more than 0"),
    ("ppo.value_clip", 0.0, "more than 0, or None"),
    ("ppo.value_coef", -1.0, "0 or more"),
    ("ppo.entropy_coef", -0.1, "0 or more"),
    ("ppo.entropy_coef_final", -0.1, "0 or more"),
    ("ppo.max_grad_norm", 0.0, "more than 0"),
    ("ppo.reward_scale", 0.0, "more than 0"),
    ("ppo.adam_eps", 0.0, "more than 0"),
    ("ppo.credit", "trial", "ppo.shuffle False or ppo.last_update 'partial'"),
    ("eval.episodes", 0, "more than 0"),
    ("eval.repeats", -2, "more than 0"),
    ("eval.context_limit", -1, "0 (the current episode), more than 0, or None"),
    ("eval.expert_episodes", 40, "0 … eval.episodes − 1"),
    ("eval.expert_episodes", -1, "0 … eval.episodes − 1"),
    ("eval.expert_quality", 1.5, "0 … 1"),
    ("eval.expert_quality", 0.5, "1.0 if eval.expert_episodes is 0"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD, ids=[f"{f}={v}" for f, v, _ in BAD])
def test_refusal_names_the_field_the_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ConfigError) as error:
        validate(changed(field, value), horizon=HORIZON)
    message = str(error.value)
    named = "trial.steps" if field == "trial.updates" else field  # named together
    shown = 4096 if field == "trial.updates" else value
    assert message.startswith(f"{named} is {shown!r}; allowed: ")
    assert allowed in message and "\n" not in message


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("policy.memory", "gru", "'transformer' if context_devices is 2"),
        ("policy.transformer.attention", "native", "'auto' or 'blocked' if context_devices is 2"),
        ("trial.steps", 48, "a multiple of trial.updates · context_devices (16 · 2)"),
        ("devices", 3, "times context_devices (2), or None"),
    ],
)
def test_what_does_not_support_a_split_context_is_named(field, value, allowed):
    config = replace(TrainConfig(), context_devices=2, devices=4, ppo=PPOConfig(shuffle=False, accumulate=2))
    validate(config, horizon=HORIZON)
    with pytest.raises(ConfigError) as error:
        validate(changed(field, value, config), horizon=HORIZON)
    message = str(error.value)
    assert message.startswith(f"{field} is {value!r}; allowed: ") and allowed in message and "\n" not in message


REAL_FIELDS = [name for name, value in leaves(changed("ppo.entropy_coef_final", 0.1)) if isinstance(value, float)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", REAL_FIELDS)
def test_no_real_field_takes_nan_or_infinity(field, value):
    with pytest.raises(ConfigError) as error:
        validate(changed(field, value), horizon=HORIZON)
    assert str(error.value) == f"{field} is {value!r}; allowed: a finite number"


@pytest.mark.parametrize("field", [name for name in REAL_FIELDS if name.split(".")[0] in ("policy", "trial", "ppo")])
def test_what_is_computed_with_is_finite_in_float32(field):
    with pytest.raises(ConfigError) as error:
        validate(changed(field, 1e39), horizon=HORIZON)
    assert str(error.value) == f"{field} is 1e+39; allowed: at most 3.4e+38, the largest float32"


def test_only_what_is_used_is_required():
    transformer = TransformerConfig(width=6, heads=2, episode_rope=False, max_positions=1, step_embedding=False)
    validate(replace(TrainConfig(), policy=PolicyConfig(transformer, EncoderConfig())), horizon=HORIZON)
    without_sink = TransformerConfig(sink="none", max_positions=HORIZON + 1)
    validate(replace(TrainConfig(), policy=PolicyConfig(without_sink)), horizon=HORIZON)


def test_the_platforms_attention_takes_what_it_can_compute():
    def refusal(**fields):
        with pytest.raises(ConfigError) as error:
            policy = PolicyConfig(TransformerConfig(attention="flash", **fields))
            validate(replace(TrainConfig(), policy=policy), horizon=HORIZON)
        return str(error.value)

    assert refusal(dtype="float32").startswith("policy.transformer.dtype is 'float32'; allowed: 'bfloat16'")
    assert "(it is 4) that is a multiple of 8" in refusal(dtype="bfloat16", width=64, heads=16)
    assert "at most 128" in refusal(dtype="bfloat16", width=512, heads=2)
    fits = TransformerConfig(attention="flash", dtype="bfloat16", heads=8, width=64)
    validate(replace(TrainConfig(), policy=PolicyConfig(fits)), horizon=HORIZON)


def test_the_compiled_attention_takes_what_it_can_compute():
    def refusal(**fields):
        with pytest.raises(ConfigError) as error:
            policy = PolicyConfig(TransformerConfig(attention="native", **fields))
            validate(replace(TrainConfig(), policy=policy), horizon=HORIZON)
        return str(error.value)

    assert refusal(dtype="bfloat16").startswith("policy.transformer.dtype is 'bfloat16'; allowed: 'float32'")
    assert refusal(cache="int8").startswith("policy.transformer.cache is 'int8'; allowed: 'float32'")
    assert "(it is 24) of 4, 8, 16, 32, 64, 128" in refusal(width=48, heads=2)
    fits = TransformerConfig(attention="native", heads=8, width=64)
    validate(replace(TrainConfig(), policy=PolicyConfig(fits)), horizon=HORIZON)


def test_a_string_is_the_name_of_the_environment():
    assert TrainConfig(env="gym:A-v0") == TrainConfig(env=EnvConfig("gym:A-v0"))
    assert replace(TrainConfig(env=EnvConfig("a", 3)), env="b").env == EnvConfig("b")


def test_options_are_hashable_and_immutable():
    options = Options(a=1, b=[1, {"c": None}])
    assert options == Options(b=(1, Options(c=None)), a=1) and len({options, Options(options)}) == 1
    assert pickle.loads(pickle.dumps(options)) == options == copy.deepcopy(options)
    for change in (lambda: options.update(a=2), lambda: options.pop("a"), lambda: options.__setitem__("a", 2)):
        with pytest.raises(TypeError, match="immutable"):
            change()
    assert hash(TrainConfig(env=EnvConfig("a", options={"b": 1}))) == hash(
        TrainConfig(env=EnvConfig("a", None, {"b": 1}))
    )


@dataclasses.dataclass(frozen=True)
class Family:
    size: int = 3
    kind: typing.Literal["a", "b"] = "a"
    rate: float = 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": 3}, "env.sizes is unknown; allowed: kind, rate, size; did you mean env.size?"),
        ({"size": "3"}, "env.size is '3'; allowed: int"),
        ({"size": [3]}, "env.size is (3,); allowed: int"),
        ({"kind": "c"}, "env.kind is 'c'; allowed: 'a', 'b'"),
    ],
)
def test_options_of_a_family_are_read_strictly(options, message):
    assert EnvConfig("a", options={"rate": 2, "kind": "b"}).typed(Family) == Family(3, "b", 2.0)
    with pytest.raises(ConfigError) as error:
        EnvConfig("a", options=options).typed(Family)
    assert str(error.value) == message


OLD_HOST = {"workers": 4, "backend": "habitat", "python": "p", "dataset": "d", "wrappers": "w", "text": "words"}
OLD_HOST |= {"scene_dataset": "s", "objects": "o", "image_size": 32, "horizon": 50, "gpus": 1}


@pytest.mark.parametrize(
    ("name", "horizon", "read"),
    [
        ("gym:A-v0", 50, {"dataset", "wrappers", "text"}),
        ("habitat-lab:a.yaml", 50, {"dataset", "scene_dataset", "image_size"}),
        ("extobjnav", 50, {"backend", "dataset", "scene_dataset", "objects", "image_size"}),
        ("metaworld:ml1", 50, set()),
        ("navix:A-v0", 50, set()),
        ("xland-small", 50, set()),
        ("darkroom-dpt", None, set()),
        ("python:a:B", None, set()),
    ],
)
def test_the_first_layout_kept_options_of_the_environment_with_the_workers(name, horizon, read):
    config = from_json(json.dumps({"env": name, "seed": 3, "host": OLD_HOST}))
    assert config.env == EnvConfig(name, horizon, {field: OLD_HOST[field] for field in read})
    assert config.host == WorkerConfig(workers=4, python="p", gpus=1) and config.seed == 3
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("backend", [{}, {"backend": "soft"}])
def test_the_first_layout_kept_options_of_habitat_sim_beside_the_software_simulator(backend):
    host = {**backend, "dataset": "d", "scene_dataset": "s", "objects": "o"}
    config = from_json(json.dumps({"env": "extobjnav", "host": host}))
    assert config.env == EnvConfig("extobjnav", None, {"dataset": "d"})


def test_an_unknown_layout_is_refused():
    with pytest.raises(ConfigError, match="config format is 'relic-jax-config-9'; allowed: 'relic-jax-config-2'"):
        from_json('{"format": "relic-jax-config-9"}')


def test_json_is_readable():
    text = to_json(TrainConfig())
    assert text.endswith("}\n") and "\n  " in text
    assert json.loads(text)["ppo"]["gamma"] == 0.99


def test_importing_the_config_imports_no_kernel_and_no_model():
    code = (
        "import sys, relic_jax.config; heavy = ('jax', 'flax', 'orbax', 'optax', 'relic_jax.models', 'relic_jax.rl'); "
        "found = [m for m in sys.modules if m in heavy or m.startswith(tuple(f'{x}.' for x in heavy))]; "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_tuple_survives_json_and_its_elements_are_checked():
    config = changed("policy.recall", (9, 9))
    assert from_json(to_json(config)) == config
    for value, message in (("99", r"policy.recall is '99'; allowed: a list"), ([9, "x"], r"policy.recall\[1\] is 'x'")):
        with pytest.raises(ConfigError, match=message):
            from_data({"policy": {"recall": value}})
    with pytest.raises(ConfigError, match=r"policy.recall is \(9, 1\); allowed: numbers above 1"):
        check_fields(changed("policy.recall", (9, 1)))
