"""Peak speed of a device: from its maker's data sheet, or measured where no sheet is known."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

SIZE, REPEATS = 2048, 5


class Peak(NamedTuple):
    """The most that one device can do, and how that is known."""

    flops: float  # per second
    source: str


# Dense bfloat16, without sparsity, by `jax.Device.device_kind`.
SHEETS = {
    "TPU v4": Peak(275e12, "cloud.google.com/tpu/docs/v4"),
    "TPU v5 lite": Peak(197e12, "cloud.google.com/tpu/docs/v5e"),
    "TPU v5e": Peak(197e12, "cloud.google.com/tpu/docs/v5e"),
    "TPU v5": Peak(459e12, "cloud.google.com/tpu/docs/v5p"),
    "TPU v5p": Peak(459e12, "cloud.google.com/tpu/docs/v5p"),
    "TPU v6 lite": Peak(918e12, "cloud.google.com/tpu/docs/v6e"),
    "TPU v6e": Peak(918e12, "cloud.google.com/tpu/docs/v6e"),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, "NVIDIA A100 data sheet"),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, "NVIDIA A100 data sheet"),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, "NVIDIA A100 data sheet"),
    "NVIDIA A100 80GB PCIe": Peak(312e12, "NVIDIA A100 data sheet"),
    "NVIDIA H100 PCIe": Peak(756e12, "NVIDIA H100 data sheet"),
    "NVIDIA H100 80GB HBM3": Peak(989e12, "NVIDIA H100 data sheet"),
    "NVIDIA H200": Peak(989e12, "NVIDIA H200 data sheet"),
}


def peak_of(kind: str) -> Peak:
    """Return the peak of a `device_kind`, measured if no data sheet is known."""
    return SHEETS[kind] if kind in SHEETS else measure()


def measure() -> Peak:
    """Time a float32 product of two square matrices on the first device."""
    matrix = jnp.ones((SIZE, SIZE))
    product = jax.jit(jnp.matmul)
    times = []
    for _ in range(1 + REPEATS):  # the first call compiles; the shortest counts
        started = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        times.append(time.perf_counter() - started)
    return Peak(2 * SIZE**3 / min(times), f"measured: a float32 product of {SIZE} x {SIZE} matrices")
