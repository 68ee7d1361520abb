"""Attention with sinks over a context and a block of steps: one definition, and kernels for each kind of device.

`select` picks the kernel of a model and every kernel takes one `AttentionInputs` record. `reference` holds the
definition. Importing this package imports no kernel and compiles nothing.
"""

from relic_jax.models.attention.inputs import MASKED, AttentionInputs, Context, Sink
from relic_jax.models.attention.reference import rotate
from relic_jax.models.attention.select import Backend, Kernel, select

__all__ = ["MASKED", "AttentionInputs", "Backend", "Context", "Kernel", "Sink", "rotate", "select"]
