"""Several processes that train one run, each with its own devices, on one machine or several (`jax.distributed`).

Every process runs the same program. Each owns an equal part of the environments with their context. Process 0
evaluates, logs and completes checkpoints. What the host decides, such as when to stop, must be agreed on before it has
an effect: processes that do not run the same compiled programs in the same order wait for each other forever.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from relic_jax import rendezvous
from relic_jax.config import ConfigError
from relic_jax.errors import SharedError as SharedError
from relic_jax.types import PyTree

CONNECT_SECONDS = 120
"""Longest time until all processes have started."""
HEARTBEAT_SECONDS = 30
"""Time after which a process that does not answer counts as lost. JAX then ends all others."""
SHUTDOWN_SECONDS = 15
"""Longest time that a process that ends waits for the others."""
EXCHANGE_SECONDS = 3600
"""Longest time between the same calls of `exchange` in two processes, such as for starting simulators."""

Value = TypeVar("Value")

_rounds = itertools.count()

_LOSS_WORDS = ("gloo", "nccl", "connection", "heartbeat", "coordination", "unavailable", "deadline_exceeded")
"""Lower-case words of JAX's errors about a process that does not answer."""


def join(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Connect this process to the others. Call it before any device is used.

    Args:
        coordinator: HOST:PORT at which process 0 listens. None: JAX detects all arguments from the environment of
            Slurm, Open MPI or Kubernetes.
        count: Number of processes.
        index: Number of this process, from 0.

    Raises:
        ConfigError: If an argument is invalid, the port is in use, or a process does not answer.
        SharedError: In all processes but 0, if process 0 raises ConfigError.
    """
    devices = None
    if coordinator is None:
        with _named_errors():
            coordinator, count, index, devices = _detected()
    else:
        _check(coordinator, count, index)
    if coordinator is not None and count is not None and index is not None:  # otherwise JAX reports the missing one
        rendezvous.meet(coordinator, count, index, CONNECT_SECONDS)
    if hasattr(jax.config, "jax_cpu_collectives_implementation"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with _named_errors():
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            devices,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )


def _detected() -> Any:
    """Return the arguments of `jax.distributed.initialize`, as JAX detects them. None: not detected."""
    from jax._src.clusters import ClusterEnv  # `jax.distributed` detects and connects in one call

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    detect = ClusterEnv.auto_detect_unset_distributed_params
    coordinator, count, index, devices = detect(address, None, None, None, None, CONNECT_SECONDS)
    return coordinator, count, index, None if "JAX_LOCAL_DEVICE_IDS" in os.environ else devices


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """Turn errors of JAX into ConfigError."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        allowed = "with Slurm, Open MPI or Kubernetes, or --coordinator HOST:PORT --num-processes N --process-id I"
        raise ConfigError(f"distributed is True; allowed: {allowed} ({reason})") from None


def _check(coordinator: str, count: int | None, index: int | None) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"coordinator is {coordinator!r}; allowed: HOST:PORT, the address of process 0")
    if count is None or count < 1:
        raise ConfigError(f"num-processes is {count}; allowed: 1 or more, with --coordinator")
    if index is None or not 0 <= index < count:
        raise ConfigError(f"process-id is {index}; allowed: 0 … {count - 1} (num-processes is {count})")


def place() -> tuple[int, int]:
    """Return (number of this process, number of processes). Does not initialize JAX's devices."""
    from jax._src import distributed  # `jax.process_index` would initialize them

    state: Any = distributed.global_state
    return int(state.process_id), int(state.num_processes)


def are_several() -> bool:
    """Return whether this process is one of several. Initializes JAX's devices."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Return whether this is process 0, or the only one. Initializes JAX's devices."""
    return jax.process_index() == 0


def exchange(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Send a message to all processes, before or after JAX's devices are initialized.

    Args:
        message: JSON values.

    Returns:
        The messages of all processes, in their order.
    """
    from jax._src import distributed  # the key-value store of the coordinator has no public interface

    state: Any = distributed.global_state
    prefix = f"relic-jax/{next(_rounds)}"
    state.client.key_value_set(f"{prefix}/{state.process_id}", json.dumps(message))
    keys = [f"{prefix}/{index}" for index in range(state.num_processes)]
    return [json.loads(state.client.blocking_key_value_get(key, 1000 * EXCHANGE_SECONDS)) for key in keys]


def in_all(make: Callable[[], Value]) -> Value:
    """Return `make()` of this process, or raise an error in all processes if `make` raises ConfigError in one.

    Args:
        make: A function that all processes call at the same time.

    Raises:
        SharedError: If `make` raises ConfigError in any of several processes.
        ConfigError: If there is one process, and `make` raises it.
    """
    if not are_several():
        return make()
    value: Value | None = None
    message = {}
    try:
        value = make()
    except ConfigError as error:
        message["error"] = str(error)
    raise_first_error(exchange(message))
    return value  # type: ignore[return-value]


def raise_first_error(messages: list[dict[str, Any]]) -> None:
    """Raise SharedError for the first message with the key "error", which names its process unless it is process 0."""
    for index, message in enumerate(messages):
        if "error" in message:
            raise SharedError(message["error"] + (f" (process {index})" if index else ""))


def any_of(flag: bool) -> bool:
    """Return whether `flag` is set in any process."""
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any()) if are_several() else flag


def as_first(flag: bool) -> bool:
    """Return the flag of process 0."""
    return any_of(flag and is_first())


def connect_devices(mesh: Mesh) -> None:
    """Connect the devices of all processes, at the same time in all of them.

    Gloo gives up after 30 seconds if another process does not connect. Later, one process can be busy for longer, with
    an evaluation or a compilation.

    Args:
        mesh: The mesh of training.
    """
    if are_several():
        exchange({})
        any_of(False)
        wait_for_all("all devices are connected")
        total = jax.shard_map(
            lambda x: jax.lax.psum(x.sum(), mesh.axis_names), mesh=mesh, in_specs=P(mesh.axis_names), out_specs=P()
        )
        ones = jax.device_put(np.ones(mesh.size, np.float32), NamedSharding(mesh, P(mesh.axis_names)))
        jax.block_until_ready(jax.jit(total)(ones))


def wait_for_all(name: str) -> None:
    """Wait until all processes are here. name: a name of this place in the program."""
    if are_several():
        multihost_utils.sync_global_devices(name)


def own_part(tree: PyTree, mesh: Mesh, specs: PyTree) -> PyTree:
    """Return the part of arrays that lies on this process's devices.

    Args:
        tree: Arrays over a mesh of the devices of all processes.
        mesh: The mesh.
        specs: Their PartitionSpecs, or a prefix of such a tree.
    """
    return multihost_utils.global_array_to_host_local_array(tree, mesh, specs) if are_several() else tree


def of_all(tree: PyTree, mesh: Mesh, specs: PyTree) -> PyTree:
    """Invert `own_part`: return arrays over the devices of all processes."""
    return multihost_utils.host_local_array_to_global_array(tree, mesh, specs)


def on_own_device(tree: PyTree) -> PyTree:
    """Return a copy of replicated arrays on the first device of this process."""
    if are_several():
        tree = jax.tree.map(lambda x: x.addressable_data(0), tree)
    return jax.device_put(tree, jax.local_devices()[0])


def from_first(tree: PyTree) -> PyTree:
    """Return the arrays of process 0."""
    return multihost_utils.broadcast_one_to_all(jax.device_get(tree)) if are_several() else tree


def loading_alone(orbax: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which only this process loads a checkpoint with orbax."""
    if not are_several():
        return contextlib.nullcontext()
    index = jax.process_index()
    options = {"primary_host": index, "active_processes": {index}, "barrier_sync_key_prefix": f"process {index}"}
    alone: contextlib.AbstractContextManager[Any] = orbax.Context(
        multiprocessing_options=orbax.options.MultiprocessingOptions(**options)
    )
    return alone


def is_loss(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, is JAX's error about a process that does not answer."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error).lower() for word in _LOSS_WORDS):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


class LossNotice:
    """Prints a message if this process ends unexpectedly.

    JAX ends a process abruptly if its coordinator was lost, so a small helper process prints the message. It reads the
    newest message from a pipe and prints it when the pipe closes.
    """

    _HELPER = "import sys\nlast = ''\nfor last in sys.stdin: pass\nsys.stderr.write(last.strip() and last)"

    def __init__(self) -> None:
        command = [sys.executable, "-S", "-c", self._HELPER]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def update(self, message: str) -> None:
        """Set the message, one line. An empty one prints nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the helper was killed
            self._process.stdin.write(message.replace("\n", " ") + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End without a message."""
        self.update("")
        self.show()

    def show(self) -> None:
        """Print the message and end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def end_process(self) -> NoReturn:
        """Print the message and end this process, without waiting for the others as JAX does at exit."""
        self.show()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


notice: LossNotice | None = None
"""The notice of this process, if it is one of several."""


def announce(message: str) -> None:
    """Set what is printed if another process is lost."""
    if notice is not None:
        index, count = place()
        notice.update(f"relic-jax: process {index} of {count} ended because a process was lost; {message}")
