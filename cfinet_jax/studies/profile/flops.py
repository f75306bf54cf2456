"""Floating-point operations of dots and convolutions, all that a roofline counts; a multiply-add is two."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


class Side(NamedTuple):
    """One spatial side of a convolution, in cells."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int  # before the first cell
    input_dilation: int
    kernel_dilation: int

    def products(self) -> int:
        """Pairs of output and tap that meet an input, neither padding nor a hole."""
        taps = np.arange(self.kernel) * self.kernel_dilation
        cells = np.arange(self.outputs)[:, None] * self.stride - self.padding + taps
        inside = (cells >= 0) & (cells <= (self.inputs - 1) * self.input_dilation)
        return int((inside & (cells % self.input_dilation == 0)).sum())


def of_dot(result: Iterable[int], contracted: Iterable[int]) -> int:
    """Of a dot whose result has the sides `result`, summed over the sides `contracted`."""
    return 2 * math.prod(result) * math.prod(contracted)


def of_convolution(batch: int, inputs: int, outputs: int, sides: Iterable[Side]) -> int:
    """Of a convolution from `inputs` channels (of one group) to `outputs`."""
    return 2 * batch * inputs * outputs * math.prod(side.products() for side in sides)


def by_path(jaxpr: Jaxpr, path: str = "") -> Counter[str]:
    """Of every dot and convolution of a jaxpr, under the named scopes it was made in: `jvp(Detector.losses)/backbone`.

    A scan counts as often as it runs, a while loop once, of the branches of a condition the largest.
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
    """The jaxprs that an equation calls."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def dot_equation(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return of_dot(equation.outvars[0].aval.shape, (left[axis] for axis in contracted))


def convolution_equation(equation: Any) -> int:
    settings, numbers = equation.params, equation.params["dimension_numbers"]
    (left, kernel), result = (each.aval.shape for each in equation.invars), equation.outvars[0].aval.shape
    axes = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], numbers.rhs_spec[2:], strict=True)
    windows = zip(
        settings["window_strides"],
        (low for low, _ in settings["padding"]),
        settings["lhs_dilation"],
        settings["rhs_dilation"],
        strict=True,
    )
    sides = [Side(left[i], result[o], kernel[k], *window) for (i, o, k), window in zip(axes, windows, strict=True)]
    outputs, inputs = (kernel[axis] for axis in numbers.rhs_spec[:2])
    return of_convolution(result[numbers.out_spec[0]], inputs, outputs, sides)


COUNTED = {"dot_general": dot_equation, "conv_general_dilated": convolution_equation}
