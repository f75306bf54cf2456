"""Checks of an annotation file, and of a data set, as a whole: every entry may be sound and the whole still wrong."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.origin import LABELS
from cfinet_jax.metrics.protocols import class_key, is_regions
from cfinet_jax.metrics.units import MIN_BOXES, suspect_units, tell_areas, tell_reach
from cfinet_jax.preparation.coco_boxes import are_numbers, is_number

MOST = 0.5  # share of the boxes; sound files do not have so many skipped or below a pixel
BOX_PROBLEMS = ("box", "oriented box", "polygon is not")  # how problems of a single box begin
CLIPPED = "clipped"  # how the problem of a box that is cut ends; tiles of larger images cut many
TURNED = "image with an EXIF orientation, turned upright: check that its boxes are drawn on the upright image"
Groups = Mapping[int, Sequence[dict[str, Any]]]  # annotations by the id of their image


def check_content(
    path: epath.Path, coco: dict[str, Any], groups: Groups, problems: Mapping[str, list[str]], boxes: str
) -> None:
    """Refuse the content of a COCO file that nothing sensible can be learnt from.

    Raises:
      UserError: classes share a name, an image is listed twice, or classes or boxes follow another convention.
    """
    names = {entry["id"]: class_key(entry["name"]) for entry in coco["categories"]}
    used = [entry.get("category_id") for group in groups.values() for entry in group]
    check_classes(path, names, {key for key in used if isinstance(key, int)})
    uses = Counter(epath.Path(image["file_name"].replace("://", "/")).as_posix() for image in coco["images"])
    repeated = [name for name, count in uses.items() if count > 1]
    if repeated:
        raise UserError(
            f"{path} lists {len(repeated)} of {len(uses)} images several times ({repeated[0]} "
            f"{uses[repeated[0]]} times): give each image one entry, which all its annotations refer to"
        )
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    pairs = ((entry, sizes[key]) for key, group in groups.items() for entry in group)
    upright = [pair for pair in pairs if boxes == "horizontal" and are_numbers(pair[0].get("bbox"), 4)]
    suspicion = suspect_boxes(path, [(entry["bbox"], size) for entry, size in upright])
    kinds = (each for each in problems if each.startswith(BOX_PROBLEMS) and not each.endswith(CLIPPED))
    bad = [(problem, name) for problem in kinds for name in problems[problem]]
    if suspicion is None and len(bad) >= max(MIN_BOXES, MOST * len(used)):
        suspicion = f"those of other images ({len(bad)} of {len(used)}, for example {bad[0][1]}: {bad[0][0]})"
    if suspicion:
        raise UserError(f"the boxes of {path} look like {suspicion}: convert them, or correct the image sizes")
    tell_areas(path, [entry for entry, _ in upright if is_number(entry.get("area")) and entry["area"] > 0])


def check_classes(path: epath.Path, names: Mapping[int, str], numbers: set[int]) -> None:
    """Refuse classes that share a name or have none, and annotations that number them from 1, not 0, or vice versa.

    Regions to ignore may have several categories.
    """
    classes = {key: name for key, name in sorted(names.items()) if not is_regions(name)}
    for name, count in Counter(classes.values()).items():
        if count > 1:
            same = " and ".join(str(key) for key in classes if classes[key] == name)
            raise UserError(f"{path} gives the name '{name}' to the classes {same}: rename them, or merge them")
        if not name:
            raise UserError(f"{path} has a class without a name: name it")
    # Shifted numbers use the id beyond one end of the classes and never the id at the other end.
    for beyond, opposite in ((max(classes) + 1, min(classes)), (min(classes) - 1, max(classes))):
        shifted = beyond >= 0 and beyond not in names and numbers <= {*names, beyond}
        if shifted and beyond in numbers and opposite not in numbers:
            raise UserError(
                f"{path} numbers its classes {min(classes)} to {max(classes)}, but the annotations use {min(numbers)} "
                f"to {max(numbers)}: number them alike (YOLO begins at 0)"
            )


def suspect_boxes(path: epath.Path, boxes: list[tuple[Any, tuple[float, float]]]) -> str | None:
    """Return what boxes seem to hold instead of x y width height in pixels, given each with its image's size.

    Print a line if they may be of smaller images.
    """
    if len(boxes) < MIN_BOXES:
        return None
    values, sizes = (np.array(each, float) for each in zip(*boxes, strict=True))
    tell_reach(path, values, sizes)
    tiny = ((values[:, 2:] > 0) & (values[:, 2:] < 1)).any(axis=1)
    return suspect_units(values, sizes) or ("sides below a pixel" if np.mean(tiny) > MOST else None)


def compare_splits(splits: Mapping[str, Any], seen: Mapping[str, tuple[str, int]]) -> None:
    """Add to the accounts of the splits what is odd about them together.

    `seen` maps the path of every image that was read to the hash of its content and its EXIF orientation.
    """
    owners: dict[str, str] = {}  # the first split that has an image, by its content
    for split, content in splits.items():
        problems = content.account["problems"]
        if all(all(record["objects"]["ignore"]) for record in content.records):
            problems["split without an object to score"] = [split]
        for record in content.records:
            content_hash, orientation = seen.get(record["path"], (record["path"], 1))
            if owner := owners.get(content_hash):
                problem = "image given twice, kept" if owner == split else f"image that is also in '{owner}', kept"
                problems.setdefault(problem, []).append(record["file_name"])
            owners.setdefault(content_hash, split)
            if orientation != 1 and record["objects"]["id"]:
                problems.setdefault(TURNED, []).append(record["file_name"])
    known = {str(file) for content in splits.values() for file in (*content.labels, *content.files)}
    for content in splits.values():
        if strays := [*stray_labels(content.labels, known)]:
            content.account["problems"]["label file that belongs to no image, skipped"] = [file.name for file in strays]
            known |= {str(file) for file in strays}  # splits may share a folder


def stray_labels(labels: Sequence[epath.Path], known: set[str]) -> Iterable[epath.Path]:
    """Find unknown label files in the folders of the known ones."""
    for folder in sorted({file.parent for file in labels}):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            ours = file.suffix in LABELS and file.name != "classes.txt"  # which labelling tools write
            # Labels in another format may be stored with those that are read, or instead of them.
            others = file.suffix not in LABELS and file.suffix.lower() in (*LABELS, ".xml")
            if (ours or (others and not file.with_suffix(LABELS[0]).exists())) and str(file) not in known:
                yield file
