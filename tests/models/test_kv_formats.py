"""Storage formats of keys and values: rounding errors, which do not grow if values are stored again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.models import kv_formats

FORMS = ["float32", "bfloat16", "int8"]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_int8_by_hand():
    """The largest value, 2, becomes 127, so a unit is 2/127. 1 is 63.5 units, which rounds to even: 64."""
    stored = kv_formats.encode(jnp.array([[[[1.0, -2.0, 0.0]]], [[[0.0, 0.0, 0.0]]]]), "int8")
    np.testing.assert_array_equal(stored.data[:, 0, 0], [[64, -127, 0], [0, 0, 0]])
    np.testing.assert_allclose(stored.scale[:, 0, 0], [2 / 127, 1])
    np.testing.assert_allclose(stored.decoded(jnp.float32)[:, 0, 0], [[128 / 127, -2, 0], [0, 0, 0]], rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_int8_is_off_by_half_a_unit_at_most_and_storing_again_changes_nothing(seed, size):
    x = size * normal(seed, 2, 2, 3, 8)
    stored = kv_formats.encode(x, "int8")
    decoded = stored.decoded(jnp.float32)
    assert (np.abs(decoded - x) <= 0.5001 * stored.scale[..., None]).all()
    again = kv_formats.encode(decoded, "int8")
    np.testing.assert_array_equal(again.data, stored.data)
    np.testing.assert_allclose(again.scale, stored.scale, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_rounding_gives_what_storage_gives_back_and_lets_gradients_pass(form):
    x, cotangent = normal(0, 1, 2, 5, 8), normal(1, 1, 2, 5, 8)
    rounded, pullback = jax.vjp(lambda x: kv_formats.rounded(x, form), x)
    np.testing.assert_allclose(rounded, kv_formats.encode(x, form).decoded(jnp.float32), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(pullback(cotangent)[0], cotangent)
    assert (form == "float32") == bool((rounded == x).all())


@pytest.mark.parametrize("form", FORMS)
def test_tiles_read_what_was_written(form):
    x = normal(2, 2, 3, 4, 8)
    slots = kv_formats.write(kv_formats.empty(2, 3, 9, 8, form), x, jnp.asarray(5))
    np.testing.assert_array_equal(
        kv_formats.tile(slots, 5, 4).decoded(jnp.float32), kv_formats.encode(x, form).decoded(jnp.float32)
    )
    assert not kv_formats.tile(slots, 0, 5).decoded(jnp.float32).any()
    assert slots.kv_format == form


@pytest.mark.parametrize(("form", "expected"), [("float32", 4), ("bfloat16", 2), ("int8", 1 + 4 / 32)])
def test_bytes_per_number(form, expected):
    slots = kv_formats.empty(1, 2, 10, 32, form)
    assert sum(x.nbytes for x in jax.tree.leaves(slots)) == 2 * 10 * 32 * expected
    assert kv_formats.bytes_per_number(form, 32) == expected
