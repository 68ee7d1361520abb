"""Speed of a trial of `darkroom-relic-paper` compared with the original's operations in PyTorch.

    pip install -e ".[torch]" && python -m experiments.benchmark original

The original (https://github.com/aielawady/relic) trains inside Habitat's trainer. `original_torch` reimplements its
transformer with the same library calls: linear layers, one `scaled_dot_product_attention` over the whole trial so far,
keys and values that are concatenated at every acting step, and the sink as a token at the start. It reproduces the
original's reference arrays (`pytest tests/experiments/test_original.py`). The benchmark measures its passes over a
trial: forward and backward for every minibatch of every update, forward for every refresh, and one per acting step. Its
environment, optimizer, storage, input layers and heads are not measured, which is to its advantage.

Without the flash-attn package, which needs a GPU, the original calls that function without a mask and without
is_causal, so it computes every score, and steps attend to later steps. The benchmark has one case for this behavior,
which is that of the original on a CPU, and one for the intended attention (`causal`), which takes PyTorch less time.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from relic_jax.experiments import presets
from relic_jax.experiments.benchmark import train
from relic_jax.experiments.benchmark.measure import Machine, in_subprocess


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield cases of the original's operations, then of our whole loop with either context gradient.

    The original's operations run in a separate process on CPU. Yields nothing without PyTorch or on accelerators.
    """
    if importlib.util.find_spec("torch") is None or machine.platform != "cpu":
        print('original: skipped, it needs a CPU and PyTorch (pip install -e ".[torch]")', file=sys.stderr)
        return
    peers = list(in_subprocess("relic_jax.experiments.benchmark.original_torch"))
    yield from peers
    paper = presets.get("darkroom-relic-paper").config
    for gradient in ("full", "stopped"):
        config = replace(paper, ppo=replace(paper.ppo, context_gradient=gradient))
        ours = train.case(f"darkroom-relic-paper/context_gradient={gradient}", config)
        yield ours | {"of_original": ours["rate"] / peers[0]["rate"], "of_causal": ours["rate"] / peers[1]["rate"]}
