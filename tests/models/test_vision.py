"""ViT and ResNet compared with NumPy, and with timm, torch and torchvision if these are installed."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.interop import layout
from relic_jax.interop.encoders import resnet_entries, vit_entries
from relic_jax.models import vision
from relic_jax.models.vision import VIT_B16, ResNet18, VisionTransformer, ViTConfig, vit_pixels

SMALL = ViTConfig(size=32, patch=8, layers=2, width=24, heads=3, mlp_width=40)


def random_arrays(entries, like, seed=0):
    """Return random arrays with another library's names and shapes, scaled for activations of about unit scale."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for entry in entries:
        shape = layout.their_shape(entry, tuple(layout.get(like, entry.ours).shape))
        fan_in = np.prod(shape[1:]) if entry.kind != "same" else 25.0
        scale = entry.ours.endswith("scale")  # scales of norms are around 1
        arrays[entry.theirs] = (scale + rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
    return arrays


def vit(cfg, dtype="float32", seed=0):
    """Return (function of pixels, arrays with timm's names)."""
    model = VisionTransformer(cfg, dtype)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, cfg.size, cfg.size, 3)))["params"]
    arrays = random_arrays(vit_entries(cfg), like, seed)
    params = layout.read(vit_entries(cfg), arrays, like, "test")
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
    return jax.jit(lambda x: model.apply({"params": params}, x)), arrays


def numpy_vit(p, cfg, pixels):
    """Compute the class token in float64 with timm's names and layout. pixels: [N, H, W, 3]."""
    p = {name: array.astype(np.float64) for name, array in p.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    erf = np.vectorize(math.erf)
    count, size = cfg.size // cfg.patch, cfg.patch
    tokens = []
    for row, column in np.ndindex(count, count):
        patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        tokens.append(np.einsum("nhwc,ochw->no", patch, p["patch_embed.proj.weight"]) + p["patch_embed.proj.bias"])
    token = np.broadcast_to(p["cls_token"], (len(pixels), 1, cfg.width))
    x = np.concatenate([token, np.stack(tokens, 1)], 1) + p["pos_embed"]
    for layer in range(cfg.layers):
        b = f"blocks.{layer}."
        query, key, value = np.split(linear(norm(x, b + "norm1"), b + "attn.qkv"), 3, axis=-1)
        heads = []
        for h in range(cfg.heads):
            part = slice(h * cfg.width // cfg.heads, (h + 1) * cfg.width // cfg.heads)
            scores = query[..., part] @ key[..., part].swapaxes(1, 2) / np.sqrt(cfg.width / cfg.heads)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ value[..., part])
        x = x + linear(np.concatenate(heads, -1), b + "attn.proj")
        hidden = linear(norm(x, b + "norm2"), b + "mlp.fc1")
        x = x + linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), b + "mlp.fc2")
    return norm(x, "norm")[:, 0]


def test_a_small_vit_equals_numpy():
    run, arrays = vit(SMALL)
    pixels = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
    expected = numpy_vit(arrays, SMALL, pixels)
    assert np.abs(expected[0] - expected[1]).max() > 0.1  # the image matters
    np.testing.assert_allclose(run(pixels), expected, atol=2e-5)


def test_bfloat16_is_close_and_is_used():
    pixels = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
    exact, rough = (np.asarray(vit(SMALL, dtype)[0](pixels)) for dtype in ("float32", "bfloat16"))
    assert rough.dtype == np.float32
    assert 1e-4 < np.abs(exact - rough).max() < 0.1


@pytest.mark.parametrize("cfg", [SMALL, VIT_B16], ids=["small", "b16"])
def test_vit_equals_timms(cfg):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    peer = timm.models.vision_transformer.VisionTransformer(
        img_size=cfg.size,
        patch_size=cfg.patch,
        embed_dim=cfg.width,
        depth=cfg.layers,
        num_heads=cfg.heads,
        mlp_ratio=cfg.mlp_width / cfg.width,
        num_classes=0,
    ).eval()
    run, arrays = vit(cfg)
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})  # strict: all names
    pixels = np.random.default_rng(1).normal(size=(1, cfg.size, cfg.size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(run(pixels), expected, atol=1e-4)


def cubic(x):
    """Compute Keys' cubic kernel with a = −1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (300, 260), (256, 256)])
def test_images_are_resized_cropped_and_normalised(shape):
    """Compare with the definition: a kernel widened by the scale factor, normalized over the existing pixels."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    resized = [int(256 * side / min(shape)) for side in shape]
    matrices = []
    for before, after in zip(shape, resized, strict=True):
        wide = max(before / after, 1.0)
        centres = (np.arange(after) + 0.5) * before / after - 0.5
        weights = cubic((np.arange(before) - centres[:, None]) / wide)
        start = round((after - 224) / 2)
        matrices.append((weights / weights.sum(1, keepdims=True))[start : start + 224])
    unit = (image / 255 - np.array(vision.IMAGENET_MEAN)) / np.array(vision.IMAGENET_STD)
    expected = np.einsum("ih,hwc,jw->ijc", matrices[0], unit, matrices[1], optimize=True)
    found = vit_pixels(jnp.asarray(image[None]), 224)
    assert found.shape == (1, 224, 224, 3) and found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    if shape == (256, 256):  # the original's camera: nothing is resized
        np.testing.assert_allclose(found[0], unit[16:240, 16:240], atol=1e-5)


def test_float_images_count_as_normalised():
    image = np.random.default_rng(0).normal(size=(1, 256, 256, 3)).astype(np.float32)
    np.testing.assert_allclose(vit_pixels(jnp.asarray(image), 224), image[:, 16:240, 16:240], atol=1e-5)


def test_images_are_prepared_as_torchvision_does():
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision").transforms
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), np.uint8)
    prepare = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC, antialias=True),
            transforms.CenterCrop(224),
            transforms.Normalize(vision.IMAGENET_MEAN, vision.IMAGENET_STD),
        ]
    )
    expected = prepare(torch.from_numpy(image).permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1)
    np.testing.assert_allclose(vit_pixels(jnp.asarray(image), 224), expected.numpy(), atol=1e-4)


# --- ResNet-18 -------------------------------------------------------------------------------------------------------

NARROW = 4  # channels of the first layer instead of 32: the same layers at a lower cost


def resnet(channels, shape, features=7, seed=0):
    """Return (function of images, arrays with habitat-baselines' names)."""
    model = ResNet18(features, channels)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))["params"]
    arrays = random_arrays(resnet_entries(), like, seed)
    params = layout.read(resnet_entries(), arrays, like, "test")
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
    return jax.jit(lambda x: model.apply({"params": params}, x)), arrays


def numpy_resnet(p, channels, image):
    """Compute the features in float64, channels first, with habitat-baselines' names. image: [N, C, H, W]."""
    p = {name: array.astype(np.float64) for name, array in p.items()}

    def convolve(x, name, stride):
        weight = p[f"{name}.weight"]
        size = weight.shape[-1]
        x = np.pad(x, [(0, 0), (0, 0), *[(size // 2, size // 2)] * 2])
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
        return np.einsum("nchwij,ocij->nohw", windows, weight)

    def norm(x, name, groups):
        grouped = x.reshape(len(x), groups, -1)
        centred = grouped - grouped.mean(-1, keepdims=True)
        y = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).reshape(x.shape)
        return y * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

    def relu(x):
        return np.maximum(x, 0)

    groups = channels // 2
    x = relu(norm(convolve(image, "backbone.conv1.0", 2), "backbone.conv1.1", groups))
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((-1, -2))
    for stage, index in np.ndindex(4, 2):
        name, stride = f"backbone.layer{stage + 1}.{index}.", 2 if stage and not index else 1
        y = relu(norm(convolve(x, name + "convs.0", stride), name + "convs.1", groups))
        y = norm(convolve(y, name + "convs.3", 1), name + "convs.4", groups)
        if stride == 2:
            x = norm(convolve(x, name + "downsample.0", 2), name + "downsample.1", groups)
        x = relu(x + y)
    x = relu(norm(convolve(x, "compression.0", 1), "compression.1", 1))
    return relu(x.reshape(len(x), -1) @ p["visual_fc.1.weight"].T + p["visual_fc.1.bias"])


def test_a_narrow_resnet_equals_numpy():
    shape = (2, 70, 41, 2)  # sides that are not multiples of the strides
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    run, arrays = resnet(NARROW, shape)
    expected = numpy_resnet(arrays, NARROW, image.transpose(0, 3, 1, 2).astype(np.float64))
    assert (expected > 0).mean() > 0.2 and np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(run(image), expected, atol=1e-4)


def torch_resnet(torch, channels, into, after, flat, features):
    """Return layers of torch connected as in habitat-baselines, with its names."""
    nn = torch.nn

    def convolution(a, b, size, stride=1):
        return nn.Conv2d(a, b, size, stride, size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, a, b, stride):
            super().__init__()
            norm = [nn.GroupNorm(channels // 2, b) for _ in range(3)]
            self.convs = nn.Sequential(convolution(a, b, 3, stride), norm[0], nn.ReLU(), convolution(b, b, 3), norm[1])
            self.downsample = nn.Sequential(convolution(a, b, 1, stride), norm[2]) if stride > 1 else None

        def forward(self, x):
            return torch.relu(self.convs(x) + (x if self.downsample is None else self.downsample(x)))

    first = nn.Sequential(convolution(into, channels, 7, 2), nn.GroupNorm(channels // 2, channels), nn.ReLU())
    parts = [("conv1", first), ("maxpool", nn.MaxPool2d(3, 2, 1))]
    width = channels
    for stage in range(4):
        out = channels * 2**stage
        parts.append(
            (f"layer{stage + 1}", nn.Sequential(Block(width, out, 1 if out == width else 2), Block(out, out, 1)))
        )
        width = out
    modules = {
        "backbone": nn.Sequential(dict_of(parts)),
        "compression": nn.Sequential(convolution(width, after, 3), nn.GroupNorm(1, after), nn.ReLU()),
        "visual_fc": nn.Sequential(nn.Flatten(), nn.Linear(flat, features), nn.ReLU()),
    }
    return nn.Sequential(dict_of(modules.items()))


def dict_of(pairs):
    import collections

    return collections.OrderedDict(pairs)


def test_resnet18_equals_torch():
    torch = pytest.importorskip("torch")
    shape = (1, 64, 64, 3)
    run, arrays = resnet(32, shape)
    peer = torch_resnet(torch, 32, 3, 512, 2048, 7)
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})  # strict: all names
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(run(image), expected, atol=1e-4)


def test_sizes_are_those_of_the_models():
    """ViT-B/16 without a head has 85.8M parameters; ResNet-18 compresses any image to about 2048 numbers."""
    like = jax.eval_shape(VisionTransformer(VIT_B16).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(x.size for x in jax.tree.leaves(like)) == 85_798_656
    for side, channels in ((25, 2048), (64, 512), (256, 32)):
        model = dataclasses.replace(ResNet18(7), features=9)
        like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
        assert like["compression"]["kernel"].shape == (3, 3, 256, channels)
