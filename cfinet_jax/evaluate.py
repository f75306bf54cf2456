"""Detect in a prepared split, score the detections, and write metrics, detections and a report."""

import itertools
import json
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.build import check_batches, check_boxes, discover
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.input.batches import eval_batches, windows_of
from cfinet_jax.metrics.dota_files import write_task1
from cfinet_jax.metrics.merging import in_image, merge, stitch
from cfinet_jax.metrics.proposal_scores import LIMITS, OBJECT, Tally, summarise, tally_proposals
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.results import Columns, Found, columns_of_image, joined, write_coco
from cfinet_jax.metrics.score import score
from cfinet_jax.metrics.score_table import table
from cfinet_jax.models.detector import Detector, build_detector
from cfinet_jax.report.write import write_report
from cfinet_jax.restore import Detect, detection, trained_variables
from cfinet_jax.runtime import mesh, processes
from cfinet_jax.runtime.files import reading
from cfinet_jax.runtime.paths import in_bucket
from cfinet_jax.runtime.progress import Progress
from cfinet_jax.runtime.settings import has_learnt, read_settings, write_settings

UNFINISHED = "results.unfinished"  # a folder in the workdir
EVALUATED = "evaluated.json"  # says which data the results in the workdir are computed on


def make_detect(detector: Detector, settings: ConfigDict, over: Any) -> Detect:
    """Return the jitted function (variables, batch as shipped) -> detections and proposals in stored pixels.

    Its batch is spread over the devices of the mesh `over`; `settings` is the section `dataset`.
    """
    specs = (mesh.EVERYWHERE, mesh.BY_IMAGE)
    return mesh.parallel(detection(detector, settings), over, specs, mesh.BY_IMAGE)


def detect_split(
    detect: Detect, variables: Any, prepared: dataset.Prepared, config: ConfigDict, over: Any
) -> tuple[Columns, Columns | None]:
    """Return all detections in a split, and the best proposals if `evaluation.proposals` is set.

    The results of windows are combined picture by picture. Detections are merged by NMS. Proposals are not: their
    network has already applied NMS per level, and every box that it kept is scored.
    """
    cut = config.dataset.window_overlap is not None
    category_ids = np.array(prepared.category_ids)
    results, proposals = [], []
    seen = detect_windows(detect, variables, prepared, config.dataset, over)
    for image_id, windows in itertools.groupby(seen, itemgetter(0)):
        _, places, found, proposed = zip(*windows, strict=True)
        origins = np.stack(places)
        whole = merge(found, origins, config.prediction.merge_overlap) if cut else found[0]
        results.append(columns_of_image(whole.boxes, whole.scores, category_ids[whole.labels], image_id))
        if config.evaluation.proposals:
            best = stitch(proposed, origins, config.dataset.stored_size) if cut else proposed[0]
            boxes, scores = best.boxes[: LIMITS[-1]], best.scores[: LIMITS[-1]]
            proposals.append(columns_of_image(boxes, scores, np.full(len(scores), OBJECT), image_id))
    return joined(results), joined(proposals) if proposals else None


def detect_windows(
    detect: Detect, variables: Any, prepared: dataset.Prepared, settings: ConfigDict, over: Any
) -> Iterator[tuple[int, np.ndarray, Found, Found]]:
    """Yield image id, origin (row, column), detections and proposals of every window of a split, in order.

    Boxes are in pixels of the window. Every process yields all windows, whichever process looked at them.
    """
    windows = windows_of(prepared, settings, training=False)
    origins = iter(windows.origins)
    unit = "images" if settings.window_overlap is None else "windows"
    progress = Progress("Detecting", len(windows.owners), unit=unit)
    here, count = jax.process_index(), jax.process_count()
    for own in eval_batches(prepared, windows, settings, settings.eval_batch_size, here, count):
        batch = mesh.place_batch(own, over)
        seen = detect(variables, batch), (batch.index, batch.valid, batch.image_ids)
        (found, proposed), (index, valid, image_ids) = processes.gather(seen)
        order = np.argsort(index)
        for image in order[valid[order]]:
            yield int(image_ids[image]), next(origins), in_image(found, image), in_image(proposed, image)
        progress.advance(int(valid.sum()))
    progress.close()


class Scored(NamedTuple):
    """The metrics of a split, and the detections and counts of proposals that they are computed from."""

    metrics: dict
    results: Columns
    tally: Tally | None  # None if proposals are not scored


def score_split(results: Columns, proposals: Columns | None, prepared: dataset.Prepared, protocol: str) -> Scored:
    """Score detections under a protocol of `metrics.protocols`; `proposals` adds the metrics of that name."""
    rules = PROTOCOLS[protocol]
    metrics = score(prepared.coco, results, rules)
    if proposals is None:
        return Scored(metrics, results, None)
    tally = tally_proposals(prepared.coco, proposals, rules)
    return Scored(metrics | {"proposals": summarise(tally, rules)}, results, tally)


def write_results(workdir: epath.Path, scored: Scored, prepared: dataset.Prepared, config: ConfigDict) -> None:
    """Write `metrics.json`, `detections.json`, `metrics.md` and the report to the workdir.

    They replace those of an earlier evaluation once all of them are written, except in a bucket, which cannot rename
    folders. `proposals.npz` holds the tally of every image, from which `--mode=ablate` computes intervals. Oriented
    detections are also written as DOTA's files, to `dota`.
    """
    metrics, results, tally = scored
    (workdir / UNFINISHED).rmtree(missing_ok=True)  # of an interrupted evaluation
    folder = workdir if in_bucket(workdir) else workdir / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    (folder / EVALUATED).write_text(json.dumps(evaluated(prepared, config)))
    write_coco(results, folder / "detections.json")
    if tally is not None:
        with (folder / "proposals.npz").open("wb") as file:
            np.savez_compressed(file, **tally._asdict())
    if prepared.boxes == "oriented":
        names = {image["id"]: epath.Path(image["file_name"]).stem for image in prepared.coco["images"]}
        classes = dict(zip(prepared.category_ids, prepared.classes, strict=True))
        write_task1(results, names, classes, folder / "dota")
    (folder / "metrics.md").write_text(table(metrics))
    write_report(folder, metrics, results, prepared, config, workdir)
    if folder != workdir:
        for path in folder.iterdir():
            if path.is_dir():
                (workdir / path.name).rmtree(missing_ok=True)
            path.replace(workdir / path.name)
        folder.rmdir()


def evaluated(prepared: dataset.Prepared, config: ConfigDict) -> dict[str, Any]:
    """Return the data set, split and number of images that results are computed on."""
    return {"data set": config.dataset.name, "split": config.dataset.eval_split, "images": len(prepared)}


def check_replaceable(workdir: epath.Path, now: dict[str, Any]) -> None:
    """Refuse to replace results of another data set or split. Results without a record count as the run's own."""
    facts = read_settings(workdir)
    if not (workdir / "metrics.json").exists() or facts is None:
        return
    before = {"data set": facts["config"]["dataset"]["name"], "split": facts["config"]["dataset"]["eval_split"]}
    if (workdir / EVALUATED).exists():
        with reading(workdir / EVALUATED, "move it and metrics.json elsewhere.") as path:
            record = json.loads(path.read_text())
            before = {key: record[key] for key in now}
    if any(before[key] != now[key] for key in before):
        held, new = (", ".join(f"{key} {each[key]}" for key in before) for each in (before, now))
        raise UserError(
            f"{workdir} holds results of other data ({held}; now {new}): move its metrics.json elsewhere; the "
            "remaining results are then overwritten."
        )


def evaluate(config: ConfigDict, workdir: epath.Path) -> dict:
    """Evaluate the detector of a workdir on `dataset.eval_split`; write the results there and return the metrics.

    The detector is that of the newest checkpoint, or the published one that the config names.

    Raises:
      UserError: there is no detector, it does not fit the data, or the workdir holds results of other data.
    """
    over = mesh.make_mesh()
    config = discover(config, workdir)
    check_batches(config, over.size)
    prepared = dataset.open_dataset(config.dataset, config.dataset.eval_split)
    check_boxes(config.dataset, prepared)
    check_replaceable(workdir, evaluated(prepared, config))
    detector = build_detector(config.detector, len(prepared.classes))
    variables = mesh.replicate(trained_variables(config, detector, prepared.classes, workdir), over)
    if not has_learnt(workdir):  # a published detector, which may differ from that of an earlier evaluation
        facts = prepared.classes, prepared.category_ids
        processes.by_the_first(lambda: write_settings(config, workdir, *facts))
    if not in_bucket(workdir):  # fails before the work if the workdir is not writable
        processes.by_the_first(lambda: (workdir / UNFINISHED).mkdir(parents=True, exist_ok=True))
    results, proposals = detect_split(make_detect(detector, config.dataset, over), variables, prepared, config, over)
    scored = score_split(results, proposals, prepared, config.evaluation.protocol)
    processes.by_the_first(lambda: write_results(workdir, scored, prepared, config))
    print(table(scored.metrics))
    return scored.metrics
