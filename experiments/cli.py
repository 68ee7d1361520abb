"""The console script `relic-jax`."""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import tyro

from relic_jax import compilation_cache, settings
from relic_jax.bridge.pool import PoolError
from relic_jax.config import ConfigError, WorkerConfig
from relic_jax.experiments import folders, habitat_dataset, habitat_scenes, import_llamarl, play, presets, run
from relic_jax.experiments.arguments import check_text, parse, split_env_options, with_current_names
from relic_jax.experiments.attention import attention_main
from relic_jax.experiments.catalogue import envs_main, presets_main
from relic_jax.experiments.compare.command import compare_main
from relic_jax.experiments.cost.command import cost_main
from relic_jax.experiments.evaluation import QUICK_EPISODES, evaluate_main
from relic_jax.experiments.plots import plot_main
from relic_jax.experiments.sightings import sightings_main
from relic_jax.experiments.sweep.command import sweep_main
from relic_jax.experiments.training import train_main
from relic_jax.export import Dtype, ExportFormat, VerificationError, export_policy
from relic_jax.files import storage_failure
from relic_jax.plotting import is_suffix
from relic_jax.process import own_process
from relic_jax.rl.train import NonFiniteError
from relic_jax.runtime import one_line
from relic_jax.stopping import Terminated, interruptible

USAGE = """relic-jax: in-context reinforcement learning in JAX

  relic-jax train PRESET [options]       train, evaluate on held-out tasks, plot (e.g. relic-jax train darkroom-dpt)
  relic-jax train --resume RUN           continue an interrupted run; --extend-to N: to more steps
  relic-jax sweep STUDY.toml|PRESET      a grid of runs in few compiled programs, compared; --vary FIELD=A,B --seeds N
  relic-jax evaluate RUN [RUN ...]       in-context learning curve of trained policies, seeds pooled
  relic-jax plot RUN|FILE [...]          several curves in one figure
  relic-jax compare RUN|STUDY [...]      a table and a figure of methods, with intervals over seeds and tasks
  relic-jax attention RUN                where attention goes: sink, running episode, each earlier episode
  relic-jax sightings RUN                attention to earlier steps that saw the asked kind; draws a trial
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


@dataclasses.dataclass(frozen=True)
class PlayCommand:
    """Make a GIF of a trained policy in one task, or open a window in which you act (--human)."""

    path: tyro.conf.Positional[Path | None] = None
    """Run folder, checkpoint folder or exported folder."""
    pretrained: str | None = None
    """Name of a pretrained policy that is included, e.g. darkroom-dpt, instead of a path. Plays 10 episodes unless
    --episodes is set."""
    env: str | None = None
    """Another environment with the same observations and actions; --env.OPTION sets its options. Default: the
    policy's."""
    task: int = 0
    """Index of the task in its split."""
    tasks: Literal["test", "train"] = "test"
    """Split of the tasks."""
    episodes: int | None = None
    """Episodes in one context. Default: the run's setting."""
    out: Path | None = None
    """The GIF. Default: play-SPLIT-TASK.gif in the run folder; for an export, play-NAME-SPLIT-TASK.gif in the current
    folder."""
    human: bool = False
    """Open a window and act with the keys 0, 1, 2, … Needs a display and Python's tkinter."""
    trust: bool = False
    """Run the environment and the workers that the policy's config names, even if another user made the policy. They
    can be any program."""
    host: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    """Worker processes, for environments that run in them. Default: the run's settings."""


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Export a policy in a standard format, with its config and a model card, and verify the files."""

    path: tyro.conf.Positional[Path | None] = None
    """Run folder, checkpoint folder or exported folder."""
    to: Path | None = None
    """Folder to create."""
    format: ExportFormat = "safetensors"
    """safetensors: weights; stablehlo, onnx: the acting step as a program, with a script that runs it; orbax:
    parameters only."""
    dtype: Dtype = "float32"
    """Dtype of the weights, with safetensors."""
    context: int | None = None
    """Capacity of the context in steps (stablehlo: fixed). Default: a trial of the training or of the evaluation,
    whichever is longer."""
    pretrained: str | None = None
    """Name of a pretrained policy that is included, e.g. darkroom-dpt, instead of a path."""
    name: str | None = None
    """Name of the model in its card. Default: the run's name."""
    note: str = ""
    """Text in the card, after the results."""
    trust: bool = False
    """Make the environment that the config of a checkpoint without saved spaces names. It can be any program."""


def main() -> None:
    """Run the command line. Bad input prints one line to stderr and ends with exit code 2."""
    commands = {"train": train_main, "evaluate": evaluate_main, "plot": plot_main, "presets": presets_main}
    commands |= {"envs": envs_main, "play": play_main, "export": export_main, "habitat-dataset": habitat_dataset.main}
    commands |= {"import-llamarl": import_llamarl.main, "compare": compare_main, "habitat-scenes": habitat_scenes.main}
    commands |= {"attention": attention_main, "sightings": sightings_main, "sweep": sweep_main}
    commands["cost"] = cost_main
    arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names can contain bytes that are not text
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    try:
        check_text(arguments)
        if arguments[0] not in commands:
            near = difflib.get_close_matches(arguments[0], commands, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"command is {arguments[0]!r}; allowed: {', '.join(commands)}{hint}")
        cached, options = NO_CACHE not in arguments, [option for option in arguments[1:] if option != NO_CACHE]
        with interruptible(), own_process(), settings.standard(), compilation_cache.used(cached):
            commands[arguments[0]](options)
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


def play_main(arguments: Sequence[str]) -> None:
    """`relic-jax play`."""
    arguments = with_current_names(arguments)
    options, others = split_env_options(arguments)
    command = parse(PlayCommand, others, "relic-jax play")
    policies = run.load([] if command.path is None else [command.path], command.pretrained, trust=command.trust)
    given = run.given_fields(arguments)
    overrides = run.Overrides(command.env, options, command.host, given, "relic-jax play")
    (trained,), env = run.in_environment(policies, overrides)
    if command.human:
        _check_human(command)
        play.play_interactively(env, command.tasks, command.task)
        return
    if command.episodes is not None and command.episodes <= 0:
        raise ConfigError(f"episodes is {command.episodes}; allowed: more than 0")
    quick = min(trained.config.eval.episodes, QUICK_EPISODES) if command.pretrained is not None else None
    folder = run.results_folder(trained, command.path)
    name = "" if folder == command.path else f"-{trained.path.name}"
    out = command.out or folder / f"play{name}-{command.tasks}-{command.task}.gif"
    if out.suffix.lower() != ".gif" and is_suffix(out.suffix):
        raise ConfigError(f"out is '{out}'; allowed: a file that ends in .gif")
    folders.check_writable(out, "out")
    returns = play.record(trained, env, out, command.tasks, command.task, command.episodes or quick)
    print("return by episode: " + " ".join(f"{value:.1f}" for value in returns))
    print(f"wrote {out}")


def _check_human(command: PlayCommand) -> None:
    """Raise ConfigError if an option is set that --human does not read."""
    for field in ("out", "episodes"):
        if getattr(command, field) is not None:
            raise ConfigError(f"{field} is {str(getattr(command, field))!r}; allowed: None with --human")


def export_main(arguments: Sequence[str]) -> None:
    """`relic-jax export`."""
    command = parse(ExportCommand, arguments, "relic-jax export")
    if command.to is None:
        raise ConfigError("to is missing; allowed: a new folder, --to DIR")
    (trained,) = run.load([] if command.path is None else [command.path], command.pretrained, trust=command.trust)
    check = export_policy(
        trained,
        command.to,
        format=command.format,
        dtype=command.dtype,
        context=command.context,
        name=command.name,
        preset=presets.name_of(trained.config),
        note=command.note,
    )
    print(
        f"verified: {check['steps']} steps of {check['batch']} environments across {check['episode_ends']} ends of "
        f"episodes, largest difference {check['largest_difference']:.2g} "
        f"({check['largest_scaled_difference']:.2g} of the output's largest number; allowed {check['tolerance']:.0e})"
    )
    print(f"wrote {command.to}: {', '.join(sorted(path.name for path in command.to.iterdir()))}")


if __name__ == "__main__":
    main()
