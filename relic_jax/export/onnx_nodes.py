"""Building blocks of an ONNX graph."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from relic_jax.errors import ConfigError
from relic_jax.types import Params


def load_onnx() -> Any:
    """Import onnx. Raises ConfigError that names the extra if onnx or onnxruntime is not installed."""
    try:
        import onnx
        import onnxruntime  # noqa: F401  # needed for verification
    except ImportError:
        raise ConfigError("format is 'onnx'; it needs: pip install 'relic-jax[onnx]'") from None
    return onnx


class Graph:
    """Nodes and constants of a graph that is being built."""

    def __init__(self) -> None:
        """Create an empty graph."""
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._onnx = load_onnx()

    def constant(self, array: Any) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def op(self, kind: str, *inputs: Any, out: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return its name.

        Args:
            kind: The operator.
            *inputs: Names of values, or arrays, which become constants.
            out: Name of the output. None: a generated name.
            **attributes: Attributes of the node.
        """
        name = out or f"{kind.lower()}_{len(self.nodes)}"
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes.append(self._onnx.helper.make_node(kind, names, [name], **attributes))
        return name

    def halves(self, x: str, axis: int, half: int) -> tuple[str, str]:
        """Return the two halves of `x` along an axis of size 2 · `half`."""
        first = self.op("Slice", x, np.array([0]), np.array([half]), np.array([axis]))
        return first, self.op("Slice", x, np.array([half]), np.array([2 * half]), np.array([axis]))

    def split(self, x: str, sizes: list[int]) -> list[str]:
        """Split `x` [b, n] along its last axis."""
        ends = np.cumsum([0, *sizes])
        cuts = itertools.pairwise(ends)
        return [self.op("Slice", x, np.array([a]), np.array([b]), np.array([1])) for a, b in cuts]

    def cast(self, x: str, dtype: Any) -> str:
        """Cast `x` to another dtype."""
        return self.op("Cast", x, to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def linear(self, x: str, layer: Params) -> str:
        """Apply a linear layer: [..., in] → [..., out]."""
        y = self.op("MatMul", x, layer["kernel"])
        return self.op("Add", y, layer["bias"]) if "bias" in layer else y

    def shaped(self, x: str, *shape: int) -> str:
        """Reshape `x`. A size of 0 keeps the current size, and −1 is inferred."""
        return self.op("Reshape", x, np.array(shape))


def value_info(onnx: Any, name: str, shape: list[Any], dtype: Any) -> Any:
    """Return the declaration of an input or output."""
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
