"""A probe in the forward pass that measures the gradient which passes it on the way back."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def measure(x: Array, probe: Float[Array, ""]) -> Array:
    """Return `x`; the gradient with respect to `probe` is the sum of squares of the gradient with respect to `x`.

    It costs one sum in the backward pass that is made anyway, and adds up over micro-batches and devices as the
    gradients of parameters do.
    """
    return x


def forward(x: Array, probe: Array) -> tuple[Array, None]:
    """Return `x` and nothing to remember."""
    return x, None


def backward(_: None, gradient: Array) -> tuple[Array, Array]:
    """Return the gradient as it came, and its sum of squares."""
    return gradient, jnp.square(gradient.astype(jnp.float32)).sum()


measure.defvjp(forward, backward)
