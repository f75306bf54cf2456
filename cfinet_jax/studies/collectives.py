"""What devices tell each other in a compiled program, read from its text."""

import re
from typing import NamedTuple

from cfinet_jax.studies.profile.hlo import computations_of, size_in_bytes

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"= (.+?) ({KINDS})(?:-done)?\(")  # of an asynchronous one the end, whose type is the result
CALLS = re.compile(r"\w+=\{?((?:%[\w.-]+(?:, )?)+)")  # to_apply=%a, branch_computations={%a, %b}
LOOP = re.compile(r"(?:body|condition)=%([\w.-]+)")


class Collective(NamedTuple):
    """One operation between devices."""

    kind: str
    size: int  # bytes of its result on one device
    in_loop: bool


def collectives(text: str) -> list[Collective]:
    """Those of a program in XLA's text form (`compiled.as_text()`), in its order."""
    computations = dict(computations_of(text))
    calls = {name: names(CALLS, lines) & computations.keys() for name, lines in computations.items()}
    looped, waiting = set(), names(LOOP, text.splitlines())
    while waiting:
        looped.add(name := waiting.pop())
        waiting |= calls[name] - looped
    return [
        Collective(found[2], size_in_bytes(found[1]), name in looped)
        for name, lines in computations.items()
        for found in filter(None, map(COLLECTIVE.search, lines))
    ]


def names(pattern: re.Pattern[str], lines: list[str]) -> set[str]:
    """What a pattern finds in the lines, each name of a list by itself."""
    return {name.lstrip("%") for line in lines for found in pattern.findall(line) for name in found.split(", ")}
