"""What a device can do at best: from its maker's data sheet, or measured where there is none."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SIZE, COPIED, REPEATS = 2048, 2**26, 5


class Peak(NamedTuple):
    """Per second, of one device."""

    flops: float
    bytes: float
    source: str


# Dense bfloat16 (without sparsity) and the device's memory; the names are those of `jax.Device.device_kind`.
SHEETS = {
    "TPU v4": Peak(275e12, 1.228e12, "cloud.google.com/tpu/docs/v4"),
    "TPU v5 lite": Peak(197e12, 0.819e12, "cloud.google.com/tpu/docs/v5e"),
    "TPU v5e": Peak(197e12, 0.819e12, "cloud.google.com/tpu/docs/v5e"),
    "TPU v5": Peak(459e12, 2.765e12, "cloud.google.com/tpu/docs/v5p"),
    "TPU v5p": Peak(459e12, 2.765e12, "cloud.google.com/tpu/docs/v5p"),
    "TPU v6 lite": Peak(918e12, 1.638e12, "cloud.google.com/tpu/docs/v6e"),
    "TPU v6e": Peak(918e12, 1.638e12, "cloud.google.com/tpu/docs/v6e"),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1.555e12, "NVIDIA A100 data sheet"),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12, "NVIDIA A100 data sheet"),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 1.555e12, "NVIDIA A100 data sheet"),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 1.935e12, "NVIDIA A100 data sheet"),
    "NVIDIA H100 PCIe": Peak(756e12, 2.0e12, "NVIDIA H100 data sheet"),
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12, "NVIDIA H100 data sheet"),
    "NVIDIA H200": Peak(989e12, 4.8e12, "NVIDIA H200 data sheet"),
}


def peak_of(kind: str) -> Peak:
    """Of a `device_kind`; one that no sheet names is measured."""
    return SHEETS[kind] if kind in SHEETS else measured()


def measured() -> Peak:
    """What the first device reaches: a float32 product of 2048 x 2048 matrices, and a large array read and written."""
    matrix, vector = jnp.ones((SIZE, SIZE)), jnp.ones(COPIED)
    product = seconds(jax.jit(jnp.matmul), matrix, matrix)
    # In a loop, in place: new memory for every result would be measured with it.
    copy = seconds(jax.jit(lambda x: jax.lax.fori_loop(0, REPEATS, lambda _, x: -x, x)), vector) / REPEATS
    source = f"measured: a float32 product of {SIZE} x {SIZE} matrices, {4 * COPIED >> 20} MiB read and written"
    return Peak(2 * SIZE**3 / product, 2 * vector.nbytes / copy, source)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The shortest of several calls after a first one."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return min(times)
