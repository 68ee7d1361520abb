"""Which kernel a model gets on which devices, and that importing the configuration imports none of them."""

import dataclasses
import subprocess
import sys
from unittest import mock

import pytest

from relic_jax.config import TransformerConfig
from relic_jax.models.attention import Backend, cpu, decode, select

CPU, TURING, HOPPER, TPU = Backend("cpu"), Backend("gpu", 7.5), Backend("gpu", 9.0), Backend("tpu")
FLOAT32 = TransformerConfig()
BFLOAT16 = TransformerConfig(dtype="bfloat16")


@pytest.fixture(autouse=True)
def with_a_compiler(monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda *_: True)


def block(config, backend, **changes):
    return select(dataclasses.replace(config, **changes), backend).name


@pytest.mark.parametrize(
    ("config", "backend", "changes", "expected"),
    [
        (FLOAT32, CPU, {}, "cpu"),
        (FLOAT32, CPU, {"attention": "native"}, "cpu"),
        (FLOAT32, CPU, {"attention": "blocked"}, "tiled"),
        (FLOAT32, CPU, {"attention": "reference"}, "reference"),
        (FLOAT32, CPU, {"cache": "int8"}, "tiled"),
        (FLOAT32, CPU, {"cache": "bfloat16"}, "tiled"),
        (FLOAT32, CPU, {"width": 48}, "tiled"),
        (BFLOAT16, CPU, {}, "tiled"),
        (BFLOAT16, CPU, {"attention": "flash"}, "tiled"),
        (FLOAT32, HOPPER, {}, "tiled"),
        (FLOAT32, HOPPER, {"attention": "native"}, "tiled"),
        (BFLOAT16, HOPPER, {}, "cudnn"),
        (BFLOAT16, HOPPER, {"attention": "blocked"}, "tiled"),
        (BFLOAT16, HOPPER, {"inter_episode": False}, "tiled"),
        (BFLOAT16, HOPPER, {"inter_episode": False, "attention": "flash"}, "cudnn"),
        (BFLOAT16, HOPPER, {"width": 96}, "tiled"),
        (BFLOAT16, HOPPER, {"width": 2048}, "tiled"),
        (BFLOAT16, TURING, {"attention": "flash"}, "tiled"),
        (BFLOAT16, TPU, {}, "tiled"),
    ],
)
def test_the_kernel_of_a_block(config, backend, changes, expected):
    assert block(config, backend, **changes) == expected


def test_a_context_in_another_format_than_the_configured_one():
    assert select(FLOAT32, CPU, kv_format="int8").name == "tiled"
    for step in (False, True):
        assert select(dataclasses.replace(FLOAT32, cache="int8"), CPU, kv_format="float32", decode=step).name == "cpu"


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda *_: False)
    assert select(FLOAT32, CPU, decode=True).name == "reference"
    assert block(FLOAT32, CPU) == block(FLOAT32, CPU, attention="native") == "tiled"


@pytest.mark.parametrize(
    ("backend", "changes", "expected"),
    [
        (HOPPER, {"width": 256}, "decode"),
        (TURING, {"width": 256}, "decode"),
        (HOPPER, {"width": 256, "decode": "xla"}, "reference"),
        (HOPPER, {"width": 64}, "reference"),
        (HOPPER, {"width": 192}, "reference"),
        (CPU, {"width": 256}, "cpu"),
        (CPU, {"width": 64}, "cpu"),
        (CPU, {"width": 256, "inter_episode": False}, "cpu"),
        (CPU, {"width": 192}, "reference"),
        (CPU, {"width": 256, "decode": "xla"}, "reference"),
        (CPU, {"width": 256, "attention": "reference"}, "reference"),
        (CPU, {"width": 256, "attention": "blocked"}, "reference"),
        (CPU, {"width": 256, "dtype": "bfloat16"}, "reference"),
        (CPU, {"width": 256, "cache": "int8"}, "reference"),
        (TPU, {"width": 256}, "reference"),
    ],
)
def test_the_kernel_of_a_step(backend, changes, expected):
    assert select(dataclasses.replace(FLOAT32, **changes), backend, decode=True).name == expected


def test_without_triton():
    with mock.patch.object(decode, "triton", None):
        assert select(TransformerConfig(width=256), HOPPER, decode=True).name == "reference"


def test_devices_of_this_process():
    assert select(FLOAT32).name == select(FLOAT32, Backend.current()).name


@pytest.mark.parametrize("module", ["relic_jax.config", "relic_jax.models.policy", "relic_jax.models.attention"])
def test_importing_the_configuration_imports_no_kernel(module):
    code = f"import sys, {module}; names = [f'relic_jax.models.attention.{{x}}' for x in ('tiled', 'cpu', 'cpu_build', "
    code += "'cudnn', 'decode')]; print([x for x in [*names, 'jax.experimental.pallas'] if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
