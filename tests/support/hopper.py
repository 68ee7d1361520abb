"""Programs lowered for a CUDA device on a machine without one, with the kernels that a Hopper would select."""

import contextlib
import re
from unittest import mock

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn_checks  # private: the checks ask the device

from relic_jax.models.attention import Backend

HOPPER = Backend("gpu", 9.0)


@contextlib.contextmanager
def on_hopper():
    """Trace as on an H100 with cuDNN 9.10."""
    card = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")  # jax 0.12 asks which
    with (
        mock.patch.object(Backend, "current", lambda: HOPPER),
        mock.patch.object(jax, "default_backend", lambda: "gpu"),
        mock.patch.multiple(cudnn_checks, check_cudnn_version=lambda: 91000, check_compute_capability=lambda _: True),
        jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=card)),
    ):
        yield


def lowered(function, *arguments):
    """Return the StableHLO for CUDA of `function`, which is not compiled, for arrays or their shapes."""
    with on_hopper():
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def custom_calls(program):
    """Return the names of the functions outside XLA that a program calls."""
    return set(re.findall(r"custom_call @([\w$.]+)", program)) | set(
        re.findall(r'call_target_name = "([^"]+)"', program)
    )
