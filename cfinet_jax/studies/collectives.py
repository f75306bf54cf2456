"""Collectives of a compiled program: what its devices send each other, read from XLA's text form of it."""

import math
import re
from typing import NamedTuple

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
# An asynchronous collective counts where it is done, because only there its type is that of the result.
COLLECTIVE = re.compile(rf"= (.+?) ({KINDS})(?:-done)?\((.*)")
SHAPE = re.compile(r"[a-z]+(\d*)\w*\[([\d,]*)\]")  # f32[9,16], pred[]


class Collective(NamedTuple):
    """One operation between devices."""

    kind: str
    size: int  # bytes of its result on one device
    in_loop: bool


def collectives(text: str) -> list[Collective]:
    """Return the collectives of a program, given as `compiled.as_text()`, in its order.

    JAX names every instruction after the functions that it comes from, and those of a loop have `while` among them.
    """
    return [Collective(kind, size_in_bytes(type_), "/while/" in rest) for type_, kind, rest in COLLECTIVE.findall(text)]


def size_in_bytes(type_: str) -> int:
    """Return the size of an array, or of a tuple of arrays, whose type is written as XLA writes it."""
    # `pred` has no number of bits and takes a byte.
    return sum(
        max(int(bits or 8) // 8, 1) * math.prod(int(side) for side in sides.split(",") if side)
        for bits, sides in SHAPE.findall(type_)
    )
