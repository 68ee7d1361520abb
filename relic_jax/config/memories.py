"""The kinds of memory that a policy can have, and the settings that each supports."""

from __future__ import annotations

from typing import Literal, NamedTuple

MemoryName = Literal["transformer", "window", "transformer-xl", "memo", "gru", "lstm", "gated-delta", "lru"]


class Traits(NamedTuple):
    """What a kind of memory supports.

    Attributes:
        section: The section of `PolicyConfig` that holds its architecture. Its parameters have the same name.
        keeps_steps: Whether every step of the trial is kept, so the memory can be rewound to any step and its context
            can be limited. Other memories can only be rewound to the start of a trial.
        shuffles: Whether the episodes of the context can be shuffled before it is recomputed.
        kernels: Whether its attention is computed by the kernels that `policy.transformer.attention` selects from.
        within_episode: Whether attention can be limited to the current episode.
        exports: Whether an `Agent` and exported policies support it.
        fields: The fields of `MEMORY_FIELDS` that apply to it.
    """

    section: Literal["transformer", "recurrent", "linear_rnn"]
    keeps_steps: bool = False
    shuffles: bool = False
    kernels: bool = False
    within_episode: bool = False
    exports: bool = False
    fields: tuple[str, ...] = ()


MEMORIES: dict[MemoryName, Traits] = {
    "transformer": Traits(
        "transformer", keeps_steps=True, shuffles=True, kernels=True, within_episode=True, exports=True
    ),
    "window": Traits("transformer", shuffles=True, kernels=True, within_episode=True, fields=("window",)),
    "transformer-xl": Traits("transformer", shuffles=True, within_episode=True, fields=("memory_steps",)),
    "memo": Traits("transformer", shuffles=True, fields=("summary_every", "summary_tokens")),
    "gru": Traits("recurrent", exports=True),
    "lstm": Traits("recurrent", exports=True),
    "gated-delta": Traits("linear_rnn", exports=True),
    "lru": Traits("linear_rnn", exports=True),
}
"""The traits of each kind, by the name in `policy.memory`."""
MEMORY_FIELDS = {"window": 256, "memory_steps": 256, "summary_every": 64, "summary_tokens": 8}
"""The fields of `TransformerConfig` that belong to a kind of memory, with the values that None stands for."""
