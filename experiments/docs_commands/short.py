"""Short forms of commands: the same command with small budgets appended and its placeholders replaced."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import re
import shlex
import tomllib
from pathlib import Path

from relic_jax.envs import registry
from relic_jax.experiments import presets

RUN = "darkroom-smoke-seed0"
"""The run that the placeholder RUN stands for."""
NETWORK = (
    *("--policy.transformer.layers", "1", "--policy.transformer.heads", "2", "--policy.transformer.width", "16"),
    *("--policy.transformer.mlp-width", "16", "--policy.recurrent.width", "8"),
)
TRAIN = (
    *("--total-steps", "1", "--devices", "1", "--trial.environments", "2", "--trial.steps", "16"),
    *("--trial.updates", "1", "--ppo.minibatches", "1", "--ppo.accumulate", "1", "--ppo.epochs", "1"),
    *("--eval.episodes", "2", "--eval.tasks", "1", "--eval.repeats", "1"),
)
PRETRAIN = (
    *("--pretrain.steps", "8", "--pretrain.minibatches", "4", "--pretrain.epochs", "1", "--pretrain.trials", "4"),
    *("--pretrain.trial-steps", "20", "--pretrain.segment", "10"),
)
"""Appended to commands that pretrain."""
CURRICULUM = ("--curriculum.mode", "schedule")
"""Appended to trainings with a curriculum: the short trials have no later episodes, whose gain could be measured."""
LEARNING = ("--eval.every", "1000", "--eval.every-episodes", "1", "--eval.every-tasks", "1")
EVALUATE = ("--episodes", "2", "--limit", "1", "--repeats", "1")
DATASET = (
    *("--train", "house-0", "--test", "house-1", "--layouts", "1", "--episodes", "1"),
    *("--categories", "mug", "bowl"),
)
MODULES = {
    "relic_jax.experiments.benchmark": ("--cases", "0"),
    "relic_jax.experiments.pretrain_encoder": ("--pictures", "256"),
    "relic_jax.experiments.training_curve": (),
    "relic_jax.experiments.navigation_speed": (*("--steps", "8", "--rounds", "1", "--turns", "1"), "--workers", "1"),
    "relic_jax.experiments.kv_formats": (),
    "relic_jax.experiments.recall_table": (*("--only", "1 layer", "--seeds", "0", "--steps", "8"),),
    "relic_jax.experiments.recall": (*("--held-out", "2", "--every", "8", *NETWORK, *PRETRAIN),),
    "relic_jax.experiments.gpu_check": ("--list",),
    "relic_jax.experiments.searchers": ("--tasks", "2", "--episodes", "6"),
    "relic_jax.experiments.cost": (),
    "relic_jax.experiments.faults": ("options", "--options", "5"),
    "relic_jax.experiments.studies": ("--results-only",),
}
"""Options that are appended to `python -m MODULE`."""
EXTENDED = "1000"
"""The value of `--extend-to`: a few updates more than the run has."""
PLACEHOLDERS = {
    "PRESET": "darkroom-smoke",
    "RUN": f"runs/{RUN}",
    "RUN/checkpoints/STEP": f"runs/{RUN}/checkpoints/STEP",
    "NAME": "darkroom-dpt",
    "CHECKPOINT": "original.safetensors",
    "OUT": "out.json",
    "DIR": "dir",
    "python:my_module:MY_ENV": "python:corridors:CORRIDOR",
}
EXTRAS = {
    "gym:miniworld": "miniworld",
    "gym:MiniGrid": "minigrid",
    "gym:BabyAI": "minigrid",
    "gym:": "gymnasium",
    **{name: name for name in ("metaworld", "xland", "navix", "gymnax", "craftax", "playground")},
    **dict.fromkeys(registry.names("relic_jax.envs.brax"), "brax"),
}
"""Extra of environments, by the start of their names."""
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
ELSEWHERE = (
    (re.compile(r"\$HABITAT|backend habitat|^HABITAT=|^conda "), "habitat-sim (conda)"),
    (re.compile(r"habitat-lab:|lab/bin/|^python3\.9 -m venv lab"), "habitat-lab (in a separate interpreter)"),
    (re.compile(r"^ray |--host\.ray"), "a Ray cluster (extra ray)"),
    (re.compile(r"--human"), "a display"),
    (re.compile(r"\btrain .*--context-devices"), "several devices"),
    (re.compile(r"^tensorboard "), "a browser"),
    (re.compile(r"experiments\.docs_commands"), "no check, because it is this command"),
    (re.compile(r"--policy\.encoder\.image vit-b16"), "the weights of VC-1"),
)
"""Patterns of commands that are skipped because they need more than this package, and the reason."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A check of a command line."""

    kind: str
    """run, start (in the background), join (also wait for those that were started), mention (only check that it
    exists), tests, install or skip."""
    words: tuple[str, ...] = ()
    """The command to run or check."""
    reason: str = ""
    """Why the command is skipped."""


class UnknownCommandError(ValueError):
    """Raised for a command of an unknown kind."""


def steps(text: str) -> list[Step]:
    """Return the checks of a command line: several if it contains alternatives such as {a,b}.

    Raises:
        UnknownCommandError: The command is of an unknown kind.
    """
    for pattern, reason in ELSEWHERE:
        if pattern.search(text):
            return [Step("skip", reason=reason)]
    if text.startswith("pip "):
        return [Step("install", tuple(shlex.split(text)))]
    words = list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, shlex.split(text)))  # variables of the environment
    if words[:1] == ["pytest"]:
        return [Step("tests", tuple(words))]
    plain = re.sub(r"\s\[[^\]]*\]", "", " ".join(words))  # optional parts
    if alternatives := re.search(r"\{([\w,]+)\}", plain):
        chosen = alternatives[1].split(",")
        return [step for one in chosen for step in steps(plain.replace(alternatives[0], one))]
    words = [PLACEHOLDERS.get(word, word) for word in plain.split() if word != "…"]
    if words[:1] == ["relic-jax"]:
        return [_relic_jax(words)]
    if words[:2] == ["python", "-m"] and (module := f"relic_jax.{words[2].removeprefix('relic_jax.')}") in MODULES:
        options = [word for word in words[3:] if word != "--quick"]  # its counts are larger than those appended here
        return [Step("run", ("python", "-m", module, *options, *MODULES[module]))]
    raise UnknownCommandError(text)


def _relic_jax(words: list[str]) -> Step:
    if len(words) == 1:
        return Step("mention", ("relic-jax",))
    command, arguments = words[1], words[2:]
    options = [word for word in arguments if word.startswith("--")]
    if options == arguments and command not in ("envs", "presets") and "--out" not in options:
        return Step("mention", tuple(words))  # the text mentions a command or its options without a run
    if arguments[-1:] == ["--format"]:
        words = [*words, "safetensors"]
    if command == "train":
        return _train(words)
    if command == "sweep":
        return _sweep(words)
    if command == "evaluate":
        change = value(words, "--change-task-at")  # an episode of the evaluation
        return Step("run", (*words, *EVALUATE, *(() if change is None else ("--episodes", change))))
    if command == "sightings":
        return Step("run", (*words, "--episodes", "2", "--limit", "8"))
    if command in ("play", "attention"):
        return Step("run", (*words, "--episodes", "2"))
    if command == "habitat-dataset":
        return Step("run", tuple(PLACEHOLDERS.get(w, "tasks.json" if w == "FILE" else w) for w in (*words, *DATASET)))
    if command == "habitat-scenes":
        return Step("run", (*words, "--scenes", "1", "--test-scenes", "1"))
    if command == "import-llamarl":
        files = {"FILE": PLACEHOLDERS["CHECKPOINT"], "FILE.pth": "back.safetensors"}
        return Step("run", tuple(files.get(word, word) for word in words))
    if command == "envs":
        if arguments and (missing := missing_extra(arguments[0])):
            return Step("skip", reason=f"the extra {missing}")
        lines = () if len(arguments) != 1 or arguments == ["darkroom-dpt"] else ("--no-reference-returns",)
        return Step("run", (*words, *lines))
    if command == "difference":  # the short evaluations have two episodes
        return Step("run", tuple(re.sub(r" --episodes \S+", "", " ".join(words)).split()))
    if command in ("plot", "export", "presets", "compare", "cost"):
        return Step("run", tuple(words))
    raise UnknownCommandError(" ".join(words))


def _train(words: list[str]) -> Step:
    coordinator = value(words, "--coordinator") or ""
    if coordinator.startswith("127.0.0.1") and words[2] in presets.PRESETS:
        kind = "start" if words[-1] == "&" else "join"
        return Step(kind, (*(word for word in words if word != "&"), *NETWORK, *TRAIN, "--devices", "2"))
    if coordinator or "--distributed" in words:  # it would wait for other processes
        return Step("mention", ("relic-jax", "train", *(word for word in words if word.startswith("--"))))
    if "--resume" in words:
        steps = () if value(words, "--extend-to") is None else ("--extend-to", EXTENDED)
        return Step("run", (*words, *steps))
    if words[2].startswith("--"):  # the text mentions an option and its value
        return Step("mention", ("relic-jax", "train", *(word for word in words if word.startswith("--"))))
    named = words[2] in presets.PRESETS
    env = value(words, "--env") or (presets.PRESETS[words[2]].config.env.name if named else "")
    if missing := missing_extra(env):
        return Step("skip", reason=f"the extra {missing}")
    start = value(words, "--start-from") or ""
    network = () if start.startswith("relic_jax/") else NETWORK  # a pretrained policy has its own sizes
    name = ("--name", "started") if start == f"runs/{words[2]}-seed0" else ()
    if "--env" in words and "--name" not in words:  # do not replace the run of the preset
        name = ("--name", re.sub(r"\W+", "-", env).strip("-"))
    plain = re.sub(r" --seed 0\b", "", " ".join(words)).split()  # the default, so the commands are equal
    climbs = "--curriculum.option" in words or (named and presets.PRESETS[words[2]].config.curriculum.option)
    curriculum = CURRICULUM if climbs else ()
    return Step("run", (*plain, *name, *network, *TRAIN, *_pretraining(words[2]), *curriculum))


def _sweep(words: list[str]) -> Step:
    if "--resume" in words or len(words) < 3 or words[2].endswith(".toml") or "FIELD=A,B" in words:
        return Step("mention", tuple(word for word in words if word in words[:2] or word.startswith("--")))
    seeds = ("--seeds", "1") if "--seeds" in words else ()
    kept = re.sub(r" --vary trial\.updates=\S+", "", " ".join(words)).split()  # the short trial has one update
    return Step("run", (*kept, *seeds, *NETWORK, *TRAIN, *_pretraining(words[2])))


def _pretraining(preset: str) -> tuple[str, ...]:
    """Return the options that shorten the pretraining of a preset, if it has one."""
    return PRETRAIN if preset in presets.PRESETS and presets.PRESETS[preset].config.pretrain.steps else ()


def missing_extra(env: str) -> str:
    """Return the extra that an environment needs and that is not installed, or ""."""
    extra = next((extra for start, extra in EXTRAS.items() if env.startswith(start)), "")
    if not extra:
        return ""
    requirements = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"][extra]
    names = (re.split(r"[^\w.-]", requirement)[0] for requirement in requirements)
    return "" if all(map(_is_installed, names)) else extra


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def value(words: list[str] | tuple[str, ...], option: str) -> str | None:
    """Return the value of an option, or None."""
    return words[words.index(option) + 1] if option in words[:-1] else None


def needed_runs(words: tuple[str, ...], folder: Path) -> list[tuple[str, ...]]:
    """Return the commands that create the missing runs in `folder` that a command reads.

    With --learning, a run without evaluations during training counts as missing; with --training, one without episodes.
    """
    found = []
    written = {value(words, "--to"), value(words, "--save")}
    for word in dict.fromkeys(words):
        match = re.fullmatch(r"runs/([\w.-]+)(/checkpoints/STEP)?", word)
        if not match or word in written or _serves(words, folder / "runs" / match[1]):
            continue
        name = match[1]
        preset, _, seed = name.rpartition("-seed")
        line = ["relic-jax", "train", *((preset, "--seed", seed) if preset in presets.PRESETS else ("darkroom-smoke",))]
        # More than one episode of Darkroom.
        short = preset in presets.PRESETS and "--training" not in words
        steps: tuple[str, ...] = () if short else ("--trial.steps", "104")
        steps += CURRICULUM if preset in presets.PRESETS and presets.PRESETS[preset].config.curriculum.option else ()
        learning = LEARNING if "--learning" in words else ()
        found.append((*line, "--name", name, *NETWORK, *TRAIN, *_pretraining(line[2]), *steps, *learning))
    return found


def _serves(words: tuple[str, ...], run: Path) -> bool:
    """Return whether a run exists and has what a command reads from it."""
    if "--training" in words:
        metrics = run / "metrics.jsonl"
        return metrics.exists() and '"return"' in metrics.read_text(encoding="utf-8")
    return (run / ("evaluations.jsonl" if "--learning" in words else "config.json")).exists()


def with_newest_checkpoint(words: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Return the command with STEP replaced by the step of the run's newest checkpoint."""

    def filled(word: str) -> str:
        if not word.endswith("/checkpoints/STEP"):
            return word
        checkpoints = folder / word.removesuffix("/STEP")
        return (
            f"{checkpoints.relative_to(folder)}/{max(int(x.name) for x in checkpoints.iterdir() if x.name.isdigit())}"
        )

    return tuple(map(filled, words))
