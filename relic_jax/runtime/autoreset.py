"""What an environment does after the end of an episode, in the terms of gymnasium's vector environments."""

from __future__ import annotations

from typing import Any, Literal, cast

from .errors import ConfigError, short

Autoreset = Literal["next_step", "same_step", "disabled"]
AUTORESET = ("next_step", "same_step", "disabled")


def env_settings(env: Any, batch: int | None, autoreset: Autoreset | None) -> tuple[int | None, Autoreset]:
    """Return (batch, autoreset) of a gymnasium environment.

    Args:
        env: The environment, or vector environment.
        batch: What the caller passed; None for the environment's own.
        autoreset: What the caller passed. Used if the metadata has no mode (gymnasium before 1.1).

    Raises:
        ConfigError: If the caller's values contradict those of the environment.
    """
    count = getattr(env, "num_envs", None)
    if batch is not None and batch != count:
        raise ConfigError(f"batch is {batch}; allowed: {count}, the environments of env, or None")
    if count is None:
        layer, resets = env, False
        while layer is not None and not resets:
            resets, layer = type(layer).__name__ == "Autoreset", getattr(layer, "env", None)
        own = "next_step" if resets else "disabled"
    else:
        mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode", autoreset)
        modes = {name.replace("_", ""): name for name in AUTORESET}
        own = modes.get(str(getattr(mode, "value", mode)).replace("_", "").lower(), "")
    if not own:
        start = f"env.metadata['autoreset_mode'] is {short(mode)}"
        raise ConfigError(f"{start}; allowed: gymnasium's AutoresetMode, or none together with the argument autoreset")
    if autoreset not in (None, own):
        raise ConfigError(f"autoreset is {autoreset!r}; allowed: {own!r}, the mode of env")
    return count, cast(Autoreset, own)
