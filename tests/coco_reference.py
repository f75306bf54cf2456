"""Compute precision and recall with pycocotools as the released code uses it, to compare scores with."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cfinet_jax.metrics.protocols import Protocol


class Evaluation(COCOeval):
    """COCO's matching with the rules of a protocol; ignored boxes need not be crowds."""

    def __init__(self, ground_truth: dict, detections: list[dict], protocol: Protocol):
        regions = [any(entry.get(flag) for flag in protocol.region_flags) for entry in ground_truth["annotations"]]
        crowds = [region and protocol.regions_are_crowds for region in regions]
        annotations = [
            {**entry, "iscrowd": int(crowd), "region": region}
            for entry, crowd, region in zip(ground_truth["annotations"], crowds, regions, strict=True)
        ]
        results = [{**entry, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0} for entry in detections]
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(*(_index(ground_truth, entries) for entries in (annotations, results)), "bbox")
        self.params.iouThrs = np.array(protocol.overlaps)
        self.params.areaRng = list(protocol.ranges.values())
        self.params.areaRngLbl = list(protocol.ranges)
        self.params.maxDets = list(protocol.limits)

    def _prepare(self):
        super()._prepare()  # overwrites `ignore` by `iscrowd`
        for annotation in self.cocoGt.dataset["annotations"]:
            annotation["ignore"] = annotation["region"]


def _index(ground_truth: dict, entries: list[dict]) -> COCO:
    coco = COCO()
    numbered = [{**entry, "id": number} for number, entry in enumerate(entries, start=1)]  # it takes 0 for "unmatched"
    coco.dataset = {**ground_truth, "annotations": numbered}
    coco.createIndex()
    return coco


def curves(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Return precision [overlap, recall, class, range, limit] and recall [overlap, class, range, limit]."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]
