"""Similarities of boxes that can replace the IoU, in a table.

A row maps boxes `[m, 4]` and `[n, 4]` to `[m, n]`, from 1 (equal) down to 0. Its constants are lengths in the pixels of
the boxes; the configuration gives them in stored pixels, and `in_pixels` converts them to network pixels.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal

Pairwise = Callable[[Array, Array], Array]


def norm(vectors: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Return the Euclidean length, with a gradient of zero where it is zero."""
    squared = jnp.square(vectors).sum(-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def wasserstein_distance(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*#n"]:
    """Return the 2-Wasserstein distance, in pixels, of paired boxes as Gaussians whose deviations are half sides."""
    (centre_a, size_a), (centre_b, size_b) = horizontal.centre_size(a), horizontal.centre_size(b)
    return norm(jnp.concatenate([centre_a - centre_b, (size_a - size_b) / 2], -1))


def paired_nwd(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"], constant: float | Array) -> Float[Array, "*#n"]:
    """Return the NWD of paired (broadcast) boxes."""
    return jnp.exp(-wasserstein_distance(a, b) / constant)


def nwd(a: Float[Array, "m 4"], b: Float[Array, "n 4"], constant: float | Array) -> Float[Array, "m n"]:
    """Return the normalised Gaussian Wasserstein distance (Wang et al. 2021): exp(-distance / `constant`).

    `constant`, in pixels, is the mean over the data set of an object's side, the root of its area.
    """
    return paired_nwd(a[:, None], b[None], constant)


def dotd(a: Float[Array, "m 4"], b: Float[Array, "n 4"], mean_side: float | Array) -> Float[Array, "m n"]:
    """Return the dot distance (Xu et al. 2021): exp(-distance of the centres / `mean_side`), whatever the sizes.

    `mean_side`, in pixels, is the root of the mean area of the data set's objects.
    """
    centres, others = (a[:, None, :2] + a[:, None, 2:]) / 2, (b[None, :, :2] + b[None, :, 2:]) / 2
    return jnp.exp(-norm(centres - others) / mean_side)


def wasserstein(a: Float[Array, "m 4"], b: Float[Array, "n 4"], unit: float | Array) -> Float[Array, "m n"]:
    """Return RFLA's second choice: 1 / (1 + (Wasserstein distance / `unit`)^2), `unit` in pixels."""
    return 1 / (1 + jnp.square(wasserstein_distance(a[:, None], b[None]) / unit))


def kl(a: Float[Array, "m 4"], b: Float[Array, "n 4"]) -> Float[Array, "m n"]:
    """Return RFLA's first choice (Xu et al. 2022): 1 / (1 + KL), for priors `a` and objects `b`; not symmetric.

    Boxes are Gaussians. The Kullback-Leibler divergence of the prior from the object divides by the object's sides: an
    offset by a whole side along one axis adds 2, whatever the prior.
    """
    (centre_a, size_a), (centre_b, size_b) = horizontal.centre_size(a[:, None]), horizontal.centre_size(b[None])
    size_a, size_b = jnp.maximum(size_a, horizontal.EPSILON), jnp.maximum(size_b, horizontal.EPSILON)
    ratio, offset = size_a / size_b, 2 * (centre_a - centre_b) / size_b
    divergence = (jnp.square(ratio) - 1 + jnp.square(offset) - 2 * jnp.log(ratio)).sum(-1) / 2
    return 1 / (1 + jnp.maximum(divergence, 0.0))


SIMILARITIES: dict[str, Callable[..., Array]] = {
    "iou": horizontal.iou,
    "nwd": nwd,
    "dotd": dotd,
    "kl": kl,
    "wasserstein": wasserstein,
}


def in_pixels(constants: Mapping[str, float], scale: Float[Array, ""] | float) -> dict[str, float | Array]:
    """Convert lengths from stored pixels to network pixels (multiply by `scale`, as in `Batch.scales`)."""
    return {name: length * scale for name, length in constants.items()}
