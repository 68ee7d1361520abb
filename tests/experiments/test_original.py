"""The PyTorch transformer of the speed benchmark reproduces the original's reference arrays."""

import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "sink_kv.npz"


@pytest.fixture(scope="module")
def reference():
    """Return (the model with the reference's weights in float64, its arrays)."""
    from relic_jax.experiments.benchmark.original_torch import LlamaRL

    arrays = dict(np.load(GOLDEN))
    config = json.loads(arrays["config"].tobytes())
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "max_position_embeddings")
    model = LlamaRL(*(config[name] for name in names)).double()
    weights = {name[6:]: torch.from_numpy(x) for name, x in arrays.items() if name.startswith("param/")}
    model.load_state_dict(weights)
    return model, {name: torch.from_numpy(x) for name, x in arrays.items() if name != "config"}


def test_outputs_context_and_gradients(reference):
    model, arrays = reference
    model.zero_grad()
    hidden, context = model(arrays["inputs_embeds"], arrays["not_done_mask"])
    torch.testing.assert_close(hidden, arrays["last_hidden_state"], rtol=0, atol=1e-5)
    for layer, (keys, values) in enumerate(context):
        torch.testing.assert_close(keys, arrays[f"cache/{layer}/key"], rtol=0, atol=1e-5)
        torch.testing.assert_close(values, arrays[f"cache/{layer}/value"], rtol=0, atol=1e-5)
    (hidden * arrays["cotangent"]).sum().backward()
    for name, parameter in model.named_parameters():
        expected = arrays[f"grad/{name}"]
        found = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())), msg=name)


def test_acting_step_by_step(reference):
    model, arrays = reference
    steps, past = arrays["inputs_embeds"].shape[1], None
    with torch.no_grad():
        for t in range(steps):
            if past is None:
                hidden, past = model(arrays["inputs_embeds"][:, :1], arrays["not_done_mask"][:, :1])
            else:
                hidden, past = model(arrays["inputs_embeds"][:, t : t + 1], arrays["not_done_mask"][:, : t + 1], past)
            torch.testing.assert_close(hidden[:, 0], arrays["last_hidden_state"][:, t], rtol=0, atol=1e-5)
