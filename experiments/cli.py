"""The console script `relic-jax`."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import NoReturn

from relic_jax import compilation_cache, settings
from relic_jax.bridge.pool import PoolError
from relic_jax.errors import ConfigError, VerificationError, one_line
from relic_jax.experiments.arguments import check_text
from relic_jax.files import storage_failure
from relic_jax.process import own_process
from relic_jax.rl.diagnostics import NonFiniteError
from relic_jax.stopping import Terminated, interruptible
from relic_jax.validation import did_you_mean

USAGE = """relic-jax: in-context reinforcement learning in JAX

  relic-jax train PRESET [options]       train, evaluate on held-out tasks, plot (e.g. relic-jax train darkroom-dpt)
  relic-jax train --resume RUN           continue an interrupted run; --extend-to N: to more steps
  relic-jax sweep STUDY.toml|PRESET      a grid of runs in few compiled programs, compared; --vary FIELD=A,B --seeds N
  relic-jax evaluate RUN [RUN ...]       in-context learning curve of trained policies, seeds pooled
  relic-jax plot RUN|FILE [...]          several curves in one figure
  relic-jax compare RUN|STUDY [...]      a table and a figure of methods, with intervals over seeds and tasks
  relic-jax difference RUN [RUN]         difference between episodes, or between two evaluations, in the same tasks
  relic-jax attention RUN                where attention goes: sink, current episode, each earlier episode
  relic-jax sightings RUN                attention to earlier steps that saw the target kind; draws a trial
  relic-jax play RUN                     a GIF of a trained policy in one task; --human: act yourself
  relic-jax export RUN --to DIR          a policy as safetensors, StableHLO, ONNX or orbax, verified
  relic-jax presets                      presets: what they train, their cost and their expected results
  relic-jax cost PRESET                  predicted speed and memory on other devices; --devices 8 --device h100
  relic-jax envs [NAME]                  environments, their splits and their random and optimal returns
  relic-jax habitat-dataset --out FILE   an episode dataset for object navigation: places of objects in scenes
  relic-jax habitat-scenes --out DIR     furnished houses for habitat-sim, from the plans of house-objnav
  relic-jax import-llamarl FILE --to DIR import a policy of the original PyTorch code; --reverse: export one

Every command lists its options with --help. Compiled programs are cached; --no-compilation-cache neither loads nor
stores them.
"""
NO_CACHE = "--no-compilation-cache"
"""Option of every command."""
COMMANDS = {
    "train": "relic_jax.experiments.training:train_main",
    "sweep": "relic_jax.experiments.sweep.command:sweep_main",
    "evaluate": "relic_jax.experiments.evaluation:evaluate_main",
    "plot": "relic_jax.experiments.plots:plot_main",
    "compare": "relic_jax.experiments.compare.command:compare_main",
    "difference": "relic_jax.experiments.difference:main",
    "attention": "relic_jax.experiments.attention:attention_main",
    "sightings": "relic_jax.experiments.sightings:sightings_main",
    "play": "relic_jax.experiments.play_command:play_main",
    "export": "relic_jax.experiments.export_command:export_main",
    "presets": "relic_jax.experiments.catalogue:presets_main",
    "cost": "relic_jax.experiments.cost.command:cost_main",
    "envs": "relic_jax.experiments.catalogue:envs_main",
    "habitat-dataset": "relic_jax.experiments.habitat_dataset:main",
    "habitat-scenes": "relic_jax.experiments.habitat_scenes:main",
    "import-llamarl": "relic_jax.experiments.import_llamarl:main",
}
"""Module and function of each command. A command imports only its own module, because imports take seconds."""


def main() -> None:
    """Run the command line. Bad input prints one line to stderr and ends with exit code 2."""
    arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names can contain bytes that are not text
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    try:
        check_text(arguments)
        if arguments[0] not in COMMANDS:
            hint = did_you_mean(arguments[0], COMMANDS)
            raise ConfigError(f"command is {arguments[0]!r}; allowed: {', '.join(COMMANDS)}{hint}")
        cached, options = NO_CACHE not in arguments, [option for option in arguments[1:] if option != NO_CACHE]
        with interruptible(), own_process(), settings.standard(), compilation_cache.used(cached):
            module, _, function = COMMANDS[arguments[0]].partition(":")
            getattr(importlib.import_module(module), function)(options)
    except ConfigError as error:
        _fail(str(error), 2)
    except BrokenPipeError:  # the reader closed the pipe, as `head` does; the pool handles pipes to workers
        sys.exit(1)
    except (NonFiniteError, PoolError, VerificationError) as error:
        _fail(str(error), 1)
    except FloatingPointError as error:  # raised by jax_debug_nans and jax_debug_infs
        _fail(f"{error} (jax_debug_nans or jax_debug_infs is on)", 1)
    except Terminated as error:
        _fail(" · ".join(["terminated", *map(str, error.args)]), 143)
    except KeyboardInterrupt as error:
        _fail(" · ".join(["interrupted", *map(str, error.args)]), 130)
    except Exception as error:  # libraries wrap the OSError of a full disk
        line = str(error) if isinstance(error, OSError) else storage_failure(error)
        if line is None:
            raise
        _fail(line, 2)
    finally:
        _flush()


def _flush() -> None:
    """Flush stdout now: Python would print an error at exit if the reader is gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    print("relic-jax: " + one_line(message), file=sys.stderr, flush=True)
    sys.unraisablehook = lambda _: None  # threads that are still ending print nothing after the message
    if sys.stderr is sys.__stderr__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(code)


if __name__ == "__main__":
    main()
