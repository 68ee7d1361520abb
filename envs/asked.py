"""The option `asked` of object navigation: how many of the kinds of objects a trial asks for."""

from __future__ import annotations

from relic_jax.config import ConfigError


def read_asked(name: str, asked: int | str | None, kinds: int) -> int | tuple[int, ...] | None:
    """Return the value of `env.asked` as a number, several numbers, or None for all.

    Args:
        name: Name of the environment.
        asked: The option's value.
        kinds: Number of kinds of objects.

    Raises:
        ConfigError: A number is not in 1 … kinds, or the text is not a list of numbers.
    """
    if asked is None:
        return None
    words = str(asked).split(",")
    numbers = tuple(int(word) for word in words if word.isdecimal())
    if len(numbers) < len(words) or not all(1 <= number <= kinds for number in numbers):
        allowed = f"1 to {kinds} for {name!r}, several such numbers (1,2), or None for all"
        raise ConfigError(f"env.asked is {asked!r}; allowed: {allowed}")
    return numbers if len(numbers) > 1 else numbers[0]
