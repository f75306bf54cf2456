"""Reads a COCO JSON file with its images: what is sound becomes records, everything else is counted and named."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import decode_bgr, deep_values, extremes, orientation_of
from cfinet_jax.input.records import COLUMNS
from cfinet_jax.metrics.protocols import is_regions
from cfinet_jax.preparation.coco_boxes import BOXES
from cfinet_jax.preparation.coco_values import FLAGS, convert, load_json
from cfinet_jax.preparation.journal import Journal, Trait, state_of
from cfinet_jax.preparation.oddities import check_content
from cfinet_jax.preparation.places import FOUND, SEVERAL, Places
from cfinet_jax.preparation.threads import map_images
from cfinet_jax.runtime import files, json_values

ANY_CLASS = -1  # label of a region in which objects of every class are to be ignored
LIMIT = 2**31  # of ids, which are read as 32 bits
NEEDED: dict[str, dict[str, Any]] = {  # keys and their types
    "images": {"id": object, "file_name": str, "height": int | float, "width": int | float},
    "annotations": {"image_id": object},
    "categories": {"id": object, "name": str},
}
Task = Callable[[np.ndarray], Any]  # what is made of a decoded picture, B G R, as the journal is to know it
Read = TypeVar("Read")


class Split(NamedTuple):
    """The sound part of an annotation file, and an account of the rest."""

    records: list[dict[str, Any]]
    categories: dict[int, str]  # in the order of the labels
    account: dict[str, Any]
    files: tuple[epath.Path, ...]  # that describe it; a folder stands for the label files in it
    pictures: Callable[[int], bytes] | None = None  # of the record at an index, which then holds it, and has no path
    labels: tuple[epath.Path, ...] = ()  # label files of the images, whether they exist or not


def read_splits(found: Mapping[str, Any], read: Callable[[str, Any], Read]) -> dict[str, Read]:
    """Read what was found of every split; a `test` that cannot be used is printed and left out beside others.

    Raises:
      UserError: another split cannot be used, or there is no other.
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


def no_tasks(images: list[dict[str, Any]]) -> dict[int, Task]:
    """Nothing is made of decoded pictures."""
    return {}


def check_split(
    split: str,
    coco: dict[str, Any],
    path: epath.Path,
    folder: epath.Path,
    journal: Journal,
    label_files: Sequence[epath.Path] = (),
    tasks_of: Callable[[list[dict[str, Any]]], Mapping[int, Task]] = no_tasks,
    boxes: str = "horizontal",
    places: Places | None = None,
) -> Split:
    """Check the content of a COCO file against the images in `folder`.

    `path` is where it was described, `label_files` those of the images where the objects stand in such. `tasks_of` says
    what to make of the decoded pictures of records, by image id; `boxes` what they are, a row of `BOXES`. Images are
    read below `places`, or `folder` if not given.

    Raises:
      UserError: there is no class, or nothing is left to use; in `train`, no object.
    """
    names = {category["id"]: category["name"] for category in coco["categories"]}
    categories = {key: names[key] for key in sorted(names) if not is_regions(names[key])}
    if not categories:
        raise UserError(f"annotation file {path} names no class: add at least one")
    labels = {key: ANY_CLASS for key in names} | {key: label for label, key in enumerate(categories)}
    problems: dict[str, list[str]] = defaultdict(list)
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    annotations = group_by_image(coco["annotations"], names, problems)

    described = [read_image(image, annotations[image["id"]], labels, folder, boxes) for image in coco["images"]]
    images = [each for each, _ in described]
    look = partial(check_image, places=places or Places(folder), journal=journal, tasks=tasks_of(images))
    found = list(map_images(look, images, f"Checking {split}"))
    named = Counter(each["path"] for each in images)
    records = []
    for (each, of_objects), problem in zip(described, found, strict=True):
        if problem == FOUND and named[each["path"]] > 1:
            problem = SEVERAL
        if problem:
            problems[problem].append(each["file_name"])
        if problem not in (None, FOUND):
            continue
        for name, entries in of_objects.items():
            problems[name] += entries
        records.append(each)
    check_content(path, coco, annotations, problems, boxes)
    if not records:
        raise UserError(f"no image of {path} can be used ({summary(problems)}): check the folder {folder}")
    if split == "train" and all(all(each["objects"]["ignore"]) for each in records):
        remedy = f"the labels were looked for in {label_files[0]} and so on" if label_files else "annotate some"
        raise UserError(
            f"'train' of {path} has no object to learn from ({len(coco['annotations'])} annotations; "
            f"{summary(problems)}): {remedy}"
        )
    account = {
        "images": len(coco["images"]),
        "images_kept": len(records),
        "annotations": len(coco["annotations"]),
        "annotations_kept": sum(len(each["objects"]["id"]) for each in records),
        "largest_picture": [max(each[side] for each in records) for side in ("height", "width")],
        "most_objects": max(len(each["objects"]["id"]) for each in records),
        "problems": dict(problems),
    }
    files = (path, *{file.parent for file in label_files})
    return Split(records, categories, account, files, labels=tuple(label_files))


def load_coco(
    path: epath.Path,
    translate: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    flags: Sequence[str] = FLAGS,
) -> dict[str, Any]:
    """Parse a COCO JSON file, check what concerns it as a whole, and convert numbers and `flags` that stand as text.

    `translate` turns every JSON object, the inner ones first, into COCO's where a file names things otherwise.
    """
    coco = load_json(path, translate)
    for key, needed in NEEDED.items():
        entries = coco.get(key) if isinstance(coco, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"annotation file {path} is not COCO: it has no list '{key}'")
        for entry in entries:
            if not isinstance(entry, dict) or not needed.keys() <= entry.keys():
                raise UserError(f"annotation file {path} is not COCO: every one of '{key}' needs {sorted(needed)}")
            convert(path, entry, flags)
            for name, kind in needed.items():
                if not isinstance(entry[name], kind):
                    raise UserError(
                        f"annotation file {path} is not COCO: '{name}' is {json_values.shown(entry[name])} in '{key}'"
                    )
        if key != "annotations":
            check_ids(path, key, [entry["id"] for entry in entries])
    return coco


def check_ids(path: epath.Path, key: str, ids: list[Any]) -> None:
    if not all(is_id(each) for each in ids):
        raise UserError(f"annotation file {path} is not COCO: the ids of '{key}' must be whole numbers below 2^31")
    repeated, times = max(Counter(ids).items(), key=lambda pair: pair[1], default=(None, 0))
    if times > 1:
        raise UserError(f"annotation file {path} gives the id {repeated} to several of '{key}': make ids unique")


def group_by_image(
    entries: Iterable[dict[str, Any]], files: dict[int, str], problems: dict[str, list[str]]
) -> dict[int, list[dict[str, Any]]]:
    """Annotations by the image they belong to; those of unknown images are left out."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    seen: set[Any] = set()
    for entry in entries:
        if not is_id(entry["image_id"]) or entry["image_id"] not in files:
            problems["annotation of an unknown image, skipped"].append(f"annotation {entry.get('id')}")
            continue
        if is_id(entry.get("id")):
            if entry["id"] in seen:
                problems["annotation id repeated, kept"].append(describe(entry, files[entry["image_id"]]))
            seen.add(entry["id"])
        groups[entry["image_id"]].append(entry)
    return groups


def describe(entry: dict[str, Any], file_name: str) -> str:
    if "label_line" in entry:  # of a label file, whose lines have no ids of their own
        return f"line {entry['label_line']} of the labels of {file_name}"
    if "label_entry" in entry:  # of an image's own file
        return f"annotation {entry['label_entry']} of the labels of {file_name}"
    return f"annotation {entry.get('id')} of {file_name}"


def check_image(image: dict[str, Any], places: Places, journal: Journal, tasks: Mapping[int, Task]) -> str | None:
    """Find the image of a record and return why it cannot be used, `FOUND` or None."""
    path, odd = places.find(epath.Path(image["path"]))
    if odd in (None, FOUND):
        image["path"] = str(path)
        return image_problem(image, journal, tasks) or odd
    return odd


def image_problem(image: dict[str, Any], journal: Journal, tasks: Mapping[int, Task]) -> str | None:
    """Why the image of a record cannot be used, or None; what is to be made of a sound picture is made.

    A picture that the journal knows is decoded only if that is still to be made.
    """
    path, stated = epath.Path(image["path"]), (image["height"], image["width"])
    task = tasks.get(image["image_id"])
    try:
        image["path"].encode()
        state = state_of(path)
        made = task is None or isinstance(journal.made.get(state), list)
        known = state in journal.sizes and (made or journal.sizes[state] != stated)
        encoded = b"" if known else files.read_bytes(path)
    except UnicodeEncodeError:  # a record keeps the path as UTF-8
        return "image whose name is not UTF-8, skipped"
    except PermissionError:
        return "image closed to this user, skipped"
    except (OSError, ValueError):  # a ValueError: no file can have this name
        return "image broken or cut short, skipped"
    if not known:
        picture = decode(encoded)
        size, made = None, None
        if picture is not None:
            size, deep = picture.shape[:2], picture.dtype != np.uint8
            made = {"greys": extremes(picture)} if deep else None
            if task and size == stated:
                if deep:
                    raise UserError(f"{path} has more than 8 bits a value, and windows have 8: leave out --windows")
                made = task(picture)
        journal.note(state, size, made, trait_of(encoded))
    if journal.sizes[state] is None:
        return "image broken or cut short, skipped"
    if journal.sizes[state] == stated[::-1] != stated:
        return "image with height and width swapped (turned by its EXIF orientation?), skipped"
    return None if journal.sizes[state] == stated else "image of another size than stated, skipped"


def trait_of(encoded: bytes) -> Trait:
    """The hash of an image file and its EXIF orientation, 1 where it has none."""
    return hashlib.blake2b(encoded, digest_size=16).hexdigest(), orientation_of(encoded)


def decode(encoded: bytes) -> np.ndarray | None:
    """A picture, B G R or the values of one of more than 8 bits; None if it is none."""
    try:
        values = deep_values(encoded, "")
        return decode_bgr(encoded, "") if values is None else values
    except UserError:
        return None


def read_image(
    image: dict[str, Any], entries: Iterable[dict[str, Any]], labels: dict[int, int], folder: epath.Path, boxes: str
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """An image with its annotations as a record, and what is wrong with these."""
    problems: dict[str, list[str]] = defaultdict(list)
    objects: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in entries:
        found = read_object(entry, image, labels, problems, boxes)
        if found:
            # Two annotations are the same if they differ in nothing but their ids.
            key = (found["bbox"], *found.get("poly", ()), found["label"], found["ignore"], found["iscrowd"])
            if objects.setdefault(key, found) is not found:
                problems["annotation given twice, one kept"].append(describe(entry, image["file_name"]))
    return record(image, folder, [*objects.values()], boxes), problems


def read_object(
    entry: dict[str, Any], image: dict[str, Any], labels: dict[int, int], problems: dict[str, list[str]], boxes: str
) -> dict[str, Any] | None:
    """An annotation as an object of a record, or None if it cannot be used."""
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


def is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < LIMIT


def record(
    image: dict[str, Any], folder: epath.Path, objects: list[dict[str, Any]], boxes: str = "horizontal"
) -> dict[str, Any]:
    """An image as a record that refers to its file."""
    return {
        "image": b"",
        "path": str(folder / image["file_name"]),
        "image_id": image["id"],
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "objects": {key: [entry[key] for entry in objects] for key in COLUMNS[boxes]},
    }


def summary(problems: dict[str, list[str]]) -> str:
    """The problems in one line, each with its number and the first names."""
    lines = (
        f"{len(names)} x {problem}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for problem, names in sorted(problems.items())
    )
    return "; ".join(lines) or "no problem found"
