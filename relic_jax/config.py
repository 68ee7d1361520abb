"""Configuration: frozen dataclasses with every default stated, JSON in and out; `validate()` is in `validation`.

Defaults are the paper's Darkroom numbers (Elawady et al. 2024, arXiv 2410.02751).
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal

from relic_jax.models.policy import PolicyConfig
from relic_jax.runtime import ConfigError
from relic_jax.validation import devices_fit as devices_fit
from relic_jax.validation import require, shown
from relic_jax.validation import validate as validate
from relic_jax.validation import validate_host as validate_host


@dataclasses.dataclass(frozen=True)
class TrialConfig:
    """Shape of the data: N environments, each in trials of T steps cut into U segments."""

    environments: int = 8
    """N, environments that run in parallel."""
    steps: int = 4096
    """T, steps of a trial: many episodes of one task."""
    updates: int = 16
    """U, policy updates per trial; each follows a segment of T/U new steps."""
    show_last_reward: bool = False
    """Show an episode's last reward with the first observation of the next (the original hides it)."""
    action_repeat: int = 1
    """Environment steps that each action lasts; their rewards are summed, and a step here is so many there."""

    @property
    def segment(self) -> int:
        """K = T/U, steps per segment."""
        return self.steps // self.updates


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO with partial updates."""

    lr: float = 2e-4
    """Peak learning rate of Adam."""
    lr_final: float = 1e-5
    """Learning rate at the end of the run (cosine from the peak)."""
    warmup_steps: int = 10_000
    """Environment steps of linear warm-up from 1e-3 of the peak."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 0.2
    """Global norm clip over everything but the critic head, which is not clipped."""
    epochs: int = 4
    """Passes over the data per update."""
    minibatches: int = 8
    """Minibatches per epoch, split by environment; must divide environments."""
    accumulate: int = 4
    """Minibatches whose gradients make one optimiser step; must divide minibatches."""
    gradient_reduction: Literal["sum", "mean"] = "sum"
    """How accumulated gradients combine (the original sums)."""
    clip: float = 0.2
    """Clip of the probability ratio."""
    value_clip: float | None = 0.2
    """Clip of the value around its old prediction; None: no clip."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus at the start of the run."""
    entropy_coef_final: float | None = None
    """Weight of the entropy bonus at the end (linear in environment steps); None: constant."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    reward_scale: float = 1.0
    """Rewards are multiplied by it for learning (not in what the policy sees, nor in what is reported)."""
    normalize_advantages: bool = False
    """Normalise advantages, over the trial so far of all environments."""
    context_gradient: Literal["full", "stopped"] = "full"
    """full: gradients flow through the whole context; stopped: only through the segment, which reads the context from
    the cache (far cheaper)."""
    last_update: Literal["full", "partial"] = "full"
    """The trial's last update: loss over all its steps (full), or over the newest segment like the others (the only way
    where an image encoder is trained: images are kept for a segment, for the trial there are features)."""
    time_limit: Literal["terminal", "bootstrap"] = "terminal"
    """Episodes cut by the time limit: as if terminal (the original), or bootstrapped from the value of what follows."""
    credit: Literal["episode", "trial"] = "episode"
    """Returns stop at episode ends (the original), or go on through resets to the end of the trial."""
    shuffle: bool = True
    """After an update, shuffle the order of the complete episodes in the context."""
    refresh_every: int | None = 1
    """After every n-th update of a trial (and its shuffle), recompute the context's keys, values and value predictions
    with the new weights; None: never, nor shuffle."""
    refresh_segments: int | None = None
    """A refresh recomputes only that many last segments; older keys and values stay stale. None: all."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """In-context evaluation at the end of a run."""

    episodes: int = 40
    """Episodes per task, in one context."""
    repeats: int = 1
    """Trials per task."""
    tasks: int | None = None
    """Only that many tasks, the first of the split; None: all."""
    expert_episodes: int = 0
    """First episodes that the scripted expert acts (few-shot imitation)."""
    context_limit: int | None = None
    """The policy sees at most that many last steps; None: all."""


@dataclasses.dataclass(frozen=True)
class HostConfig:
    """Simulators in worker processes; of environments that run inside jit, `horizon` is for those of other suites."""

    workers: int = 2
    """Processes; must divide trial.environments. Habitat: one simulator each, so as many as environments."""
    backend: Literal["soft", "habitat"] = "soft"
    """What simulates object navigation: our software simulator, or habitat-sim."""
    python: str | None = None
    """The workers' interpreter; None: this one."""
    dataset: str | None = None
    """JSON file with the tasks of both splits: an episode dataset (relic-jax habitat-dataset), or for gym:ID
    {"train": [task, …], "test": [task, …]}; None: procedural houses of the software simulator, or seeds. For
    habitat-lab:CONFIG the path of its episodes, with {split} in it; None: the config's."""
    wrappers: str = ""
    """gym:ID: wrappers that the workers put around the environment, MODULE:NAME each, separated by commas."""
    text: Literal["omit", "words"] = "omit"
    """gym:ID: observations that are texts are left out, or read as the set of their words."""
    scene_dataset: str = "default"
    """Scene dataset configuration of habitat-sim, where the episode dataset is not given."""
    objects: str = ""
    """Folder with habitat-sim's object templates."""
    image_size: int = 64
    """Pixels of a side of the camera's square image."""
    horizon: int | None = None
    """Steps of the longest episode, also of other JAX suites' environments; None: the environment's own limit (object
    navigation: 500)."""
    gpus: int = 0
    """GPUs that render, one worker after the other; 0: in software."""
    start_timeout: float = 120.0
    """Seconds for a worker to start or to load a scene."""
    step_timeout: float = 60.0
    """Seconds without an answer after which a worker is restarted."""
    max_restarts: int = 100
    """Restarts of workers after which the run stops, with a checkpoint."""
    ray: str | None = None
    """Address of a Ray cluster whose machines run the workers ("auto", HOST:PORT); None: they run on this machine."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    env: str = "darkroom-dpt"
    """Environment, by its registered name."""
    seed: int = 0
    """Seeds parameters, tasks, environments and actions."""
    total_steps: int = 5_000_000
    """Environment steps of the run, rounded up to whole trials."""
    chunk: Literal["trial", "segment"] = "trial"
    """What one jitted call does: a whole trial, or one segment with its update (long trials: progress and checkpoints
    in between)."""
    devices: int | None = None
    """Devices that share the environments; on CPU, cores. None: as many as there are and as divide a minibatch, or the
    minibatches of an optimiser step."""
    checkpoint_minutes: float = 1.0
    """Minutes between checkpoints."""
    start_from: str | None = None
    """Run, checkpoint or exported policy whose parameters the run begins with (longer trials, other tasks); its network
    must be of the same shapes. Read once, when the run starts; checkpoints then hold them."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    trial: TrialConfig = dataclasses.field(default_factory=TrialConfig)
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    host: HostConfig = dataclasses.field(default_factory=HostConfig)

    @property
    def trials(self) -> int:
        """Trials of the run."""
        return -(-self.total_steps // (self.trial.environments * self.trial.steps))


def to_json(config: Any) -> str:
    """The config as readable JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> TrainConfig:
    """Inverse of `to_json` for TrainConfig. Raises ConfigError on unknown fields and impossible values."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config is not JSON: {error}") from None
    return _build(TrainConfig, data, "")


def _build(cls: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{path.rstrip('.') or 'config'} is {shown(data)}; allowed: an object")
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - fields)
    if unknown:
        raise ConfigError(f"{path}{shown(unknown[0])[1:-1]} is unknown; allowed: {', '.join(sorted(fields))}")
    values = {}
    for name, value in data.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _build(hint, value, f"{path}{name}.")
        else:
            values[name] = _checked(hint, value, path + name)
    return cls(**values)


def _checked(hint: Any, value: Any, field: str) -> Any:
    """Checks a JSON value against a field's type: scalars, Literal and unions of them."""
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        require(value in allowed, field, value, ", ".join(map(repr, allowed)))
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in options and type(value) is int and abs(value) < 2**53:
        return float(value)
    exact = any(type(value) is option for option in options)
    require(exact, field, value, " or ".join(option.__name__ for option in options))
    return value


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Names of the fields in which two configs of the same class differ."""
    found = []
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(left):
            found += differences(left, right, f"{path}{field.name}.")
        elif left != right:
            found.append(path + field.name)
    return found


def value_of(config: Any, field: str) -> Any:
    """The value of a field by its dotted name."""
    for name in field.split("."):
        config = getattr(config, name)
    return config


def changed(config: Any, field: str, value: Any) -> Any:
    """The config with a field, by its dotted name, set to `value`."""
    name, _, rest = field.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})
