"""Every config can be built, and the numbers of the papers are in the configs that claim them."""

import dataclasses
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from cfinet_jax import optimizer, train_step
from cfinet_jax.config_checks import check_batches, check_values
from cfinet_jax.errors import UserError
from cfinet_jax.input.sizes import augmentation_of, input_shape, with_sizes
from cfinet_jax.models.detector import build_detector
from cfinet_jax.models.feature_imitation import FeatureImitation
from cfinet_jax.models.fpn import FPN
from cfinet_jax.models.proposals import PROPOSAL_NETWORKS
from cfinet_jax.models.resnet import ResNet
from cfinet_jax.models.roi_head import RoiHead
from cfinet_jax.runtime.settings import flatten
from configs import coco, oriented, scenes, sodaa, sodad

EXPERIMENTS = [(module, variant) for module in (sodad, scenes, coco, sodaa, oriented) for variant in module.VARIANTS]
NETWORK = "detector.proposal_network.coarse_to_fine"

# From the paper or, where it says nothing, the released code; an epoch has 58,023 pictures.
PAPER = {
    "dataset.stored_size": (800, 800),
    "dataset.image_size": (1200, 1200),
    "detector.backbone.depth": 50,
    "detector.backbone.stride_style": "pytorch",
    "detector.backbone.frozen_stages": 1,
    "detector.neck.channels": 256,
    "detector.neck.levels": 4,
    f"{NETWORK}.anchor_scale": 2.0,
    f"{NETWORK}.dilation": 3,
    f"{NETWORK}.coarse_stds": (0.1, 0.1, 0.5, 0.5),
    f"{NETWORK}.anchors_per_positive": 200.0,
    f"{NETWORK}.fine_stds": (0.05, 0.05, 0.1, 0.1),
    f"{NETWORK}.objectness_weight": 0.9,
    f"{NETWORK}.box_weight": 9.0,
    f"{NETWORK}.base_size": 12.0,
    f"{NETWORK}.coarse_thresholds.paper": {"base": 0.20, "slope": 0.15, "low": 0.25, "cap": 1.0},
    f"{NETWORK}.positive_overlap": 0.7,
    f"{NETWORK}.negative_overlap": 0.7,
    f"{NETWORK}.min_positive_overlap": 0.3,
    f"{NETWORK}.samples": 256,
    f"{NETWORK}.positive_fraction": 0.5,
    f"{NETWORK}.proposals.max_proposals": 300,
    f"{NETWORK}.proposals.train": {"candidates": 2000, "nms_overlap": 0.8},
    f"{NETWORK}.proposals.test": {"candidates": 1000, "nms_overlap": 0.5},
    "detector.roi_head.pool_size": 7,
    "detector.roi_head.finest_scale": 56.0,
    "detector.roi_head.positive_overlap": 0.5,
    "detector.roi_head.samples": 256,
    "detector.roi_head.positive_fraction": 0.5,
    "detector.roi_head.hidden": 1024,
    "detector.roi_head.stds": (0.1, 0.1, 0.2, 0.2),
    "detector.roi_head.min_score": 0.05,
    "detector.roi_head.nms_overlap": 0.5,
    "detector.roi_head.max_detections": 100,
    "detector.imitation.groups": 32,
    "detector.imitation.encoder": 512,
    "detector.imitation.embedding": 128,
    "detector.imitation.temperature": 0.6,
    "detector.imitation.weight": 0.5,
    "detector.imitation.high_quality": 0.65,
    "detector.imitation.low_quality": 0.25,
    "detector.imitation.min_predictions": 8,
    "detector.imitation.slots": 256,
    "optimizer.learning_rate": 0.01,
    "optimizer.reference_batch": 4,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.warmup_images": 500 * 4,
    "optimizer.warmup_factor": 0.001,
    "optimizer.decay_images": (8 * 58_023, 11 * 58_023),
    "optimizer.decay_factor": 0.1,
    "optimizer.clip_norm": None,
    "dataset.batch_size": 4,
    "dataset.flip": 0.5,
    "dataset.mean": (123.675, 116.28, 103.53),
    "dataset.std": (58.395, 57.12, 57.375),
    "training.images": 12 * 58_023,
    "evaluation.protocol": "soda_d",
}


# From the config of SODA-A's baseline by its authors.
SODAA = {
    "dataset.stored_size": (800, 800),
    "dataset.window_overlap": 150,
    "dataset.image_size": (1200, 1200),
    "dataset.boxes": "oriented",
    "detector.neck.levels": 5,
    "detector.proposal_network.rpn.anchor_scale": 1.0,
    "detector.proposal_network.rpn.aspect_ratios": (0.5, 1.0, 2.0),
    "detector.proposal_network.rpn.stds": (1.0, 1.0, 1.0, 1.0),
    "detector.proposal_network.rpn.box_loss": "smooth_l1",
    "detector.proposal_network.rpn.smooth_beta": 1 / 9,
    "detector.proposal_network.rpn.proposals.max_proposals": 2000,
    "detector.proposal_network.rpn.proposals.train": {"candidates": 2000, "nms_overlap": 0.7},
    "detector.proposal_network.rpn.proposals.test": {"candidates": 2000, "nms_overlap": 0.7},
    "detector.roi_head.name": "rotated",
    "detector.roi_head.stds": (0.1, 0.1, 0.2, 0.2, 0.1),
    "detector.roi_head.smooth_beta": 1.0,
    "detector.roi_head.positive_overlap": 0.5,
    "detector.roi_head.samples": 512,
    "detector.roi_head.positive_fraction": 0.25,
    "detector.roi_head.min_score": 0.05,
    "detector.roi_head.nms_overlap": 0.1,
    "detector.roi_head.max_detections": 2000,
    "optimizer.learning_rate": 0.01,
    "optimizer.warmup_factor": 1 / 3,
    "optimizer.clip_norm": 35.0,
    "prediction.merge_overlap": 0.5,
    "evaluation.protocol": "soda_a",
}


def entry(config: ConfigDict, path: str) -> Any:
    """Return the value at `a.b.c`."""
    for key in path.split("."):
        config = config[key]
    return config.to_dict() if isinstance(config, ConfigDict) else config


@pytest.mark.parametrize(("module", "variant"), EXPERIMENTS, ids=lambda x: getattr(x, "__name__", x or "default"))
def test_every_config_can_be_built(module, variant):
    config = with_sizes(
        module.get_config(variant), stored_size=(512, 640), max_objects=64
    )  # some leave these to the data
    assert config.is_locked
    check_values(config)
    check_batches(config, 1)
    assert augmentation_of(config.dataset) is None
    detector = build_detector(config.detector, 9)
    sgd = optimizer.make_optimizer(config, ())
    shape, objects = input_shape(config.dataset), config.dataset.max_objects
    state = jax.eval_shape(lambda: train_step.create_state(jax.random.key(0), detector, sgd, shape, objects))
    assert {"backbone", "neck", "proposal_network", "roi_head"} <= state.params.keys()
    assert ("imitation" in state.params) == (state.memory is not None) == config.detector.imitation.enabled


@pytest.mark.parametrize("module", [sodad, scenes, coco, sodaa, oriented])
def test_changing_a_config_does_not_change_the_next(module):
    changed, before = module.get_config(), module.get_config().to_json()
    changed.dataset.image_size, changed.optimizer.clip_norm, changed.training.pretrained = (96, 64), 1.5, "other.npz"
    changed.dataset.update(stored_size=(32, 64), max_objects=3, source="folder", annotations="train=a.json")
    changed.detector.proposal_network.coarse_to_fine.coarse_thresholds.paper.base = 0.9
    changed.detector.proposal_network.rpn.proposals.test.candidates = 3
    assert module.get_config().to_json() == before


def test_variants_of_own_data_can_be_combined():
    config = coco.get_config("released,cpu")
    assert config.detector.imitation.reweight and config.detector.neck.channels == 64


@pytest.mark.parametrize("module", [sodad, scenes, coco, sodaa, oriented])
def test_a_misspelt_variant_or_key_is_named(module, monkeypatch):
    with pytest.raises(UserError, match="'relased': choose one of released, (rotated_)?faster_rcnn"):
        module.get_config("relased")
    monkeypatch.setitem(module.VARIANTS, "mine", {"training.imagse": 3})
    with pytest.raises(KeyError, match="imagse"):
        module.get_config("mine")


def test_the_presets_differ_in_six_choices():
    paper, released = (flatten(sodad.get_config(variant).to_dict()) for variant in ("", "released"))
    assert {key: (paper[key], released[key]) for key in paper if paper[key] != released[key]} == {
        f"{NETWORK}.coarse_threshold": ("paper", "released"),
        "detector.imitation.quality": ("paper", "released"),
        "detector.imitation.negatives": ("paper", "image"),
        "detector.imitation.quality_weights": ((1.0, 1.0, 1.0), (0.5, 0.1, 0.05)),
        "detector.imitation.reweight": (False, True),
        "detector.imitation.contrast": ("eq6", "means"),
    }
    assert paper.keys() == released.keys()


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("rpn_0.5", "rpn.positive_overlap", 0.5),
        ("cascade", "name", "cascade"),
        ("guided_anchor", "name", "guided_anchor"),
    ],
)
def test_proposal_networks_are_compared_on_one_detector(variant, key, value):
    """The variants of Table 4 differ from the baseline in nothing else."""
    changed = sodad.get_config("faster_rcnn")
    changed.update_from_flattened_dict({f"detector.proposal_network.{key}": value})
    assert sodad.get_config(variant) == changed


@pytest.mark.parametrize(("batch", "chips"), [(64, 16), (64, 64), (256, 256)])
def test_a_pod_trains_on_as_many_images_at_a_higher_rate(batch, chips):
    config, paper = sodad.get_config("pod"), sodad.get_config()
    config.dataset.batch_size = batch
    check_batches(config, chips)
    assert config.detector == paper.detector and config.training.images == paper.training.images
    rate = optimizer.learning_rate(config)
    assert rate(32_000 // batch) == pytest.approx(0.01 * batch / 4)
    assert rate(0) == pytest.approx(0.01 * batch / 4 * 0.001, rel=1e-4)


def test_the_configs_hold_the_numbers_of_the_papers():
    for config, numbers in ((sodad.get_config(), PAPER), (sodaa.get_config("rotated_faster_rcnn"), SODAA)):
        assert {path: entry(config, path) for path in numbers} == numbers


def test_oriented_rcnn_has_oriented_proposals():
    section = sodaa.get_config("oriented_rcnn").detector.proposal_network.oriented_rpn
    assert section.stds == (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)
    assert {section.proposals[phase].nms_overlap for phase in ("train", "test")} == {0.8}


def test_only_oriented_experiments_have_keys_for_them():
    """Apart from these keys and the values that differ, it is the experiment on SODA-D."""
    ours, others = (flatten(module.get_config().to_dict()) for module in (sodaa, sodad))
    added = {key for key in ours.keys() - others.keys() if "oriented_rpn" not in key}
    assert added == {f"{NETWORK}.size_of", "detector.proposal_network.rpn.smooth_beta", "detector.roi_head.smooth_beta"}
    assert others.keys() <= ours.keys()


def test_the_embedding_has_a_twentieth_of_the_learning_rate():
    assert sodad.get_config().optimizer.rate_multipliers.to_dict() == {
        "imitation/encode": 0.05,
        "imitation/project": 0.05,
    }


@pytest.mark.parametrize("part", [ResNet, FPN, RoiHead, FeatureImitation, *PROPOSAL_NETWORKS.values()])
def test_parts_have_no_default_values(part):
    own = [field for field in dataclasses.fields(part) if field.name not in ("parent", "name")]
    assert own
    for field in own:
        assert field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING, field.name
