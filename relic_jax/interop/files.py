"""Read and write named arrays in safetensors files and in PyTorch files (extra `torch`).

Files cannot run code: PyTorch files are read with the weights-only loader. Objects of classes that are not installed,
such as habitat's config, become inert stand-ins, and only their plain values are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from relic_jax.config import ConfigError
from relic_jax.files import replacing, write_atomically
from relic_jax.runtime import parse_json

OURS = "relic_jax."
"""Prefix of this library's arrays beside those of the other code."""
STATE_KEYS = ("state_dict", "model")
"""Keys under which PyTorch checkpoints store their parameters, if not at the top level."""


class ArrayFile(NamedTuple):
    """Content of a file.

    Attributes:
        arrays: Arrays by name, of any dtype.
        about: Other content of the file, plain values.
    """

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


def read(path: Path, field: str) -> ArrayFile:
    """Read a .safetensors file, or a PyTorch file with any other suffix.

    Args:
        path: The file.
        field: Name of the path in messages.

    Raises:
        ConfigError: If the file is missing, truncated or in another format.
    """
    if not path.is_file():
        raise ConfigError(f"{field} is '{path}'; allowed: a file that exists")
    return _read_safetensors(path, field) if path.suffix == ".safetensors" else _read_torch(path, field)


def write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write a file for `read` atomically. The suffix decides the format.

    A PyTorch file is {"state_dict": …}, which habitat-baselines loads, with this library's arrays beside it.

    Args:
        path: The file.
        arrays: Arrays by name.
        about: Other content, plain values.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors ignores strides
    if path.suffix == ".safetensors":
        from safetensors.numpy import save  # files of its save_file can only be read by their owner

        write_atomically(path, save(arrays, {"relic_jax": json.dumps(about)}))
        return
    torch = _torch()
    tensors = {name: _tensor(torch, array) for name, array in arrays.items()}
    ours = {name: x for name, x in tensors.items() if name.startswith(OURS)}
    state = {name: x for name, x in tensors.items() if name not in ours}
    content = {"state_dict": state, "extra_state": {"step": 0}, "relic_jax": {**about, "arrays": ours}}
    with replacing(path) as temporary:
        torch.save(content, temporary)


def _read_safetensors(path: Path, field: str) -> ArrayFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            about = parse_json((file.metadata() or {}).get("relic_jax", "{}"))
            if not isinstance(about, dict):
                raise TypeError(f"its metadata is a {type(about).__name__}")
            return ArrayFile({name: file.get_tensor(name) for name in file.keys()}, about)  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise _unreadable(path, field, "a complete safetensors file", error) from None


def _read_torch(path: Path, field: str) -> ArrayFile:
    torch = _torch()
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(type("StandIn", (StandIn,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(stand_ins):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch raise many classes; report one line
        raise _unreadable(path, field, "a complete PyTorch checkpoint (torch.save of 1.6 or later)", error) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{field} is '{path}'; allowed: a PyTorch checkpoint that is a dictionary")
    state = next((found[key] for key in STATE_KEYS if isinstance(found.get(key), dict)), found)
    ours = found.get("relic_jax")
    ours = ours if isinstance(ours, dict) else {}
    extra = ours.get("arrays")
    tensors = {**state, **(extra if isinstance(extra, dict) else {})}
    arrays = {str(name): _array(torch, x) for name, x in tensors.items() if isinstance(x, torch.Tensor)}
    about = plain({name: x for name, x in found.items() if name not in (*STATE_KEYS, "relic_jax") and x is not state})
    return ArrayFile(arrays, {**about, **plain({name: x for name, x in ours.items() if name != "arrays"})})


def _unreadable(path: Path, field: str, allowed: str, error: Exception) -> ConfigError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return ConfigError(f"{field} is '{path}'; allowed: {allowed} ({reason})")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ConfigError("PyTorch files need: pip install 'relic-jax[torch]'; safetensors files do not") from None
    return torch


def _array(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _tensor(torch: Any, array: np.ndarray) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


class StandIn:
    """An object of an unknown class. It stores its state and does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Accept any arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def plain(value: Any) -> Any:
    """Return the dictionaries, lists and scalars in a value.

    Containers and nodes of omegaconf are replaced by their content, and any other object by None.
    """
    if isinstance(value, StandIn):
        state = value.state if isinstance(value.state, dict) else {}
        return plain(state.get("_content", state.get("_val")))
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items() if isinstance(key, str)}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return value if isinstance(value, str | int | float | bool) else None
