"""Reads data sets whose JSON files are COCO's, or nearly: what differs, and what the files are called."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split, load_coco, read_splits
from cfinet_jax.preparation.coco_layout import SPLITS, find_splits, listed, read_beside
from cfinet_jax.preparation.coco_values import FLAGS
from cfinet_jax.preparation.journal import Journal

UNSURE = ("ignore", "uncertain", "logo", "in_dense_image")  # marks of TinyPerson that make a box none to learn from
HIT_UAV_KEYS = {"filename": "file_name", "annotation": "annotations"}  # keys that COCO calls otherwise


class Layout(NamedTuple):
    """Where a data set has the annotations of a split, and how one of these files is read."""

    annotations: tuple[str, ...]  # the first that is there counts
    read: Callable[[epath.Path], dict[str, Any]] = load_coco
    splits: tuple[str, ...] = SPLITS


def read_layout(layout: Layout, source: epath.Path, journal: Journal) -> dict[str, Split]:
    """The splits of a folder that have an annotation file.

    Raises:
      UserError: there is none, or one that is broken or leaves nothing to use.
    """
    found = find_splits(source, layout.annotations, layout.splits)
    if not found:
        raise UserError(
            f"{source} holds no annotations ({listed(layout.annotations, layout.splits)}): "
            "give --source the folder in which they lie as published"
        )
    return read_splits(found, lambda split, path: read_beside(split, layout.read, path, source, journal))


def read_tiny_person(path: epath.Path) -> dict[str, Any]:
    """TinyPerson's task "all": one class, and only boxes without a mark are objects.

    https://github.com/ucas-vg/PointTinyBenchmark has the rules.
    """
    coco = load_coco(path, flags=(*FLAGS, *UNSURE))
    persons = [category["id"] for category in coco["categories"]]  # in the sea and on land
    annotations = [
        entry
        | {
            "category_id": 1 if entry.get("category_id") in persons else None,
            "ignore": any(entry.get(mark) for mark in UNSURE),
        }
        for entry in coco["annotations"]
    ]
    return coco | {"annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def of_hit_uav(entry: dict[str, Any]) -> dict[str, Any]:
    """A JSON object of HIT-UAV with COCO's keys; its category for what nobody could tell is one of regions.

    Its README speaks of centres, but in the files a box begins with its upper left corner, as in COCO's.
    """
    entry = {HIT_UAV_KEYS.get(key, key): value for key, value in entry.items()}
    return entry | {"name": "ignore"} if entry.get("name") == "DontCare" else entry


AI_TOD_SPLITS = (*SPLITS, "trainval")
LAYOUTS = {
    "ai_tod": Layout(  # as its toolkit names what it makes, and as the finished files are shared
        (
            "annotations/aitod_{split}.json",
            "annotations/aitod_{split}_v1.json",
            "annotations/aitod_{split}_v1_1.0.json",
        ),
        splits=AI_TOD_SPLITS,
    ),
    "ai_tod_v2": Layout(("annotations/aitodv2_{split}.json",), splits=AI_TOD_SPLITS),
    "tiny_person": Layout(
        ("annotations/tiny_set_{split}.json", "annotations/task/tiny_set_{split}_all.json"), read_tiny_person
    ),
    "hit_uav": Layout(
        ("annotations/{split}.json", "annotations/instances_{split}.json"), partial(load_coco, translate=of_hit_uav)
    ),
}
