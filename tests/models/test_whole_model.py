"""The whole network against the released code: its weights, its picture, and everything it makes of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.detector import Detector
from cfinet_jax.ops.deformable import tap_points
from cfinet_jax.structures import Detections, Proposals
from tests import official

STRIDES = (4, 8, 16, 32)
INPUTS = {"img_u8", "img_shape", "pad_shape", "scale_factor", "fixed_rois", "gt", "gt_labels"}
INPUT_PREFIXES = ("check/", "rpn_head.", "roi_head.")
TAPS = np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1), indexing="ij"), -1).reshape(9, 1, 2)  # (row, column)


@functools.cache
def observer(name: str):
    """`detect` of the network `reduced` or `full`, jitted, with what its parts return on the way."""
    detector: Detector = {"reduced": official.reduced, "full": official.full}[name]()

    @jax.jit
    def observe(variables, batch, fixed):
        (found, proposals), seen = detector.apply(
            variables,
            batch,
            method="detect",
            mutable=["intermediates"],
            capture_intermediates=lambda module, method: method == "__call__",
        )
        seen = seen["intermediates"]
        network = seen["proposal_network"]
        pyramid, outputs = seen["neck"]["__call__"][0], network["__call__"][0]

        def others(model):
            pooled, weighted = model.regions(pyramid, fixed)
            return {
                "pooled": pooled,
                "compressed": model.imitation.compress(pooled),
                "weighted": weighted,
                "of_fixed": model.roi_head(weighted),
                "train_proposals": model.proposal_network.choose(outputs, batch.sizes, batch.scales, "train"),
            }

        return detector.apply(variables, method=others) | {
            "backbone": seen["backbone"]["__call__"][0],
            "pyramid": pyramid,
            "outputs": outputs,
            "coarse": jax.tree.map(jax.nn.relu, network["coarse_conv"]["__call__"]),
            "fine": jax.tree.map(jax.nn.relu, network["fine_conv"]["__call__"]),
            "proposals": proposals,
            "predictions": seen["roi_head"]["__call__"][0],
            "found": found,
        }

    return detector, observe


@functools.cache
def variables(weights: str, model: str):
    """The variables of a network; its weights are random, trained or by the formula."""
    loaded = official.formula_weights() if weights == "formula" else official.arrays(f"model_{weights}_weights")
    return official.official_variables(observer(model)[0], loaded)


def image(x: np.ndarray) -> np.ndarray:
    """Our map as theirs: channels first."""
    return np.moveaxis(x[0], -1, 0)


def as_map(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Numbers per anchor as the map they come from."""
    return x[0].reshape(height, width, -1).transpose(2, 0, 1)


def rows(boxes: Proposals | Detections) -> np.ndarray:
    """Real boxes with their scores."""
    return np.c_[boxes.boxes[0], boxes.scores[0]][boxes.valid[0]]


def observations(case: dict[str, np.ndarray], weights: str, model: str) -> dict[str, np.ndarray]:
    """Apply the network to the picture of a golden file; names and shapes are those of the file."""
    fixed = jnp.asarray(case["fixed_rois"][None, :, 1:])
    seen = jax.device_get(observer(model)[1](variables(weights, model), official.picture(case), fixed))
    ours = {f"c{level + 2}": image(x) for level, x in enumerate(seen["backbone"])}
    for level, (features, anchors, coarse_deltas, boxes, logits, deltas) in enumerate(
        zip(seen["pyramid"], *seen["outputs"], strict=True)
    ):
        size = features.shape[1:3]
        cells = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2)
        offsets = np.asarray(tap_points(jnp.asarray(boxes[0]), STRIDES[level])) - cells - TAPS
        ours |= {
            f"fpn_l{level}": image(features),
            f"s0_anchors_l{level}": anchors,
            f"s0_feat_l{level}": image(seen["coarse"][level]),
            f"s0_reg_l{level}": as_map(coarse_deltas, *size),
            f"s1_anchors_l{level}": boxes[0],
            f"s1_offset_l{level}": offsets.transpose(1, 0, 2).reshape(-1, 18),
            f"s1_feat_l{level}": image(seen["fine"][level]),
            f"s1_cls_l{level}": as_map(logits, *size),
            f"s1_reg_l{level}": as_map(deltas, *size),
        }
    found = seen["found"]
    rescaled = dataclasses.replace(found, boxes=found.boxes / case["scale_factor"])  # to pixels of the stored picture
    labels = found.labels[0][found.valid[0]]
    return ours | {
        "proposals": rows(seen["proposals"]),
        "proposals_train_cfg": rows(seen["train_proposals"]),
        "fixed_roi_feats": np.moveaxis(seen["pooled"][0], -1, 1),
        "fixed_comp_feats": seen["compressed"][0],
        "fixed_weighted_feats": np.moveaxis(seen["weighted"][0], -1, 1),
        "fixed_cls": seen["of_fixed"].logits[0],
        "fixed_reg": seen["of_fixed"].deltas[0].reshape(len(case["fixed_rois"]), -1),
        "prop_cls": seen["predictions"].logits[0],
        "prop_reg": seen["predictions"].deltas[0].reshape(len(case["proposals"]), -1),
        "det": rows(found),
        "det_labels": labels,
        "det_rescaled": rows(rescaled),
        "det_rescaled_labels": labels,
    }


def thinned(name: str, array: np.ndarray) -> np.ndarray:
    """The part of a map that the file of the full network holds under NAME_ch16."""
    channels, cells = {"c2": (16, 2), "c3": (32, 2), "c4": (64, 1), "c5": (128, 1)}.get(name, (16, 1))
    cells = 4 if name in ("fpn_l0", "fpn_l1") else cells
    return array[::channels, ::cells, ::cells]


# weights, network, and the file whose `_rounding.json` tells the tolerances
CASES = {
    "model_random_eval_256x320": ("random", "reduced", "model_random_eval_256x320"),
    "model_random_eval_416x416": ("random", "reduced", "model_random_eval_416x416"),
    "model_trained_eval_256x320": ("trained", "reduced", "model_trained_eval_256x320"),
    # without figures of its own; its maps are as large as those of the random reduced network
    "full_r50_eval_256x320": ("formula", "full", "model_random_eval_256x320"),
}


@pytest.mark.parametrize("name", CASES)
def test_everything_agrees_with_the_released_code(name):
    weights, model, rounding = CASES[name]
    case, rounding = official.arrays(name), official.numbers(f"{rounding}_rounding")
    ours = observations(case, weights, model)
    expected = {k: v for k, v in case.items() if k not in INPUTS and not k.startswith(INPUT_PREFIXES)}
    assert len(expected) >= 30
    for key, theirs in expected.items():
        base = key.removesuffix("_ch16")
        array = ours[base] if base == key else thinned(base, ours[base])
        assert array.shape == theirs.shape, key
        np.testing.assert_allclose(array, theirs, rtol=0, atol=10 * rounding[base], err_msg=key)
