"""Translate the parameter names and array layouts of other projects into ours."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cfinet_jax.errors import UserError
from cfinet_jax.pretrained.weight_files import WeightFile

# How ImageNet's weights and mmdetection's models expect their pictures: R G B, minus MEAN, divided by STD.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PICTURES = {"mean": MEAN, "std": STD}

# mmdetection's layers; those of `backbone` have torchvision's names.
LAYERS: dict[str, str | Callable[[re.Match], str]] = {
    r"backbone\.layer(\d)\.(\d+)\.downsample\.0": r"backbone/layer\1_\2/downsample_conv",
    r"backbone\.layer(\d)\.(\d+)\.downsample\.1": r"backbone/layer\1_\2/downsample_bn",
    r"backbone\.layer(\d)\.(\d+)\.(conv\d|bn\d)": r"backbone/layer\1_\2/\3",
    r"backbone\.(conv1|bn1)": r"backbone/\1",
    r"neck\.lateral_convs\.(\d)\.conv": lambda m: f"neck/lateral{int(m[1]) + 2}",
    r"neck\.fpn_convs\.(\d)\.conv": lambda m: f"neck/output{int(m[1]) + 2}",
    r"rpn_head\.stages\.0\.rpn_conv\.conv": "proposal_network/coarse_conv",
    r"rpn_head\.stages\.0\.rpn_reg": "proposal_network/coarse_box",
    r"rpn_head\.stages\.1\.rpn_conv\.conv": "proposal_network/fine_conv",
    r"rpn_head\.stages\.1\.rpn_cls": "proposal_network/fine_objectness",
    r"rpn_head\.stages\.1\.rpn_reg": "proposal_network/fine_box",
    r"rpn_head\.rpn_conv": "proposal_network/conv",
    r"rpn_head\.rpn_cls": "proposal_network/objectness",
    r"rpn_head\.rpn_reg": "proposal_network/box",
    r"roi_head\.bbox_head\.shared_fcs\.(\d)": lambda m: f"roi_head/hidden{int(m[1]) + 1}",
    r"roi_head\.bbox_head\.fc_cls": "roi_head/classify",
    r"roi_head\.bbox_head\.fc_reg": "roi_head/regress",
    r"roi_head\.comp_convs\.(\d)\.conv": r"imitation/compressions_\1",
    r"roi_head\.comp_convs\.(\d)\.gn": r"imitation/compressions_\1/norm",
    r"roi_head\.fc_enc\.(\d)": lambda m: f"imitation/encode{int(m[1]) + 1}",
    r"roi_head\.fc_proj": "imitation/project",
}
NORM = re.compile(r"/(bn\d|downsample_bn|norm)$")
UNUSED = {  # arrays that are left out, and why
    r".*num_batches_tracked": "a counter of training",
    r"(backbone\.)?fc\.(weight|bias)": "ImageNet's classes",
    r"ema_.*": "raw weights stored with the averaged ones",
}
POOL_SIZE = 7  # cells per side of a pooled region, in every published model
STEM = "params/backbone/conv1/kernel"


class Published(NamedTuple):
    """Weights under our names: `params/...` and `batch_stats/...`."""

    arrays: dict[str, np.ndarray]
    left_out: dict[str, str]  # name in the file -> reason
    kind: str  # the project that named them
    stride_style: str | None  # None if the file does not say
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] = MEAN  # of the pictures
    std: tuple[float, ...] = STD


def translate(file: WeightFile, source: str) -> Published:
    """Return the weights of a file under our names, for R G B pictures normalised by MEAN and STD.

    A file of ours keeps the normalisation in its metadata. `source` is the file's path or URL, for messages.

    Raises:
      UserError: the names follow no known scheme.
    """
    arrays = {name.removeprefix("module."): array for name, array in file.arrays.items()}
    if any(name.startswith("params/") for name in arrays):
        return Published(arrays, {}, "cfinet_jax", file.facts.get("stride_style"), **own_facts(file, source))
    if "conv1/kernel" in arrays:
        return of_keras(arrays)
    if "conv1.weight" in arrays:
        if not arrays.get("bn1.running_mean", np.ones(1)).any():
            raise UserError(
                f"{source} has torchvision's names but empty batch-norm statistics, as converted caffe-style files "
                "have, so that the normalisation it needs is unknown. Give torchvision's or Keras' own file."
            )
        prefixed = {f"backbone.{name}": array for name, array in arrays.items()}
        return of_torch(prefixed, {})._replace(kind="torchvision", stride_style="pytorch")
    if "backbone.conv1.weight" in arrays:
        return of_torch(arrays, file.facts)
    first = ", ".join(sorted(arrays)[:3]) or "none"
    raise UserError(
        f"{source} has unknown names ({first}): give a ResNet with torchvision's, timm's or Keras' names, a detector "
        "with mmdetection's, or a file of this project."
    )


def own_facts(file: WeightFile, source: str) -> dict[str, Any]:
    """Return classes, mean and std from the metadata of a file of ours, as far as it has them."""
    try:
        facts = {key: tuple(json.loads(file.facts[key])) for key in ("classes", *PICTURES) if key in file.facts}
        if not all(isinstance(x, str if key == "classes" else int | float) for key in facts for x in facts[key]):
            raise TypeError("neither names nor numbers")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{source} has damaged metadata: export it again.") from error
    return {"classes": None} | facts


def of_keras(arrays: dict[str, np.ndarray]) -> Published:
    """Translate Keras' ResNet: kernels HWIO, caffe style, for B G R pictures that are not divided by a deviation."""
    found = {}
    for name, array in arrays.items():
        kind = "batch_stats" if name.endswith(("/mean", "/var")) else "params"
        found[f"{kind}/backbone/{name.replace('.', '_')}"] = np.asarray(array, np.float32)  # from layer1.0/bn1/mean
    found[STEM] = to_rgb(found[STEM], reverse=True, std=(1.0, 1.0, 1.0))
    return Published(found, {}, "Keras", "caffe", None)


def of_torch(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Published:
    """Translate torch's layouts: kernels OIHW, matrices [outputs, inputs], regions flattened as channel, row, column.

    `facts` are mmdetection's metadata: the classes and the text of the config.
    """
    found, left_out = {}, {}
    for name, array in arrays.items():
        reason = next((why for pattern, why in UNUSED.items() if re.fullmatch(pattern, name)), None)
        if reason is not None:
            left_out[name] = reason
            continue
        ours = our_name(name)
        found[ours or name] = our_layout(ours, array) if ours else array  # an unknown name is reported later
    text = next((x for x in map(facts.get, ("config", "cfg")) if x and isinstance(x, str)), "")
    reverse = "False" in (last(r"\bto_rgb\s*=\s*(\w+)", text), last(r"bgr_to_rgb\s*=\s*(\w+)", text))
    mean, std = (numbers(last(rf"\b{key}\s*=\s*\[([^]]*)\]", text), other, reverse) for key, other in PICTURES.items())
    found[STEM] = to_rgb(found[STEM], reverse, std)
    classes = facts.get("CLASSES")
    if classes is None and isinstance(facts.get("dataset_meta"), dict):
        classes = facts["dataset_meta"].get("classes")
    classes = tuple(x for x in classes if isinstance(x, str)) if isinstance(classes, tuple | list) else None
    return Published(found, left_out, "mmdetection", last(r"\bstyle\s*=\s*['\"](\w+)", text), classes, mean)


def last(pattern: str, text: str) -> str | None:
    """Return the last match of a pattern in a config's text: later settings override inherited ones."""
    return (re.findall(pattern, text) or [None])[-1]


def numbers(text: str | None, default: tuple[float, ...], reverse: bool) -> tuple[float, ...]:
    """Parse three numbers as R, G, B; the text has them as B, G, R if `reverse`. Return the default if it has none."""
    try:
        found = tuple(float(x) for x in (text or "").split(","))
    except ValueError:
        return default
    return found[::-1] if reverse else found


def our_name(name: str) -> str | None:
    """Translate `backbone.layer1.0.bn1.running_mean` to `batch_stats/backbone/layer1_0/bn1/mean`; None if unknown."""
    layer, _, leaf = name.rpartition(".")
    ours = next((re.sub(pattern, to, layer) for pattern, to in LAYERS.items() if re.fullmatch(pattern, layer)), None)
    if ours is None or leaf not in ("weight", "bias", "running_mean", "running_var"):
        return None
    if leaf.startswith("running_"):
        return f"batch_stats/{ours}/{leaf.removeprefix('running_')}"
    if leaf == "weight":
        leaf = "scale" if NORM.search(ours) else "kernel"
    return f"params/{ours}/{leaf}"


def our_layout(ours: str, array: np.ndarray) -> np.ndarray:
    """Convert an array from torch's layout to that of our parameter `ours`, in float32."""
    array = np.asarray(array, np.float32)
    if ours == "params/roi_head/hidden1/kernel" and array.ndim == 2 and array.shape[1] % POOL_SIZE**2 == 0:
        outputs = len(array)  # the regions are flattened as row, column, channel here
        return array.reshape(outputs, -1, POOL_SIZE, POOL_SIZE).transpose(2, 3, 1, 0).reshape(-1, outputs)
    return np.ascontiguousarray(array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))))


def to_rgb(kernel: np.ndarray, reverse: bool, std: tuple[float, ...]) -> np.ndarray:
    """Adapt the first kernel [7, 7, 3, outputs] to R G B pictures divided by STD.

    It was trained on pictures divided by `std` (R G B), in the order B G R if `reverse`.
    """
    if kernel.ndim != 4 or kernel.shape[2] != 3 or len(std) != 3:
        return kernel  # fits no model, which is reported later
    kernel = kernel[:, :, ::-1] if reverse else kernel
    return kernel if std == STD else kernel * (np.asarray(STD, np.float32) / np.asarray(std, np.float32))[:, None]
