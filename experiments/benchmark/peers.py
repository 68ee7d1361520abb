"""Training speed of RL² compared with XLand-MiniGrid's own trainer.

    python -m experiments.benchmark peers --xland PATH

PATH is a checkout of https://github.com/dunnolab/xland-minigrid, of which `training/train_meta_task.py` is run as it
is. It needs its requirements distrax and optax, and the package xminigrid as our adapter does. Each trainer runs in a
separate process on the same single core. Both train on the same grid and rulesets with the same numbers of
environments, steps per update, epochs and minibatches, and with a GRU of the same width.

What differs: our observation has an additional flag and our episodes an additional step, which shows the last reward;
the encoders and heads (docs/baselines.md); the width of the GRU's input, 290 in theirs and 129 in ours; our advantages
are normalized over the trial so far, theirs over the minibatch. Their evaluation after each trial is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import numpy as np

from relic_jax.config import ConfigError, TrainConfig, TrialConfig
from relic_jax.envs.registry import make
from relic_jax.experiments import presets
from relic_jax.experiments.benchmark.measure import Machine, in_subprocess, program
from relic_jax.rl.parallel import initial_state, parallel
from relic_jax.rl.segment import trial_step
from relic_jax.rl.train import prepare

PRESET = "xland-trivial-rl2-1024"
TRAINER = Path("training", "train_meta_task.py")
MARKS = {256: 2.3, 1024: 1.5}
"""Targets: the least ratio of the rates, by the width of the GRU."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What both trainers have in common."""

    width: int
    """Width of the GRU."""
    environments: int = 256
    """Number of environments."""
    steps: int = 64
    """Steps of a trial."""
    segment: int = 32
    """Steps per update."""
    epochs: int = 1
    """Passes over the data per update."""
    minibatches: int = 4
    """Minibatches per epoch, with an optimizer step after each."""


def cases(machine: Machine, xland: Path | None) -> Iterator[dict[str, Any]]:
    """Measure both trainers for each width.

    Args:
        machine: Not used.
        xland: Checkout of XLand-MiniGrid.

    Yields:
        JSON-serializable dicts: name; rate, unit; sizes; peer_rate and of_peer, the ratio; mark, the target, and
        whether it was reached.

    Raises:
        ConfigError: There is no trainer in `xland`.
    """
    del machine
    if xland is None or not (xland / TRAINER).is_file():
        raise ConfigError(f"--xland is {str(xland)!r}; allowed: a checkout of XLand-MiniGrid, with {TRAINER}")
    for width, mark in MARKS.items():
        sizes = Sizes(width)
        ours, theirs = (_measured(which, sizes, xland) for which in ("ours", "theirs"))
        ratio = ours["rate"] / theirs["rate"]
        yield {
            "name": f"peers/xland-rl2/width={width}",
            "rate": ours["rate"],
            "unit": "environment steps per CPU second",
            "rates": ours["rates"],
            "sizes": dataclasses.asdict(sizes),
            "peer": "XLand-MiniGrid's trainer",
            "peer_rate": theirs["rate"],
            "peer_rates": theirs["rates"],
            "of_peer": ratio,
            "mark": mark,
            "reached": ratio >= mark,
        }


def our_config(sizes: Sizes) -> TrainConfig:
    """Return our configuration of these sizes."""
    config = presets.get(PRESET).config
    policy, trial = config.policy, TrialConfig(sizes.environments, sizes.steps, sizes.steps // sizes.segment)
    return dataclasses.replace(
        config,
        devices=1,
        total_steps=sizes.environments * sizes.steps,
        policy=dataclasses.replace(policy, recurrent=dataclasses.replace(policy.recurrent, width=sizes.width)),
        trial=trial,
        ppo=dataclasses.replace(config.ppo, epochs=sizes.epochs, minibatches=sizes.minibatches, accumulate=1),
    )


def our_trainer(sizes: Sizes) -> Callable[[], Any]:
    """Return a function that trains for one trial."""
    config = our_config(sizes)
    setup = prepare(config, make(config.env))
    state = initial_state(setup)
    whole = program(parallel(setup, trial_step), state)

    def trial() -> Any:
        nonlocal state
        state, metrics = whole(state)
        return metrics

    return trial


def their_trainer(sizes: Sizes, checkout: Path) -> Callable[[], Any]:
    """Return a function that trains for one trial with XLand-MiniGrid's trainer, without its evaluation."""
    theirs = _import(checkout)
    config = theirs.TrainConfig(
        env_id="XLand-MiniGrid-R1-9x9",
        rnn_hidden_dim=sizes.width,
        num_envs=sizes.environments,
        num_steps_per_env=sizes.steps,
        num_steps_per_update=sizes.segment,
        update_epochs=sizes.epochs,
        num_minibatches=sizes.minibatches,
        total_timesteps=sizes.environments * sizes.steps,
        eval_num_envs=1,
    )
    rng, env, params, benchmark, carry, state = theirs.make_states(config)
    train = theirs.make_train(env, params, benchmark, config)
    arguments = (jax.random.split(rng, 1), theirs.replicate(state), theirs.replicate(carry))
    compiled = train.lower(*arguments).compile()
    return lambda: compiled(*arguments)["loss_info"]


def _import(checkout: Path) -> Any:
    """Import the trainer. It reads options with pyrallis and logs to W&B, of which only the names are used here."""
    import xminigrid
    from xminigrid.benchmarks import Benchmark

    if importlib.util.find_spec("pyrallis") is None:
        stand_in: Any = ModuleType("pyrallis")
        stand_in.wrap = lambda: lambda function: function
        sys.modules["pyrallis"] = stand_in
    sys.modules.setdefault("wandb", ModuleType("wandb"))
    drawn = make(our_config(Sizes(256)).env).tasks("train")
    counts = np.any(drawn.rules != 0, axis=-1).sum(-1)
    xminigrid.load_benchmark = lambda name: Benchmark(
        *map(jax.numpy.asarray, (drawn.goal, drawn.rules, drawn.init_tiles, counts))
    )
    sys.path.insert(0, str(checkout / TRAINER.parent))
    with mock.patch.object(jax.numpy, "asarray", lambda x: x):  # Python 3.11 refuses arrays as defaults of fields
        statistics = importlib.import_module("utils").RolloutStats()  # the module beside the trainer
    trainer: Any = importlib.import_module(TRAINER.stem)
    trainer.rollout = lambda keys, *arguments: jax.tree.map(jax.numpy.asarray, statistics)
    return trainer


def _measured(which: str, sizes: Sizes, xland: Path) -> dict[str, Any]:
    module = "relic_jax.experiments.benchmark.peers"
    (result,) = in_subprocess(module, which, str(xland.resolve()), json.dumps(dataclasses.asdict(sizes)))
    return result


def main() -> None:
    """Measure one trainer: `ours` or `theirs`, the checkout, and `Sizes` in JSON. Prints its rates."""
    which, checkout, text = sys.argv[1:]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sizes = Sizes(**json.loads(text))
    with contextlib.redirect_stdout(sys.stderr):  # their trainer prints
        trial = our_trainer(sizes) if which == "ours" else their_trainer(sizes, Path(checkout))
    jax.block_until_ready(trial())
    rates = []
    for _ in range(3):
        start = time.process_time()
        jax.block_until_ready(trial())
        rates.append(sizes.environments * sizes.steps / (time.process_time() - start))
    print(json.dumps({"rate": float(np.median(rates)), "rates": rates}))


if __name__ == "__main__":
    main()
