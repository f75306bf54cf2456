"""Compiled programs, read from XLA's text form (`compiled.as_text()`)."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

HEAD = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")  # of a computation; its instructions are indented
INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
OP_NAME = re.compile(r'op_name="(jit\([^"]*)"')  # that of a parameter is the name of an argument
SHAPE = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")  # f32[9,16], pred[]


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type_: str
    opcode: str
    operands: tuple[str, ...]  # names in the same computation
    attributes: str  # what stands behind the operands, metadata too
    op_name: str  # where JAX made it, `jit(step)/jvp(part)/mul`; empty where XLA did
    root: bool

    def attribute(self, pattern: str) -> str:
        """What the group of a pattern finds in the attributes; empty if nothing."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


def computations_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """The name and the lines of every computation."""
    for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        head, *lines = block.splitlines() or [""]
        if found := HEAD.match(head):
            yield found[1], lines


def instructions_of(lines: list[str]) -> dict[str, Instruction]:
    """The instructions of a computation by name, in their order."""
    found = {}
    for root, name, type_, opcode, rest in (line.groups() for line in map(INSTRUCTION.match, lines) if line):
        inside, _, attributes = rest.partition("), ")
        operands = tuple(re.findall(r"%([\w.-]+)", inside))
        made = OP_NAME.search(attributes)
        found[name] = Instruction(name, type_, opcode, operands, attributes, made[1] if made else "", root is not None)
    return found


def shape_of(type_: str) -> tuple[int, ...]:
    """The sides of an array of this type; of a tuple those of its first array."""
    found = SHAPE.search(type_)
    return tuple(int(side) for side in filter(None, found[3].split(","))) if found else ()


def size_in_bytes(type_: str) -> int:
    """Of a type as XLA writes it, or of a tuple of them."""
    total = 0
    for _, bits, sides in SHAPE.findall(type_):
        count = math.prod(int(side) for side in filter(None, sides.split(",")))
        total += count * max(int(bits or 8) // 8, 1)  # pred has no number and takes a byte
    return total
