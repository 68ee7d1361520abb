"""Conversion of gymnasium's observation spaces to flat dictionaries of arrays. Python 3.8 and numpy.

    space                       array
    Discrete, MultiDiscrete     concatenated one-hot vectors, uint8 [Σ sizes]; starts other than 0 are subtracted
    MultiBinary                 0 or 1, uint8 [n]
    Box                         float32, with the bounds of each component mapped to [−1, 1]; components with an
                                infinite bound, one of 1e6 or more, or equal bounds are unchanged
    Box that is an image        uint8 [H, W, C], see `image_layout`
    Text                        left out, or a bag of words, uint8 [n]
    Tuple, Dict                 their parts, named by path: "camera.left", "pair.0"

A space that is not a Tuple or Dict is called "observation". Spaces are recognized by class name, so gymnasium is not
required.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from relic_jax.bridge.gym import minigrid
from relic_jax.bridge.protocol import ArraySpec

UNBOUNDED = 1e6
"""Bounds from here on say nothing about the scale of a component."""
LARGEST = 1 << 16
"""Maximum size of a one-hot vector."""
SIDE, CHANNELS = 8, 16
"""Minimum pixels per side and maximum channels of an image."""
BUCKETS = 128
"""Number of hash buckets for words outside the vocabulary."""

Path = tuple  # keys and indices that lead to a part of an observation


class SpaceError(ValueError):
    """A space is not supported. The message is a single line."""


class Part(NamedTuple):
    """One array of the converted observation.

    Attributes:
        path: Location in the original observation.
        spec: Dtype and shape.
        kind: image, bits (zeros and ones) or numbers.
        encode: Converts the environment's value, with any leading axes, to the array.
    """

    path: Path
    spec: ArraySpec
    kind: str
    encode: Callable[[Any], np.ndarray]


class Observations:
    """An encoder of the observations of a space.

    Attributes:
        parts: The arrays by name, sorted.
        left_out: Names of texts that are not encoded.
    """

    def __init__(
        self,
        space: Any,
        text: str = "omit",
        words: tuple[str, ...] = (),
        codes: dict[str, tuple[int, ...]] | None = None,
        flags: tuple[str, ...] = (),
    ) -> None:
        """Build the encoder.

        Args:
            space: An observation space.
            text: "omit" or "words" (a bag of words).
            words: Vocabulary of the bag of words. Other words share BUCKETS.
            codes: Names of Boxes whose last axis holds categories, such as cells of a grid, with the number of
                categories of each entry.
            flags: Names of Boxes of zeros and ones, whatever their bounds.

        Raises:
            SpaceError: A space is not supported, two parts have the same name, or nothing remains.
        """
        parts: dict[str, Part] = {}
        self.left_out: tuple[str, ...] = ()
        for path, part in _leaves(space, ()):
            name = ".".join(map(str, path)) or "observation"
            if name in parts or name in self.left_out:
                raise SpaceError(f"two parts of the observation are called {name!r}; allowed: different names")
            if _is_text(part) and text == "omit":
                self.left_out += (name,)
            elif codes and name in codes:
                parts[name] = _codes(name, part, path, codes[name])
            elif name in flags:
                parts[name] = Part(path, ArraySpec("uint8", tuple(part.shape)), "bits", _bits)
            else:
                parts[name] = _part(name, part, path, words)
        if not parts:
            raise SpaceError(f"the observation space {space} has no part to encode but {', '.join(self.left_out)}")
        self.parts = {name: parts[name] for name in sorted(parts)}

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Dtypes and shapes by name."""
        return {name: part.spec for name, part in self.parts.items()}

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the arrays that are images."""
        return tuple(name for name, part in self.parts.items() if part.kind == "image")

    @property
    def bits(self) -> tuple[str, ...]:
        """Names of the arrays of zeros and ones."""
        return tuple(name for name, part in self.parts.items() if part.kind == "bits")

    def __call__(self, observation: Any) -> dict[str, np.ndarray]:
        """Encode an observation with any leading axes. Raises ValueError if a value is out of range."""
        arrays = {}
        for name, part in self.parts.items():
            value = observation
            for key in part.path:
                value = value[key]
            try:
                arrays[name] = part.encode(value)
            except ValueError as error:
                raise ValueError(f"observation {name!r} {error}") from None
        return arrays


def tree(images: dict[str, Any], vector: Any) -> Any:
    """Return the observation that a policy reads, from images by name and a vector [..., D].

    Returns:
        `vector`, an image, {"image": …, "vector": …} or {"image": {name: …}, "vector": …}. A vector without components
        is left out if there are images.
    """
    if not images:
        return vector
    named = next(iter(images.values())) if len(images) == 1 else images
    if vector.shape[-1]:
        return {"image": named, "vector": vector}
    return named if len(images) == 1 else {"image": named}


def assemble(arrays: dict[str, np.ndarray], images: tuple[str, ...], lead: int = 1) -> Any:
    """Return the `tree` of an observation's arrays. All but images are flattened into a vector, sorted by name.

    Args:
        arrays: The arrays by name.
        images: Names of the images.
        lead: Number of leading axes.
    """
    shape = next(iter(arrays.values())).shape[:lead]
    parts = [arrays[name].reshape(*shape, -1).astype(np.float32) for name in sorted(arrays) if name not in images]
    vector = np.concatenate([np.zeros((*shape, 0), np.float32), *parts], axis=-1)
    return tree({name: arrays[name] for name in images}, vector)


def reader(env: Any, text: str = "omit") -> Callable[[Any], Any]:
    """Return a function that converts a gymnasium environment's observations for a policy trained on `gym:ID`.

    Args:
        env: An environment, or a vector environment, whose observations have a leading axis. For MiniGrid, a vector
            environment must hold its environments (SyncVectorEnv).
        text: `env.text` of the training run.

    Raises:
        SpaceError: The observation space is not supported.
    """
    one = env.envs[0] if getattr(env, "envs", None) else env
    lead = int(hasattr(env, "num_envs"))
    space = env.single_observation_space if lead else env.observation_space
    encode = Observations(space, text, **(minigrid.encoder_options(one) if hasattr(one, "unwrapped") else {}))

    def read(observation: Any) -> Any:
        with np.errstate(over="ignore"):  # the agent checks for non-finite values
            return assemble(encode(observation), encode.images, lead)

    return read


def _leaves(space: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    kind = _kind(space)
    if kind == "Dict":
        for key in sorted(space.spaces, key=str):
            yield from _leaves(space.spaces[key], (*path, key))
    elif kind == "Tuple":
        for index, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, index))
    else:
        yield path, space


def _kind(space: Any) -> str:
    """Return the name of the gymnasium class of a space, also for subclasses; for other classes their name."""
    known = ("Dict", "Tuple", "Box", "Discrete", "MultiDiscrete", "MultiBinary", "Text", "Sequence", "Graph", "OneOf")
    names = [base.__name__ for base in type(space).__mro__]
    return next((name for name in names if name in known), names[0])


def _is_text(space: Any) -> bool:
    """Return whether a space is Text or a mission of MiniGrid."""
    dtype = getattr(space, "dtype", None)
    return _kind(space) in ("Text", "MissionSpace") or (dtype is not None and np.dtype(dtype).kind == "U")


def _part(name: str, space: Any, path: Path, words: tuple[str, ...]) -> Part:
    kind = _kind(space)
    if _is_text(space):
        return Part(path, ArraySpec("uint8", (len(words) + BUCKETS,)), "bits", BagOfWords(words))
    if kind in ("Discrete", "MultiDiscrete"):
        return _categories(name, space, path)
    if kind == "MultiBinary":
        return Part(path, ArraySpec("uint8", tuple(space.shape)), "bits", _bits)
    if kind == "Box":
        layout = image_layout(space)
        if layout is None:
            return Part(path, ArraySpec("float32", tuple(space.shape)), "numbers", _scaling(space))
        axes, shape = layout
        return Part(path, ArraySpec("uint8", shape), "image", _arranged(len(space.shape), axes, shape))
    allowed = "Box, Discrete, MultiDiscrete, MultiBinary, Text, and Dict or Tuple of them (a wrapper can remove it)"
    raise SpaceError(f"observation {name!r} is a {kind} space; allowed: {allowed}")


def image_layout(box: Any) -> tuple[tuple[int, ...], tuple[int, int, int]] | None:
    """Return (order of the axes, shape [H, W, C] in this order) of a Box that is an image, or None.

    An image is uint8 with all bounds 0 and 255, H and W at least SIDE, and C at most CHANNELS and less than H and W.
    Its shape is [H, W], [H, W, C] or [C, H, W], or [N, H, W, C] or [N, C, H, W], a stack of N ≤ CHANNELS frames, which
    become channels.
    """
    shape = tuple(box.shape)
    if box.dtype != np.uint8 or not (np.all(box.low == 0) and np.all(box.high == 255)):
        return None
    if len(shape) == 2 and min(shape) >= SIDE:
        return (0, 1), (shape[0], shape[1], 1)
    if len(shape) == 3:
        axes = _channels_last(shape)
        return None if axes is None else (axes, (shape[axes[0]], shape[axes[1]], shape[axes[2]]))
    if len(shape) == 4 and shape[0] <= CHANNELS and _channels_last(shape[1:]) is not None:
        rows, columns, channel = (axis + 1 for axis in _channels_last(shape[1:]) or ())
        size = (shape[rows], shape[columns], shape[0] * shape[channel])
        return (rows, columns, 0, channel), size
    return None


def _channels_last(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    for axes in ((0, 1, 2), (1, 2, 0)):
        height, width, channels = (shape[axis] for axis in axes)
        if min(height, width) >= SIDE and 0 < channels <= CHANNELS and channels < min(height, width):
            return axes
    return None


def _arranged(rank: int, axes: tuple[int, ...], shape: tuple[int, ...]) -> Callable[[Any], np.ndarray]:
    def encode(value: Any) -> np.ndarray:
        array = np.asarray(value)
        lead = array.ndim - rank
        order = (*range(lead), *(lead + axis for axis in axes))
        return array.transpose(order).reshape(*array.shape[:lead], *shape)

    return encode


def _scaling(box: Any) -> Callable[[Any], np.ndarray]:
    low, high = (np.asarray(bound, np.float64) for bound in (box.low, box.high))
    bounded = (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED) & (high > low)
    span = np.where(bounded, np.where(bounded, high, 1) - np.where(bounded, low, 0), 2)
    start = np.where(bounded, low, 0)
    shift = np.where(bounded, 1, 0)

    def encode(value: Any) -> np.ndarray:
        return 2 * (np.asarray(value, np.float64) - start) / span - shift

    return encode


def _categories(name: str, space: Any, path: Path) -> Part:
    """Return the part of a Discrete or MultiDiscrete of any shape."""
    shape = tuple(space.shape)
    sizes = np.ravel(space.n if _kind(space) == "Discrete" else space.nvec).astype(np.int64)
    starts = np.broadcast_to(np.ravel(getattr(space, "start", 0)), sizes.shape).astype(np.int64)
    total = int(sizes.sum())
    if total > LARGEST:
        raise SpaceError(f"observation {name!r} is {space}, one-hot in {total} numbers; allowed: at most {LARGEST}")
    one_hot = OneHot(sizes, starts)

    def encode(value: Any) -> np.ndarray:
        array = np.asarray(value)
        return one_hot(array.reshape(*array.shape[: array.ndim - len(shape)], len(sizes)))

    return Part(path, ArraySpec("uint8", (total,)), "bits", encode)


def _codes(name: str, box: Any, path: Path, sizes: tuple[int, ...]) -> Part:
    if box.shape[-1] != len(sizes):
        raise SpaceError(f"observation {name!r} has {box.shape[-1]} codes per cell; allowed: {len(sizes)}")
    spec = ArraySpec("uint8", (*box.shape[:-1], sum(sizes)))
    return Part(path, spec, "bits", OneHot(np.array(sizes), np.zeros(len(sizes), np.int64)))


class OneHot:
    """Conversion of integers [..., k] with `sizes` and `starts`, int [k], to uint8 [..., Σ sizes]."""

    def __init__(self, sizes: np.ndarray, starts: np.ndarray) -> None:
        self.sizes, self.starts = sizes, starts
        self.first = np.cumsum(sizes) - sizes

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Convert integers. Raises ValueError if one is out of range."""
        index = np.asarray(value).astype(np.int64) - self.starts
        bad = (index < 0) | (index >= self.sizes)
        if bad.any():
            component = int(np.argwhere(bad)[0][-1])
            start = self.starts[component]
            allowed = f"{start} … {start + self.sizes[component] - 1}"
            raise ValueError(f"is {np.asarray(value)[bad].flat[0]} in component {component}; allowed: {allowed}")
        flat = np.zeros((index.size // max(len(self.sizes), 1), int(self.sizes.sum())), np.uint8)
        np.put_along_axis(flat, (index + self.first).reshape(len(flat), -1), 1, axis=1)
        return flat.reshape(*index.shape[:-1], -1)


def _bits(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if not np.isin(array, (0, 1)).all():
        raise ValueError("is not an array of 0 and 1")
    return array.astype(np.uint8)


class BagOfWords:
    """Conversion of a text, or of a sequence of texts, to its set of words, uint8 [..., len(words) + BUCKETS]."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.places = {word: index for index, word in enumerate(words)}

    def __call__(self, value: Any) -> np.ndarray:
        """Convert a text or a sequence of texts. Case and punctuation are ignored."""
        if not isinstance(value, str):
            return np.stack([self(text) for text in value])
        bag = np.zeros(len(self.places) + BUCKETS, np.uint8)
        for word in re.findall(r"\w+", value.lower()):
            other = len(self.places) + zlib.crc32(word.encode()) % BUCKETS
            bag[self.places.get(word, other)] = 1
        return bag
