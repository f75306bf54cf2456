"""What each instruction of a compiled program computes and moves, and where it comes from."""

import re
from collections import Counter
from typing import NamedTuple

from cfinet_jax.studies.profile import flops
from cfinet_jax.studies.profile.hlo import Instruction, computations_of, instructions_of, shape_of, size_in_bytes
from cfinet_jax.studies.profile.parts import KINDS

Computation = dict[str, Instruction]
CONTAINERS = ("while", "conditional", "call")  # what they cost their own instructions say
FREE = (*CONTAINERS, "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
SLICES = ("dynamic-slice", "slice", "gather")
UPDATES = ("dynamic-update-slice", "scatter")
CALLED = r"\b(?:calls|to_apply)=%([\w.-]+)"


class Cost(NamedTuple):
    """Of one execution."""

    opcode: str
    op_name: str
    flops: int  # of dots and convolutions
    bytes: int  # read and written


def costs(text: str) -> dict[str, Cost]:
    """Of every instruction that is executed by itself, by name; `text` is `compiled.as_text()`."""
    computations = {name: instructions_of(lines) for name, lines in computations_of(text)}
    callers = {
        callee: instruction
        for computation in computations.values()
        for instruction in computation.values()
        if instruction.opcode in CONTAINERS
        for callee in re.findall(r"%([\w.-]+)", instruction.attributes)
    }
    found = {}
    for name, computation in computations.items():
        names = op_names(computation, computations, callers[name].op_name if name in callers else "")
        for each in computation.values():
            counted = flops_of(each, computation, computations)
            found[each.name] = Cost(each.opcode, names[each.name], counted, bytes_of(each, computation, computations))
    return found


def op_names(computation: Computation, computations: dict[str, Computation], otherwise: str) -> dict[str, str]:
    """Where the instructions come from: as they say, else as most of those fused in them, as a user, as an operand.

    Users come before operands: where XLA makes several instructions of one, the last of them keeps the name.
    """
    names = {}
    for each in computation.values():
        inner = computations.get(each.attribute(CALLED), {}) if each.opcode == "fusion" else {}
        most = Counter(filter(None, (part.op_name for part in inner.values()))).most_common(1)
        names[each.name] = each.op_name or (most[0][0] if most else "")
    for each in reversed(computation.values()):
        for operand in each.operands:
            if not names.get(operand) and not KINDS.match(each.opcode):  # sums over devices are of everything
                names[operand] = names[each.name]
    for each in computation.values():
        operands = (names[operand] for operand in each.operands if names.get(operand))
        names[each.name] = names[each.name] or next(operands, otherwise)
    return names


def flops_of(instruction: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
    """Of a dot, a convolution, a call of a library that does either, or of those inside a fusion."""
    if instruction.opcode == "fusion":
        inner = computations.get(instruction.attribute(CALLED), {})
        return sum(flops_of(each, inner, computations) for each in inner.values())
    if instruction.opcode not in ("dot", "convolution", "custom-call"):
        return 0
    result = shape_of(instruction.type_)
    shapes = [shape_of(computation[each].type_) for each in instruction.operands if each in computation]
    if instruction.opcode == "dot":
        return flops.of_dot(result, picked(shapes[0], instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")))
    if instruction.opcode == "convolution":
        return convolution(instruction, shapes, result)
    return library(instruction, shapes, result)


def picked(shape: tuple[int, ...], axes: str) -> list[int]:
    """The sides of the axes "1,2"."""
    return [shape[int(axis)] for axis in filter(None, axes.split(","))]


def convolution(instruction: Instruction, shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> int:
    left, kernel, out = re.split("_|->", instruction.attribute(r"dim_labels=([\w>-]+)"))
    digits = sorted(filter(str.isdigit, left))

    def of_window(key: str, otherwise: str) -> list[str]:
        found = instruction.attribute(rf"window=\{{[^}}]*\b{key}=([\dx_-]+)")
        return found.split("x") if found else [otherwise] * len(digits)

    keys = zip(
        of_window("stride", "1"), of_window("pad", "0_0"), of_window("lhs_dilate", "1"), of_window("rhs_dilate", "1"),
        strict=True,
    )  # fmt: skip
    sides = [
        flops.Side(
            shapes[0][left.index(digit)],
            result[out.index(digit)],
            shapes[1][kernel.index(digit)],
            *(int(number.partition("_")[0]) for number in window),
        )
        for digit, window in zip(digits, keys, strict=True)
    ]
    inputs, outputs = shapes[1][kernel.index("i")], shapes[1][kernel.index("o")]
    return flops.of_convolution(result[out.index("b")], inputs, outputs, sides)


def library(instruction: Instruction, shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> int:
    """Of a call of cuDNN, padding included, or of cuBLAS."""
    target = instruction.attribute(r'custom_call_target="([^"]*)"')
    if target.startswith("__cudnn$conv"):
        kernel = re.split("_|->", instruction.attribute(r"dim_labels=([\w>-]+)"))[1]
        maps, weights = result, shapes[1]
        if "BackwardInput" in target:
            maps = shapes[0]
        if "BackwardFilter" in target:
            maps, weights = shapes[1], result
        return flops.of_dot(maps, weights) // weights[kernel.index("o")]
    if target.startswith("__cublas$"):
        axes = instruction.attribute(r'"lhs_contracting_dimensions":\[([\d",]*)\]')
        return flops.of_dot(result, picked(shapes[0], axes.replace('"', "")))
    return 0


def bytes_of(instruction: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
    """Read from operands and written to results; of what is only sliced or updated in place, the part in question."""
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode != "fusion":
        reads = sum(read(instruction, each, computation) for each in set(instruction.operands) & computation.keys())
        return reads + written(instruction, computation)
    inner = computations.get(instruction.attribute(CALLED), {})
    reads = [
        min(used(each.name, inner), size_in_bytes(each.type_)) for each in inner.values() if each.opcode == "parameter"
    ]
    return sum(reads) + sum(written(each, inner) for each in inner.values() if each.root)


def used(operand: str, computation: Computation) -> int:
    """Bytes that all instructions of a computation read of one that they share."""
    users = [each for each in computation.values() if operand in each.operands]
    return sum(
        used(each.name, computation) if each.opcode == "bitcast" else read(each, operand, computation) for each in users
    )


def read(user: Instruction, operand: str, computation: Computation) -> int:
    """Bytes that an instruction reads of one of its operands."""
    sliced = user.operands[0] == operand and operand not in user.operands[1:]
    if sliced and user.opcode in SLICES:
        return size_in_bytes(user.type_)
    if sliced and user.opcode in UPDATES:
        return 0
    return size_in_bytes(computation[operand].type_)


def written(instruction: Instruction, computation: Computation) -> int:
    """Bytes that an instruction writes; an update is made in place."""
    known = [computation[each] for each in instruction.operands if each in computation]
    if instruction.opcode == "tuple":
        return sum(written(each, computation) for each in known)
    if instruction.opcode == "bitcast" and known:
        return written(known[0], computation)
    if instruction.opcode in UPDATES and len(known) > 1:
        return size_in_bytes(known[1 if instruction.opcode == "dynamic-update-slice" else -1].type_)
    return size_in_bytes(instruction.type_)
