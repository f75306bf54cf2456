"""How spread unit vectors are: both measures say whether embeddings have collapsed."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def effective_rank(vectors: Float[Array, "n size"], valid: Bool[Array, " n"]) -> Float[Array, ""]:
    """Return how many directions the valid unit vectors fill: 1 if all are alike, at most `min(n, size)`.

    It is (sum of eigenvalues)^2 / sum of their squares, of the vectors' second moments: without any eigenvalue, one
    over the mean squared cosine of all pairs.
    """
    squares = jnp.square(vectors @ vectors.T)
    pairs = valid[:, None] & valid
    return pairs.sum() / jnp.maximum(jnp.where(pairs, squares, 0.0).sum(), 1e-6)


def uniformity(vectors: Float[Array, "n size"], valid: Bool[Array, " n"]) -> Float[Array, ""]:
    """Return the log mean of exp(-2 squared distance) over pairs of the valid unit vectors (Wang & Isola 2020).

    It is 0 if all are alike, and about -3.9 if 128 numbers are spread evenly over the sphere.
    """
    pairs = valid[:, None] & valid & ~jnp.eye(valid.shape[0], dtype=bool)
    potentials = jnp.exp(4 * (vectors @ vectors.T) - 4)
    total = jnp.where(pairs, potentials, 0.0).sum()
    return jnp.where(pairs.any(), jnp.log(jnp.maximum(total, 1e-30) / jnp.maximum(pairs.sum(), 1)), 0.0)
