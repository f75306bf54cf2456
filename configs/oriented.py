"""CFINet on your own pictures with oriented boxes: COCO's JSON files with `poly` or `rbox`, and their images.

Command:   python -m cfinet_jax.main --config=configs/oriented.py --workdir=runs/NAME --config.dataset.name=NAME
               --config.dataset.source=FOLDER --config.training.pretrained=resnet50.npz
Variants:  released, rotated_faster_rcnn, oriented_rcnn   as in sodaa.py
           cpu                     thinner and shorter, for two cores; combine by commas: oriented.py:oriented_rcnn,cpu
           small                   the same from scratch
Hardware:  one accelerator; `cpu` and `small` two cores and 6 GiB
Measured:  docs/oriented_real_small.md
"""

from ml_collections import ConfigDict

from configs import coco, sodaa, sodad

SECTIONS = [f"detector.proposal_network.{name}" for name in ("coarse_to_fine", "rpn", "oriented_rpn")]
OWN_DATA = coco.OWN_DATA | {
    "evaluation.protocol": "oriented",
    **{f"{section}.anchor_scale": 2.0 for section in SECTIONS},  # pictures are not enlarged
}
FEWER = {
    "detector.proposal_network.oriented_rpn.channels": 64,
    **{f"{section}.proposals.max_proposals": 300 for section in SECTIONS},
    **{f"{section}.proposals.{phase}.candidates": 1000 for section in SECTIONS for phase in ("train", "test")},
    "detector.roi_head.max_detections": 300,
}
VARIANTS = sodaa.VARIANTS | {"cpu": coco.CPU | FEWER, "small": coco.SMALL | FEWER}


def get_config(variants: str = "") -> ConfigDict:
    """Return the SODA-A experiment, adapted to own data."""
    config = sodaa.get_config()
    coco.leave_open(config)
    config.update_from_flattened_dict(OWN_DATA)
    for variant in variants.split(","):
        config.update_from_flattened_dict(sodad.choose(VARIANTS, variant))
    return config
