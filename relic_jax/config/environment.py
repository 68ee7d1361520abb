"""Configuration of the environment and of the processes that simulate it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from relic_jax.config.reading import read
from relic_jax.validation import MAX_SECONDS, MAX_WORKERS, check_most, check_positive, check_value, require

OptionsT = TypeVar("OptionsT")


class Options(dict[str, Any]):
    """Options of an environment by name: an immutable, hashable mapping of JSON values.

    Lists become tuples and objects become `Options`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__({str(name): _frozen(value) for name, value in dict(*args, **kwargs).items()})

    def __hash__(self) -> int:  # type: ignore[override]  # a dict is unhashable because it can change
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Options, (dict(self),)

    def _immutable(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("Options are immutable; make new ones")

    @property
    def text(self) -> str:
        """The options in words, each after a comma: ", pose house, view symbols"."""
        return "".join(f", {name.replace('_', ' ')} {value}" for name, value in sorted(self.items()))

    __setitem__ = __delitem__ = __ior__ = _immutable
    clear = pop = popitem = setdefault = update = _immutable


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Options(value)
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The environment of a run: its name, and what its family of environments lets the user choose."""

    name: str = "darkroom-dpt"
    """Name of the environment, e.g. `darkroom-dpt`, `gym:CartPole-v1` or `python:MODULE:NAME` for a custom
    environment. `relic-jax envs` lists all."""
    horizon: int | None = None
    """Time limit: steps of the longest episode. None: the environment's default."""
    options: Options = dataclasses.field(default_factory=Options)
    """Options that only this family of environments has, e.g. `{"dataset": "tasks.json"}`; missing ones have their
    defaults. The family declares and checks them (`relic_jax.envs.registry`)."""

    def __post_init__(self) -> None:
        if not isinstance(self.options, Options):
            object.__setattr__(self, "options", Options(self.options))

    def typed(self, options: type[OptionsT]) -> OptionsT:
        """Return the options as an instance of the dataclass that the family declares.

        Raises:
            ConfigError: An option is unknown, or its value does not have the declared type.
        """
        return read(options, dict(self.options), "env.")

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, value) of every field, named as on the command line: `env`, `env.horizon`, `env.OPTION`."""
        yield "env", self.name
        yield "env.horizon", self.horizon
        for name, value in sorted(self.options.items()):
            yield f"env.{name}", value

    def validate(self) -> None:
        """Raise ConfigError at the first field that no environment can have. The family checks its options."""
        for name, value in self.leaves():
            check_value(name, value)
        require(self.horizon is None or self.horizon > 0, "env.horizon", self.horizon, "more than 0, or None")


@dataclasses.dataclass(frozen=True)
class WorkerConfig:
    """Worker processes, for environments whose simulators run outside jit."""

    workers: int = 2
    """Number of worker processes; must divide `trial.environments`. habitat-sim runs one simulator per process, so it
    needs as many workers as environments."""
    batch: int | None = None
    """Number of environments that the policy acts for at once: the environments form groups of this size, and the
    policy acts for the first group that is ready. Must divide `trial.environments`. None: half of the environments, or
    all if neither they nor the workers can be halved."""
    python: str | None = None
    """Path of the Python interpreter that runs the workers. None: the current interpreter."""
    gpus: int = 0
    """Number of GPUs that render, assigned to the workers in turn. 0: render in software."""
    start_timeout: float = 120.0
    """Seconds that a worker has to start, or to load a scene."""
    step_timeout: float = 60.0
    """Seconds without an answer after which a worker is restarted."""
    max_restarts: int = 100
    """Number of worker restarts after which the run saves a checkpoint and stops."""
    ray: str | None = None
    """Address of a Ray cluster whose machines run the workers ("auto" or HOST:PORT). None: this machine."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work with any environment."""
        for field in dataclasses.fields(self):
            check_value(f"host.{field.name}", getattr(self, field.name))
        check_positive(self, "host", "workers", "start_timeout", "step_timeout")
        require(self.batch is None or self.batch > 0, "host.batch", self.batch, "more than 0, or None")
        for name in ("gpus", "max_restarts"):
            require(getattr(self, name) >= 0, f"host.{name}", getattr(self, name), "0 or more")
        limits = {"workers": MAX_WORKERS, "start_timeout": MAX_SECONDS, "step_timeout": MAX_SECONDS}
        for name, limit in limits.items():
            check_most(f"host.{name}", getattr(self, name), limit)
