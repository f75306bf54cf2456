"""Reads SODA-A as it is downloaded: a JSON file per image, with the corners of every object."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import ENDINGS, files_in, upright_size
from cfinet_jax.preparation.coco_annotations import Split, check_split, summary
from cfinet_jax.preparation.coco_layout import SPLITS
from cfinet_jax.preparation.coco_values import convert, load_json
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.label_files import by_label_file
from cfinet_jax.preparation.sodad import strays
from cfinet_jax.preparation.sodad_account import compare, count_objects, histogram, table
from cfinet_jax.runtime.paths import matching

PLACES = ("", "rawData")  # below the source; the authors' tools call them so
IMAGES = ("Images/{split}", "Images")  # the first that is there counts
KNOWN = {"images": 2_513, "objects": 872_069}  # the paper


def read_sodaa(source: epath.Path, journal: Journal) -> dict[str, Split]:
    """The splits of a folder; what was read, and how it compares with the data set as published, is printed.

    Raises:
      UserError: there is none, a file is no annotation file, or a split leaves nothing to use.
    """
    splits: dict[str, Split] = {}
    listed: dict[epath.Path, set[str]] = {}  # by folder
    for place in PLACES:
        for split in SPLITS:
            annotations = source / place / "Annotations" / split
            files = sorted(matching(annotations, "*.json"))
            if not files:
                continue
            if split in splits:
                raise UserError(f"both {splits[split].files[0]} and {annotations} describe '{split}': move one of them")
            folders = [source / place / images.format(split=split) for images in IMAGES]
            folder = next((each for each in folders if each.is_dir()), folders[-1])
            coco = coco_of(files, folder)
            splits[split] = check_split(split, coco, annotations, folder, journal, files, boxes="oriented")
            listed.setdefault(folder, set()).update(str(folder / image["file_name"]) for image in coco["images"])
    if not splits:
        raise UserError(f"{source} holds no Annotations/SPLIT/NAME.json (SPLIT is {', '.join(SPLITS)})")
    print(report(splits))
    print(f"Pictures in the folders: {summary(strays(listed))}")
    return splits


def coco_of(files: list[epath.Path], folder: epath.Path) -> dict[str, list[dict[str, Any]]]:
    """The content of a COCO file, from those of images that lie in a folder, perhaps in folders of it."""
    found = (path for path in files_in(folder) if path.suffix.lower() in ENDINGS)
    pictures = by_label_file(found, lambda path: files[0].parent / f"{path.stem}.json")
    described, annotations, names = [], [], {}
    for image_id, file in enumerate(files, start=1):
        content = read_file(file)
        for category in content.get("categories", ()):
            if names.setdefault(category["id"], category["name"]) != category["name"]:
                raise UserError(f"{file} calls the category {category['id']} otherwise than the files before it")
        picture = pictures.get(file, folder / f"{file.stem}.jpg")
        height, width = upright_size(picture) or (0, 0)  # the check names one that cannot be read, and drops it
        name = str(picture.relative_to(folder))
        described.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for number, entry in enumerate(content["annotations"], start=1):
            named = {"image_id": image_id, "id": len(annotations) + 1, "label_entry": number}
            annotations.append(entry | named)
    categories = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": described, "annotations": annotations, "categories": categories}


def read_file(path: epath.Path) -> dict[str, Any]:
    """The annotation file of an image, checked as a whole."""
    content = load_json(path)
    needed = {"annotations": {}, "categories": {"id": int, "name": str}}  # keys of the entries, and their types
    for key, kinds in needed.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"annotation file {path} is not SODA-A's: it has no list '{key}' of objects")
        for entry in entries:
            convert(path, entry)
            if not all(isinstance(entry.get(name), kind) for name, kind in kinds.items()):
                raise UserError(f"annotation file {path} is not SODA-A's: every one of '{key}' needs {sorted(kinds)}")
    return content


def report(splits: Mapping[str, Split]) -> str:
    """Splits, their objects by class and size, and how the sums compare with `KNOWN`."""
    lines, found = [], dict.fromkeys(KNOWN, 0)
    for split, content in splits.items():
        counts = count_objects(content)
        images, objects = len(content.records), counts.sum()
        regions = content.account["annotations_kept"] - objects
        lines.append(f"{split}: {images:,} images, {objects:,} objects, {regions:,} regions")
        lines += [*table(list(content.categories.values()), counts), "", *histogram(counts.sum(axis=0)), ""]
        found["images"] += images
        found["objects"] += objects
    return "\n".join([*lines, *(compare(name, found[name], known, "SODA-A") for name, known in KNOWN.items())])
