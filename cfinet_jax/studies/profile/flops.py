"""Floating-point operations of the dots and convolutions of a function; a multiplication with an addition is two."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


def of_model(jaxpr: Jaxpr) -> int:
    """Count the operations of the detector and its gradient in a training step.

    What is computed a second time to save memory does not count, as is the custom for MFU.
    """
    counted = by_path(jaxpr).items()
    return sum(n for path, n in counted if "jvp(Detector.losses)" in path and "rematted_computation" not in path)


def by_path(jaxpr: Jaxpr, path: str = "") -> Counter[str]:
    """Count the operations by the named scopes that they were made in, such as `jvp(Detector.losses)/backbone`.

    XLA's own count (`cost_analysis`) takes the body of every loop once. Here a scan counts as often as it runs, a
    while loop once, since nobody knows how often, and a condition as its largest branch.
    """
    counted: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        where = "/".join(filter(None, (path, str(equation.source_info.name_stack))))
        inner = [by_path(each, where) for each in inside(equation)]
        if equation.primitive.name in COUNTED:
            counted[where] += COUNTED[equation.primitive.name](equation)
        elif equation.primitive.name == "cond":
            counted += max(inner, key=Counter.total)
        else:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            for each in inner:
                counted += Counter({name: times * flops for name, flops in each.items()})
    return counted


def inside(equation: Any) -> Iterator[Jaxpr]:
    """Yield the jaxprs that an equation calls."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def dot(equation: Any) -> int:
    """Count the operations of a `dot_general`."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def convolution(equation: Any) -> int:
    """Count the operations of a `conv_general_dilated`, without those on padding and on holes of dilated inputs."""
    settings, numbers = equation.params, equation.params["dimension_numbers"]
    (left, kernel), result = (each.aval.shape for each in equation.invars), equation.outvars[0].aval.shape
    outputs, inputs = (kernel[axis] for axis in numbers.rhs_spec[:2])
    pairs = math.prod(
        taps_on_inputs(left[i], result[o], kernel[k], stride, low, input_dilation, kernel_dilation)
        for i, o, k, stride, (low, _), input_dilation, kernel_dilation in zip(
            numbers.lhs_spec[2:], numbers.out_spec[2:], numbers.rhs_spec[2:], settings["window_strides"],
            settings["padding"], settings["lhs_dilation"], settings["rhs_dilation"], strict=True,
        )
    )  # fmt: skip
    return 2 * result[numbers.out_spec[0]] * inputs * outputs * pairs


def taps_on_inputs(
    inputs: int, outputs: int, kernel: int, stride: int, padding: int, input_dilation: int, kernel_dilation: int
) -> int:
    """Count the pairs of output and kernel tap, along one side of a convolution, that meet an input.

    `padding` is the number of cells before the first input.
    """
    taps = np.arange(kernel) * kernel_dilation
    cells = np.arange(outputs)[:, None] * stride - padding + taps
    inside = (cells >= 0) & (cells <= (inputs - 1) * input_dilation)
    return int((inside & (cells % input_dilation == 0)).sum())


COUNTED = {"dot_general": dot, "conv_general_dilated": convolution}
