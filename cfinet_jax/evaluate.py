"""Detect over a prepared split, score, and leave metrics, detections and a report."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import dataset, mesh
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.results import coco_results
from cfinet_jax.metrics.score import score
from cfinet_jax.metrics.table import table
from cfinet_jax.models.detector import Detector, build_detector
from cfinet_jax.progress import Progress
from cfinet_jax.report.write import write_report
from cfinet_jax.run import check_batches, check_values, discover_sizes
from cfinet_jax.run_log import has_learnt, write_settings
from cfinet_jax.structures import Batch, Detections
from cfinet_jax.trained import detection, trained_variables

Detect = Callable[[Any, Batch], Detections]


def make_detect(detector: Detector, settings: ConfigDict, over: Any) -> Detect:
    """The jitted function (variables, batch as shipped) -> detections in stored pixels, over the mesh."""
    specs = (mesh.EVERYWHERE, mesh.BY_IMAGE)
    return mesh.parallel(detection(detector, settings), over, specs, mesh.BY_IMAGE)


def detect_split(
    detect: Detect, variables: Any, prepared: dataset.Prepared, settings: ConfigDict, over: Any
) -> list[dict]:
    """Every detection in a split, in COCO's results format."""
    results = []
    progress = Progress("Detecting", len(prepared))
    for batch in dataset.eval_batches(prepared, settings, settings.eval_batch_size):
        found = jax.device_get(detect(variables, mesh.place_batch(batch, over)))
        for image in np.flatnonzero(batch.valid):
            real = found.valid[image]
            arrays = (found.boxes[image][real], found.scores[image][real], found.labels[image][real])
            results += coco_results(*arrays, int(batch.image_ids[image]), prepared.category_ids)
        progress.advance(int(batch.valid.sum()))
    progress.close()
    return results


def score_split(results: list[dict], prepared: dataset.Prepared, protocol: str) -> dict:
    """The metrics of a split's detections under a protocol of `metrics.protocols`."""
    return score(prepared.coco, results, PROTOCOLS[protocol])


def write_results(
    workdir: epath.Path, metrics: dict, results: list[dict], prepared: dataset.Prepared, config: ConfigDict
) -> None:
    """Leaves `metrics.json`, `detections.json` and `metrics.md` in the workdir, then the report made of them."""
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1))
    (workdir / "detections.json").write_text(json.dumps(results))
    (workdir / "metrics.md").write_text(table(metrics))
    write_report(workdir, metrics, results, prepared, config)


def evaluate(config: ConfigDict, workdir: epath.Path) -> dict:
    """Scores what `trained_variables` finds on `dataset.eval_split` and writes the results into the workdir."""
    over = mesh.make_mesh()
    config = discover_sizes(config, workdir)
    check_values(config)
    check_batches(config, over.size)
    prepared = dataset.open_dataset(config.dataset, config.dataset.eval_split)
    detector = build_detector(config.detector, len(prepared.classes))
    variables = mesh.replicate(trained_variables(config, detector, prepared.classes, workdir), over)
    if not has_learnt(workdir):  # a published detector, and perhaps another one before it
        write_settings(config, workdir, prepared.classes, prepared.category_ids)
    results = detect_split(make_detect(detector, config.dataset, over), variables, prepared, config.dataset, over)
    metrics = score_split(results, prepared, config.evaluation.protocol)
    write_results(workdir, metrics, results, prepared, config)
    print(table(metrics))
    return metrics
