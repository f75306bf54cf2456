"""Detect over a prepared split, score, and leave metrics, detections and a report."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import dataset, mesh
from cfinet_jax.batches import Windows, eval_batches, windows_of
from cfinet_jax.merging import Found, merge
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
    detect: Detect, variables: Any, prepared: dataset.Prepared, config: ConfigDict, over: Any
) -> list[dict]:
    """Every detection in a split, in COCO's results format; those in windows are merged, picture by picture."""
    windows = windows_of(prepared, config.dataset, training=False)
    found = detect_windows(detect, variables, prepared, windows, config.dataset, over)
    results = []
    for image_id, group in itertools.groupby(zip(windows.origins, found, strict=True), lambda pair: pair[1][0]):
        seen = list(group)
        parts = [part for _, (_, part) in seen]
        if config.dataset.window_overlap is None:
            (whole,) = parts
        else:
            whole = merge(parts, np.stack([origin for origin, _ in seen]), config.prediction.merge_overlap)
        results += coco_results(whole.boxes, whole.scores, whole.labels, image_id, prepared.category_ids)
    return results


def detect_windows(
    detect: Detect, variables: Any, prepared: dataset.Prepared, windows: Windows, settings: ConfigDict, over: Any
) -> Iterator[tuple[int, Found]]:
    """Image id and detections of every window, in order; boxes in pixels of the window."""
    unit = "images" if settings.window_overlap is None else "windows"
    progress = Progress("Detecting", len(windows.owners), unit=unit)
    for batch in eval_batches(prepared, windows, settings, settings.eval_batch_size):
        found = jax.device_get(detect(variables, mesh.place_batch(batch, over)))
        for image in np.flatnonzero(batch.valid):
            real = found.valid[image]
            arrays = (found.boxes[image][real], found.scores[image][real], found.labels[image][real])
            yield int(batch.image_ids[image]), Found(*arrays)
        progress.advance(int(batch.valid.sum()))
    progress.close()


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
    results = detect_split(make_detect(detector, config.dataset, over), variables, prepared, config, over)
    metrics = score_split(results, prepared, config.evaluation.protocol)
    write_results(workdir, metrics, results, prepared, config)
    print(table(metrics))
    return metrics
