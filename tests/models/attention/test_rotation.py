import math

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.models.attention import rotate


def test_rotation_by_hand():
    """D = 4: the halves (1, 3) and (2, 4) turn by index·1 and index·10000^(−1/2) = index/100."""
    x = jnp.array([1.0, 2.0, 3.0, 4.0])[None, None, None]
    c, s, c2, s2 = math.cos(1), math.sin(1), math.cos(0.01), math.sin(0.01)
    expected = [c - 3 * s, 2 * c2 - 4 * s2, 3 * c + s, 4 * c2 + 2 * s2]
    np.testing.assert_allclose(rotate(x, jnp.array([[1]]))[0, 0, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(rotate(x, jnp.array([[0]])), x)


def test_rotation_keeps_norms_and_depends_on_differences_only():
    rng = np.random.default_rng(7)
    query, key = jnp.asarray(rng.normal(size=(2, 1, 1, 1, 8)), jnp.float32)
    turn = jax.jit(lambda x, index: rotate(x, index[None, None])[0, 0, 0])
    norm = np.linalg.norm(query)
    for index in (0, 1, 17, 300):
        np.testing.assert_allclose(np.linalg.norm(turn(query, jnp.int32(index))), norm, rtol=1e-6)

    def dot(i, j):
        return np.dot(turn(query, jnp.int32(i)), turn(key, jnp.int32(j)))

    for difference in (-3, 0, 2):
        values = [dot(j + difference, j) for j in (3, 4, 50, 200)]
        np.testing.assert_allclose(values, values[0], atol=3e-5)  # angles of 200 are rounded by 200·2⁻²⁴ ≈ 1e-5
    assert abs(dot(5, 3) - dot(3, 5)) > 0.1
