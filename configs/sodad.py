"""CFINet on SODA-D, as the paper trains it; `sodad.py:released` follows the released code.

Data:      python data/prepare.py sodad --source=SODA-D --data_dir=prepared
           (--windows also cuts the training windows, which --config.dataset.train_split=train_windows reads)
Command:   python -m cfinet_jax.main --config=configs/sodad.py --workdir=runs/sodad
               --config.training.pretrained=resnet50.npz
Variants:  sodad.py:released      the six choices in which paper and released code differ
           sodad.py:faster_rcnn   the baseline: RPN with three anchors on P2-P6, no imitation
           sodad.py:rpn_0.5       the baseline with anchors positive from an IoU of 0.5 (Table 4)
           sodad.py:cascade       the baseline with Cascade RPN (Tables 1, 2 and 4)
           sodad.py:guided_anchor the baseline with GA-RPN (Table 4)
           sodad.py:pod           64 images a step, windows cut beforehand (--windows), for 1 to 64 TPU chips; for 256
                                  add --config.dataset.batch_size=256
Hardware:  one RTX 3090 in the paper (batch 4, 12 epochs)
Target AP: 30.7 (`released`; SODA-D test, Table 2), 28.9 for the baseline
Measured:  never run here
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cfinet_jax.errors import UserError

RELEASED = {
    "detector.proposal_network.coarse_to_fine.coarse_threshold": "released",
    "detector.imitation.quality": "released",
    "detector.imitation.negatives": "image",
    "detector.imitation.quality_weights": (0.5, 0.1, 0.05),
    "detector.imitation.reweight": True,
    "detector.imitation.contrast": "means",
}

FASTER_RCNN = {
    "detector.proposal_network.name": "rpn",
    "detector.imitation.enabled": False,
    "detector.neck.levels": 5,
    "detector.roi_head.samples": 512,
    "detector.roi_head.positive_fraction": 0.25,
    "detector.roi_head.max_detections": 200,
}

RPN_HALF = FASTER_RCNN | {"detector.proposal_network.rpn.positive_overlap": 0.5}
CASCADE = FASTER_RCNN | {"detector.proposal_network.name": "cascade"}
GUIDED_ANCHOR = FASTER_RCNN | {"detector.proposal_network.name": "guided_anchor"}

POD = {
    "dataset.train_split": "train_windows",
    "dataset.batch_size": 64,
    "dataset.eval_batch_size": 256,
    "optimizer.warmup_images": 500 * 64,  # as many steps as with a batch of 4, up to a rate 16 times as high
    "training.log_every_images": 50 * 64,
    "training.checkpoint_every_images": 58_023,
}

VARIANTS = {
    "": {},
    "released": RELEASED,
    "faster_rcnn": FASTER_RCNN,
    "rpn_0.5": RPN_HALF,
    "cascade": CASCADE,
    "guided_anchor": GUIDED_ANCHOR,
    "pod": POD,
}


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment; its sections have the order of the flow."""
    config = ConfigDict()
    config.seed = 0

    config.dataset = ConfigDict(
        {
            "name": "sodad",
            "data_dir": "prepared",
            "source": placeholder(str),  # a folder from which the data set is prepared when it is first opened
            "annotations": placeholder(str),  # its files, if not found by name: "train=a.json,images val=b.json,images"
            "boxes": "horizontal",  # or "oriented": the kind of boxes in the data set
            "train_split": "train",
            "eval_split": "val",
            "stored_size": (800, 800),  # height, width: the host pads every picture or window to it
            "window_overlap": 150,  # pictures are cut into windows of stored_size that share these pixels; None: uncut
            "paint_regions": True,  # ignore regions become black, except where an object is
            "mixed_pictures": 16,  # the windows of this many pictures in turn are shuffled together
            "grey_range": placeholder(tuple),  # (black, white) of pictures of more than 8 bits; None: as prepared
            "image_size": (1200, 1200),  # the picture is scaled to fit, then padded to a multiple of 32
            "max_objects": 256,
            "batch_size": 4,
            "eval_batch_size": 4,
            "flip": 0.5,  # probability of a mirror image, left to right
            # How else training sees a picture: all off. Evaluation and prediction always see the whole of it.
            "vertical_flip": 0.0,  # probability of a mirror image, top to bottom: for pictures taken from above
            "quarter_turns": 0.0,  # probability of a turn by 90, 180 or 270 degrees; 0.75 makes all four ways alike
            "train_size": placeholder(tuple),  # height, width of the crop that is seen; None: the whole input
            "scale_jitter": (1.0, 1.0),  # range of a factor of the picture's scale, log-uniform; cropped or padded
            "crop_at_object": 0.5,  # probability that a crop holds an object; else it is anywhere in the picture
            "colour_jitter": 0.0,  # saturation, contrast, brightness are multiplied by up to 1 +- this
            "invert": 0.0,  # probability of the negative: for thermal pictures, where night and day exchange greys
            "mean": (123.675, 116.28, 103.53),
            "std": (58.395, 57.12, 57.375),
            "read_threads": 4,
        }
    )

    config.detector = ConfigDict(
        {
            "precision": "bfloat16",
            # Similarities of boxes. Constants are in stored pixels; these are the published ones, of AI-TOD.
            "similarities": {
                "iou": {},
                "nwd": {"constant": 12.7},  # mean side of the objects
                "dotd": {"mean_side": 12.7},  # root of their mean area
                "kl": {},
                "wasserstein": {"unit": 1.0},  # network pixels in the released code
            },
            # Rules that decide which anchors learn to be which object; the `assigner` of a proposal network names one.
            "assigners": {
                "max_iou": {"rule": "threshold", "similarity": "iou"},
                "nwd": {"rule": "threshold", "similarity": "nwd"},
                "dotd": {"rule": "threshold", "similarity": "dotd"},
                "rka": {"rule": "ranking", "similarity": "nwd", "most": 2, "negative": 0.3},
                "rfla": {
                    "rule": "receptive_field",
                    "similarity": "kl",
                    "receptive_fields": (35.0, 91.0, 267.0, 427.0, 555.0),  # of P2-P6 of ResNet-50, in network pixels
                    "effective": 0.5,  # share of it that a feature really sees: side of a prior
                    "most": (3, 1),
                    "shrink": 0.9,
                    "negative": 0.8,
                },
            },
            "ignore_overlap": 0.5,  # an anchor or RoI with a larger share inside an ignore region is ignored
            "backbone": {
                "depth": 50,
                "width": 64,
                "stride_style": "pytorch",
                "frozen_stages": 1,
                "last_norm_scale": 1.0,  # 0.3 to train from scratch
            },
            "neck": {"channels": 256, "levels": 4},
            "proposal_network": {
                "name": "coarse_to_fine",
                "coarse_to_fine": {
                    "channels": 256,
                    "anchor_scale": 2.0,
                    "dilation": 3,
                    "coarse_stds": (0.1, 0.1, 0.5, 0.5),
                    "fine_stds": (0.05, 0.05, 0.1, 0.1),
                    "coarse_threshold": "paper",
                    # IoU from which an anchor is positive for an object of s stored pixels:
                    # clip(base + slope log2(s / base_size), low, cap)
                    "coarse_thresholds": {
                        "paper": {"base": 0.20, "slope": 0.15, "low": 0.25, "cap": 1.0},
                        "released": {"base": 0.25, "slope": 0.15, "low": 0.20, "cap": 0.25},
                        "literal": {"base": 0.25, "slope": 0.15, "low": 0.20, "cap": 0.70},
                        "fixed": {"base": 0.20, "slope": 0.0, "low": 0.0, "cap": 1.0},
                    },
                    "base_size": 12.0,
                    "anchors_per_positive": 200.0,
                    "assigner": "max_iou",
                    "positive_overlap": 0.7,
                    "negative_overlap": 0.7,
                    "min_positive_overlap": 0.3,
                    "samples": 256,
                    "positive_fraction": 0.5,
                    "objectness_weight": 0.9,
                    "box_loss": "iou",
                    "box_weight": 9.0,
                    "proposals": {
                        "max_proposals": 300,
                        "nms_similarity": "iou",  # measure of nms_overlap; with nwd, 0.85 is published
                        "train": {"candidates": 2000, "nms_overlap": 0.8},
                        "test": {"candidates": 1000, "nms_overlap": 0.5},
                    },
                },
                "cascade": {
                    "channels": 256,
                    "anchor_scale": 2.0,
                    "dilation": 3,
                    "coarse_stds": (0.1, 0.1, 0.5, 0.5),
                    "fine_stds": (0.05, 0.05, 0.1, 0.1),
                    "centre_ratio": 0.2,  # share of an object's sides: the coarse stage learns there (Table 1: .5, .8)
                    "ignore_ratio": 0.5,  # larger share, where it overrides earlier objects; also 0.8, 1.0
                    "anchors_per_positive": 200.0,
                    "assigner": "max_iou",
                    "positive_overlap": 0.7,
                    "negative_overlap": 0.7,
                    "min_positive_overlap": 0.3,
                    "samples": 256,
                    "positive_fraction": 0.5,
                    "objectness_weight": 0.7,
                    "box_loss": "iou",
                    "box_weight": 7.0,
                    "proposals": {
                        "max_proposals": 300,
                        "nms_similarity": "iou",
                        "train": {"candidates": 1000, "nms_overlap": 0.8},  # as in testing
                        "test": {"candidates": 1000, "nms_overlap": 0.8},
                    },
                },
                "guided_anchor": {
                    "channels": 256,
                    "anchor_scale": 2.0,
                    "scales_per_octave": 3,  # with the ratios: boxes that represent the shapes that an anchor can take
                    "aspect_ratios": (0.5, 1.0, 2.0),
                    "offset_groups": 4,  # parts of the channels, each with its own offsets
                    "shape_stds": (0.14, 0.14),
                    "stds": (0.07, 0.07, 0.11, 0.11),
                    "centre_ratio": 0.2,  # share of an object's sides: the middle, where it is located
                    "ignore_ratio": 0.5,  # share around it, also on the next levels, where nothing is learnt
                    "location_prior": 0.01,  # initial probability of a middle
                    "focal_gamma": 2.0,
                    "focal_alpha": 0.25,
                    "background_weight": 0.1,  # of a cell outside objects in the location loss
                    "anchors_per_positive": 200.0,
                    "bounded_beta": 0.2,
                    "smooth_beta": 1.0,  # where smooth L1 turns from quadratic to linear
                    "assigner": "max_iou",  # of the guided anchors; shapes always use IoU
                    "positive_overlap": 0.7,
                    "negative_overlap": 0.3,
                    "min_positive_overlap": 0.3,
                    "samples": 256,
                    "positive_fraction": 0.5,
                    "location_weight": 1.0,
                    "shape_weight": 1.0,
                    "objectness_weight": 1.0,
                    "box_loss": "smooth_l1",
                    "box_weight": 1.0,
                    "proposals": {
                        "max_proposals": 300,
                        "nms_similarity": "iou",
                        "train": {"candidates": 2000, "nms_overlap": 0.7, "min_location": 0.0},
                        "test": {"candidates": 1000, "nms_overlap": 0.7, "min_location": 0.01},
                    },
                },
                "rpn": {
                    "channels": 256,
                    "anchor_scale": 2.0,
                    "aspect_ratios": (0.5, 1.0, 2.0),
                    "stds": (1.0, 1.0, 1.0, 1.0),
                    "assigner": "max_iou",
                    "positive_overlap": 0.7,
                    "negative_overlap": 0.3,
                    "min_positive_overlap": 0.3,
                    "samples": 256,
                    "positive_fraction": 0.5,
                    "objectness_weight": 1.0,
                    "box_loss": "l1",
                    "box_weight": 1.0,
                    "proposals": {
                        "max_proposals": 1000,
                        "nms_similarity": "iou",
                        "train": {"candidates": 2000, "nms_overlap": 0.7},
                        "test": {"candidates": 1000, "nms_overlap": 0.7},
                    },
                },
            },
            "roi_head": {
                "name": "horizontal",
                "pool_size": 7,
                "finest_scale": 56.0,
                "max_grid": 4,
                "hidden": 1024,
                "stds": (0.1, 0.1, 0.2, 0.2),
                "positive_overlap": 0.5,
                "samples": 256,
                "positive_fraction": 0.5,
                "class_weight": 1.0,
                "box_weight": 1.0,
                "min_score": 0.05,
                "nms_overlap": 0.5,
                "max_detections": 100,
            },
            "imitation": {
                "enabled": True,
                "quality": "paper",
                "negatives": "paper",
                "quality_weights": (1.0, 1.0, 1.0),
                "reweight": False,
                "contrast": "eq6",
                "groups": 32,
                "encoder": 512,
                "embedding": 128,
                "initial_std": 0.01,  # of encoder and projection weights; thinner layers need more
                "temperature": 0.6,
                "weight": 0.5,
                "features_gradient": True,  # False: imitation teaches its own layers alone, not what it is fed with
                "high_quality": 0.65,
                "high_quality_quantile": placeholder(float),  # of recent qualities; then high_quality is but the start
                "low_quality": 0.25,
                "min_score": 0.05,
                "min_predictions": 8,  # a high quality that rests on fewer makes no exemplar
                "min_exemplars": 0,  # of its class in the memory, before an object learns
                "samples": 128,
                "positive_fractions": (0.5, 0.25),  # for objects of low and of middling quality
                "shifts": (0.3, 0.5),
                "rescales": (0.97, 1.03),
                "slots": 256,
                "max_exemplars": 16,  # per image and step
                "max_class_exemplars": 16,  # per class and step, over all devices
            },
        }
    )

    config.optimizer = ConfigDict(
        {
            "name": "sgd",  # or "adamw", which wants a learning rate of about 1e-3
            "learning_rate": 0.01,
            "reference_batch": 4,  # the rate is scaled by batch_size / reference_batch
            "momentum": 0.9,
            "second_momentum": 0.999,  # of "adamw": decay of the mean square of the gradients
            "weight_decay": 1e-4,
            "warmup_images": 500 * 4,
            "warmup_factor": 0.001,
            "schedule": "steps",  # after the warm-up: "steps" or "cosine", half a wave that ends at training.images
            "decay_images": (8 * 58_023, 11 * 58_023),  # of "steps"
            "decay_factor": 0.1,  # of "steps", at each of them
            "final_factor": 0.01,  # of "cosine": the last rate, as a share of the first
            "clip_norm": placeholder(float),
            "rate_multipliers": {"imitation/encode": 0.05, "imitation/project": 0.05},
        }
    )

    config.training = ConfigDict(
        {
            "images": 12 * 58_023,
            "micro_batches": 1,
            "pretrained": placeholder(str),  # path or URL of a backbone or a whole detector, or the workdir of a run
            "pretrained_parts": (),  # such as ("backbone", "neck"): take only these; (): all
            "pretrained_partial": False,  # of a file, too, load only the arrays that fit, and list the others
            "average_decay": placeholder(
                float
            ),  # share of the moving average of parameters left after an image; None: off
            "on_nonfinite": "stop",
            "log_every_images": 200,
            "checkpoint_every_images": 8_000,
            "keep_checkpoints": 2,
        }
    )

    config.evaluation = ConfigDict(
        {
            "protocol": "soda_d",
            "every_images": 12 * 58_023,
            "proposals": True,  # score proposals too: recall, and number per object
            "overlays": 9,  # pictures in the report: a third each of the best, typical and worst images
            "overlay_min_score": 0.3,  # of what the report draws and counts as mistakes
        }
    )
    config.prediction = ConfigDict(
        {
            "overlap": 150,  # pixels that neighbouring windows of `stored_size` share; objects as large are seen whole
            # Every window is seen so, and what is found is merged: plain, flip, vertical, scale:1.5, flip:1.5, ...
            "views": ("plain",),
            "merge_overlap": 0.5,  # IoU above which only the better of two detections of a class is kept
            "min_score": 0.3,  # of what is drawn and counted
        }
    )
    config.lock()  # a misspelt key of a variant is an error from here on
    config.update_from_flattened_dict(choose(VARIANTS, variant))
    return config


def choose(variants: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the changed entries of a variant. Raises `UserError` if there is no such variant."""
    if name not in variants:
        raise UserError(f"There is no variant {name!r}: choose one of {', '.join(filter(None, variants))}, or none.")
    return variants[name]
