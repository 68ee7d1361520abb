"""The cost model: operations as XLA counts them, numbers worked by hand, measurements, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from relic_jax.config import ConfigError, EncoderConfig, PolicyConfig, TransformerConfig
from relic_jax.environment.base import Discrete
from relic_jax.experiments import presets
from relic_jax.experiments.cost import __main__ as comparison
from relic_jax.experiments.cost import arithmetic, devices
from relic_jax.experiments.cost.prediction import predict
from relic_jax.models.encoders import image_encoder
from relic_jax.models.policy import Policy
from relic_jax.spaces import vector_spaces
from relic_jax.types import StepInput

H100 = devices.get("h100")


def counted(function, *arguments):
    """Return the operations of a function as XLA counts them in its compiled program."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.fixture(scope="module")
def policy():
    """Return a policy whose attention computes every score once, also masked ones."""
    size = TransformerConfig(layers=2, heads=2, width=128, mlp_width=256, attention="reference", decode="xla")
    return Policy(PolicyConfig(size), vector_spaces((0.0, 0.0), (1.0, 1.0), Discrete(3)))


def steps(batch, *length):
    zeros = jnp.zeros((batch, *length))
    return StepInput(jnp.zeros((batch, *length, 2)), zeros.astype(int), zeros, zeros.astype(bool))


def test_operations_are_those_that_xla_counts(policy):
    """Within 10%, for the parts that are not counted: norms, softmax, heads, and the embeddings of steps."""
    params = jax.eval_shape(policy.init, jax.random.key(0))
    batch, block, slots = 4, 64, 256
    empty, memory = (jax.eval_shape(lambda size=size: policy.initial_memory(batch, size)) for size in (0, slots))
    acting = counted(lambda p, m: policy.act(p, m, steps(batch))[0].value, params, memory)
    assert acting == pytest.approx(arithmetic.forward(policy.config, batch, slots), rel=0.1)

    def value(params, memory):
        return policy.unroll(params, memory, steps(batch, block))[0].value.sum()

    unrolled = counted(value, params, memory)
    assert unrolled == pytest.approx(arithmetic.forward(policy.config, batch * block, slots + block), rel=0.1)
    gradient = counted(jax.grad(value), params, empty)
    products = 6 * arithmetic.weights(policy.config) * batch * block  # attention: two products forward, four backward
    products += 2 * batch * block * 128 * 2 * 6 * block
    assert gradient == pytest.approx(products, rel=0.1)
    assert (
        arithmetic.dense_update(policy.config, batch * block) == 6 * arithmetic.weights(policy.config) * batch * block
    )


@pytest.mark.parametrize("name", ["small", "nature", "patches"])
def test_operations_of_image_encoders(name):
    config, shape = EncoderConfig(image=name, features=64), (2, 64, 48, 3)
    encoder = image_encoder(config)
    params = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros(shape))
    operations = counted(encoder.apply, params, jnp.zeros(shape)) / 2
    assert operations == pytest.approx(arithmetic.encoder_forward(config, shape[1:]), rel=0.1)  # biases


def test_numbers_worked_by_hand():
    policy = PolicyConfig(TransformerConfig(layers=2, heads=1, width=2, mlp_width=3, dtype="bfloat16"))
    assert arithmetic.block_weights(policy) == 2 * (16 + 18) and arithmetic.weights(policy) == 76
    assert arithmetic.forward(policy, 1, 5) == 2 * (76 + 2 * 5 * 2 * 2)
    assert arithmetic.attention_update(policy, 3, 4, 10) == 2 * 3 * 4 * 2 * 2 * (50 + 14)
    assert arithmetic.attention_full(policy, 1, 10, 4) == 2 * 2 * 10 * (35 + 28)
    assert arithmetic.attention_full(policy, 1, 10, 10) == 2 * 2 * 10 * 3.5 * 2 * 10
    assert arithmetic.attention_refresh(policy, 1, 10) == 2 * 2 * 100 * 2
    assert arithmetic.context_bytes(policy, 3, 10) == 3 * 10 * 2 * 2 * 2 * 2  # keys and values, layers, width, bytes
    vit = arithmetic.encoder_forward(EncoderConfig(image="vit-b16"), (224, 224, 3))
    assert vit == pytest.approx(2 * 17.6e9, rel=0.01)  # the usual count of ViT-B/16, in multiply-adds


def test_the_model_is_as_far_off_as_the_documentation_says():
    found = list(comparison.rows())
    ratios = {row.name: row.predicted / row.measured for row in found}
    assert len(ratios) == len(found) == 20
    assert all(1 / 1.5 < ratio < 1.5 for ratio in ratios.values()), ratios
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    assert [row.name for row in found if str(row) not in page] == []


def test_devices_with_their_own_environments_scale_up_to_the_all_reduce():
    config = presets.get("darkroom-64k").config
    one, eight, many = (predict(config, H100, count) for count in (1, 8, 64))
    assert one.parts["all-reduce"].seconds == 0
    for result, count in ((eight, 8), (many, 64)):
        assert 0.9 * count < result.rate / one.rate < count and result.memory == one.memory
    optimizer_steps = 256 * 3 * 1
    sent = optimizer_steps * 4 * arithmetic.weights(config.policy) * 2 * 7 / 8
    assert eight.parts["all-reduce"].bytes == pytest.approx(sent)
    assert many.parts["all-reduce"].seconds > eight.parts["all-reduce"].seconds


def test_devices_that_share_a_context():
    config = presets.get("darkroom-64k").config
    one, two = predict(config, H100), predict(replace(config, context_devices=2), H100, 2)
    context = 2 * 4 * 65_536 * config.policy.transformer.cache_bytes_per_step
    assert one.memory - two.memory == context / 2 and two.environments == 4
    assert two.parts["update"].flops < one.parts["update"].flops < 2 * two.parts["update"].flops
    merged = 256 + 2 * 8  # width and, for each of 8 heads, the largest score and the sum of the weights
    steps = 65_536 * (merged + 3 * (merged + 256)) + 256 * sum(range(4, 256, 4)) * merged
    assert two.parts["merge"].bytes == 4 * 4 * 4 * steps  # bytes, layers, environments
    assert one.parts["merge"].seconds == 0 and two.trial_seconds == pytest.approx(4 * 65_536 / two.rate)
    with pytest.raises(ConfigError, match="devices is 3; allowed: a multiple of context_devices"):
        predict(replace(config, context_devices=2), H100, 3)
    with pytest.raises(ConfigError, match="context_devices is 2; allowed: 1 unless"):
        predict(replace(config, context_devices=2, ppo=replace(config.ppo, last_update="full")), H100, 2)


def test_devices_that_share_environments():
    config = presets.get("darkroom-dpt-gpu").config
    one, shared = predict(config, H100), predict(config, H100, 8, share=True)
    assert shared.environments == 32 and 1 < shared.rate / one.rate < 8
    assert shared.parts["update"].flops == pytest.approx(one.parts["update"].flops / 8)
    with pytest.raises(ConfigError, match="devices is 3; allowed: a number that can share 256 environments"):
        predict(config, H100, 3, share=True)


def test_a_slow_environment_limits_the_run():
    config = presets.get("darkroom-dpt-gpu").config
    slow = predict(config, H100, env_rate=1000.0)
    assert 900 < slow.rate < 1000
    assert slow.parts["environment"].seconds == 256 * 500 / 1000


def test_the_command(cli):
    code, out, err = cli("cost", "darkroom-dpt-gpu", "--devices", "8", "--device", "h200")
    assert (code, err) == (0, "")
    assert "darkroom-dpt-gpu on 8 × h200: 256 environments per device" in out and "steps/s" in out
    _, out, _ = cli("cost", "miniworld-open-gpu", "--device", "a40", "--json", "--policy.transformer.dtype", "bfloat16")
    found = json.loads(out)
    assert found["parts"]["environment"]["limit"].startswith("images are not included")
    assert found["steps_per_second"] > 0 and found["parts"]["all-reduce"]["seconds"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["darkroom-dpt", "--device", "h10"],
            "device is 'h10'; allowed: a40, a100, h100, h200, cpu; did you mean h100",
        ),
        ([], "preset is missing; allowed: relic-jax cost PRESET"),
        (["darkroom"], "preset is 'darkroom'; allowed: "),
        (["darkroom-rl2"], "policy.memory is 'gru'; allowed: 'transformer'"),
        (["darkroom-within-episode"], "policy.transformer.inter_episode is False; allowed: True"),
        (["darkroom-dpt", "--devices", "0"], "devices is 0; allowed: more than 0"),
        (["darkroom-dpt", "--env-rate", "0"], "env_rate is 0.0; allowed: more than 0"),
        (
            ["house-objnav-small-gpu", "--policy.encoder.image", "resnet18"],
            "policy.encoder.image is 'resnet18'; allowed",
        ),
    ],
)
def test_bad_input_is_a_line(cli, arguments, message):
    code, out, err = cli("cost", *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_every_preset_with_a_transformer_has_a_cost():
    """Without images, whose shapes need the environment."""
    for name, preset in presets.PRESETS.items():
        config = preset.config
        if config.policy.memory == "transformer" and config.policy.transformer.inter_episode:
            result = predict(replace(config, devices=None), H100, 8)
            assert 0 < result.rate < 1e9 and result.memory > 0, name
