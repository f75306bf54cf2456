"""The embedded default: CFINet on generated scenes, from scratch, in minutes on a laptop.

Command:   ./run.sh    (or python -m cfinet_jax.main --config=configs/scenes.py --workdir=runs/scenes)
Variants:  scenes.py:released      the released code's choices
           scenes.py:faster_rcnn   the baseline on the same scenes
Hardware:  two CPU cores
Measured:  docs/results.md
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import sodad

BACKBONE = {
    "detector.backbone.depth": 18,
    "detector.backbone.width": 32,
    "detector.backbone.stride_style": "pytorch",
    "detector.backbone.frozen_stages": -1,
    "detector.backbone.last_norm_scale": 0.3,
}
NETWORKS = [f"detector.proposal_network.{name}" for name in ("coarse_to_fine", "rpn", "cascade", "guided_anchor")]
THIN = {
    **{f"{network}.channels": 64 for network in NETWORKS},
    "detector.precision": "float32",
    "detector.neck.channels": 64,
    "detector.roi_head.max_grid": 2,
    "detector.roi_head.hidden": 256,
    "detector.imitation.groups": 8,
    "detector.imitation.encoder": 128,
    "detector.imitation.embedding": 64,
    "detector.imitation.initial_std": 0.1,  # with 0.01 the biases outgrow what so few channels carry: all embed alike
    "detector.imitation.max_exemplars": 4,
}
SMALLER = {
    "dataset.name": "scenes",
    "dataset.eval_split": "test",
    "dataset.stored_size": (320, 320),
    "dataset.paint_regions": False,
    "dataset.max_objects": 32,
    "dataset.batch_size": 2,
    "dataset.eval_batch_size": 8,
    **{f"{network}.samples": 128 for network in NETWORKS},
    **{f"{network}.proposals.max_proposals": 100 for network in NETWORKS},
    **{f"{network}.proposals.{phase}.candidates": 500 for network in NETWORKS for phase in ("train", "test")},
    "detector.roi_head.samples": 64,
    "detector.imitation.samples": 32,
    "detector.imitation.min_predictions": 2,  # a quarter of the paper's, as the RoI samples are
    "detector.imitation.slots": 32,
    "optimizer.learning_rate": 0.02,
    "optimizer.warmup_images": 400,
    "optimizer.decay_images": (2300, 2900),
    "optimizer.clip_norm": 20.0,
    "training.images": 3200,
    "training.log_every_images": 40,
    "training.checkpoint_every_images": 1600,
    "evaluation.protocol": "coco",
    "evaluation.every_images": 1600,
    "prediction.overlap": 64,
}
FASTER_RCNN = sodad.FASTER_RCNN | {"detector.roi_head.samples": 64, "detector.roi_head.max_detections": 100}
VARIANTS = {"": {}, "released": sodad.RELEASED, "faster_rcnn": FASTER_RCNN}


def get_config(variant: str = "") -> ConfigDict:
    """Return the paper's experiment, made small."""
    config = sodad.get_config()
    # None, and a new one for every config: pictures are neither scaled nor cut.
    config.dataset.image_size = placeholder(tuple)
    config.dataset.window_overlap = placeholder(int)
    config.update_from_flattened_dict(BACKBONE | THIN | SMALLER)
    config.update_from_flattened_dict(sodad.choose(VARIANTS, variant))
    return config
