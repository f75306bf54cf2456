"""Proposal networks: the tables from which a config chooses one by name."""

from cfinet_jax.models.proposals.cascade_rpn import CascadeRPN
from cfinet_jax.models.proposals.coarse_to_fine_rpn import CoarseToFineRPN
from cfinet_jax.models.proposals.guided_anchor_rpn import GuidedAnchorRPN
from cfinet_jax.models.proposals.oriented_rpn import OrientedRPN
from cfinet_jax.models.proposals.rotated_rpn import RotatedCoarseToFineRPN, RotatedRPN
from cfinet_jax.models.proposals.rpn import RPN

PROPOSAL_NETWORKS = {
    "coarse_to_fine": CoarseToFineRPN,
    "rpn": RPN,
    "cascade": CascadeRPN,
    "guided_anchor": GuidedAnchorRPN,
}
# Of oriented experiments: what takes the place of a row above there, or is a row there alone.
ROTATED_PROPOSAL_NETWORKS = {
    "coarse_to_fine": RotatedCoarseToFineRPN,
    "rpn": RotatedRPN,
    "oriented_rpn": OrientedRPN,
}
