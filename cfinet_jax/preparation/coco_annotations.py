"""Check the content of a COCO file with its images: sound entries become records, all others are counted and named."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.records import COLUMNS
from cfinet_jax.metrics.protocols import is_regions
from cfinet_jax.preparation.checked_pictures import Task, check_image, map_images
from cfinet_jax.preparation.coco_boxes import BOXES
from cfinet_jax.preparation.coco_files import is_id
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.oddities import check_content
from cfinet_jax.preparation.places import FOUND, SEVERAL, Places

ANY_CLASS = -1  # label of a region in which objects of every class are ignored
Problems = dict[str, list[str]]  # names of entries by what is wrong with them
Read = TypeVar("Read")


class Split(NamedTuple):
    """The sound part of a split, and an account of the rest."""

    records: list[dict[str, Any]]
    categories: dict[int, str]  # names by id, in the order of the labels
    account: dict[str, Any]
    files: tuple[epath.Path, ...]  # files that describe the split; a folder stands for its label files
    pictures: Callable[[int], bytes] | None = None  # encoded picture of record number N, if the data set is to hold it
    labels: tuple[epath.Path, ...] = ()  # label files of the images, whether they exist or not


def read_splits(found: Mapping[str, Any], read: Callable[[str, Any], Read]) -> dict[str, Read]:
    """Read every split from where it was found; print and leave out a `test` that cannot be used beside others.

    Published and exported data sets often come with a `test` without annotations.

    Raises:
      UserError: another split cannot be used, or `test` is the only one.
    """
    results = {}
    for split, place in found.items():
        try:
            results[split] = read(split, place)
        except UserError as error:
            if split != "test" or len(found) == 1:
                raise
            print(f"The split 'test' cannot be used and is left out: {error}")
    return results


def check_split(
    split: str,
    coco: dict[str, Any],
    path: epath.Path,
    folder: epath.Path,
    journal: Journal,
    labels: Sequence[epath.Path] = (),
    tasks_of: Callable[[list[dict[str, Any]]], Mapping[int, Task]] | None = None,
    boxes: str = "horizontal",
    places: Places | None = None,
) -> Split:
    """Check the content of a COCO file against its images.

    Args:
      split: the name of the split.
      coco: content as `load_coco` returns it.
      path: the file or folder that described the split.
      folder: file names are relative to it.
      journal: what an earlier, interrupted preparation knows of the images.
      labels: label files of the images, where annotations are stored in such.
      tasks_of: returns, given the records, what to do with decoded pictures, by image id.
      boxes: "horizontal" or "oriented".
      places: where images may lie; below `folder` if None.

    Raises:
      UserError: there is no class or no usable image, or `train` has no object.
    """
    names = {category["id"]: category["name"] for category in coco["categories"]}
    categories = {key: names[key] for key in sorted(names) if not is_regions(names[key])}
    if not categories:
        raise UserError(f"annotation file {path} names no class: add at least one")
    class_labels = {key: ANY_CLASS for key in names} | {key: label for label, key in enumerate(categories)}
    problems: Problems = defaultdict(list)
    annotations = group_by_image(coco, problems)
    described = [read_image(image, annotations[image["id"]], class_labels, folder, boxes) for image in coco["images"]]
    images = [each for each, _ in described]
    tasks = tasks_of(images) if tasks_of else {}
    check = partial(check_image, places=places or Places(folder), journal=journal, tasks=tasks)
    found = list(map_images(check, images, f"Checking {split}"))
    records = sound_records(described, found, problems)
    check_content(path, coco, annotations, problems, boxes)
    if not records:
        raise UserError(f"no image of {path} can be used ({summary(problems)}): check the folder {folder}")
    if split == "train" and all(all(each["objects"]["ignore"]) for each in records):
        remedy = f"the labels were looked for in {labels[0]} and so on" if labels else "annotate some"
        raise UserError(
            f"'train' of {path} has no object to learn from ({len(coco['annotations'])} annotations; "
            f"{summary(problems)}): {remedy}"
        )
    account = account_of(records, len(coco["images"]), len(coco["annotations"]), problems)
    return Split(records, categories, account, (path, *{file.parent for file in labels}), labels=tuple(labels))


def sound_records(
    described: list[tuple[dict[str, Any], Problems]], found: list[str | None], problems: Problems
) -> list[dict[str, Any]]:
    """Select the records whose images can be used, and add what is wrong to `problems`.

    `described` are records with the problems of their annotations, `found` the problems of their images.
    """
    uses = Counter(each["path"] for each, _ in described)
    records = []
    for (each, of_objects), problem in zip(described, found, strict=True):
        if problem == FOUND and uses[each["path"]] > 1:  # two names cannot both mean the file that was found
            problem = SEVERAL
        if problem:
            problems[problem].append(each["file_name"])
        if problem in (None, FOUND):
            records.append(each)
            for name, entries in of_objects.items():
                problems[name] += entries
    return records


def account_of(records: list[dict[str, Any]], images: int, annotations: int, problems: Problems) -> dict[str, Any]:
    """Return the account of a split that had so many images and annotations, of which `records` remain."""
    counts = [len(each["objects"]["id"]) for each in records]
    return {
        "images": images,
        "images_kept": len(records),
        "annotations": annotations,
        "annotations_kept": sum(counts),
        "largest_picture": [max(each[side] for each in records) for side in ("height", "width")],
        "most_objects": max(counts),
        "ends": [records[place]["file_name"] for place in (0, -1)],
        "problems": dict(problems),
    }


def group_by_image(coco: dict[str, Any], problems: Problems) -> dict[int, list[dict[str, Any]]]:
    """Group annotations by the id of their image, leaving out those of unknown images."""
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    seen: set[int] = set()
    for entry in coco["annotations"]:
        if not is_id(entry["image_id"]) or entry["image_id"] not in names:
            problems["annotation of an unknown image, skipped"].append(f"annotation {entry.get('id')}")
            continue
        if is_id(entry.get("id")):
            if entry["id"] in seen:
                problems["annotation id repeated, kept"].append(describe(entry, names[entry["image_id"]]))
            seen.add(entry["id"])
        groups[entry["image_id"]].append(entry)
    return groups


def describe(entry: dict[str, Any], file_name: str) -> str:
    """Say where an annotation is found: by its place in a label file, or else by its id."""
    if "label_place" in entry:
        return f"{entry['label_place']} of the labels of {file_name}"
    return f"annotation {entry.get('id')} of {file_name}"


def read_image(
    image: dict[str, Any], entries: Iterable[dict[str, Any]], labels: dict[int, int], folder: epath.Path, boxes: str
) -> tuple[dict[str, Any], Problems]:
    """Convert an image with its annotations to a record; return also what is wrong with the annotations."""
    problems: Problems = defaultdict(list)
    objects: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in entries:
        found = read_object(entry, image, labels, problems, boxes)
        if found:
            # Annotations that differ only in their ids count as one.
            key = (found["bbox"], *found.get("poly", ()), found["label"], found["ignore"], found["iscrowd"])
            if objects.setdefault(key, found) is not found:
                problems["annotation given twice, one kept"].append(describe(entry, image["file_name"]))
    return record(image, folder, [*objects.values()], boxes), problems


def read_object(
    entry: dict[str, Any], image: dict[str, Any], labels: dict[int, int], problems: Problems, boxes: str
) -> dict[str, Any] | None:
    """Convert an annotation to an object of a record; return None if it cannot be used."""
    name = describe(entry, image["file_name"])
    if not is_id(entry.get("category_id")) or entry["category_id"] not in labels:
        problems["annotation of an unknown category, skipped"].append(name)
        return None
    box = BOXES[boxes](entry, image, lambda problem: problems[problem].append(name))
    if box is None:
        return None
    label, number = labels[entry["category_id"]], entry.get("id")
    region = label == ANY_CLASS  # stands for any number of objects, as a crowd does
    return box | {
        "label": label,
        "ignore": region or bool(entry.get("ignore")) or bool(entry.get("iscrowd")),
        "iscrowd": region or bool(entry.get("iscrowd")),
        "id": number if is_id(number) else 0,
    }


def record(
    image: dict[str, Any], folder: epath.Path, objects: list[dict[str, Any]], boxes: str = "horizontal"
) -> dict[str, Any]:
    """Return the record of an image, which refers to its file."""
    return {
        "image": b"",
        "path": str(folder / image["file_name"]),
        "image_id": image["id"],
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "objects": {key: [entry[key] for entry in objects] for key in COLUMNS[boxes]},
    }


def summary(problems: Problems) -> str:
    """List the problems on one line, each with its count and the first names."""
    lines = (
        f"{len(names)} x {problem}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for problem, names in sorted(problems.items())
    )
    return "; ".join(lines) or "no problem found"
