"""How spread unit vectors are: by hand and against NumPy's eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.ops import embeddings, gradient_probe

rank, uniformity = jax.jit(embeddings.effective_rank), jax.jit(embeddings.uniformity)


def test_rank_equals_that_of_the_eigenvalues_and_uniformity_the_loop(rng):
    vectors = rng.normal(size=(12, 5))
    vectors = np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    valid = np.arange(12) < 9
    eigenvalues = np.linalg.eigvalsh(vectors[:9].T @ vectors[:9])
    np.testing.assert_allclose(rank(vectors, valid), eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rtol=1e-4)
    pairs = [np.exp(-2 * ((vectors[i] - vectors[j]) ** 2).sum()) for i in range(9) for j in range(9) if i != j]
    np.testing.assert_allclose(uniformity(vectors, valid), np.log(np.mean(pairs)), rtol=1e-4)


def test_both_measures_see_a_collapse():
    alike, apart = np.tile(np.eye(4, dtype=np.float32)[:1], (4, 1)), np.eye(4, dtype=np.float32)
    everyone = np.ones(4, bool)
    assert rank(alike, everyone) == pytest.approx(1) and uniformity(alike, everyone) == pytest.approx(0)
    assert rank(apart, everyone) == pytest.approx(4) and uniformity(apart, everyone) == pytest.approx(-4)
    assert rank(apart, ~everyone) == uniformity(apart, ~everyone) == 0


def test_a_probe_measures_the_gradient_and_changes_nothing(rng):
    x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)

    def loss(x, probe):
        return jnp.sin(gradient_probe.measure(x, probe)).sum()

    of_x, squares = jax.jit(jax.grad(loss, (0, 1)))(x, jnp.zeros(()))
    np.testing.assert_array_equal(of_x, jax.jit(jax.grad(lambda x: jnp.sin(x).sum()))(x))
    np.testing.assert_allclose(squares, np.square(np.cos(np.float64(x))).sum(), rtol=1e-4)
