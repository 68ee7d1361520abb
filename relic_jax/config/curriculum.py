"""Configuration of the curriculum over a task option."""

from __future__ import annotations

import dataclasses
from typing import Literal

from relic_jax.validation import check_positive, check_value, require


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """A curriculum: training trials are easy at first, and become harder during the run.

    The values of one task option are its rungs (levels). Evaluations always use the environment's own tasks, the
    hardest ones.
    """

    option: str | None = None
    """The task option, a name in `Environment.rungs` such as `asked` of `gridobj-9`. None: no curriculum."""
    values: tuple[int | str, ...] = ()
    """Values of the option, from easy to hard. (): all that the environment lists."""
    mode: Literal["gain", "schedule"] = "gain"
    """gain: the next rung begins when the in-context gain at the current one passes `threshold`; schedule: it begins at
    a fixed fraction of the run (`starts`)."""
    easier: float = 0.3
    """Share of the trials that are drawn from the easier rungs, in equal parts, once there are any."""
    threshold: float = 0.1
    """Gain that the running mean at the current rung must exceed. The gain of a trial is the mean return of its
    episodes from number `later` on, minus the return of its first episode."""
    standard_errors: float = 0.0
    """Number of standard errors of the running mean that are subtracted from it before it is compared with `threshold`.
    0: none. Where gains of trials vary much, 2 or 3 keep chance from raising the rung."""
    window: int = 256
    """Number of trials over which the running mean of the gain averages, and that a rung needs before the next one."""
    later: int = 3
    """Number of the first episode of a trial that counts as a later one."""
    starts: tuple[float, ...] = ()
    """With mode schedule: the fractions of the run at which the second and later rungs begin. (): equal parts."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        for index, value in enumerate(self.values):
            check_value(f"curriculum.values[{index}]", value)
        require(0 <= self.easier < 1, "curriculum.easier", self.easier, "0 or more, less than 1")
        require(self.standard_errors >= 0, "curriculum.standard_errors", self.standard_errors, "0 or more")
        check_positive(self, "curriculum", "window")
        require(self.later >= 2, "curriculum.later", self.later, "2 or more")
        ordered = list(self.starts) == sorted(set(self.starts)) and all(0 < start < 1 for start in self.starts)
        require(ordered, "curriculum.starts", self.starts, "increasing fractions, each more than 0 and less than 1")
        timed = self.mode == "schedule" or not self.starts
        require(timed, "curriculum.starts", self.starts, "() with curriculum.mode 'gain'")
        require(self.option is not None or not self.values, "curriculum.values", self.values, "() without an option")
