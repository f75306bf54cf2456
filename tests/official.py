"""The networks of the golden files: their settings, and the released code's weights as our variables."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cfinet_jax import pretrained
from cfinet_jax.models.detector import Detector, build_detector
from cfinet_jax.pretrained.names import translate
from cfinet_jax.pretrained.weight_files import WeightFile
from cfinet_jax.structures import Batch
from cfinet_jax.train_step import empty_batch
from configs.sodad import get_config

GOLDEN = Path(__file__).parent / "golden"
CLASSES = 9
MEAN, STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))
PARTS = {
    "proposal_network/coarse_conv": "rpn_head.stages.0.rpn_conv.conv",
    "proposal_network/coarse_box": "rpn_head.stages.0.rpn_reg",
    "proposal_network/fine_conv": "rpn_head.stages.1.rpn_conv.conv",
    "proposal_network/fine_objectness": "rpn_head.stages.1.rpn_cls",
    "proposal_network/fine_box": "rpn_head.stages.1.rpn_reg",
    "proposal_network/conv": "rpn_head.rpn_conv",
    "proposal_network/objectness": "rpn_head.rpn_cls",
    "proposal_network/box": "rpn_head.rpn_reg",
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


def arrays(name: str) -> dict[str, np.ndarray]:
    """Load the arrays of `tests/golden/NAME.npz`."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def numbers(name: str) -> dict:
    """Load `tests/golden/NAME.json`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def released():
    """The section `detector` as the released code behaves, for boxes that take at most 5 samples a bin."""
    settings = get_config("released").detector
    settings.precision = "float32"
    settings.roi_head.max_grid = 5
    return settings


def reduced_settings():
    """The section `detector` of the reduced network."""
    settings = released()
    settings.backbone.width = 8
    settings.neck.channels = settings.proposal_network.coarse_to_fine.channels = 64
    settings.roi_head.hidden = 32
    settings.imitation.update(groups=8, encoder=48, embedding=32)
    return settings


def reduced() -> Detector:
    """The reduced network."""
    return build_detector(reduced_settings(), CLASSES)


def full() -> Detector:
    """The network in full size."""
    return build_detector(released(), CLASSES)


def official_name(path: str) -> str:
    """`backbone/layer1_0/downsample_bn/scale` as the released code calls it."""
    part, leaf = path.rsplit("/", 1)
    if part.startswith("backbone/"):
        name = part.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
        stage, *rest = name.split("/")[1:]
        return ".".join(["backbone", stage.replace("_", "."), *rest, LEAVES[leaf]])
    return f"{PARTS[part]}.{LEAVES[leaf]}"


def official_variables(detector: Detector, weights: dict[str, np.ndarray]) -> dict:
    """The variables of a detector, read from the state of the released code as a user's file is read."""

    def create(key):
        batch = empty_batch(1, (64, 64), 4)
        priorities = detector.draw_priorities(key, batch.index, (64, 64), 4)
        return detector.init(key, batch, detector.empty_memory(), priorities, method="losses")

    published = translate(WeightFile(weights, {}), "golden file")
    shapes = jax.eval_shape(create, jax.random.key(0))
    assert {name: leaf.shape for name, leaf in pretrained.named(shapes).items()} == {
        name: array.shape for name, array in published.arrays.items()
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(published.arrays[pretrained.path_name(path)]), shapes
    )


def layout(detector: Detector, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For every parameter, in the order of our leaves: its official name, and where our numbers stand in its array.

    Found by loading, in place of the weights, the place of each number among all of them.
    """
    ends = np.cumsum([array.size for array in weights.values()])
    places = np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
    places = {name: x.reshape(weights[name].shape) for name, x in zip(weights, places, strict=True)}
    leaves = jax.tree.leaves(official_variables(detector, places)["params"])
    loaded = [np.asarray(leaf).astype(int) for leaf in leaves]
    names = [list(weights)[np.searchsorted(ends, leaf.ravel()[0], side="right")] for leaf in loaded]
    return {name: leaf - places[name].ravel()[0] for name, leaf in zip(names, loaded, strict=True)}


def formula_weights() -> dict[str, np.ndarray]:
    """The weights in full size: all but the output layers follow a formula (`tests/golden/README.md`)."""
    formula, stored = numbers("full_r50_weights_formula"), arrays("full_r50_eval_256x320")
    weights = {}
    for name, entry in formula["entries"].items():
        weights[name] = stored[name] if name in stored else evaluate_formula(formula["salt"] + name, **entry)
    for name, start in stored.items():
        if name.startswith("check/"):
            np.testing.assert_array_equal(weights[name.removeprefix("check/")].ravel()[: len(start)], start)
    return weights


def evaluate_formula(text: str, centre: float, half_width: float, shape: list[int]) -> np.ndarray:
    """Uniform numbers: splitmix64, started by the FNV-1a hash of a text."""
    start = 0xCBF29CE484222325
    for byte in text.encode("ascii"):
        start = ((start ^ byte) * 0x100000001B3) % 2**64
    z = np.uint64(start) + np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(40)).astype(np.float64) / 2**24
    return (centre + half_width * (2 * uniform - 1)).astype(np.float32).reshape(shape)


def normalise(images: np.ndarray) -> np.ndarray:
    """Pixels as the network sees them."""
    return (images - MEAN) / STD


def picture(case: dict[str, np.ndarray]) -> Batch:
    """The picture of an evaluation file as a batch: zero in the padding."""
    height, width = case["img_shape"]
    image = np.zeros(case["img_u8"].shape, np.float32)
    image[:height, :width] = normalise(case["img_u8"][:height, :width])
    batch = empty_batch(1, image.shape[:2], 4)
    return dataclasses.replace(
        batch,
        images=jnp.asarray(image[None]),
        sizes=jnp.asarray(case["img_shape"][None], jnp.float32),
        scales=jnp.asarray(case["scale_factor"][None]),
    )
