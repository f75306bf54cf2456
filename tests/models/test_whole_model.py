"""The whole network against the released code: its weights, its picture; then its detections, its losses."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.detector import build_detector
from cfinet_jax.structures import Batch, ExemplarMemory, Priorities
from cfinet_jax.train_state import empty_batch
from cfinet_jax.train_step import add_images, mean
from configs.sodad import get_config

CLASSES, CHANNELS = 9, 64
MEAN, STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))
PARTS = {
    "proposal_network/coarse_conv": "rpn_head.stages.0.rpn_conv.conv",
    "proposal_network/coarse_box": "rpn_head.stages.0.rpn_reg",
    "proposal_network/fine_conv": "rpn_head.stages.1.rpn_conv.conv",
    "proposal_network/fine_objectness": "rpn_head.stages.1.rpn_cls",
    "proposal_network/fine_box": "rpn_head.stages.1.rpn_reg",
    "roi_head/hidden1": "roi_head.bbox_head.shared_fcs.0",
    "roi_head/hidden2": "roi_head.bbox_head.shared_fcs.1",
    "roi_head/classify": "roi_head.bbox_head.fc_cls",
    "roi_head/regress": "roi_head.bbox_head.fc_reg",
    "imitation/encode1": "roi_head.fc_enc.0",
    "imitation/encode2": "roi_head.fc_enc.1",
    "imitation/project": "roi_head.fc_proj",
    **{f"neck/lateral{level}": f"neck.lateral_convs.{level - 2}.conv" for level in range(2, 6)},
    **{f"neck/output{level}": f"neck.fpn_convs.{level - 2}.conv" for level in range(2, 6)},
    **{f"imitation/compressions_{k}/norm": f"roi_head.comp_convs.{k}.gn" for k in range(3)},
    **{f"imitation/compressions_{k}": f"roi_head.comp_convs.{k}.conv" for k in range(3)},
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def reduced(**imitation):
    """The reduced network of the golden files, as the released code behaves."""
    settings = get_config("released").detector
    settings.precision = "float32"
    settings.backbone.width = 8
    settings.neck.channels = settings.proposal_network.coarse_to_fine.channels = CHANNELS
    settings.roi_head.update(hidden=32, max_grid=12)  # the longest box of 320 pixels takes 12 samples a bin
    settings.imitation.update(groups=8, encoder=48, embedding=32, **imitation)
    return build_detector(settings, CLASSES)


def official_name(path: str) -> str:
    """`backbone/layer1_0/downsample_bn/scale` as the released code calls it."""
    part, leaf = path.rsplit("/", 1)
    if part.startswith("backbone/"):
        name = part.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
        stage, *rest = name.split("/")[1:]
        return ".".join(["backbone", stage.replace("_", "."), *rest, LEAVES[leaf]])
    return f"{PARTS[part]}.{LEAVES[leaf]}"


def official_variables(detector, weights: dict[str, np.ndarray]):
    """The variables of a detector, read from the state of the released code."""

    def create(key):
        batch = empty_batch(1, (64, 64), 4)
        priorities = detector.draw_priorities(key, batch.index, (64, 64), 4)
        return detector.init(key, batch, detector.empty_memory(), priorities, method="losses")

    def load(path, leaf):
        name = official_name("/".join(entry.key for entry in path[1:]))
        array = np.asarray(weights[name])
        if name.endswith("shared_fcs.0.weight"):  # its inputs are in the order channel, row, column
            array = array.reshape(-1, CHANNELS, 7, 7).transpose(2, 3, 1, 0).reshape(leaf.shape)
        elif array.ndim > 1:
            array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
        assert array.shape == leaf.shape, name
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(load, jax.eval_shape(create, jax.random.key(0)))


def test_detections(golden):
    expected = golden("model_trained_eval_256x320")
    rounding = json.loads((Path(__file__).parents[1] / "golden/model_trained_eval_256x320_rounding.json").read_text())
    detector = reduced()
    variables = official_variables(detector, golden("model_trained_weights"))
    batch = empty_batch(1, (256, 320), 4)
    batch = dataclasses.replace(batch, images=jnp.asarray((expected["img_u8"][None] - MEAN) / STD))

    def stages(model):
        pyramid = model.pyramid(batch.images)
        outputs = model.proposal_network(pyramid, batch.sizes)
        proposals = model.proposal_network.choose(outputs, batch.sizes, "test")
        return pyramid, proposals, model.detect(batch)

    pyramid, proposals, found = jax.jit(lambda variables: detector.apply(variables, method=stages))(variables)
    found_rows = np.concatenate([found.boxes[0], found.scores[0][:, None]], 1)[np.asarray(found.valid[0])]
    for name, ours in {
        "fpn_l2": np.asarray(pyramid[2][0]).transpose(2, 0, 1),
        "proposals": np.concatenate([proposals.boxes[0], proposals.scores[0][:, None]], 1),
        "det": found_rows,
    }.items():
        np.testing.assert_allclose(ours, expected[name], rtol=0, atol=10 * rounding[name], err_msg=name)
    np.testing.assert_array_equal(found.labels[0][found.valid[0]], expected["det_labels"])


def first_win(priorities: Priorities) -> Priorities:
    """Priorities with which every draw takes the first candidates in index order."""
    return jax.tree.map(lambda x: jnp.broadcast_to(1 - jnp.arange(x.shape[-1]) / x.shape[-1], x.shape), priorities)


def training_case(golden, detector) -> tuple[dict, Batch, ExemplarMemory, Priorities]:
    """The two pictures of `train_random_quality`, the queue before them, and pinned draws."""
    case = golden("train_random_quality")
    counts = case["gt_count"]
    batch = empty_batch(2, (256, 256), int(counts.max()))
    boxes, labels, valid = (np.array(getattr(batch.ground_truth, name)) for name in ("boxes", "labels", "valid"))
    for image, rows in enumerate(np.split(np.arange(counts.sum()), [counts[0]])):
        boxes[image, : len(rows)], labels[image, : len(rows)] = case["gt"][rows], case["gt_labels"][rows]
        valid[image, : len(rows)] = True
    truth = dataclasses.replace(batch.ground_truth, boxes=boxes, labels=labels, valid=valid)
    images = (case["imgs_u8"] - MEAN) / STD
    batch = dataclasses.replace(
        batch, images=jnp.asarray(images), scales=jnp.full(2, 1.5), ground_truth=jax.tree.map(jnp.asarray, truth)
    )
    memory = jax.tree.map(np.array, detector.empty_memory())
    for label, features in zip(case["queue_labels"], case["queue_feats"], strict=True):
        memory.features[label, memory.size[label]] = features.transpose(1, 2, 0)
        memory.size[label] += 1
    priorities = detector.draw_priorities(jax.random.key(0), batch.index, (256, 256), int(counts.max()))
    return case, batch, jax.tree.map(jnp.asarray, memory), first_win(priorities)


def test_losses_and_gradients(golden):
    detector = reduced(min_score=0.01, high_quality=0.10, low_quality=0.05, min_predictions=2)
    variables = official_variables(detector, golden("model_random_weights"))
    case, batch, memory, priorities = training_case(golden, detector)

    def total(params):
        losses, _, _ = detector.apply({**variables, "params": params}, batch, memory, priorities, method="losses")
        means = {name: mean(term) for name, term in add_images(losses).items()}
        return sum(means.values()), means

    gradients, losses = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    for ours, theirs in {
        "proposals/coarse_box": "s0.loss_rpn_reg",
        "proposals/objectness": "s1.loss_rpn_cls",
        "proposals/box": "s1.loss_rpn_reg",
        "roi/class": "loss_cls",
        "roi/box": "loss_bbox",
        "imitation/contrast": "loss_con",
    }.items():
        assert float(losses[ours]) == pytest.approx(float(case[f"step0.{theirs}"].sum()), rel=1e-5), ours
    for ours, theirs in {
        ("proposal_network", "coarse_box", "bias"): "rpn_head.stages.0.rpn_reg.bias",
        ("roi_head", "classify", "bias"): "roi_head.bbox_head.fc_cls.bias",
        ("imitation", "project", "bias"): "roi_head.fc_proj.bias",
        ("neck", "output3", "bias"): "neck.fpn_convs.1.conv.bias",
    }.items():
        part, layer, leaf = ours
        expected = case[f"grad/{theirs}"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradients[part][layer][leaf] / scale, expected / scale, rtol=0, atol=1e-4)
