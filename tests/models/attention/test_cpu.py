"""The compiled CPU kernel. test_block_kernels.py compares it with the other kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.config import TransformerConfig
from relic_jax.models.attention import AttentionInputs, Context, Sink, cpu, reference, select, tiled
from relic_jax.models.attention.select import CPU_WIDTHS
from relic_jax.models.kv_formats import Slots

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a CPU as jax's platform")
compiled = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not cpu.available(8), reason="needs a CPU and a C++ compiler"
)
attend_tiled = functools.partial(tiled.attend, tiles=tiled.CPU_TILES)


def inputs(seed, *, batch=2, heads=3, rows=20, steps=20, slots=0, width=8, scale=1.0):
    """(query, key, value, sink, context, episodes), the context filled."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    episodes = np.cumsum(rng.random((batch, slots + steps)) < 0.1, axis=1).astype(np.int32)
    query, key, value = (normal(batch, heads, n, width) for n in (rows, steps, steps))
    keys, values = (Slots(normal(batch, heads, slots, width)) for _ in range(2))
    context = Context(keys, values, jnp.asarray(episodes[:, :slots]), jnp.int32(slots))
    sink = Sink(normal(heads, width), normal(heads, width))
    return query, key, value, sink, context, jnp.asarray(episodes[:, slots:])


@functools.cache
def with_gradients(attend, within_episode):
    """jitted (query, key, value, sink, context, episodes, valid, start) → (output, gradients of Σ output²)."""

    @jax.jit
    def run(query, key, value, sink, context, episodes, valid, start):
        def loss(*arguments):
            *block, sink = arguments
            options = {"within_episode": within_episode, "valid": valid, "start": start}
            out = attend(AttentionInputs(*block, episodes, context, sink, **options))
            return jnp.sum(out**2), out

        return jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(query, key, value, sink)

    return run


def assert_same(actual, expected, tolerance=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(e).max())))


@compiled
@pytest.mark.parametrize("width", CPU_WIDTHS)
@pytest.mark.parametrize("within_episode", [True, False])
def test_every_width_of_a_head(width, within_episode):
    """Rows 50 to 62 of 70, of which the first 10 matter, after 37 slots: no length is a whole number of vectors."""
    arguments = (*inputs(width, rows=13, steps=70, slots=37, width=width), jnp.int32(60), jnp.int32(50))
    results = [with_gradients(attend, within_episode)(*arguments) for attend in (cpu.attend, reference.attend)]
    assert_same(*results)
    assert "relic_attention_forward" in str(jax.make_jaxpr(with_gradients(cpu.attend, within_episode))(*arguments))


@compiled
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    filled=st.integers(0, 37),
    start=st.integers(0, 20),
    valid=st.integers(0, 40),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    within_episode=st.booleans(),
    has_sink=st.booleans(),
)
def test_any_layout(seed, filled, start, valid, scale, within_episode, has_sink):
    """Scores of scale 3 reach ±50, so float32 rounds them, and the weights, by 50·2⁻²⁴ and gradients sum up to 9·3."""
    query, key, value, sink, context, episodes = inputs(seed, rows=20, steps=40, slots=37, scale=scale)
    context = context._replace(length=jnp.int32(filled))
    arguments = query, key, value, sink if has_sink else None, context, episodes, jnp.int32(valid), jnp.int32(start)
    assert_same(*(with_gradients(x, within_episode)(*arguments) for x in (cpu.attend, reference.attend)), 5e-5)


@compiled
def test_scores_far_apart():
    """Scores of 1,000 beside others: nothing overflows, and what is far below the largest has no weight."""
    query, key, value, sink, context, episodes = inputs(0, slots=37)
    arguments = query, key.at[:, :, 3].mul(300.0), value, sink, context, episodes, jnp.int32(20), jnp.int32(0)
    results = [with_gradients(x, False)(*arguments) for x in (cpu.attend, attend_tiled)]
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(results))
    # ds = w·(do·v − do·out) is 0 but for rounding, 2⁻²⁴ of numbers up to 10; times a key of up to 1,000
    assert_same(*results, 1e-3)


@compiled
@pytest.mark.parametrize(("spoiled", "rows"), [(0, [4]), (1, range(4, 20)), (2, range(4, 20))])
def test_what_is_not_a_number_is_seen(spoiled, rows):
    """A query, key or value that is NaN reaches all outputs that depend on it, so a run that diverges is noticed."""
    query, key, value, sink, context, episodes = inputs(0, slots=37)
    arguments = [query, key, value]
    arguments[spoiled] = arguments[spoiled].at[0, 1, 4, 3].set(jnp.nan)
    run = with_gradients(cpu.attend, False)
    gradients, out = run(*arguments, sink, context, episodes, jnp.int32(20), jnp.int32(0))
    reached = np.isnan(out).any(-1)
    assert reached[0, 1, rows].all()
    assert reached.sum() == len(rows) or spoiled == 2  # where it is masked, its weight is 0 times NaN
    assert all(bool(jnp.isnan(x[0, 1]).any()) for x in gradients[:3])
    assert not any(bool(jnp.isnan(x[1]).any()) for x in gradients[:3])


@compiled
def test_the_same_result_every_time():
    """However many threads share the heads, each head's sums are in one order."""
    arguments = (*inputs(0, batch=8, heads=8, rows=64, steps=64, slots=100), jnp.int32(64), jnp.int32(0))
    run = with_gradients(cpu.attend, False)
    first = [np.asarray(x).tobytes() for x in jax.tree.leaves(run(*arguments))]
    for _ in range(20):
        assert [np.asarray(x).tobytes() for x in jax.tree.leaves(run(*arguments))] == first


@compiled
def test_mapped_over_an_axis():
    several = jax.tree.map(lambda *x: jnp.stack(x), *(inputs(seed, slots=5) for seed in range(3)))

    def run(attend, query, key, value, sink, context, episodes):
        return attend(AttentionInputs(query, key, value, episodes, context, sink, within_episode=True))

    found, expected = (jax.vmap(functools.partial(run, x))(*several) for x in (cpu.attend, reference.attend))
    assert_same(found, expected)


@compiled
def test_on_several_devices_at_once():
    """Each device's thread shares its heads with the others' in one pool."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("device",))
    query, key, value, sink, context, episodes = inputs(1, batch=8, heads=8, rows=64, steps=64, slots=50)

    def run(query, key, value, keys, values, context_episodes, episodes):
        filled = Context(Slots(keys), Slots(values), context_episodes, jnp.int32(50))
        return cpu.attend(AttentionInputs(query, key, value, episodes, filled, sink, within_episode=True))

    spread = jax.sharding.PartitionSpec("device")
    mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False))
    arguments = query, key, value, context.keys.data, context.values.data, context.episodes, episodes
    expected = reference.attend(AttentionInputs(query, key, value, episodes, context, sink, within_episode=True))
    for _ in range(5):
        assert_same(mapped(*arguments), expected)


@compiled
def test_memory_grows_with_queries_only():
    """Against 65,536 slots XLA is asked for what the results need, and nothing of the size of the scores."""
    abstract = jax.eval_shape(lambda: inputs(0, batch=1, heads=8, rows=256, steps=256, slots=65536))
    run = with_gradients(cpu.attend, False).lower(*abstract, *(jax.ShapeDtypeStruct((), jnp.int32),) * 2).compile()
    rows = 256 * 8 * 8 * 4  # bytes of the queries
    assert run.memory_analysis().temp_size_in_bytes < 20 * rows


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """An empty cache folder, no memory of what was compiled before, and a compiler that is in no hurry to optimise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu, "_FLAGS", ("-std=c++17", "-O0", "-march=native", "-w"))
    cpu.available.cache_clear()
    yield tmp_path / "relic-jax"
    cpu.available.cache_clear()


@on_cpu
@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_it_is_not_available(compiler, anew, monkeypatch, tmp_path):
    if compiler == "none":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        broken = tmp_path / "c++"
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
    assert select(TransformerConfig()).name == "tiled"
    assert not cpu.available(8)
    assert not anew.is_dir() or not any(anew.iterdir())


@compiled
def test_it_is_compiled_once(anew):
    cpu._library(4)
    (library,) = anew.iterdir()  # and nothing else is left there
    written = library.stat().st_mtime_ns
    cpu._library(4)
    assert list(anew.iterdir()) == [library] and library.stat().st_mtime_ns == written


@pytest.mark.slow
@compiled
def test_another_processor_gets_its_own(anew, monkeypatch):
    """A home folder may be shared by machines: what one can run, another may not."""
    cpu._library(4)
    monkeypatch.setattr(cpu, "_FLAGS", tuple(x for x in cpu._FLAGS if x != "-march=native"))
    cpu._library(4)
    assert len(list(anew.iterdir())) == 2


@pytest.mark.slow
@compiled
def test_a_truncated_kernel_is_compiled_again(anew):
    """It ended the process with SIGBUS, at every start."""
    cpu._library(4)
    (library,) = anew.iterdir()
    content = library.read_bytes()
    library.write_bytes(content[: len(content) // 2])
    assert cpu.available(4)
    assert [file.name for file in anew.iterdir()] == [library.name] and library.read_bytes() == content


@on_cpu
def test_systems_without_owners_of_files_have_no_kernel(anew, monkeypatch):
    monkeypatch.delattr("os.geteuid")
    assert not cpu.available(8)
