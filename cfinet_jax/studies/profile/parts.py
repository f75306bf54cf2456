"""The parts of a training step, told apart by the names that flax modules and `jax.named_scope` leave in a program."""

import re

# A name belongs to the first part whose pattern it holds; methods of a flax module are named, too.
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
# As they follow each other in a step; "other" has no name.
ROWS = (
    *("preprocessing", "backbone", "FPN", "proposals", "adaptive convolution", "NMS", "targets", "RoIAlign", "heads"),
    *("feature imitation", "losses", "optimiser", "memory", COLLECTIVES, "rest", OTHER),
)
KINDS = re.compile(r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-(permute|broadcast)")


def part_of(op_name: str, opcode: str = "") -> str:
    """The row that an instruction counts to."""
    if KINDS.match(opcode):
        return COLLECTIVES
    return next((part for part, pattern in PARTS.items() if re.search(pattern, op_name)), OTHER)


def is_backward(op_name: str) -> bool:
    """Whether it is of the backward pass, what is computed again for it included."""
    return "transpose(" in op_name


def is_model(path: str) -> bool:
    """Whether it is the detector being differentiated, and not computed a second time to save memory."""
    return "jvp(Detector.losses)" in path and "rematted_computation" not in path
