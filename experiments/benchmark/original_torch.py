"""The original's transformer in PyTorch, and the time of a trial of `darkroom-relic-paper`. See `original`."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from relic_jax.experiments import presets
from relic_jax.experiments.benchmark.measure import timed

Past = tuple[torch.Tensor, torch.Tensor]


def measured(causal: bool) -> dict[str, Any]:
    """Return the case of the original's operations: the times of every part at every length of a trial, summed."""
    config = presets.get("darkroom-relic-paper").config
    shape, trial, ppo = config.policy.transformer, config.trial, config.ppo
    model = LlamaRL(shape.layers, shape.heads, shape.width, shape.mlp_width, shape.max_positions, causal)
    per_minibatch = trial.environments // ppo.minibatches
    update = refresh = act = 0.0
    for segment in range(1, trial.updates + 1):
        steps = segment * trial.segment
        before = random_past(model, trial.environments, steps - trial.segment // 2)
        update += ppo.epochs * ppo.minibatches * wall(gradient, model, per_minibatch, steps)
        refresh += trial.environments * wall(forward, model, 1, steps)
        act += trial.segment * wall(step, model, before)
    total = update + refresh + act
    return {
        "name": "original/darkroom-relic-paper" + "/causal" * causal,
        "rate": trial.environments * trial.steps / total,
        "unit": "environment steps/s",
        "seconds_per_trial": total,
        "share": {"act": act / total, "update": update / total, "refresh": refresh / total},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def wall(function: Any, *arguments: Any) -> float:
    """Return the median duration of a call in seconds."""
    return timed(functools.partial(function, *arguments), repeats=3).wall


def gradient(model: LlamaRL, batch: int, steps: int) -> None:
    """Run forward and backward over a trial so far, as in an update. The cost of the loss is negligible."""
    model.zero_grad()
    hidden, _ = model(torch.randn(batch, steps, model.width), every_hundredth(batch, steps))
    hidden.square().mean().backward()


@torch.no_grad()
def forward(model: LlamaRL, batch: int, steps: int) -> None:
    """Run forward over a trial so far, as in a refresh."""
    model(torch.randn(batch, steps, model.width), every_hundredth(batch, steps))


@torch.no_grad()
def step(model: LlamaRL, past: list[Past]) -> None:
    """Act for one step on a context, and concatenate its keys and values."""
    batch, _, steps, _ = past[0][0].shape
    model(torch.randn(batch, 1, model.width), every_hundredth(batch, steps + 1), past)


def every_hundredth(batch: int, steps: int) -> torch.Tensor:
    """Return float32 [B, T]: 0 at the first step of each episode of 100 steps, else 1."""
    return (torch.arange(steps) % 100 != 0).float().expand(batch, -1)


def random_past(model: LlamaRL, batch: int, steps: int) -> list[Past]:
    """Return a context of `steps` steps: keys and values [B, H, S, D] of every layer."""
    shape = batch, model.width // model.head_width, steps, model.head_width
    return [(torch.randn(shape), torch.randn(shape)) for _ in model.layers]


class LlamaRL(nn.Module):
    """The original's transformer.

    It has a Sink-KV, a learned embedding of the step's index in its episode, and keys rotated by the episode's index.
    """

    def __init__(self, layers: int, heads: int, width: int, mlp_width: int, positions: int, causal: bool = True):
        super().__init__()
        self.width, self.positions, self.head_width = width, positions, width // heads
        self.sink_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.embed_pos = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(Layer(heads, width, mlp_width, causal) for _ in range(layers))
        self.norm = Norm(width)

    def forward(
        self, x: torch.Tensor, not_done: torch.Tensor, past: list[Past] | None = None
    ) -> tuple[torch.Tensor, list[Past]]:
        """Run the transformer on a block of steps.

        Args:
            x: Inputs, [B, Q, d].
            not_done: [B, T], 0 at the first step of each episode, of the context and the block.
            past: The context before the block.

        Returns:
            Hidden states [B, Q, d] and the context including the block.
        """
        x = torch.cat([self.sink_tokens.expand(len(x), -1, -1), x], dim=1)
        newest = slice(not_done.shape[1] - (x.shape[1] - 1), None)
        index = torch.arange(not_done.shape[1])
        position = index - torch.cummax(index * (not_done == 0), dim=1)[0]
        episode = torch.cumsum(1 - not_done, dim=1).long() - (1 - not_done[:, :1]).long()
        position, episode = (F.pad(i[:, newest] + 1, (1, 0)) for i in (position, episode))
        x = x + self.embed_pos(position)
        cos, sin = self.rotation(episode, x.dtype)
        context = []
        for number, layer in enumerate(self.layers):
            x, cached = layer(x, cos, sin, past[number] if past else None)
            context.append(cached)
        return self.norm(x[:, 1:]), context

    def rotation(self, episode: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin [B, 1, Q, D]. The original reads its table from row `positions` on."""
        half = self.head_width // 2
        frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(2 * self.positions, dtype=torch.float32), frequency).repeat(1, 2)
        row = self.positions + episode
        return torch.cos(angle).to(dtype)[row][:, None], torch.sin(angle).to(dtype)[row][:, None]


class Layer(nn.Module):
    """A pre-norm block of attention and a gated MLP."""

    def __init__(self, heads: int, width: int, mlp_width: int, causal: bool):
        super().__init__()
        self.self_attn, self.mlp = Attention(heads, width, causal), MLP(width, mlp_width)
        self.input_layernorm, self.post_attention_layernorm = Norm(width), Norm(width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, past: Past | None):
        """Map x [B, Q, d] to (x, keys and values including these steps)."""
        attended, cached = self.self_attn(self.input_layernorm(x), cos, sin, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cached


class Attention(nn.Module):
    """Attention in which the sink's key and value replace those of the first token."""

    def __init__(self, heads: int, width: int, causal: bool):
        super().__init__()
        self.shape, self.causal = (heads, width // heads), causal
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.head_bias_key = nn.Parameter(torch.zeros(1, heads, 1, width // heads))
        self.head_bias_value = nn.Parameter(torch.zeros(1, heads, 1, width // heads))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, past: Past | None):
        """Map x [B, Q, d] to (x, keys and values of the context and of these steps)."""
        query, key, value = (
            p(x).unflatten(-1, self.shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (y * cos + rotate_half(y) * sin for y in (query, key))
        if past is not None:
            key, value = (
                torch.cat([y[:, :, :1], before, y[:, :, 1:]], dim=2)
                for y, before in zip((key, value), past, strict=True)
            )
        cached = key[:, :, 1:], value[:, :, 1:]
        key, value = (
            torch.cat([sink.expand(len(x), -1, -1, -1), y[:, :, 1:]], dim=2)
            for sink, y in ((self.head_bias_key, key), (self.head_bias_value, value))
        )
        out = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal and past is None)
        return self.o_proj(out.transpose(1, 2).flatten(2)), cached


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Return (−second half, first half) of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


class MLP(nn.Module):
    """A gated MLP: down(gelu(gate x) · up x)."""

    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, mlp_width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, Q, d] to [B, Q, d]."""
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize the last axis."""
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


if __name__ == "__main__":
    for causal in (False, True):
        print(json.dumps(measured(causal)), flush=True)
