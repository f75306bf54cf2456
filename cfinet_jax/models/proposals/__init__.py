"""Proposal networks: the table from which a config chooses one by name."""

from cfinet_jax.models.proposals.cascade_rpn import CascadeRPN
from cfinet_jax.models.proposals.coarse_to_fine_rpn import CoarseToFineRPN
from cfinet_jax.models.proposals.guided_anchor_rpn import GuidedAnchorRPN
from cfinet_jax.models.proposals.rpn import RPN

PROPOSAL_NETWORKS = {
    "coarse_to_fine": CoarseToFineRPN,
    "rpn": RPN,
    "cascade": CascadeRPN,
    "guided_anchor": GuidedAnchorRPN,
}
