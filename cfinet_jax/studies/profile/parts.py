"""Parts of a training step, told apart by the names that flax modules and `jax.named_scope` leave in a program."""

import re
from typing import NamedTuple

from cfinet_jax.studies import collectives

# A name belongs to the first part whose pattern it matches; methods of a flax module have names, too.
PARTS = {
    "preprocessing": r"\bpreprocess\b",
    "adaptive convolution": r"/fine_conv\b",
    "targets": r"\btargets\b|roi_head\.sample\b|draw_priorities",
    "NMS": r"proposal_network\.choose\b",
    "losses": r"(proposal_network|roi_head)\.losses\b",
    "RoIAlign": r"roi_head\.pool\b",
    "feature imitation": r"\bimitation\b",
    "proposals": r"\bproposal_network\b",
    "heads": r"\broi_head\b",
    "FPN": r"\bneck\b",
    "backbone": r"\bbackbone\b",
    "memory": r"\bmemory\b",
    "optimiser": r"\boptimizer\b",
    "rest": r"jit\(",
}
COLLECTIVES, OTHER = "collectives", "other"
# In the order of a step; "other" is what XLA made without a name.
ROWS = (
    *("preprocessing", "backbone", "FPN", "proposals", "adaptive convolution", "NMS", "targets", "RoIAlign", "heads"),
    *("feature imitation", "losses", "optimiser", "memory", COLLECTIVES, "rest", OTHER),
)
KINDS = re.compile(collectives.KINDS)
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\((.*)$")
OP_NAME = re.compile(r'op_name="(jit\([^"]*)"')  # on a parameter, op_name is the name of an argument instead
NAME = re.compile(r"%([\w.-]+)")


class Instruction(NamedTuple):
    """An instruction of a compiled program."""

    opcode: str
    op_name: str  # where JAX made it, such as `jit(step)/jvp(part)/mul`; empty if unknown

    @property
    def part(self) -> str:
        """The row of the table that it counts to."""
        return COLLECTIVES if KINDS.match(self.opcode) else part_of(self.op_name)

    @property
    def is_backward(self) -> bool:
        """Whether it belongs to the backward pass, which includes what is computed again for it."""
        return "transpose(" in self.op_name


def part_of(op_name: str) -> str:
    """Return the part that a name belongs to."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, op_name)), OTHER)


def instructions_of(text: str) -> dict[str, Instruction]:
    """Return the instructions of a program, given as `compiled.as_text()`, by name.

    XLA adds copies and splits instructions without naming them: these take the name of an instruction that reads their
    result, or else of the loop or branch around them.
    """
    found: dict[str, Instruction] = {}
    inherited: dict[str, str] = {}  # for instructions and computations, from those that read or call them
    # Callers are printed after what they call and readers after what they read, so the last line comes first here.
    for block in reversed(re.split(r"^(?=\S)", text, flags=re.MULTILINE)):
        head, *lines = block.splitlines() or [""]
        computation = COMPUTATION.match(head)
        around = inherited.get(computation[1], "") if computation else ""
        for name, opcode, rest in (line.groups() for line in map(INSTRUCTION.match, reversed(lines)) if line):
            own = OP_NAME.search(rest)
            op_name = own[1] if own else inherited.get(name) or around
            found[name] = Instruction(opcode, op_name)
            if not KINDS.match(opcode):  # a sum over devices reads the results of every part
                for other in NAME.findall(rest):
                    inherited[other] = inherited.get(other) or op_name
    return found
