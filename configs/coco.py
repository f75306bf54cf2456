"""CFINet on your own pictures with upright boxes: a YOLO folder, or COCO's JSON files and their images.

Command:   python -m cfinet_jax.main --config=configs/coco.py --workdir=runs/NAME --config.dataset.name=NAME
               --config.dataset.source=FOLDER --config.training.pretrained=resnet50.npz
Oriented:  configs/oriented.py
Advice:    the same with --mode=analyse: what the data look like, and which settings to change
Variants:  released, faster_rcnn   as in sodad.py
           mmdetection             Faster R-CNN R-50-FPN as mmdetection publishes it for COCO: detect, or train further
           cpu                     thinner and shorter, for two cores; combine by commas: coco.py:released,cpu
           small                   the detector of scenes.py: from scratch, or from a run of scenes.py
Hardware:  one accelerator; `cpu` and `small` two cores and 6 GiB
Measured:  docs/results.md
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import scenes, sodad

OWN_DATA = {
    "dataset.name": "coco",
    "dataset.paint_regions": False,
    "detector.backbone.stride_style": "caffe",
    "optimizer.warmup_images": 800,
    "optimizer.decay_images": (8 * 620, 11 * 620),
    "training.images": 12 * 620,
    "training.checkpoint_every_images": 1240,
    "evaluation.protocol": "coco",
    "evaluation.every_images": 1240,
    "prediction.overlap": 64,
}
CPU = scenes.THIN | {
    "dataset.batch_size": 2,
    "detector.backbone.frozen_stages": 2,
    "detector.roi_head.samples": 128,
    "detector.imitation.samples": 64,
    "detector.imitation.min_predictions": 4,  # half of the paper's, as the RoI samples are
    "detector.imitation.slots": 64,
    "optimizer.learning_rate": 0.02,
    "optimizer.warmup_images": 100,
    # Small batches are noisy: the rate falls early, in small steps.
    "optimizer.decay_images": (600, 1500, 2100),
    "optimizer.decay_factor": 0.3,
    "optimizer.clip_norm": 40.0,
    "training.images": 2400,
    "training.log_every_images": 4,
    "training.checkpoint_every_images": 800,
    "evaluation.every_images": 800,
}
SMALL = (
    CPU
    | scenes.BACKBONE
    | {
        "optimizer.decay_images": (200, 500, 700),
        "training.images": 800,
        "training.checkpoint_every_images": 400,
        "evaluation.every_images": 400,
    }
)
MMDETECTION = sodad.FASTER_RCNN | {
    "dataset.image_size": (800, 1333),
    "detector.backbone.stride_style": "pytorch",
    "detector.proposal_network.rpn.anchor_scale": 8.0,
    "detector.roi_head.max_grid": 8,  # objects as large as the picture
    "detector.roi_head.max_detections": 100,
}
VARIANTS = {
    "": {},
    "released": sodad.RELEASED,
    "faster_rcnn": sodad.FASTER_RCNN,
    "mmdetection": MMDETECTION,
    "cpu": CPU,
    "small": SMALL,
}


def get_config(variants: str = "") -> ConfigDict:
    """Return the paper's experiment, adapted to own data."""
    config = sodad.get_config()
    leave_open(config)
    config.update_from_flattened_dict(OWN_DATA)
    for variant in variants.split(","):
        config.update_from_flattened_dict(sodad.choose(VARIANTS, variant))
    return config


def leave_open(config: ConfigDict) -> None:
    """Leave sizes open, so that they are taken from the data; pictures are neither scaled nor cut."""
    # None, and a new one for every config.
    config.dataset.image_size = placeholder(tuple)
    config.dataset.window_overlap = placeholder(int)
    config.dataset.stored_size = placeholder(tuple)
    config.dataset.max_objects = placeholder(int)
