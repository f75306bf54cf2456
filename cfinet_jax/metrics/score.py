"""Compute AP and AR of detections under a protocol."""

import numpy as np

from cfinet_jax.metrics import visdrone_toolkit
from cfinet_jax.metrics.curves import classes, curves
from cfinet_jax.metrics.protocols import Protocol
from cfinet_jax.metrics.results import Columns


def score(ground_truth: dict, detections: list[dict] | Columns, protocol: Protocol) -> dict:
    """Score detections against COCO ground truth.

    Annotations of a category called "ignore" or "ignored regions" are regions of every class if the protocol has
    crowds, and are left out if it has none (SODA's "wo_ignore" files).

    Args:
      ground_truth: COCO's dict, boxes x y w h and, for oriented protocols, `rbox` cx cy w h angle.
      detections: COCO results, a list or its columns.
      protocol: the rules, of `protocols.PROTOCOLS`.

    Returns:
      fractions, ready for JSON and None where there is no object: `protocol`, `AP`, the protocol's `marks` (`AP50`,
      `AP75`), `AP_<size>`, `AP50_<size>`, `AR<limit>`, `AR_<size>`; `boxes`, the number of objects in each range;
      `per_class`, name -> `AP`, `AP50`, `boxes` in the headline range and `precision50`, the precision at IoU 0.5 and
      recall 0:.01:1.

    Raises:
      UserError: an image or category is unknown, or a box or score is not finite.
    """
    measure = visdrone_toolkit.curves if protocol.toolkit else curves
    of_classes, recall, boxes, *pictures = measure(ground_truth, detections, protocol)
    precision = of_classes = of_classes[..., protocol.limits.index(protocol.precision_limit)]
    if pictures:  # a class counts once for every picture that shows it
        precision, recall = precision.repeat(pictures[0], axis=2), recall.repeat(pictures[0], axis=1)
    ranges = {name: index for index, name in enumerate(protocol.ranges)}
    headline, half = ranges[protocol.headline], protocol.marks["AP50"]
    return {
        "protocol": protocol.name,
        "AP": _mean(precision[..., headline]),
        **{name: _mean(precision[index, ..., headline]) for name, index in protocol.marks.items()},
        **{f"AP_{size}": _mean(precision[..., ranges[size]]) for size in protocol.sizes},
        **{f"AP50_{size}": _mean(precision[half, ..., ranges[size]]) for size in protocol.sizes},
        **{f"AR{limit}": _mean(recall[:, :, headline, i]) for i, limit in enumerate(protocol.limits)},
        **{f"AR_{size}": _mean(recall[:, :, ranges[size], -1]) for size in protocol.sizes},
        "boxes": {name: int(boxes[:, index].sum()) for name, index in ranges.items()},
        "per_class": {
            category["name"]: {
                "AP": _mean(of_classes[:, :, k, headline]),
                "AP50": _mean(of_classes[half, :, k, headline]),
                "boxes": int(boxes[k, headline]),
                "precision50": _rounded(of_classes[half, :, k, headline]),
            }
            for k, category in enumerate(classes(ground_truth))
        },
    }


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the defined values, None if there is none."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _rounded(precision: np.ndarray) -> list[float] | None:
    """Round to four digits, enough to draw."""
    return None if (precision < 0).any() else precision.round(4).tolist()
