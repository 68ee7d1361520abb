"""Backends that compute a policy's step: jax (a live policy or StableHLO) and onnxruntime."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .arrays import Arrays, empty_arrays, hold_rows, shift_slots
from .errors import ConfigError, first_line


class Backend(Protocol):
    """Computes a policy's step. The context's keys and values are arrays by name, [B, H, S, D] each."""

    def empty(self, batch: int, slots: int) -> Arrays:
        """Return empty arrays with room for `slots` steps of `batch` rows."""
        ...

    def step(self, arrays: Arrays, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Arrays]:
        """Return (outputs by name, the arrays with the step in them). Can consume `arrays`."""
        ...

    def to_device(self, arrays: dict[str, np.ndarray]) -> Arrays:
        """Return arrays in the form that `step` takes. Can keep references to them."""
        ...

    def to_host(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Return numpy arrays: the inverse of `to_device`."""
        ...

    def shift(self, arrays: Arrays, slots: int, turn: np.ndarray | None) -> Arrays:
        """Apply `shift_slots`. Can consume `arrays`."""
        ...

    def hold(self, arrays: Arrays, rows: np.ndarray) -> Arrays:
        """Apply `hold_rows`. Can consume `arrays`."""
        ...


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a step to arrays without the leading axis if there is one row; to be jitted with the arrays donated.

    With a leading axis of length 1, XLA on CPU copies the whole context twice per step.

    Args:
        function: (arrays, inputs) → (outputs, arrays), all with a leading axis.
    """

    def run(arrays: Arrays, inputs: Mapping[str, Any]) -> tuple[Any, Arrays]:
        rows = inputs["first"].shape[0]
        outputs, arrays = function(_with_rows(arrays, rows), inputs)
        return outputs, _without_row(arrays, rows)

    return run


def _with_rows(arrays: Arrays, rows: int) -> Arrays:
    return {name: x[None] for name, x in arrays.items()} if rows == 1 else arrays


def _without_row(arrays: Arrays, rows: int) -> Arrays:
    return {name: x[0] for name, x in arrays.items()} if rows == 1 else arrays


class Jax:
    """A step that jax computes."""

    def __init__(self, about: Mapping[str, Any], function: Callable[..., Any]) -> None:
        """Create the backend.

        Args:
            about: Content of a config.json.
            function: A step made by `in_place` and jitted with the arrays donated. Compiled once per shape.
        """
        import jax
        import jax.numpy as jnp

        def shift(arrays: Arrays, slots: int, turn: Any) -> Arrays:
            return _without_row(shift_slots(jnp, _with_rows(arrays, self._rows), slots, turn), self._rows)

        self._about, self._function, self._rows = about, function, 0
        self._shift = jax.jit(shift, donate_argnums=0)
        self._hold = jax.jit(functools.partial(hold_rows, jnp), donate_argnums=0)
        self._copy = jnp.array  # memory that numpy allocated cannot be donated

    def empty(self, batch: int, slots: int) -> Arrays:
        """See `Backend`."""
        return self.to_device(empty_arrays(self._about, batch, slots))

    def to_device(self, arrays: dict[str, np.ndarray]) -> Arrays:
        """See `Backend`."""
        self._rows = len(next(iter(arrays.values())))
        return {name: self._copy(x) for name, x in _without_row(arrays, self._rows).items()}

    def to_host(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """See `Backend`."""
        return {name: np.asarray(x) for name, x in _with_rows(arrays, self._rows).items()}

    def step(self, arrays: Arrays, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Arrays]:
        """See `Backend`."""
        outputs, arrays = self._function(arrays, inputs)
        return {name: np.asarray(x) for name, x in outputs.items()}, arrays

    def shift(self, arrays: Arrays, slots: int, turn: np.ndarray | None) -> Arrays:
        """See `Backend`."""
        return dict(self._shift(arrays, slots, turn))

    def hold(self, arrays: Arrays, rows: np.ndarray) -> Arrays:
        """See `Backend`. Only called with several rows: a single row that does not act takes no step."""
        return dict(self._hold(arrays, rows))


def stable_hlo(path: Path, about: Mapping[str, Any]) -> Jax:
    """Return the step in a policy.stablehlo.

    Args:
        path: The file.
        about: Content of the config.json beside it.

    Raises:
        ConfigError: If the file is truncated, or jax or flatbuffers is not installed.
    """
    try:
        import flatbuffers  # noqa: F401  # jax reads the file with it, but does not require it
        import jax
        from jax import export
    except ImportError as error:
        raise ConfigError(f"'{path}' is run by jax and flatbuffers; {error.name} is missing: pip install it") from None
    reason = ""
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers and MLIR raise many classes
        reason = first_line(error)
    if reason:
        raise ConfigError(f"export is '{path}'; allowed: a whole file of this or an older jax ({reason})")
    return Jax(about, jax.jit(in_place(exported.call), donate_argnums=0))


class Onnx:
    """A step that onnxruntime computes. The graph reads the context and returns only what the step adds to it."""

    def __init__(self, model: Path | bytes, about: Mapping[str, Any], threads: int = 0) -> None:
        """Load the model.

        Args:
            model: The file or its content.
            about: Content of the config.json beside it.
            threads: Threads of onnxruntime; 0 for its default.

        Raises:
            ConfigError: If the model is truncated, or onnxruntime is not installed.
        """
        path = "the model" if isinstance(model, bytes) else model
        try:
            import onnxruntime
        except ImportError:
            raise ConfigError(
                f"'{path}' is run by onnxruntime, which is not installed: pip install onnxruntime"
            ) from None
        options, reason = onnxruntime.SessionOptions(), ""
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common class
            reason = first_line(error)
        if reason:
            raise ConfigError(f"export is '{path}'; allowed: a whole ONNX file of relic-jax ({reason})")
        self._about = about
        self._inputs = {x.name for x in self._session.get_inputs()}
        self._outputs = [x.name for x in self._session.get_outputs()]

    def empty(self, batch: int, slots: int) -> Arrays:
        """See `Backend`."""
        return empty_arrays(self._about, batch, slots)

    def to_device(self, arrays: dict[str, np.ndarray]) -> Arrays:
        """See `Backend`."""
        return arrays

    def to_host(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """See `Backend`."""
        return arrays

    def step(self, arrays: Arrays, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Arrays]:
        """See `Backend`."""
        feed = {name: np.asarray(x) for name, x in {**arrays, **inputs}.items() if name in self._inputs}
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        slot = int(inputs["length"])
        for name, x in arrays.items():
            if name == "episodes":
                x[:, slot] = outputs["episode_after"]
            else:
                x[:, :, slot] = outputs[f"new_{name}"][:, :, 0]
        return {name: x for name, x in outputs.items() if not name.startswith("new_")}, arrays

    def shift(self, arrays: Arrays, slots: int, turn: np.ndarray | None) -> Arrays:
        """See `Backend`."""
        return shift_slots(np, arrays, slots, turn)

    def hold(self, arrays: Arrays, rows: np.ndarray) -> Arrays:
        """See `Backend`."""
        return hold_rows(np, arrays, rows)
