"""Build an ONNX graph of `relic_jax.step.step` for any batch size and any size of the context.

The graph reads the whole context but returns only the new slot of each array (`new_…`), which avoids copies. The caller
writes it to the slot `length`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import distributions, step
from relic_jax.config import ConfigError
from relic_jax.environment.base import Box, MultiDiscrete
from relic_jax.export.onnx_nodes import Graph, load_onnx, value_info
from relic_jax.models.actions import token_offsets
from relic_jax.models.attention import MASKED, Sink
from relic_jax.models.encoders import CONVOLUTIONS, GRIDS, PATCHES, SHORT, num_cells
from relic_jax.models.grids import CELL_WIDTH, PATCH_WIDTH, SPATIAL_HEADS
from relic_jax.models.policy import Policy
from relic_jax.models.statistics import LIMIT
from relic_jax.types import Params

OPSET = 18
IR_VERSION = 9  # as old as the opset, for older runtimes


def in_float32(policy: Policy) -> Policy:
    """Return the policy with activations in float32, which the graph uses."""
    transformer = policy.config.transformer
    transformer = dataclasses.replace(transformer, dtype="float32", cache=transformer.cache_format)
    return dataclasses.replace(policy, config=dataclasses.replace(policy.config, transformer=transformer))


def build(policy: Policy, params: Params) -> bytes:
    """Build the graph.

    Args:
        policy: The network.
        params: Its parameters, float32.

    Returns:
        The serialized model.

    Raises:
        ConfigError: If the policy has an unsupported part, or onnx is not installed.
    """
    onnx, graph = load_onnx(), Graph()
    params = jax.tree.map(np.asarray, params)
    check(policy)
    policy = in_float32(policy)
    encoded, views, goal = _encoder(graph, policy, params)
    hidden = _transformer(graph, policy, params, graph.linear(encoded, params["proj_in"]))
    hidden = graph.linear(hidden, params["proj_out"])
    if policy.network.has_spatial_attention:
        hidden = _spatial_attention(graph, params["spatial_attention"], hidden, views, goal)
    distribution = _head(graph, policy, params["actor"], hidden)
    graph.op("Squeeze", graph.linear(hidden, params["critic"]), np.array([-1]), out="value")
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "relic_jax_step",
            [value_info(onnx, name, shape, dtype) for name, shape, dtype in _inputs(policy)],
            [value_info(onnx, *output) for output in _outputs(policy, distribution)],
            [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        producer_name="relic-jax",
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def check(policy: Policy) -> None:
    """Raise ConfigError if the policy has a part that the graph does not support."""
    encoder = policy.config.encoder
    if policy.is_recurrent:
        memory = policy.config.memory
        raise ConfigError(f"format is 'onnx'; allowed: a policy with a transformer (it is {memory}); or stablehlo")
    gate = policy.config.transformer.gate
    if gate != "none":
        raise ConfigError(f"format is 'onnx'; allowed: a policy with policy.transformer.gate 'none' (it is {gate!r})")
    covered = (*CONVOLUTIONS, *GRIDS)
    if any(policy.spaces.images) and encoder.image not in covered:
        allowed = f"a policy with an image encoder of {', '.join(covered)} (it is {encoder.image}); or stablehlo"
        raise ConfigError(f"format is 'onnx'; allowed: {allowed}")


def _inputs(policy: Policy) -> list[tuple[str, list[Any], Any]]:
    """Return the name, shape and dtype of every input."""
    batch = 1  # a placeholder for the symbolic size
    found: list[tuple[str, list[Any], Any]] = []
    for name, spec in step.input_specs(policy, batch).items():
        found.append((name, ["batch", *spec.shape[1:]] if spec.shape else [], spec.dtype))
    for array in step.description(policy, "float32", 1)["memory"]:
        if array["name"] != "episodes" or not policy.config.transformer.inter_episode:
            found.append((array["name"], array["shape"], array["dtype"]))
    return found


def _outputs(policy: Policy, distribution: list[str]) -> list[tuple[str, list[Any], Any]]:
    """Return the name, shape and dtype of every output."""
    space = policy.action_space
    size = space.mask_size or space.n
    found: list[tuple[str, list[Any], Any]] = [(name, ["batch", size], np.float32) for name in distribution]
    found.append(("value", ["batch"], np.float32))
    found += [(name, ["batch"], np.int32) for name in ("position_after", "episode_after")]
    for array in step.description(policy, "float32", 1)["memory"]:
        if array["name"] != "episodes":
            shape = [1 if size == "context" else size for size in array["shape"]]
            found.append((f"new_{array['name']}", shape, np.float32))
    return found


def _encoder(graph: Graph, policy: Policy, params: Params) -> tuple[str, list[str], list[str]]:
    """Add `StepEncoder`. Returns the features [b, d], those of each image [b, n], and the goals [b, n]."""
    encoder, cfg = params["encoder"], policy.config.encoder
    names, specs = step.observation_names(policy), jax.tree.leaves(policy.spaces.observation)
    images: list[str] = []
    vectors: list[str] = []
    sizes: list[int] = []
    images_mask = policy.spaces.images
    for name, spec, is_image in zip(names, specs, images_mask, strict=True):
        if is_image:
            images.append(_image(graph, policy, encoder[f"image_{len(images)}"], name, spec))
        else:
            sizes.append(math.prod(spec.shape))
            vectors.append(graph.shaped(graph.cast(name, np.float32), 0, sizes[-1]))
    goal = [x for x, size in zip(vectors, sizes, strict=True) if size > SHORT]
    if vectors and cfg.observation == "scaled":
        low, high = (np.asarray(end, np.float32) for end in (policy.spaces.low, policy.spaces.high))
        x = graph.op("Mul", graph.op("Sub", _joined(graph, vectors), low), np.float32(2))
        vectors = graph.split(graph.op("Sub", graph.op("Div", x, high - low), np.float32(1)), sizes)
    if vectors and cfg.observation == "normalized":
        statistics = encoder["statistics"]
        scale = (1 / np.sqrt(statistics["variance"] + np.float32(1e-8))).astype(np.float32)
        x = graph.op("Mul", graph.op("Sub", _joined(graph, vectors), statistics["mean"]), scale)
        vectors = graph.split(graph.op("Clip", x, np.float32(-LIMIT), np.float32(LIMIT)), sizes)
    views = images
    if cfg.image in GRIDS:
        sizes = [num_cells(cfg.image, *x.shape[:2]) for x, is_image in zip(specs, images_mask, strict=True) if is_image]
        images = [graph.op("Mul", x, np.float32(2 / n**0.5)) for x, n in zip(images, sizes, strict=True)]
    if cfg.vectors == "embedded":
        images = [graph.op("Relu", graph.linear(x, encoder[f"visual_{i}"])) for i, x in enumerate(images)]
        vectors = [graph.linear(x, encoder[f"vector_{i}"]["linear"]) for i, x in enumerate(vectors)]
    reward = [graph.op("Unsqueeze", "previous_reward", np.array([1]))] if cfg.reward else []
    return _joined(graph, [*images, *vectors, *reward, _previous_action(graph, policy, encoder["action"])]), views, goal


def _joined(graph: Graph, parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=-1)


def _previous_action(graph: Graph, policy: Policy, params: Params) -> str:
    if isinstance(policy.action_space, Box):
        first = graph.op("Unsqueeze", "first", np.array([1]))
        return graph.op("Where", first, params["start"], graph.linear("previous_action", params["linear"]))
    if isinstance(policy.action_space, MultiDiscrete):
        rows = graph.op("Add", "previous_action", token_offsets(policy.action_space.nvec))
        return graph.op("ReduceSum", graph.op("Gather", params["embedding"], rows), np.array([1]), keepdims=0)
    return graph.op("Gather", params["embedding"], graph.op("Add", "previous_action", np.int32(1)))


def _image(graph: Graph, policy: Policy, params: Params, name: str, spec: Any) -> str:
    """Add an image encoder. Returns [b, features]. Padding is "SAME", half before and half after the image."""
    x = graph.cast(name, np.float32)
    if spec.dtype == jnp.uint8:
        x = graph.op("Sub", graph.op("Div", x, np.float32(127.5)), np.float32(1))
    height, width, channels = spec.shape
    if policy.config.encoder.image == "cells":
        x = graph.op("Mul", graph.op("Add", x, np.float32(1)), np.float32(0.5))
        return graph.shaped(graph.linear(x, params["linear"]), 0, height * width * CELL_WIDTH)
    x = graph.op("Transpose", x, perm=[0, 3, 1, 2])
    apart = policy.config.encoder.image == "patches"
    layers = PATCHES if apart else CONVOLUTIONS[policy.config.encoder.image]
    for index, (out, kernel, stride) in enumerate(layers):
        sizes = [-(-side // stride) for side in (height, width)]
        missing = [
            max((size - 1) * stride + kernel - side, 0) for size, side in zip(sizes, (height, width), strict=True)
        ]
        before = [m // 2 for m in missing]
        weights = params[f"Dense_{index}"]["kernel"].reshape(kernel, kernel, channels, out).transpose(3, 2, 0, 1)
        x = graph.op(
            "Conv",
            x,
            np.ascontiguousarray(weights),
            params[f"Dense_{index}"]["bias"],
            strides=[stride, stride],
            pads=[*before, *(m - b for m, b in zip(missing, before, strict=True))],
        )
        x, (height, width), channels = graph.op("Relu", x), sizes, out
    x = graph.op("Transpose", x, perm=[0, 2, 3, 1])
    if apart:
        return graph.shaped(graph.linear(x, params[f"Dense_{len(layers)}"]), 0, height * width * PATCH_WIDTH)
    x = graph.shaped(x, 0, height * width * channels)
    return graph.op("Relu", graph.linear(x, params[f"Dense_{len(layers)}"]))


def _spatial_attention(graph: Graph, params: Params, hidden: str, views: list[str], goal: list[str]) -> str:
    """Add `SpatialAttention`, [b, d] → [b, d]. Views are [b, cells·w] each, goals [b, n] each."""
    width = params["places"].shape[-1]
    cells = graph.shaped(_joined(graph, views), 0, -1, width)
    query = {name: x.reshape(*x.shape[:-2], -1) for name, x in params["query"].items()}
    queries = graph.linear(hidden, query)
    if "names" in params:
        names = params["names"].reshape(len(params["names"]), -1)
        queries = graph.op("Add", queries, graph.op("MatMul", _joined(graph, goal), names))
    queries = graph.shaped(queries, 0, SPATIAL_HEADS, width)
    scores = graph.op("MatMul", queries, graph.op("Transpose", cells, perm=[0, 2, 1]))
    weights = graph.op("Softmax", scores, axis=2)
    parts = [graph.op("MatMul", weights, params["places"]), graph.op("MatMul", weights, cells)]
    found = graph.shaped(graph.op("Concat", *parts, axis=2), 0, SPATIAL_HEADS * 2 * width)
    both = [hidden, found]
    if "names" in params:
        match = graph.op("ReduceLogSumExp", scores, np.array([2]), keepdims=0)
        both.append(graph.op("Sub", match, np.float32(math.log(len(params["places"])))))
    mixed = graph.op("Relu", graph.linear(graph.op("Concat", *both, axis=1), params["mix"]))
    return graph.op("Add", hidden, graph.linear(mixed, params["out"]))


def _counters(graph: Graph) -> None:
    """Add `cache.index_steps` of one step: position_after and episode_after, int32 [b]."""
    graph.op("Where", "first", np.int32(0), graph.op("Add", "position", np.int32(1)), out="position_after")
    going_on = graph.op("Not", graph.op("Equal", "length", np.int32(0)))
    opens = graph.cast(graph.op("And", "first", going_on), np.int32)
    graph.op("Add", "episode", opens, out="episode_after")


def _transformer(graph: Graph, policy: Policy, params: Params, x: str) -> str:
    """Add `Transformer` for one step, [b, d] → [b, d]."""
    cfg, weights = policy.config.transformer, params["transformer"]
    _counters(graph)
    if cfg.step_embedding:
        row = graph.op("Add", "position_after", np.int32(cfg.first_index))
        row = graph.op("Min", row, np.int32(cfg.max_positions - 1))
        x = graph.op("Add", x, graph.op("Gather", weights["step_embedding"], row))
    visible, angle = _visible(graph, policy), _angle(graph, cfg.head_width)
    for layer, sink in enumerate(_sinks(policy, params)):
        block = weights[f"blocks_{layer}"]
        y = _norm(graph, x, block["attention_norm"])
        attended = _attention(graph, policy, block, layer, y, visible, angle, sink)
        x = graph.op("Add", x, graph.linear(attended, block["o_proj"]))
        x = graph.op("Add", x, _mlp(graph, block, _norm(graph, x, block["mlp_norm"])))
    return _norm(graph, x, weights["norm"])


def _sinks(policy: Policy, params: Params) -> list[Sink | None]:
    """Return the sink slot of every layer, which depends only on the parameters."""
    keep = jnp.ones((policy.config.transformer.layers,), jnp.float32)
    network: Any = policy.network
    found = network.apply({"params": params}, method=lambda net: net.memory_network.sinks(keep))
    return list(found)


def _norm(graph: Graph, x: str, params: Params) -> str:
    mean = graph.op("ReduceMean", graph.op("Mul", x, x), np.array([-1]), keepdims=1)
    root = graph.op("Sqrt", graph.op("Add", mean, np.float32(1e-6)))
    return graph.op("Mul", graph.op("Div", x, root), params["scale"])


def _mlp(graph: Graph, block: Params, x: str) -> str:
    """Add `down(gelu(gate x) · up x)` with the tanh approximation of GELU."""
    gate = graph.linear(x, block["gate_proj"])
    cube = graph.op("Mul", graph.op("Mul", gate, gate), gate)
    inner = graph.op("Add", gate, graph.op("Mul", cube, np.float32(0.044715)))
    bent = graph.op("Tanh", graph.op("Mul", inner, np.float32(math.sqrt(2 / math.pi))))
    gelu = graph.op("Mul", gate, graph.op("Mul", graph.op("Add", bent, np.float32(1)), np.float32(0.5)))
    return graph.linear(graph.op("Mul", gelu, graph.linear(x, block["up_proj"])), block["down_proj"])


def _visible(graph: Graph, policy: Policy) -> str:
    """Add the mask of the slots that the step attends to, bool [b, 1, s, 1]."""
    size = graph.op("Slice", graph.op("Shape", f"{step.keys_name(policy)}.0"), np.array([2]), np.array([3]))
    count = graph.op("Squeeze", size)
    slot = graph.cast(graph.op("Range", np.int64(0), count, np.int64(1)), np.int32)
    start = graph.op("Sub", graph.op("Add", "length", np.int32(1)), "window")  # the step's own slot is in the window
    seen = graph.op(
        "And",
        graph.op("Less", slot, "length"),
        graph.op("GreaterOrEqual", slot, graph.op("Unsqueeze", start, np.array([1]))),
    )
    if not policy.config.transformer.inter_episode:
        own = graph.op("Unsqueeze", "episode_after", np.array([1]))
        seen = graph.op("And", seen, graph.op("Equal", "episodes", own))
    return graph.op("Unsqueeze", seen, np.array([1, 3]))


def _angle(graph: Graph, head_width: int) -> tuple[str, str]:
    """Add the cosine and sine of the episode's rotation, [b, 1, D/2]."""
    half = head_width // 2
    frequency = np.asarray(10_000.0 ** (-np.arange(half) / half), np.float32)
    index = graph.op("Unsqueeze", graph.cast("episode_after", np.float32), np.array([1, 2]))
    angle = graph.op("Mul", index, frequency)
    return graph.op("Cos", angle), graph.op("Sin", angle)


def _rotated(graph: Graph, x: str, angle: tuple[str, str], head_width: int) -> str:
    """Add `attention.rotate` of one step, [b, H, D]."""
    (cos, sin), (a, b) = angle, graph.halves(x, 2, head_width // 2)
    first = graph.op("Sub", graph.op("Mul", a, cos), graph.op("Mul", b, sin))
    second = graph.op("Add", graph.op("Mul", b, cos), graph.op("Mul", a, sin))
    return graph.op("Concat", first, second, axis=2)


def _stored(graph: Graph, x: str, form: str) -> str:
    """Add `kv_formats.rounded` of x [b, H, D]."""
    if form == "bfloat16":
        bfloat16 = int(load_onnx().TensorProto.BFLOAT16)
        return graph.cast(graph.op("Cast", x, to=bfloat16), np.float32)
    if form == "int8":
        largest = graph.op("ReduceMax", graph.op("Abs", x), np.array([-1]), keepdims=1)
        scale = graph.op("Div", largest, np.float32(127))
        scale = graph.op("Where", graph.op("Greater", largest, np.float32(0)), scale, np.float32(1))
        return graph.op("Mul", graph.op("Round", graph.op("Div", x, scale)), scale)
    return x


def _attention(
    graph: Graph,
    policy: Policy,
    block: Params,
    layer: int,
    x: str,
    visible: str,
    angle: tuple[str, str],
    sink: Sink | None,
) -> str:
    """Add `attend_step`, a softmax over the context, the step itself and the sink, [b, d] → [b, d]."""
    cfg = policy.config.transformer
    heads, width = cfg.heads, cfg.head_width
    query, key, value = (graph.shaped(graph.linear(x, block[f"{n}_proj"]), 0, heads, width) for n in "qkv")
    if cfg.episode_rope:
        query, key = (_rotated(graph, part, angle, width) for part in (query, key))
    key, value = (_stored(graph, part, cfg.cache_format) for part in (key, value))
    names = f"{step.keys_name(policy)}.{layer}", f"values.{layer}"
    for name, part in zip(names, (key, value), strict=True):
        graph.op("Unsqueeze", part, np.array([2]), out=f"new_{name}")
    query = graph.op("Mul", query, np.float32(1 / math.sqrt(width)))
    past = graph.op("MatMul", names[0], graph.op("Unsqueeze", query, np.array([3])))  # [b, H, s, 1], no transposes
    scores = [graph.op("Where", visible, past, np.float32(MASKED)), _dot(graph, query, key)]
    if sink is not None:
        scores.append(_dot(graph, query, np.asarray(sink.key, np.float32)))
    weights = graph.op("Softmax", graph.op("Concat", *scores, axis=2), axis=2)
    weights = graph.op("Transpose", weights, perm=[0, 1, 3, 2])  # [b, H, 1, s + 1 or 2]
    more = len(scores) - 1
    context = graph.op("Slice", weights, np.array([0]), np.array([-more]), np.array([3]))
    out = graph.op("Squeeze", graph.op("MatMul", context, names[1]), np.array([2]))
    values: list[Any] = [value] if sink is None else [value, np.asarray(sink.value, np.float32)]
    for index, part in enumerate(values):
        end = index - more + 1
        stop = np.array([end if end else np.iinfo(np.int64).max])
        weight = graph.op("Slice", weights, np.array([index - more]), stop, np.array([3]))
        out = graph.op("Add", out, graph.op("Mul", graph.op("Squeeze", weight, np.array([3])), part))
    return graph.shaped(out, 0, cfg.width)


def _dot(graph: Graph, query: str, key: Any) -> str:
    """Add the score of one key per head, [b, H, 1, 1]."""
    total = graph.op("ReduceSum", graph.op("Mul", query, key), np.array([-1]), keepdims=1)
    return graph.op("Unsqueeze", total, np.array([3]))


def _head(graph: Graph, policy: Policy, params: Params, hidden: str) -> list[str]:
    """Add the actor head. Returns the names of the distribution's parameters, [b, n] each."""
    if not isinstance(policy.action_space, Box):
        logits = graph.linear(hidden, params)
        if policy.spaces.masked:
            lowest = np.float32(distributions.MASKED / 2)
            graph.op("Where", "legal", graph.op("Max", logits, lowest), np.float32(distributions.MASKED), out="logits")
        else:
            graph.op("Identity", logits, out="logits")
        return ["logits"]
    cfg = policy.config.head
    half, middle = (cfg.log_std_max - cfg.log_std_min) / 2, (cfg.log_std_max + cfg.log_std_min) / 2
    mean = graph.op("Identity", graph.linear(hidden, params["mean"]), out="mean")
    if cfg.std == "state":
        x = graph.op("Add", graph.linear(hidden, params["state_log_std"]), params["log_std"])
    else:
        x = graph.op("Expand", params["log_std"], graph.op("Shape", mean))
    bent = graph.op("Mul", graph.op("Tanh", x), np.float32(half))
    graph.op("Add", bent, np.float32(middle), out="log_std")
    return [mean, "log_std"]
