"""Read published data sets with JSON files in COCO's format, or nearly: their file names and their deviations."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split, read_splits
from cfinet_jax.preparation.coco_files import FLAGS, load_coco
from cfinet_jax.preparation.coco_layout import SPLITS, find_splits, listed, read_beside
from cfinet_jax.preparation.journal import Journal

UNSURE = ("ignore", "uncertain", "logo", "in_dense_image")  # marks of TinyPerson: such boxes are ignored
HIT_UAV_KEYS = {"filename": "file_name", "annotation": "annotations"}  # keys with another name in COCO


class Layout(NamedTuple):
    """File names of a data set's annotations, and the function that parses one."""

    annotations: tuple[str, ...]  # the first that exists counts
    load: Callable[[epath.Path], dict[str, Any]] = load_coco
    splits: tuple[str, ...] = SPLITS


def read_layout(layout: Layout, source: epath.Path, journal: Journal) -> dict[str, Split]:
    """Read the splits of a folder that have an annotation file.

    Raises:
      UserError: no split has one, or a file is broken or has nothing that can be used.
    """
    found = find_splits(source, layout.annotations, layout.splits)
    if not found:
        raise UserError(
            f"{source} holds no annotations ({listed(layout.annotations, layout.splits)}): "
            "give --source the folder in which they lie as published"
        )
    return read_splits(found, partial(read_beside, layout.load, source, journal, "horizontal"))


def load_tiny_person(path: epath.Path) -> dict[str, Any]:
    """Load TinyPerson's task "all": one class, and boxes with a mark are ignored.

    The rules are those of https://github.com/ucas-vg/PointTinyBenchmark.
    """
    coco = load_coco(path, flags=(*FLAGS, *UNSURE))
    persons = [category["id"] for category in coco["categories"]]  # in the sea and on land
    for entry in coco["annotations"]:
        entry["category_id"] = 1 if entry.get("category_id") in persons else None
        entry["ignore"] = any(entry.get(mark) for mark in UNSURE)
    return coco | {"categories": [{"id": 1, "name": "person"}]}


def translate_hit_uav(entry: dict[str, Any]) -> dict[str, Any]:
    """Rename the keys of a JSON object of HIT-UAV to COCO's; its category "DontCare" becomes one of regions.

    Its README speaks of centres, but a box in the files begins with its upper left corner, as COCO's does.
    """
    entry = {HIT_UAV_KEYS.get(key, key): value for key, value in entry.items()}
    return entry | {"name": "ignore"} if entry.get("name") == "DontCare" else entry


AI_TOD_SPLITS = (*SPLITS, "trainval")
AI_TOD = tuple(  # the names that its toolkit gives, and those under which the finished files are shared
    f"annotations/aitod_{{split}}{ending}.json" for ending in ("", "_v1", "_v1_1.0")
)
LAYOUTS = {
    "ai_tod": Layout(AI_TOD, splits=AI_TOD_SPLITS),
    "ai_tod_v2": Layout(("annotations/aitodv2_{split}.json",), splits=AI_TOD_SPLITS),
    "tiny_person": Layout(
        ("annotations/tiny_set_{split}.json", "annotations/task/tiny_set_{split}_all.json"), load_tiny_person
    ),
    "hit_uav": Layout(
        ("annotations/{split}.json", "annotations/instances_{split}.json"),
        partial(load_coco, translate=translate_hit_uav),
    ),
}
