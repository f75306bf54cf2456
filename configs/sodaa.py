"""CFINet on SODA-A: upright proposals, oriented boxes; the paper has it, its code does not.

Data:      python data/prepare.py sodaa --source=SODA-A --data_dir=prepared
Command:   python -m cfinet_jax.main --config=configs/sodaa.py --workdir=runs/sodaa
               --config.training.pretrained=resnet50.npz
Variants:  sodaa.py:released             the six choices in which paper and released code differ, as in sodad.py
           sodaa.py:rotated_faster_rcnn  the baseline: RPN with three anchors on P2-P6, no imitation
           sodaa.py:oriented_rcnn        Oriented R-CNN: oriented proposals, pooled along their own axes
Choices:   three settings of CFINet on SODA-A are unpublished; they are in detector.proposal_network.coarse_to_fine:
           anchor_scale 2 (1 is the baseline's), proposals.max_proposals 2000 (300 on SODA-D), size_of
Hardware:  one accelerator (the baselines of the paper: one image on each of several)
Target AP: 34.4 (SODA-A test, Table 3), 32.5 for rotated Faster R-CNN, 34.4 for Oriented R-CNN
Measured:  never run here (the data set is not at hand)
"""

from typing import Any

from ml_collections import ConfigDict

from configs import sodad

RPN, CRPN = "detector.proposal_network.rpn", "detector.proposal_network.coarse_to_fine"
EPOCH = 30_000  # windows with objects, about: a run prints their number

SODAA = {
    "dataset.name": "sodaa",
    "dataset.boxes": "oriented",
    "dataset.max_objects": 1024,
    f"{CRPN}.proposals.max_proposals": 2000,
    f"{CRPN}.proposals.test.candidates": 2000,
    f"{RPN}.anchor_scale": 1.0,
    f"{RPN}.box_loss": "smooth_l1",
    f"{RPN}.proposals.max_proposals": 2000,
    f"{RPN}.proposals.test.candidates": 2000,
    "detector.roi_head.name": "rotated",
    "detector.roi_head.stds": (0.1, 0.1, 0.2, 0.2, 0.1),
    "detector.roi_head.samples": 512,
    "detector.roi_head.positive_fraction": 0.25,
    "detector.roi_head.nms_overlap": 0.1,
    "detector.roi_head.max_detections": 2000,
    "optimizer.warmup_factor": 1 / 3,
    "optimizer.decay_images": (8 * EPOCH, 11 * EPOCH),
    "optimizer.clip_norm": 35.0,
    "training.images": 12 * EPOCH,
    "evaluation.protocol": "soda_a",
    "evaluation.every_images": 12 * EPOCH,
}
ROTATED_FASTER_RCNN = {
    "detector.proposal_network.name": "rpn",
    "detector.imitation.enabled": False,
    "detector.neck.levels": 5,
}
ORIENTED_RCNN = ROTATED_FASTER_RCNN | {
    "detector.proposal_network.name": "oriented_rpn",
    "detector.roi_head.name": "oriented",
    "detector.roi_head.max_grid": 2,  # samples of a bin each way, whatever the size of its region
}
VARIANTS = {
    "": {},
    "released": sodad.RELEASED,
    "rotated_faster_rcnn": ROTATED_FASTER_RCNN,
    "oriented_rcnn": ORIENTED_RCNN,
}


def get_config(variant: str = "") -> ConfigDict:
    """Return the SODA-D experiment with what differs for SODA-A."""
    config = sodad.get_config()
    with config.unlocked():
        add_oriented(config.detector)
    config.update_from_flattened_dict(SODAA)
    network = config.detector.proposal_network
    with config.unlocked():
        network.oriented_rpn = oriented_rpn(network.rpn)
    config.update_from_flattened_dict(sodad.choose(VARIANTS, variant))
    return config


def add_oriented(detector: ConfigDict) -> None:
    """Add the keys that only oriented experiments have."""
    detector.roi_head.smooth_beta = 1.0  # where smooth L1 turns from quadratic to linear
    network = detector.proposal_network
    network.coarse_to_fine.size_of = "enclosing"  # which box of an object base_size is compared with; or "oriented"
    network.rpn.smooth_beta = 1 / 9


def oriented_rpn(rpn: ConfigDict) -> dict[str, Any]:
    """Return the section of Oriented R-CNN's proposal network: the plain RPN's, but for the coder and NMS."""
    section = rpn.to_dict() | {"stds": (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)}
    for phase in ("train", "test"):
        section["proposals"][phase]["nms_overlap"] = 0.8
    return section
