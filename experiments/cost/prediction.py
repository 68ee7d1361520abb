"""The cost model: seconds of a trial's parts on one device, the gradient's all-reduce, memory, steps per second."""

from __future__ import annotations

import dataclasses
import math

from relic_jax.config import PolicyConfig, TrainConfig, devices_fit
from relic_jax.experiments.cost import arithmetic
from relic_jax.experiments.cost.arithmetic import ImageShape
from relic_jax.experiments.cost.devices import Device
from relic_jax.models.attention.tiled import ACCELERATOR_TILES, CPU_TILES
from relic_jax.models.encoders import GRIDS, num_cells
from relic_jax.rl.rollout import buffer_sizes
from relic_jax.rl.update import GRADIENT_SIZES
from relic_jax.validation import require

ACT_KERNELS, ACT_KERNELS_PER_LAYER = 40, 16
"""Kernels of one step of acting, with a gridworld (results/benchmark/h200-profile.txt)."""
UPDATE_KERNELS_PER_LAYER = 90
"""Kernels of the gradient of one minibatch, per layer; the same file."""
TILED = 0.4
"""Speed of tiled attention as a share of cuDNN's, which takes only bfloat16; the same file."""
VIT = 0.4
"""Share of the matrix rate that a vision transformer reaches, whose products are large. An assumption."""
REDUCE_SECONDS = 20e-6
"""Latency of an all-reduce, and as much again for every doubling of the devices. An assumption."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a trial on one device.

    Attributes:
        seconds: Its predicted duration.
        flops: Floating-point operations.
        bytes: Bytes read from memory, or sent by an all-reduce.
        limit: What limits it.
    """

    seconds: float
    flops: float
    bytes: float
    limit: str


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction of a run.

    Attributes:
        config: The configuration. Every device has `environments` of its environments.
        devices: Number of devices.
        environments: Environments of one device, or of the `context_devices` that share their context.
        parts: The parts of a trial by name.
        memory: Bytes of one device: parameters, optimizer, context with a second one for a refresh, and images.
    """

    config: TrainConfig
    devices: int
    environments: int
    parts: dict[str, Part]
    memory: float

    @property
    def trial_seconds(self) -> float:
        """Predicted seconds of a trial."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def rate(self) -> float:
        """Predicted environment steps per second of all devices."""
        groups = self.devices // self.config.context_devices
        return groups * self.environments * self.config.trial.steps / self.trial_seconds

    @property
    def hours(self) -> float:
        """Predicted hours of `total_steps`."""
        return self.config.total_steps / self.rate / 3600


def predict(
    config: TrainConfig,
    device: Device,
    devices: int = 1,
    *,
    share: bool = False,
    image: ImageShape | None = None,
    env_rate: float | None = None,
) -> Prediction:
    """Predict the speed of a run.

    Args:
        config: The configuration.
        device: The kind of device.
        devices: Number of devices.
        share: Whether the devices share the environments of the configuration. Otherwise each has as many.
        image: Shape of the observation's image, if there is one.
        env_rate: Steps per second of the environment alone on one device. None: its time is that of the kernels of a
            gridworld.

    Raises:
        ConfigError: If the model does not describe the configuration.
    """
    memory, encoder = config.policy.memory, config.policy.encoder.image
    require(memory == "transformer", "policy.memory", memory, "'transformer' (the cost model covers no other memory)")
    inter, field = config.policy.transformer.inter_episode, "policy.transformer.inter_episode"
    require(inter, field, inter, "True (the cost model covers only attention across episodes)")
    if image is not None:
        counted = ", ".join(arithmetic.ENCODERS)
        require(encoder in arithmetic.ENCODERS, "policy.encoder.image", encoder, f"{counted} (for the cost)")
    shared = config.context_devices
    require(devices % shared == 0, "devices", devices, f"a multiple of context_devices ({shared})")
    stopped = config.ppo.context_gradient == "stopped" and config.ppo.last_update == "partial"
    allowed = "1 unless ppo.context_gradient is 'stopped' and ppo.last_update is 'partial' (for the cost)"
    require(shared == 1 or stopped, "context_devices", shared, allowed)
    groups = dataclasses.replace(config, context_devices=1)
    environments, minibatches = _work_of_a_device(groups, devices // shared, share)
    trial = dataclasses.replace(config.trial, environments=environments)
    local = dataclasses.replace(config, trial=trial)
    parts = {
        "act": _act(local, device, image),
        "environment": _environment(local, env_rate, image),
        "update": _update(local, device, minibatches, image),
        "refresh": _refresh(local, device),
        "merge": _merge(local, device, minibatches),
        "all-reduce": _all_reduce(config, device, devices),
    }
    return Prediction(config, devices, environments, parts, _memory(local, image))


def _work_of_a_device(config: TrainConfig, devices: int, share: bool) -> tuple[int, int]:
    """Return the environments of a device, and the minibatches that it computes per epoch."""
    environments, minibatches = config.trial.environments, config.ppo.minibatches
    if not share:
        return environments, minibatches
    fits = environments % devices == 0 and devices_fit(config, devices)
    require(
        fits, "devices", devices, f"a number that can share {environments} environments in {minibatches} minibatches"
    )
    whole = (environments // minibatches) % devices == 0
    return environments // devices, minibatches if whole else minibatches // devices


def rates(policy: PolicyConfig, device: Device, *, tiled: bool = False) -> tuple[float, float]:
    """Return the operations per second of attention in a block and of other products.

    Args:
        policy: The policy.
        device: The device.
        tiled: Whether attention is computed by the kernel `blocked`, as if several devices share a context.
    """
    half = policy.transformer.dtype == "bfloat16"
    rate = device.half_rate if half else device.single_rate
    cudnn = (half and not tiled) or device.kernel_seconds == 0  # a CPU has its own kernel for float32
    return rate * device.attention * (1.0 if cudnn else TILED), rate * device.dense


def act_step(
    policy: PolicyConfig,
    device: Device,
    batch: int,
    filled: float,
    *,
    kernels: int = ACT_KERNELS,
    image: ImageShape | None = None,
) -> tuple[float, float, str]:
    """Return the cost of one step of acting, which reads the filled context and the weights.

    Args:
        policy: The policy.
        device: The device.
        batch: Environments.
        filled: Steps of context.
        kernels: Kernels in addition to those of the layers.
        image: Shape of the observation's image, if there is one.

    Returns:
        Its seconds, the bytes that it reads, and what limits it.
    """
    number = 2 if policy.transformer.dtype == "bfloat16" else 4
    size = arithmetic.context_bytes(policy, batch, filled) + number * arithmetic.weights(policy)
    _, dense = rates(policy, device)
    launches = (kernels + ACT_KERNELS_PER_LAYER * policy.transformer.layers) * device.kernel_seconds
    reading = size / (device.bandwidth * device.reading)
    weights = 2 * batch * arithmetic.weights(policy) / dense
    encoding = 0.0 if image is None else _encoding_seconds(policy, device, batch, image)
    times = {"kernels": launches, "bytes": reading, "operations": weights, "image encoder": encoding}
    return launches + max(reading, weights) + encoding, size, max(times, key=lambda name: times[name])


def _encoding_seconds(policy: PolicyConfig, device: Device, batch: int, image: ImageShape) -> float:
    """Return the seconds of encoding one image of each environment."""
    encoder, (_, rate) = policy.encoder, rates(policy, device)
    if encoder.image == "vit-b16":
        whole = device.half_rate if encoder.vit_dtype == "bfloat16" else device.single_rate
        rate = whole * max(VIT, device.dense)
    return batch * arithmetic.encoder_forward(encoder, image) / rate


def _act(config: TrainConfig, device: Device, image: ImageShape | None) -> Part:
    """Return the cost of acting."""
    policy, steps, batch = config.policy, config.trial.steps, config.trial.environments
    filled = (steps + 1) / 2
    encoding = 0.0 if image is None else batch * arithmetic.encoder_forward(policy.encoder, image)
    filled /= config.context_devices
    seconds, size, limit = act_step(policy, device, batch, filled, image=image)
    flops = arithmetic.forward(policy, batch, filled) + encoding
    return Part(steps * seconds, steps * flops, steps * size, limit)


def _environment(config: TrainConfig, rate: float | None, image: ImageShape | None) -> Part:
    """Return the cost of the environment beyond the kernels that are part of acting."""
    if rate is None:
        return Part(0.0, 0.0, 0.0, "part of act" if image is None else "images are not included, see --env-rate")
    return Part(config.trial.environments * config.trial.steps / rate, 0.0, 0.0, "its rate")


def _update(config: TrainConfig, device: Device, minibatches: int, image: ImageShape | None) -> Part:
    """Return the cost of the gradients of a trial."""
    policy, trial, ppo = config.policy, config.trial, config.ppo
    batch, segment, layers = trial.environments, trial.segment, policy.transformer.layers
    attention = dense = 0.0
    sizes = buffer_sizes(trial.steps, segment, GRADIENT_SIZES)
    for index in range(trial.updates):
        start = index * segment
        if index == trial.updates - 1 and ppo.last_update == "full":
            attention += arithmetic.attention_full(policy, batch, trial.steps, trial.steps)
            dense += arithmetic.dense_update(policy, batch * trial.steps)
        elif ppo.context_gradient == "stopped":
            attention += arithmetic.attention_update(policy, batch, segment, start / config.context_devices)
            dense += arithmetic.dense_update(policy, batch * segment)
        else:
            steps = next(size for size in sizes if size >= start + segment)
            inner = arithmetic.dense_update(policy, batch * steps) * (layers - 1) / layers
            attention += arithmetic.attention_full(policy, batch, steps, segment)
            dense += inner + arithmetic.dense_update(policy, batch * segment) / layers
    if image is not None and not policy.encoder.freeze:
        dense += 3 * batch * trial.steps * arithmetic.encoder_forward(policy.encoder, image)
    attention, dense = ppo.epochs * attention, ppo.epochs * dense
    attention_rate, dense_rate = rates(policy, device, tiled=config.context_devices > 1)
    kernels = trial.updates * ppo.epochs * minibatches * UPDATE_KERNELS_PER_LAYER * layers
    times = {
        "attention": attention / attention_rate,
        "other products": dense / dense_rate,
        "kernels": kernels * device.kernel_seconds,
    }
    return Part(sum(times.values()), attention + dense, 0.0, max(times, key=lambda name: times[name]))


def _refresh(config: TrainConfig, device: Device) -> Part:
    """Return the cost of recomputing the context during a trial."""
    policy, trial, ppo = config.policy, config.trial, config.ppo
    batch, segment = trial.environments, trial.segment
    if ppo.refresh_every is None:
        return Part(0.0, 0.0, 0.0, "never")
    attention = dense = 0.0
    for update in range(ppo.refresh_every, trial.updates, ppo.refresh_every):
        steps = update * segment
        rows = steps if ppo.refresh_segments is None else min(steps, ppo.refresh_segments * segment)
        attention += arithmetic.attention_refresh(policy, batch, steps)
        attention -= arithmetic.attention_refresh(policy, batch, steps - rows)
        dense += 2 * arithmetic.weights(policy) * batch * rows
    attention /= config.context_devices
    attention_rate, dense_rate = rates(policy, device, tiled=config.context_devices > 1)
    times = {"attention": attention / attention_rate, "other products": dense / dense_rate}
    return Part(sum(times.values()), attention + dense, 0.0, max(times, key=lambda name: times[name]))


def _all_reduce(config: TrainConfig, device: Device, devices: int) -> Part:
    """Return the cost of averaging gradients: a ring sends 2·(G − 1)/G of them per optimizer step."""
    if devices == 1:
        return Part(0.0, 0.0, 0.0, "none")
    steps = config.trial.updates * config.ppo.epochs * config.ppo.minibatches // config.ppo.accumulate
    size = 4.0 * arithmetic.weights(config.policy) * 2 * (devices - 1) / devices
    link = device.link if devices <= device.per_machine else device.network
    latency = REDUCE_SECONDS * (1 + math.log2(devices))
    limit = "latency" if latency > size / link else "bytes"
    return Part(steps * (latency + size / link), 0.0, steps * size, limit)


def _merge(config: TrainConfig, device: Device, minibatches: int) -> Part:
    """Return the cost of merging attention over the devices that share a context (`models.attention.tiled`).

    An all-reduce of the largest scores and one of the sums, per layer and step of acting or tile of queries, and in the
    backward pass one of the gradient of the queries.
    """
    count, policy, trial, ppo = config.context_devices, config.policy.transformer, config.trial, config.ppo
    if count == 1:
        return Part(0.0, 0.0, 0.0, "none")
    tile = (CPU_TILES if device.kernel_seconds == 0 else ACCELERATOR_TILES).block
    tiles, merged = math.ceil(trial.segment / tile), policy.width + 2 * policy.heads
    every, most = ppo.refresh_every, ppo.refresh_segments
    updates = [] if every is None else range(every, trial.updates, every)
    refreshed = sum(min(update, most or update) for update in updates)  # segments
    reduces = 2 * trial.steps + 3 * trial.updates * ppo.epochs * minibatches * tiles + 2 * refreshed * tiles
    updated = trial.steps * ppo.epochs * (merged + policy.width)
    numbers = trial.environments * (trial.steps * merged + updated + refreshed * trial.segment * merged)
    size = 4.0 * policy.layers * numbers * 2 * (count - 1) / count
    link = device.link if count <= device.per_machine else device.network
    latency = policy.layers * reduces * REDUCE_SECONDS * (1 + math.log2(count))
    return Part(latency + size / link, 0.0, size, "latency" if latency > size / link else "bytes")


def _memory(config: TrainConfig, image: ImageShape | None) -> float:
    """Return the bytes of one device, without activations."""
    policy, trial = config.policy, config.trial
    size = 2 * arithmetic.context_bytes(policy, trial.environments, trial.steps) / config.context_devices
    size += 16.0 * arithmetic.weights(policy)  # parameters, gradients and two moments
    if image is not None:
        grid = GRIDS.get(policy.encoder.image)
        features = policy.encoder.features if grid is None else grid * num_cells(policy.encoder.image, *image[:2])
        size += 4.0 * features * trial.environments * trial.steps
        stored = 0 if policy.encoder.freeze else 2 * trial.environments * trial.segment  # uint8, twice
        size += float(stored * math.prod(image))
    return size
