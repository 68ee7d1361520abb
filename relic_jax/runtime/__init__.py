"""Acting with a policy, step by step, without training code: numpy, and jax or onnxruntime.

`load(folder)` reads what `relic-jax export --format stablehlo` or `--format onnx` wrote and returns an `Agent`. This
package imports no other module of relic-jax. Exports hold a copy of it and therefore run if only jax and flatbuffers,
or only numpy and onnxruntime, are installed:

    from run import load
    agent = load(".")
    action = agent.step(observation)
    ...
    action = agent.step(observation, reward, terminated, truncated)

The agent holds the context: the past steps of the current task, from which the policy learns. `relic_jax.Agent` is the
same class for a policy of this library.
"""

from . import check
from .actions import MASKED, Actions
from .agent import FULL, Agent, Full
from .arrays import Arrays, empty_arrays, hold_rows, shift_slots
from .autoreset import AUTORESET, Autoreset
from .backends import Backend, Jax, Onnx, in_place, stable_hlo
from .context import CONTEXT_FORMAT, Rows, read_context
from .errors import ConfigError, one_line
from .exports import POLICY_FORMAT, load, open_export, read_about
from .files import CHECKSUMS, checksum, checksums_text, parse_json, read_json, read_safetensors, verify_files
from .spaces import check_spaces, named_leaves

__all__ = [
    "AUTORESET",
    "CHECKSUMS",
    "CONTEXT_FORMAT",
    "FULL",
    "MASKED",
    "POLICY_FORMAT",
    "Actions",
    "Agent",
    "Arrays",
    "Autoreset",
    "Backend",
    "ConfigError",
    "Full",
    "Jax",
    "Onnx",
    "Rows",
    "check",
    "check_spaces",
    "checksum",
    "checksums_text",
    "empty_arrays",
    "hold_rows",
    "in_place",
    "load",
    "named_leaves",
    "one_line",
    "open_export",
    "parse_json",
    "read_about",
    "read_context",
    "read_json",
    "read_safetensors",
    "shift_slots",
    "stable_hlo",
    "verify_files",
]
