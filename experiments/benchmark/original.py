"""What a trial of `darkroom-relic-paper` costs the original's operations, in PyTorch, and us in the same run.

    pip install -e ".[torch]" && python -m experiments.benchmark original

The original (https://github.com/aielawady/relic) trains inside Habitat's trainer. Its transformer is written anew in
`original_torch` from the library calls that it makes: linear layers, one `scaled_dot_product_attention` over the whole
trial so far, keys and values that are concatenated at every step of acting, the sink as a token in front. It gives the
original's reference arrays (`pytest tests/experiments/test_original.py`). Counted are its passes over a trial: forward
and backward for every minibatch of every update, forward for every refresh, and one for every acting step. Its
environment, optimiser, storage, input layers and heads are not, which is to its advantage.

Without the flash-attn package, which needs a GPU, the original calls that function without a mask and without asking
for causal attention: every score is computed, and steps see what follows them. So there are two cases of it: this,
which is what it does on a CPU, and `causal`, which is what it means and what PyTorch does in less time.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from relic_jax.experiments import presets
from relic_jax.experiments.benchmark import train
from relic_jax.experiments.benchmark.measure import Machine, in_own_process


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """The original's operations in a process of its own, on CPU; then our whole loop, with both gradients, as multiples
    of them. Nothing where PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None or machine.platform != "cpu":
        print('original: left out, it needs a CPU and PyTorch (pip install -e ".[torch]")', file=sys.stderr)
        return
    peers = list(in_own_process("relic_jax.experiments.benchmark.original_torch"))
    yield from peers
    paper = presets.get("darkroom-relic-paper").config
    for gradient in ("full", "stopped"):
        config = replace(paper, ppo=replace(paper.ppo, context_gradient=gradient))
        ours = train.case(f"darkroom-relic-paper/context_gradient={gradient}", config)
        yield ours | {"of_original": ours["rate"] / peers[0]["rate"], "of_causal": ours["rate"] / peers[1]["rate"]}
