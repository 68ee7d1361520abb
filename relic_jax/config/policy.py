"""Configuration of the network: encoder, memory and action head. Defaults are the paper's (arXiv 2410.02751)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from relic_jax.config.linear_rnn import LinearRNNConfig
from relic_jax.config.memories import MEMORIES, MEMORY_FIELDS, MemoryName, Traits
from relic_jax.validation import MAX_LAYERS, check_most, check_positive, require

SinkKind = Literal["kv", "kv0", "k0v", "k0v0", "token", "none"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Architecture of the transformer (ReLIC) and of the other attention memories."""

    layers: int = 2
    """Number of blocks."""
    heads: int = 8
    """Number of attention heads; must divide `width` into heads of even width."""
    width: int = 64
    """Width of the residual stream."""
    mlp_width: int = 256
    """Hidden width of the gated MLP."""
    max_positions: int = 2048
    """Number of learned embeddings of the step index; must cover the longest episode and the sink."""
    sink: SinkKind = "kv"
    """Attention sink. kv: learned key and value (Sink-KV); kv0: learned key, zero value; k0v: zero key, learned value;
    k0v0: both zero (softmax plus one); token: a learned token in front of the sequence; none: plain softmax."""
    step_embedding: bool = True
    """Add a learned embedding of the step's index in its episode."""
    episode_rope: bool = True
    """Rotate queries and keys by the index of the episode in the trial."""
    inter_episode: bool = True
    """Attend across episodes. Off: attend to the current episode and the sink only."""
    window: int | None = None
    """Number of last steps that a step attends to, its own included, with `policy.memory window`. None: 256."""
    memory_steps: int | None = None
    """Number of steps of a segment, and of the memory before it, with `policy.memory transformer-xl`. None: 256."""
    summary_every: int | None = None
    """Number of steps that one summary replaces, with `policy.memory memo`. None: 64."""
    summary_tokens: int | None = None
    """Number of tokens of a summary, with `policy.memory memo`. None: 8."""
    gate: Literal["none", "gru"] = "none"
    """Connection of the branches of a block to the residual stream. none: addition; gru: the gates of GTrXL (Parisotto
    et al. 2020), which start close to the identity."""
    init: Literal["normal", "fan_in"] = "normal"
    """Initializer of linear layers, also of those around the blocks. normal: N(0, 0.02²) at every width, as in the
    original; fan_in: variance 1 / inputs (LeCun et al. 1998), up to six times the standard deviation at width 64."""
    depth_dropout: float = 0.0
    """Probability that a training pass skips a block; drawn once per block and pass."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations. Parameters, softmax statistics and heads stay float32."""
    cache: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Storage format of the context's keys and values. int8: with one scale per head and step; auto: as `dtype`."""
    remat: bool = False
    """Recompute the activations of the blocks in the backward pass instead of storing them."""
    decode: Literal["fused", "xla"] = "fused"
    """Kernel of a single step. fused: one kernel on NVIDIA GPUs, for heads of width 16, 32, 64, …, and on CPUs, for
    float32 and heads of width 4, 8, 16, … 128, if `attention` is auto or native; otherwise as xla."""
    attention: Literal["auto", "blocked", "flash", "native", "reference"] = "auto"
    """Kernel of a block of steps. blocked: tiles, O(T) memory; native: a compiled CPU kernel, for float32 and heads of
    width 4, 8, 16, … 128; flash: cuDNN's flash attention on NVIDIA GPUs, for bfloat16 and heads whose width is a
    multiple of 8, at most 128; a kernel that the device does not support is replaced with blocked. auto: native or
    flash if (flash only with `inter_episode`), otherwise blocked; reference: the definition, for tests."""

    @property
    def head_width(self) -> int:
        """D = width / heads."""
        return self.width // self.heads

    @property
    def first_index(self) -> int:
        """Index of the first episode, and of the first step of an episode; index 0 belongs to the sink, if any."""
        return 0 if self.sink == "none" else 1

    @property
    def cache_format(self) -> Literal["float32", "bfloat16", "int8"]:
        """Storage format of keys and values."""
        return self.dtype if self.cache == "auto" else self.cache

    @property
    def cache_bytes_per_step(self) -> int:
        """Bytes of keys and values per context step and environment; in int8 with a float32 scale per head."""
        number = (
            1 + 4 / self.head_width if self.cache_format == "int8" else {"float32": 4, "bfloat16": 2}[self.cache_format]
        )
        return round(2 * self.layers * self.width * number)

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        field = "policy.transformer"
        check_positive(self, field, "layers", "heads", "width", "mlp_width", "max_positions")
        check_most(f"{field}.layers", self.layers, MAX_LAYERS)
        allowed = f"a divisor of {field}.width ({self.width})"
        require(self.width % self.heads == 0, f"{field}.heads", self.heads, allowed)
        if self.episode_rope:
            allowed = f"an even width per head (it is {self.head_width}: rotation works on pairs)"
            require(self.head_width % 2 == 0, f"{field}.heads", self.heads, allowed)
        self._validate_kernel(field)
        fits = self.depth_dropout >= 0 and bool(np.float32(self.depth_dropout) < 1)  # just below 1 rounds to 1
        require(fits, f"{field}.depth_dropout", self.depth_dropout, "0 or more and less than 1")

    def _validate_kernel(self, field: str) -> None:
        from relic_jax.models.attention.select import CPU_WIDTHS, CUDNN_MAX_WIDTH

        if self.attention == "flash":
            allowed = f"'bfloat16' with {field}.attention 'flash'"
            require(self.dtype == "bfloat16", f"{field}.dtype", self.dtype, allowed)
            fits = self.head_width % 8 == 0 and self.head_width <= CUDNN_MAX_WIDTH
            widths = f"that is a multiple of 8, at most {CUDNN_MAX_WIDTH}, with flash"
            require(fits, f"{field}.heads", self.heads, f"a width per head (it is {self.head_width}) {widths}")
        if self.attention == "native":
            allowed = f"'float32' with {field}.attention 'native'"
            require(self.dtype == "float32", f"{field}.dtype", self.dtype, allowed)
            require(self.cache_format == "float32", f"{field}.cache", self.cache, allowed)
            widths = f"of {', '.join(map(str, CPU_WIDTHS))} with native"
            allowed = f"a width per head (it is {self.head_width}) {widths}"
            require(self.head_width in CPU_WIDTHS, f"{field}.heads", self.heads, allowed)


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """Architecture of the recurrent network, `policy.memory gru` or `lstm` (RL²)."""

    layers: int = 1
    """Number of layers. Each reads the output of the one below; the outputs are summed."""
    width: int = 160
    """Width of a layer's state."""
    input_width: int | None = None
    """Width of the input of the first layer. A narrow input makes a wide state cheaper. None: `width`."""
    output_width: int | None = None
    """Width of the layer between the last layer and the heads. None: `width`."""
    keep_bias: float = 1.0
    """Initial bias of the gate that keeps the state (GRU: update gate, LSTM: forget gate). At 0, each step halves the
    state."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        check_positive(self, "policy.recurrent", "layers", "width")
        for field in ("input_width", "output_width"):
            width = getattr(self, field)
            require(width is None or width > 0, f"policy.recurrent.{field}", width, "more than 0, or None")
        check_most("policy.recurrent.layers", self.layers, MAX_LAYERS)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Encoder of a step's observation, previous action and previous reward."""

    observation: Literal["raw", "scaled", "normalized"] = "raw"
    """Scale of inputs. raw: vector observations unchanged, action embeddings from N(0, 1), as in the original; scaled:
    the range of each component mapped to [−1, 1], action embeddings of unit length; normalized: as scaled, with the
    running mean and standard deviation of each component in training."""
    reward: bool = True
    """Feed the previous reward."""
    vectors: Literal["raw", "embedded"] = "raw"
    """Encoding of vectors and image features. raw: none; embedded: a linear layer for each, as the original does in
    object navigation: image features with a ReLU, vectors of up to 4 numbers to width 32, others to the full width."""
    image: Literal["small", "nature", "cells", "patches", "resnet18", "vit-b16"] = "small"
    """Encoder of images, if the environment has any. small: two convolutions, for CPUs; nature: three (Mnih et al.
    2015); cells: one-hot grid views with attention over their cells; patches: three convolutions with attention over
    patches; resnet18: with GroupNorm, as in habitat-baselines; vit-b16: VC-1's, always frozen, 768 features."""
    features: int = 64
    """Number of features per image (cells: 16 per cell, patches: 32 per patch, vit-b16: 768), stored as float32 for
    every step of a trial."""
    freeze: bool = False
    """Do not train the image encoder. Images then need not be stored for the update."""
    weights: str | None = None
    """Initial weights of the image encoder: a safetensors file, or `houses`, which is included (for patches). Read when
    the run starts; checkpoints contain them."""
    vit_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the matrix products of vit-b16. Its parameters, norms and residual stream stay float32."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        check_positive(self, "policy.encoder", "features")


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Distribution of continuous actions. Discrete actions are categorical and read none of these fields."""

    action: Literal["tanh", "gaussian"] = "tanh"
    """tanh: a normal distribution squashed into the bounds; gaussian: a normal distribution, its samples clipped."""
    std: Literal["learned", "state"] = "learned"
    """Standard deviations. learned: parameters, equal in every state; state: an output of the network."""
    log_std: float = -0.5
    """Initial logarithm of the standard deviations, in units of half the range of an action."""
    log_std_min: float = -4.0
    """Lower limit of the logarithm, approached smoothly."""
    log_std_max: float = 0.5
    """Upper limit of the logarithm, approached smoothly. The entropy of tanh is accurate up to log 2."""

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work."""
        low, high, start = self.log_std_min, self.log_std_max, self.log_std
        lowest, first, highest = (float(np.float32(x)) for x in (low, start, high))
        require(lowest < highest, "policy.head.log_std_max", high, f"more than policy.head.log_std_min ({low})")
        allowed = f"more than policy.head.log_std_min ({low}) and less than policy.head.log_std_max ({high})"
        require(lowest < first < highest, "policy.head.log_std", start, allowed)
        limit = math.log(2) if self.action == "tanh" else 10.0
        allowed = f"at most {limit:.4g} with policy.head.action {self.action!r}"
        require(high <= limit, "policy.head.log_std_max", high, allowed)
        require(low >= -10, "policy.head.log_std_min", low, "-10 or more")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Architecture of the policy network."""

    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    recall: tuple[int, ...] = ()
    """Numbers of classes of an auxiliary head for `ppo.recall_coef` and `pretrain.steps`, e.g. (9, 9) for a row and a
    column on gridobj-9. (): no such head."""
    memory: MemoryName = "transformer"
    """Memory of the trial. transformer: attention over all its steps (ReLIC); window: over the last steps;
    transformer-xl: over the current segment and the one before; memo: over the current segment and summaries of all
    earlier ones; gru, lstm: a recurrent state (RL²); gated-delta, lru: a state with a linear recurrence.
    docs/memories.md compares them."""
    recurrent: RecurrentConfig = dataclasses.field(default_factory=RecurrentConfig)
    linear_rnn: LinearRNNConfig = dataclasses.field(default_factory=LinearRNNConfig)

    @property
    def width(self) -> int:
        """Width of the memory's output."""
        return self.architecture.width

    @property
    def input_width(self) -> int:
        """Width of the memory's input."""
        return (self.recurrent.input_width if self.traits.section == "recurrent" else None) or self.width

    @property
    def output_width(self) -> int:
        """Width of the layer between the memory and the heads."""
        return (self.recurrent.output_width if self.traits.section == "recurrent" else None) or self.width

    @property
    def traits(self) -> Traits:
        """What the memory supports."""
        return MEMORIES[self.memory]

    @property
    def attention(self) -> TransformerConfig:
        """The transformer's architecture with the default values of the fields that belong to the memory."""
        filled: dict[str, Any] = {
            name: getattr(self.transformer, name) or MEMORY_FIELDS[name] for name in self.traits.fields
        }
        return dataclasses.replace(self.transformer, **filled)

    @property
    def architecture(self) -> TransformerConfig | RecurrentConfig | LinearRNNConfig:
        """The section that holds the memory's architecture."""
        section: TransformerConfig | RecurrentConfig | LinearRNNConfig = getattr(self, self.traits.section)
        return section

    def validate(self) -> None:
        """Raise ConfigError at the first field that cannot work. Only the memory that is used is checked."""
        self.encoder.validate()
        for field in MEMORY_FIELDS:
            value, fits = getattr(self.transformer, field), field in self.traits.fields
            allowed = f"None if policy.memory is {self.memory!r}"
            require(fits or value is None, f"policy.transformer.{field}", value, allowed)
            require(value is None or value > 0, f"policy.transformer.{field}", value, "more than 0, or None")
        if self.traits.section == "transformer" and not self.traits.kernels:
            kernel, allowed = self.transformer.attention, f"'auto' if policy.memory is {self.memory!r}"
            require(kernel == "auto", "policy.transformer.attention", kernel, allowed)
        if self.traits.section == "transformer" and not self.traits.within_episode:
            allowed = f"True if policy.memory is {self.memory!r}, whose summaries cover several episodes"
            require(self.transformer.inter_episode, "policy.transformer.inter_episode", False, allowed)
        self.architecture.validate()
        self.head.validate()
        require(all(classes > 1 for classes in self.recall), "policy.recall", self.recall, "numbers above 1, or none")
